"""SEARCH, the third mode of `data_gen.star`: try a branch, go BACK at its dead end, try the next.

The small analogue of a reasoning model that backtracks: a wrong choice at the fork costs tokens, not the
answer. On the problem in `data_gen.star`'s docstring (right branch 2 -> 3 -> 4, decoy 2 -> 1 -> 7) both

    SEARCH 2 3 4 EOS              the right branch first
    SEARCH 2 1 7 BACK 3 4 EOS     the decoy first; BACK leads to the start, which is not written again

are right. Fine-tuning traces visit the branches in a random order that nothing printed tells.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from data_gen.task import PAD

MOST_BRANCHES = 5  # the automaton has states for every set of branches visited


@dataclass(frozen=True)
class Search:
    """SEARCH on stars of d branches of l nodes, with node labels below ``nodes`` and three special tokens.

    labels: int64[n, > d (l - 1)], the token of every canonical node; forked: bool[n], as in `data_gen.star.Problems`.
    """

    nodes: int
    branches: int
    length: int
    mode: int
    back: int
    eos: int

    def traces(self, labels: np.ndarray, forked: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Traces after the mode token, int64[n, 1 + d l], that visit branches in the ``order`` int64[n, d].

        Without a fork the right branch is the only one.
        """
        order = np.where(forked[:, None], order, 0)
        visits = self._visits(labels, order)
        visited = np.argmax(order == 0, axis=1) + 1
        end = visited * self.length
        out = np.concatenate([labels[:, :1], visits, np.full((len(labels), 1), PAD)], axis=1)
        out[np.arange(out.shape[1]) > end[:, None]] = PAD
        out[np.arange(len(labels)), end] = self.eos
        return out

    def walks(self, labels: np.ndarray, stop: float, rng: np.random.Generator, count: int) -> np.ndarray:
        """Random SEARCH walks from the start, int64[n, count, d l], PAD past their end.

        Branches come in random order. A walk stops before a node with probability ``stop``, and at the end of a
        branch, which may be the goal or not, with probability 1/2.
        """
        shape = (len(labels), count)
        order = np.argsort(rng.random((*shape, self.branches)), axis=2)
        visits = self._visits(labels, order)
        chance = np.where(visits == self.back, 0.5, stop)
        walking = np.cumprod(rng.random(visits.shape) >= chance, axis=2).astype(bool)
        start = np.broadcast_to(labels[:, :1, None], (*shape, 1))
        return np.concatenate([start, np.where(walking, visits, PAD)], axis=2)

    def _visits(self, labels: np.ndarray, order: np.ndarray) -> np.ndarray:
        """The nodes of all branches in the given order [..., d], BACK between branches, int64[..., d * l - 1]."""
        steps = self.length - 1
        canonical = 1 + order[..., None] * steps + np.arange(steps)
        rows = np.arange(len(labels)).reshape(-1, *[1] * (canonical.ndim - 1))
        back = np.full((*order.shape, 1), self.back)
        flat = (*order.shape[:-1], self.branches * self.length)
        return np.concatenate([labels[rows, canonical], back], axis=-1).reshape(flat)[..., :-1]

    @property
    def states(self) -> int:
        """How many live states SEARCH takes in a problem's automaton."""
        return 1 + len(self._visited) * (1 + self.branches * (self.length - 1))

    @property
    def _visited(self) -> list[frozenset[int]]:
        """Which decoys a trace may have visited when it stands at the start."""
        decoys = range(1, self.branches)
        return [frozenset(c) for size in range(self.branches) for c in combinations(decoys, size)]

    def add_states(
        self, table: np.ndarray, base: int, labels: np.ndarray, forked: np.ndarray, outcomes: tuple[str, ...]
    ) -> None:
        """Write the states base, base + 1, ... into the table [n, S, V] of `data_gen.verifier`.

        First the start is due; then, for each set of visited decoys, come the start itself and every node of every
        branch. Any unvisited branch may be next, and every dead end must be followed by BACK.
        """
        rows, steps = np.arange(len(labels)), self.length - 1
        live = table.shape[1] - len(outcomes)
        outcome = {name: live + i for i, name in enumerate(outcomes)}
        size = 1 + self.branches * steps
        at_start = {visited: base + 1 + i * size for i, visited in enumerate(self._visited)}
        table[:, 0, self.mode] = base
        table[rows, base, labels[:, 0]] = at_start[frozenset()]
        table[:, base : base + self.states, self.eos] = outcome["early_stop"]
        table[:, base + 1 : base + self.states, : self.nodes] = outcome["invalid_edge"]
        for visited, start in at_start.items():
            for branch in range(self.branches):
                node, first = 1 + branch * steps, start + 1 + branch * steps
                last = first + steps - 1
                if branch in visited:
                    table[rows, start, labels[:, node]] = outcome["wrong_branch"]
                    continue
                may = forked | (branch == 0)
                table[rows, start, labels[:, node]] = np.where(may, first, outcome["invalid_edge"])
                for step in range(steps - 1):
                    table[rows, first + step, labels[:, node + step + 1]] = first + step + 1
                if branch == 0:
                    table[:, last, : self.nodes] = table[:, last, self.back] = outcome["too_long"]
                    table[:, last, self.eos] = outcome["accept"]
                else:
                    table[:, last, self.eos] = outcome["wrong_branch"]
                    table[:, last, self.back] = at_start[visited | {branch}]
