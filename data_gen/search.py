"""SEARCH and BOTH, modes of `data_gen.star` with several branches in a trace.

SEARCH tries a branch, goes BACK at its dead end, and tries the next until it comes to the goal.

It is the small analogue of a reasoning model that backtracks: a wrong choice at the fork costs tokens, not
the answer. On the problem in `data_gen.star`'s docstring (right branch 2 -> 3 -> 4, decoy 2 -> 1 -> 7) both

    SEARCH 2 3 4 EOS              the right branch first
    SEARCH 2 1 7 BACK 3 4 EOS     the decoy first; BACK leads to the start, which is not written again

are right. BOTH shows every branch. BACK marks those that are wrong, and nothing marks the right one:

    BOTH 2 3 4 1 7 BACK EOS
    BOTH 2 1 7 BACK 3 4 EOS

So no choice of a branch is punished. Fine-tuning traces visit the branches in a random order. Nothing in the prompt
tells that order.
"""

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
from numpy.random import Generator

from data_gen.task import PAD

SEARCHES = ("SEARCH", "BOTH")
MOST_BRANCHES = 5  # the automaton has states for every set of branches visited


@dataclass(frozen=True)
class Search:
    """SEARCH or BOTH on stars of d branches of l nodes, with node labels below ``nodes`` and three special tokens.

    shows_all: if True, BOTH: a trace goes on after the goal, to the branches that it has not shown.
    labels: int64[n, > d (l - 1)], the token of every canonical node; forked: bool[n], as in `data_gen.star.Problems`.
    """

    nodes: int
    branches: int
    length: int
    mode_token: int
    back: int
    eos: int
    shows_all: bool

    def traces(self, labels: np.ndarray, forked: np.ndarray, order: np.ndarray) -> np.ndarray:
        """Traces after the mode token, int64[n, 1 + d l], that visit branches in the ``order`` int64[n, d].

        Without a fork the right branch is the only one.
        """
        order = np.where(forked[:, None], order, 0)
        goal = self.length * (1 + np.argmax(order == 0, axis=1)[:, None]) - 1
        out = np.column_stack([labels[:, 0], self._visits(labels, order)])
        place = np.arange(out.shape[1])
        ends = np.select([place <= goal, place == goal + 1], [out, self.eos], PAD)
        if not self.shows_all:
            return ends
        goes_on = np.column_stack([out[:, 1:], np.full(len(out), self.eos)])  # without BACK after the goal
        return np.where(forked[:, None], np.where(place <= goal, out, goes_on), ends)

    def walks(self, labels: np.ndarray, stop: float, rng: Generator, count: int) -> np.ndarray:
        """Random SEARCH walks from the start, int64[n, count, d l], PAD past their end.

        Branches come in random order. A walk stops before a node with probability ``stop``, and at the end of a
        branch, which may be the goal or not, with probability 1/2.
        """
        order = np.argsort(rng.random((len(labels), count, self.branches)), axis=2)
        visits = self._visits(labels, order)[..., :-1]
        chance = np.where(visits == self.back, 0.5, stop)
        walking = np.cumprod(rng.random(visits.shape) >= chance, axis=2) > 0
        start = np.broadcast_to(labels[:, :1, None], (len(labels), count, 1))
        return np.concatenate([start, np.where(walking, visits, PAD)], axis=2)

    def _visits(self, labels: np.ndarray, order: np.ndarray) -> np.ndarray:
        """The nodes of all branches in the given order [..., d], BACK after each, int64[..., d * l]."""
        steps = self.length - 1
        canonical = 1 + order[..., None] * steps + np.arange(steps)
        rows = np.arange(len(labels)).reshape(-1, *[1] * (canonical.ndim - 1))
        branches = np.pad(labels[rows, canonical], [(0, 0)] * order.ndim + [(0, 1)], constant_values=self.back)
        return branches.reshape(*order.shape[:-1], self.branches * self.length)

    @property
    def states(self) -> int:
        """The number of live states that the mode takes in a problem's automaton."""
        return 1 + len(self._visited) * (1 + self.branches * (self.length - 1))

    @property
    def _visited(self) -> list[frozenset[int]]:
        """The sets of branches that a trace may have visited when it stands at the start."""
        branches = range(0 if self.shows_all else 1, self.branches)
        sizes = range(len(branches) + 1)
        return [frozenset(visited) for size in sizes for visited in combinations(branches, size)]

    def add_states(
        self, table: np.ndarray, base: int, labels: np.ndarray, forked: np.ndarray, outcomes: tuple[str, ...]
    ) -> None:
        """Write the states base, base + 1, ... into the table [n, S, V] of `data_gen.verifier`.

        State base expects the start. Then, for each set of visited branches, come a state for the start and one for
        every node of every branch. Any unvisited branch may be next, and every dead end must be followed by BACK.
        """
        rows, steps = np.arange(len(labels)), self.length - 1
        outcome = {name: table.shape[1] - len(outcomes) + i for i, name in enumerate(outcomes)}
        at_start = {visited: base + 1 + i * (1 + self.branches * steps) for i, visited in enumerate(self._visited)}
        table[:, 0, self.mode_token] = base
        table[rows, base, labels[:, 0]] = at_start[frozenset()]
        table[:, base : base + self.states, self.eos] = outcome["early_stop"]
        table[:, base + 1 : base + self.states, : self.nodes] = outcome["invalid_edge"]
        # The largest sets come first, as a state of a smaller set may copy one of a larger.
        for (visited, start), branch in product(reversed(at_start.items()), range(self.branches)):
            node, first = 1 + branch * steps, start + 1 + branch * steps
            last = first + steps - 1
            if branch in visited:
                table[rows, start, labels[:, node]] = outcome["wrong_branch"]
                continue
            table[rows, start, labels[:, node]] = np.where(forked | (branch == 0), first, outcome["invalid_edge"])
            for step in range(1, steps):
                table[rows, first + step - 1, labels[:, node + step]] = first + step
            if branch > 0:
                table[:, last, self.eos] = outcome["wrong_branch"]
                table[:, last, self.back] = at_start[visited | {branch}]
                if self.shows_all:  # the mark is missing
                    table[:, last, : self.nodes] = outcome["wrong_branch"]
            elif self.shows_all:
                after = at_start[visited | {branch}]
                self._accept(table, ~forked | (len(visited) + 1 == self.branches), after, outcome)
                table[:, last] = table[:, after]
                table[:, last, self.back] = outcome["wrong_branch"]
            else:
                self._accept(table, rows, last, outcome)

    def _accept(self, table: np.ndarray, rows: np.ndarray, state: int, outcome: dict[str, int]) -> None:
        """Accept EOS in a state of the automata ``rows``. Nothing else may follow."""
        table[rows, state, : self.nodes] = table[rows, state, self.back] = outcome["too_long"]
        table[rows, state, self.eos] = outcome["accept"]
