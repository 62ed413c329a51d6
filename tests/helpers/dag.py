"""A toy with several forks and several valid paths: walk through a layered graph from its start to its goal."""

import numpy as np
import torch

from minifork.decoding.automata import Tables
from minifork.decoding.traces import TraceTree
from minifork.settings import Shape

PROMPT, OUTCOMES = 4, 3  # accept, wrong, too long


def dag_automata(problems: int, layers: int, width: int, density: float, seed: int) -> torch.Tensor:
    """One DFA a problem, int64[B, S, V]: ``layers`` layers of ``width`` nodes between a start and a goal.

    Token j moves to node j of the next layer if that edge exists (each with probability ``density``), token
    ``width`` ends the trace and is right in the last layer only; every other move is wrong.
    """
    rng = np.random.default_rng(seed)
    states = 1 + layers * width
    accept, wrong = states, states + 1
    table = np.full((problems, states + OUTCOMES, width + 1), wrong)
    for source in range(1 + (layers - 1) * width):
        target = 1 + -(-source // width) * width + np.arange(width)
        table[:, source, :width] = np.where(rng.random((problems, width)) < density, target, wrong)
    table[:, 1 + (layers - 1) * width : states, width] = accept
    table[:, states:] = np.arange(states, states + OUTCOMES)[:, None]
    return torch.from_numpy(table)


@torch.no_grad()
def dag_tree(make_model, problems=20, layers=4, width=3, density=0.8, seed=0, scale=0.3, **options):
    """The tree of a random model on random layered graphs, and its prompts int64[B, PROMPT]."""
    dfa = dag_automata(problems, layers, width, density, seed)
    model = make_model(seed, Shape(1, 16, 2), width + 1, PROMPT + layers + 1, scale)
    prompt = torch.from_numpy(np.random.default_rng(seed + 1).integers(width + 1, size=(problems, PROMPT)))
    return TraceTree(model, model.prefill(prompt), Tables(dfa, OUTCOMES), layers + 1, **options), prompt


@torch.no_grad()
def by_hand(tree: TraceTree, prompt: list[int], problem: int) -> np.ndarray:
    """Sink probabilities float64[outcomes] of one problem of any tree, one prefix at a time on the training path."""
    totals = np.zeros(tree.outcome_count)

    def walk(prefix: list[int], state: int, mass: float) -> None:
        logits = tree.policy(tree.model(torch.tensor([prompt + prefix]))[0, -1])
        for token, p in enumerate(torch.softmax(logits.double(), dim=0).tolist()):
            after = int(tree.dfa[problem, state, token])
            if after >= tree.first_outcome:
                totals[after - tree.first_outcome] += mass * p
            elif len(prefix) + 1 == tree.max_new:
                totals[-1] += mass * p
            elif p > 0:
                walk([*prefix, token], after, mass * p)

    walk([], 0, 1.0)
    return totals
