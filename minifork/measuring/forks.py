"""What a model does at every fork on the way, and how many different right paths its samples reach."""

import numpy as np
import torch
from torch import Tensor

from data_gen.accepted import accepted_traces
from data_gen.task import PAD, Batch, hashed
from data_gen.verifier import DFA
from minifork.decoding.exact import token_probabilities
from minifork.decoding.traces import TraceTree
from minifork.measuring.problems import ProblemSet, branch_shares, mean_over_integers
from minifork.statistics import passk

MOST_TRACES = 256  # right traces of a problem that are listed


@torch.no_grad()
def branches_by_fork(tree: TraceTree, problems: ProblemSet, batch: Batch) -> list[np.ndarray]:
    """The model's probability of each branch at every fork, float64[m, d] each, the right branch first.

    tree: the traces of a model on the problems; batch: these problems as the task has them. The traces up to a fork are
    forced, along a right path in FWD (`data_gen.task.Task.decision_points`). Probabilities are the model's own, without
    a policy, renormalised over the branches. The m problems in which one branch is right are used.
    """
    by_fork = []
    for prefix, children, right in problems.task.decision_points(batch):
        _, logits = tree.force(_rows(prefix, problems)).after_forced()
        p = branch_shares(problems, logits, _rows(children, problems))
        by_fork.append(p[right.sum(axis=1) == 1])
    return by_fork


def _rows(array: np.ndarray, problems: ProblemSet) -> Tensor:
    """An array [n, ...] as a tensor with a row for every prompt."""
    return torch.from_numpy(np.repeat(array, problems.integers, axis=0)).to(problems.prompts.device)


def path_probabilities(tree: TraceTree, problems: ProblemSet) -> np.ndarray:
    """The probability float64[n, R] that a sampled trace writes each right path of a problem, 0 in unused places.

    A path is the set of labels that a right trace writes. So traces of one path in several modes count together. Each
    row sums to p. Raises ValueError naming a problem that has more than MOST_TRACES right traces.
    """
    automata = DFA(tree.dfa.cpu().numpy(), problems.outcome_names)
    traces = accepted_traces(automata, tree.max_new, MOST_TRACES)
    p = np.stack([trace_probability(tree, traces[:, place]) for place in range(traces.shape[1])], axis=1)
    labels = (traces[..., None] == np.arange(problems.task.label_count)).any(axis=2)
    path = hashed(labels.reshape(-1, labels.shape[2])).reshape(p.shape)
    first = (path[:, :, None] == path[:, None]).argmax(axis=2)  # the first trace that writes the same path
    sums = np.zeros_like(p)
    np.add.at(sums, (np.arange(len(p))[:, None], first), p)
    return mean_over_integers(problems, sums)


@torch.no_grad()
def trace_probability(tree: TraceTree, traces: np.ndarray) -> np.ndarray:
    """The probability float64[n] of one trace int64[n, T] a problem under the tree's policy; 0 for a row of PAD.

    Forced tokens of the tree have the probability 1.
    """
    tokens, present = (torch.from_numpy(array).to(tree.device) for array in (traces.clip(min=0), traces != PAD))
    _, before, last = tree.force(tokens[:, :-1]).through_forced()
    token_p = token_probabilities(tree, tokens, [*before, last]).where(present, 1.0)
    token_p[:, : tree.forced_len] = (tokens[:, : tree.forced_len] == tree.forced).double()
    return (present[:, 0] * token_p.cumprod(dim=1)[:, -1]).cpu().numpy()


def distinct_paths(p: np.ndarray, k: int) -> np.ndarray:
    """The expected number of different right paths among k samples, float64[n], from p float64[n, R] of each path."""
    return passk.problem_pass_at_k(p, k).sum(axis=1)
