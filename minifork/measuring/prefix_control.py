"""Prefix control: what a model does after a forced first token, such as a mode or an opener."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from minifork.decoding.automata import Tables
from minifork.decoding.split import split
from minifork.decoding.traces import TraceTree
from minifork.measuring.problems import ProblemSet

SEED = 0
Parting = tuple[np.ndarray, np.ndarray]  # int64[n, F] and int64[n, 2], see `data_gen.openers.partings`


def responses(
    tree: TraceTree, problems: ProblemSet, partings: Mapping[str, Parting], rollouts: int
) -> dict[str, dict[str, np.ndarray]]:
    """The values float64[n] of every problem, by the name of the forced first token and by quantity.

    tree: the traces of a model on the problems. The quantities are "tokens" (`tokens_until_eos`), "tokens beyond the
    shortest" right trace, and "P(mode)" for every mode in partings (`mode_probability`).
    """
    by_token = {}
    for name, token in problems.task.first_tokens.items():
        forced = torch.full((len(tree), 1), token, device=tree.device)
        tokens = tokens_until_eos(tree.force(forced), problems.task.eos, rollouts)
        by_token[name] = {"tokens": tokens, "tokens beyond the shortest": tokens - problems.shortest_trace(name)}
        by_token[name] |= {f"P({mode})": mode_probability(tree, token, place) for mode, place in partings.items()}
    return by_token


@torch.no_grad()
def mode_probability(tree: TraceTree, first_token: int, parting: Parting) -> np.ndarray:
    """float64[n]: the probability that a trace with this first token is in a mode rather than in FWD, where both part.

    It is P(second) / (P(first) + P(second)) of the parting's two next tokens after its prefix, by the model's own
    logits, without a policy.
    """
    prefix, pair = (torch.from_numpy(array).to(tree.device) for array in parting)
    first = torch.full_like(pair[:, :1], first_token)
    _, logits = tree.force(torch.cat([first, prefix], dim=1)).after_forced()
    return torch.softmax(logits.gather(1, pair).double(), dim=1)[:, 1].cpu().numpy()


def tokens_until_eos(tree: TraceTree, eos: int, rollouts: int) -> np.ndarray:
    """float64[n]: the mean number of tokens that a model writes until it ends a trace itself, right or wrong.

    Forced tokens and EOS count. Traces are cut at the tree's ``max_new``. The mean is over ``rollouts`` samples a
    problem. The "tokens" of a record are fewer: there a wrong trace ends at its first wrong token.
    """
    ends = torch.arange(3, device=tree.device)[:, None].repeat(len(tree), 1, tree.dfa.shape[2])
    ends[:, 0, eos] = 1
    return split(replace(tree, automata=Tables(ends, 2)), rollouts, SEED).tokens.sum(axis=1)
