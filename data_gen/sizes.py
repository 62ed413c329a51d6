"""Star problems of several sizes in one set, so that some are hard: d branches of l nodes, d and l per problem.

Sizes must print as many edges (2 x 7, 3 x 5, 4 x 4, 6 x 3 and 12 x 2 all print 12), so that prompts have one
length and nothing needs padding but traces. Every problem is a `data_gen.star.Star` of its size; this task
sorts the problems by size, asks the stars and puts their answers together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data_gen import star, verifier
from data_gen.star import OUTCOMES, Printed, Star
from data_gen.task import PAD
from data_gen.verifier import DFA


@dataclass(frozen=True)
class Problems(star.Problems):
    """A batch of n star problems, and size: int64[n], the index of each one's size in the task's sizes."""

    size: np.ndarray


@dataclass(frozen=True)
class Sizes(Printed[Problems]):
    """Star problems of several sizes. Raises ValueError naming the argument that does not fit.

    nodes: number of node tokens; sizes: "dxl,dxl,..." with equal numbers d (l - 1) of edges, drawn evenly;
    branch_order, modes: as for `Star`.
    """

    sizes: str
    branch_order: str = "shuffled"
    modes: str = "FWD,REV"

    def __post_init__(self) -> None:
        edges = {f"{s.branches}x{s.length}": s.edges for s in self.stars}
        if len(set(edges.values())) > 1:
            text = ", ".join(f"{size} prints {count}" for size, count in edges.items())
            raise ValueError(f"sizes is {self.sizes!r}: all must print as many edges, but {text}")

    @cached_property
    def stars(self) -> tuple[Star, ...]:
        """The star of each size."""
        stars = []
        for size in self.sizes.split(","):
            branches, _, length = size.strip().partition("x")
            if not (branches.isdecimal() and length.isdecimal()):
                raise ValueError(f"sizes is {self.sizes!r}: write sizes as 2x4,3x3 (branches x nodes of a branch)")
            try:
                stars.append(Star(self.nodes, int(branches), int(length), self.branch_order, self.modes))
            except ValueError as error:
                raise ValueError(f"sizes is {self.sizes!r}, of which {size.strip()} is no star: {error}") from None
        return tuple(stars)

    @property
    def edges(self) -> int:
        return self.stars[0].edges

    @property
    def trace_len(self) -> int:
        return max(one.trace_len for one in self.stars)

    def _by_size(self, problems: Problems) -> Iterator[tuple[Star, np.ndarray, Problems]]:
        """Each size's star, the rows bool[n] of its problems, and these."""
        for index, one in enumerate(self.stars):
            rows = problems.size == index
            if rows.any():
                yield one, rows, problems[rows]

    def _gather(self, problems: Problems, ask: Callable[[Star, Problems, np.ndarray], np.ndarray]) -> np.ndarray:
        """The stars' answers to ask(star, problems, rows) in the problems' order, PAD past the end of narrower ones."""
        answers = [(rows, ask(one, part, rows)) for one, rows, part in self._by_size(problems)]
        widest = max((answer for _, answer in answers), key=lambda answer: answer.shape[-1])
        out = np.full((len(problems), *widest.shape[1:]), PAD).astype(widest.dtype)
        for rows, answer in answers:
            out[rows, ..., : answer.shape[-1]] = answer
        return out

    def shapes(self, problems: Problems) -> list[tuple[str, Star, np.ndarray]]:
        """The problems of each size: its name, its star, the rows bool[n]."""
        return [(f"{one.branches}x{one.length} ", one, rows) for one, rows, _ in self._by_size(problems)]

    def sample(self, rng: np.random.Generator, n: int) -> Problems:
        """n problems, each of a random size."""
        size = rng.integers(len(self.stars), size=n)
        drawn = self.stars[0].sample(rng, n)
        order = drawn.order
        if self.branch_order == "published":
            for index, one in enumerate(self.stars):
                rows = size == index
                order[rows] = one.sample(rng, int(rows.sum())).order
        return Problems(drawn.labels, order, drawn.forked, size)

    def reprint(self, problems: Problems, rng: np.random.Generator) -> Problems:
        return self.stars[0].reprint(problems, rng)

    def give_cue(self, problems: Problems, cued: np.ndarray) -> Problems:
        order = self._gather(problems, lambda s, p, rows: s.give_cue(p, cued[rows]).order)
        return Problems(problems.labels, order, problems.forked, problems.size)

    def remove_fork(self, problems: Problems, forked: np.ndarray) -> Problems:
        return self.stars[0].remove_fork(problems, forked)

    def identity(self, problems: Problems) -> np.ndarray:
        return self._gather(problems, lambda s, p, rows: s.identity(p)[:, None])[:, 0]

    def children(self, problems: Problems) -> np.ndarray:
        """The first node of every branch, int64[n, largest d], PAD where there are fewer; column 0 is right."""
        children = self._gather(problems, lambda s, p, rows: s.children(p))
        missing = max(s.branches for s in self.stars) - children.shape[1]
        return np.pad(children, ((0, 0), (0, missing)), constant_values=PAD)

    def prompts(self, problems: Problems) -> np.ndarray:
        return self._gather(problems, lambda s, p, rows: s.prompts(p))

    def traces(self, problems: Problems, mode: np.ndarray) -> np.ndarray:
        traces = self._gather(problems, lambda s, p, rows: s.traces(p, mode[rows]))
        return np.pad(traces, ((0, 0), (0, self.trace_len - traces.shape[1])), constant_values=PAD)

    def fork_prefix(self, problems: Problems) -> np.ndarray:
        return self._gather(problems, lambda s, p, rows: s.fork_prefix(p))

    def dfa(self, problems: Problems) -> DFA:
        """The DFA of each problem's star; those with fewer live states leave the last ones unused."""
        parts = [(rows, one.dfa(part)) for one, rows, part in self._by_size(problems)]
        live = max(dfa.first_outcome for _, dfa in parts)
        table = verifier.blank(len(problems), live, self.vocab_size, OUTCOMES)
        for rows, dfa in parts:
            narrow = dfa.next[:, : dfa.first_outcome].astype(np.int64)
            table[rows, : dfa.first_outcome] = np.where(
                narrow >= dfa.first_outcome, narrow + live - dfa.first_outcome, narrow
            )
        return DFA(table, OUTCOMES)

    def walks(
        self, problems: Problems, stop: float, informed: float, rng: np.random.Generator, count: int
    ) -> np.ndarray:
        """As `Star.walks`, on every problem's own graph."""
        return self._gather(problems, lambda s, p, rows: s.walks(p, stop, informed, rng, count))
