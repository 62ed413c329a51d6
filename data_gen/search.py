"""SEARCH, the third mode of `data_gen.star`: try a branch, go BACK at its dead end, try the next.

The small analogue of a reasoning model that backtracks: a wrong choice at the fork costs tokens, not the
answer. On the problem in `data_gen.star`'s docstring (right branch 2 -> 3 -> 4, decoy 2 -> 1 -> 7) both

    SEARCH 2 3 4 EOS              the right branch first
    SEARCH 2 1 7 BACK 3 4 EOS     the decoy first; BACK leads to the start, which is not written again

are right. Fine-tuning traces visit the branches in a random order that nothing printed tells.
"""

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from data_gen.task import PAD

if TYPE_CHECKING:
    from data_gen.star import Problems, Star

MOST_BRANCHES = 5  # the automaton has states for every set of branches visited


def traces(star: "Star", problems: "Problems", order: np.ndarray) -> np.ndarray:
    """Traces after the mode token, int64[n, trace_len - 1], that visit branches in the ``order`` int64[n, d].

    Without a fork the right branch is the only one.
    """
    n, steps = len(problems), star.length - 1
    order = np.where(problems.forked[:, None], order, 0)
    walk = _visits(star, problems.labels, order)
    visited = np.argmax(order == 0, axis=1) + 1
    kept = np.arange(walk.shape[1]) < (visited * (steps + 1) - 1)[:, None]
    out = np.full((n, star.trace_len - 1), PAD, dtype=np.int64)
    out[:, 0] = problems.labels[:, 0]
    out[:, 1 : 1 + walk.shape[1]] = np.where(kept, walk, PAD)
    out[np.arange(n), visited * (steps + 1)] = star.eos
    return out


def walks(star: "Star", labels: np.ndarray, stop: float, rng: np.random.Generator, count: int) -> np.ndarray:
    """Random SEARCH walks from the start, int64[n, count, trace_len - 2], PAD past their end.

    Branches come in random order. A walk stops before a node with probability ``stop``, and at the end of a
    branch, which may be the goal or not, with probability 1/2.
    """
    shape = (len(labels), count)
    order = np.argsort(rng.random((*shape, star.branches)), axis=2)
    visits = _visits(star, labels, order)
    chance = np.where(visits == star.back, 0.5, stop)
    walking = np.cumprod(rng.random(visits.shape) >= chance, axis=2).astype(bool)
    start = np.broadcast_to(labels[:, :1, None], (*shape, 1))
    return np.concatenate([start, np.where(walking, visits, PAD)], axis=2)


def _visits(star: "Star", labels: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The nodes of all branches in the given order [..., d], BACK between branches, int64[..., d * l - 1]."""
    steps = star.length - 1
    canonical = 1 + order[..., None] * steps + np.arange(steps)
    rows = np.arange(len(labels)).reshape(-1, *[1] * (canonical.ndim - 1))
    back = np.full((*order.shape, 1), star.back)
    flat = (*order.shape[:-1], star.branches * star.length)
    return np.concatenate([labels[rows, canonical], back], axis=-1).reshape(flat)[..., :-1]


def states(star: "Star") -> int:
    """How many live states SEARCH takes in a problem's automaton."""
    return 1 + len(_visited(star)) * (1 + star.edges)


def _visited(star: "Star") -> list[frozenset[int]]:
    """Which decoys a trace may have visited when it stands at the start."""
    decoys = range(1, star.branches)
    return [frozenset(c) for size in range(star.branches) for c in combinations(decoys, size)]


def add_states(table: np.ndarray, base: int, star: "Star", problems: "Problems", sinks: tuple[str, ...]) -> None:
    """Write the states base, base + 1, ... into the table [n, S, V] of `data_gen.verifier`.

    First the start is due; then, for each set of visited decoys, come the start itself and every node of every
    branch. Any unvisited branch may be next, and every dead end must be followed by BACK.
    """
    rows, labels, steps = np.arange(len(problems)), problems.labels, star.length - 1
    live = table.shape[1] - len(sinks)
    sink = {name: live + i for i, name in enumerate(sinks)}
    at_start = {visited: base + 1 + i * (1 + star.edges) for i, visited in enumerate(_visited(star))}
    table[:, 0, star.search] = base
    table[:, base, star.eos] = sink["early_stop"]
    table[rows, base, labels[:, 0]] = at_start[frozenset()]
    for visited, start in at_start.items():
        table[:, start, : star.nodes] = sink["invalid_edge"]
        table[:, start, star.eos] = sink["early_stop"]
        for branch in range(star.branches):
            first = start + 1 + branch * steps
            node = 1 + branch * steps
            if branch in visited:
                table[rows, start, labels[:, node]] = sink["wrong_branch"]
                continue
            may = problems.forked | (branch == 0)
            table[rows, start, labels[:, node]] = np.where(may, first, sink["invalid_edge"])
            for step in range(steps):
                state = first + step
                table[:, state, : star.nodes] = sink["invalid_edge"]
                table[:, state, star.eos] = sink["early_stop"]
                if step < steps - 1:
                    table[rows, state, labels[:, node + step + 1]] = state + 1
                elif branch == 0:
                    table[:, state, : star.nodes] = sink["too_long"]
                    table[:, state, star.back] = sink["too_long"]
                    table[:, state, star.eos] = sink["accept"]
                else:
                    table[:, state, star.eos] = sink["wrong_branch"]
                    table[:, state, star.back] = at_start[visited | {branch}]
