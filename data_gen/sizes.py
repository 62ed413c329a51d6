"""Star problems of several sizes in one set, so that some are hard: d branches of l nodes, d and l per problem.

All sizes must print the same number of edges (2 x 7, 3 x 5, 4 x 4, 6 x 3 and 12 x 2 all print 12). So prompts have one
length, and only traces need padding. Every problem is a `data_gen.star.Star` of its size. This task
sorts the problems by size, calls the star of each size, and puts the results together.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.random import Generator

from data_gen import star, verifier
from data_gen.star import OUTCOMES, Star, Stars
from data_gen.task import PAD
from data_gen.verifier import DFA

Call = Callable[[Star, "Problems"], np.ndarray]


@dataclass(frozen=True)
class Problems(star.Problems):
    """A batch of n star problems, and size: int64[n], the index of each one's size in the task's sizes."""

    size: np.ndarray


@dataclass(frozen=True)
class Sizes(Stars[Problems]):
    """Star problems of several sizes. Raises ValueError naming the argument that does not fit.

    nodes: number of node tokens; sizes: "dxl,dxl,..." with equal numbers d (l - 1) of edges, all drawn equally often;
    branch_order, modes: as for `Star`.
    """

    nodes: int
    sizes: str
    branch_order: str = "shuffled"
    modes: str = "FWD,REV"

    special = Star.special
    edges = property(lambda self: self.stars[0].edges)  # printed edges, the same for all sizes
    vocab_size = property(lambda self: self.stars[0].vocab_size)
    trace_len = property(lambda self: max(one.trace_len for one in self.stars))

    def __post_init__(self) -> None:
        edges = [one.edges for one in self.stars]
        need = f"all must print the same number of edges, but they print {edges}"
        self.require("sizes", len(set(edges)) == 1, need)

    @cached_property
    def stars(self) -> tuple[Star, ...]:
        """The star of each size."""
        stars = []
        for size in self.sizes.split(","):
            branches, _, length = size.partition("x")
            try:
                stars.append(Star(self.nodes, int(branches), int(length), self.branch_order, self.modes))
            except ValueError as error:
                wrong = f"sizes is {self.sizes!r}: write branches x nodes of a branch, as in 2x4,3x3; {size!r} fails"
                raise ValueError(f"{wrong}: {error}") from None
        return tuple(stars)

    def shapes(self, problems: Problems) -> list[tuple[str, Star, np.ndarray]]:
        shapes = [(f"{one.branches}x{one.length} ", one, problems.size == i) for i, one in enumerate(self.stars)]
        return [(name, one, rows) for name, one, rows in shapes if rows.any()]

    def _gather(self, problems: Problems, width: int, call: Call) -> np.ndarray:
        """One array [n, ..., width] of the results [n', ..., <= width] of call(star, problems) for every size.

        PAD fills the ends of narrower results.
        """
        results = [(rows, call(one, problems[rows])) for _, one, rows in self.shapes(problems)]
        out = np.full((len(problems), *results[0][1].shape[1:-1], width), PAD)
        for rows, result in results:
            out[rows, ..., : result.shape[-1]] = result
        return out

    def sample(self, rng: Generator, n: int) -> Problems:
        """n problems, each of a random size."""
        size = rng.integers(len(self.stars), size=n)
        graphs = self.stars[0].sample(rng, n)
        problems = Problems(graphs.labels, graphs.order, graphs.forked, size)
        return self.reprint(problems, rng) if self.branch_order == "published" else problems

    def reprint(self, problems: Problems, rng: Generator) -> Problems:
        order = self._gather(problems, self.edges, lambda one, group: one.reprint(group, rng).order)
        return replace(problems, order=order)

    def give_cue(self, problems: Problems, cued: np.ndarray) -> Problems:
        order = self._gather(
            problems, self.edges, lambda one, group: one.give_cue(group, np.ones(len(group), dtype=bool)).order
        )
        return replace(problems, order=np.where(cued[:, None], order, problems.order))

    def children(self, problems: Problems) -> np.ndarray:
        """The first node of every branch, int64[n, largest d], PAD past its last branch. Column 0 is right."""
        width = max(one.branches for one in self.stars)
        return self._gather(problems, width, lambda one, group: one.children(group))

    def prompts(self, problems: Problems) -> np.ndarray:
        return self._gather(problems, self.prompt_len, lambda one, group: one.prompts(group))

    def mode_traces(self, problems: Problems, mode_name: str) -> np.ndarray:
        return self._gather(problems, self.trace_len, lambda one, group: one.mode_traces(group, mode_name))

    def dfa(self, problems: Problems) -> DFA:
        """The DFA of each problem's star. Those with fewer live states leave the last ones unused."""
        dfas = [(rows, one.dfa(problems[rows])) for _, one, rows in self.shapes(problems)]
        live = max(dfa.first_outcome for _, dfa in dfas)
        table = verifier.blank_tables(len(problems), live, self.vocab_size, OUTCOMES)
        for rows, dfa in dfas:
            fewer = dfa.first_outcome
            states = dfa.next[:, :fewer].astype(np.int64)
            table[rows, :fewer] = np.where(states < fewer, states, states + live - fewer)
        return DFA(table, OUTCOMES)

    def walks(self, problems: Problems, stop: float, informed: float, rng: Generator, count: int) -> np.ndarray:
        """The walks of `Star.walks`, on every problem's own graph."""
        width = 3 + self.trace_len
        return self._gather(problems, width, lambda one, group: one.walks(group, stop, informed, rng, count))
