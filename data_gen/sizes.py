"""Star problems of several sizes in one set, so that some are hard: d branches of l nodes, d and l per problem.

Sizes must print as many edges (2 x 7, 3 x 5, 4 x 4, 6 x 3 and 12 x 2 all print 12), so that prompts have one
length and nothing needs padding but traces. Every problem is a `data_gen.star.Star` of its size; this task
sorts the problems by size, asks the stars and puts their answers together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from data_gen import star
from data_gen.star import SINKS, Star
from data_gen.task import PAD, Batch, Task
from data_gen.verifier import DFA


@dataclass(frozen=True)
class Problems(Batch):
    """A batch of n star problems, and size: int64[n], the index of each one's size in the task's sizes."""

    size: np.ndarray
    labels: np.ndarray
    order: np.ndarray
    forked: np.ndarray


@dataclass(frozen=True)
class Sizes(Task):
    """Star problems of several sizes. Raises ValueError naming the key that does not fit.

    nodes: number of node tokens; sizes: "dxl,dxl,..." with equal numbers d (l - 1) of edges, drawn evenly;
    branch_order, modes: as for `Star`.
    """

    nodes: int
    sizes: str
    branch_order: str = "shuffled"
    modes: str = "FWD,REV"

    def __post_init__(self) -> None:
        edges = {f"{s.branches}x{s.length}": s.edges for s in self.stars}
        if len(set(edges.values())) > 1:
            text = ", ".join(f"{size} prints {count}" for size, count in edges.items())
            raise ValueError(f"data.sizes is {self.sizes!r}: all must print as many edges, but {text}")

    @cached_property
    def stars(self) -> tuple[Star, ...]:
        """The star of each size."""
        found = []
        for size in self.sizes.split(","):
            branches, _, length = size.strip().partition("x")
            if not (branches.isdecimal() and length.isdecimal()):
                raise ValueError(f"data.sizes is {self.sizes!r}: write sizes as 2x4,3x3 (branches x nodes of a branch)")
            try:
                found.append(Star(self.nodes, int(branches), int(length), self.branch_order, self.modes))
            except ValueError as error:
                raise ValueError(f"data.sizes is {self.sizes!r}, of which {size.strip()} is no star: {error}") from None
        return tuple(found)

    def __getattr__(self, name: str) -> Any:
        """What does not depend on the size (tokens, prompt layout, modes, sinks) is the first star's."""
        if name in _SHARED:
            return getattr(self.stars[0], name)
        raise AttributeError(name)

    @property
    def trace_len(self) -> int:
        return max(s.trace_len for s in self.stars)

    def _by_size(self, problems: Problems) -> Iterator[tuple[Star, np.ndarray, star.Problems]]:
        """Each size's star, the rows bool[n] of its problems, and these."""
        for index, one in enumerate(self.stars):
            rows = problems.size == index
            if rows.any():
                yield one, rows, star.Problems(problems.labels[rows], problems.order[rows], problems.forked[rows])

    def _gather(
        self, problems: Problems, ask: Callable, width: int | None = None, dtype: type = np.int64
    ) -> np.ndarray:
        """The stars' answers to ask(star, problems, rows) in the problems' order, PAD up to ``width`` columns."""
        answers = [(rows, ask(one, part, rows)) for one, rows, part in self._by_size(problems)]
        shape = answers[0][1].shape[1:] if width is None else (width, *answers[0][1].shape[2:])
        out = np.full((len(problems), *shape), PAD if width else 0, dtype)
        for rows, answer in answers:
            if width is None:
                out[rows] = answer
            else:
                out[rows, : answer.shape[1]] = answer
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
        return Problems(size, drawn.labels, order, drawn.forked)

    def give_cue(self, problems: Problems, cued: np.ndarray) -> Problems:
        """As `Star.give_cue`."""
        order = self._gather(problems, lambda s, p, rows: s.give_cue(p, cued[rows]).order)
        return Problems(problems.size, problems.labels, order, problems.forked)

    def hang_off(self, problems: Problems, forked: np.ndarray) -> Problems:
        """As `Star.hang_off`."""
        self.stars[0].hang_off(problems, forked)  # refuses when no label is left
        return Problems(problems.size, problems.labels, problems.order, forked)

    def identity(self, problems: Problems) -> np.ndarray:
        """As `Star.identity`."""
        return self._gather(problems, lambda s, p, rows: s.identity(p), dtype=np.uint64)

    def children(self, problems: Problems) -> np.ndarray:
        """The first node of every branch, int64[n, largest d], PAD where there are fewer; column 0 is right."""
        return self._gather(problems, lambda s, p, rows: s.children(p), max(s.branches for s in self.stars))

    def prompts(self, problems: Problems) -> np.ndarray:
        """int64[n, prompt_len]."""
        return self._gather(problems, lambda s, p, rows: s.prompts(p))

    def traces(self, problems: Problems, mode: np.ndarray) -> np.ndarray:
        """int64[n, trace_len], PAD past EOS."""
        return self._gather(problems, lambda s, p, rows: s.traces(p, mode[rows]), self.trace_len)

    def fork_prefix(self, problems: Problems) -> np.ndarray:
        """int64[n, 2]: FWD and the start."""
        return self._gather(problems, lambda s, p, rows: s.fork_prefix(p))

    def dfa(self, problems: Problems) -> DFA:
        """The DFA of each problem's star; those with fewer live states leave the last ones unused."""
        parts = [(rows, one.dfa(part)) for one, rows, part in self._by_size(problems)]
        live = max(dfa.first_sink for _, dfa in parts)
        states = live + len(SINKS)
        table = np.full((len(problems), states, self.vocab_size), live + 1, np.uint8 if states <= 256 else np.uint16)
        table[:, live:] = np.arange(live, states)[:, None]
        for rows, dfa in parts:
            own = dfa.next[:, : dfa.first_sink].astype(np.int64)
            table[rows, : dfa.first_sink] = np.where(own >= dfa.first_sink, own + live - dfa.first_sink, own)
        return DFA(table, SINKS)

    def walks(
        self, problems: Problems, stop: float, informed: float, rng: np.random.Generator, count: int
    ) -> np.ndarray:
        """As `Star.walks`, on every problem's own graph."""
        width = self.prompt_len - self.graph_len + self.trace_len
        return self._gather(
            problems, lambda s, p, rows: s.walks(p, stop, informed, rng, count).transpose(0, 2, 1), width
        ).transpose(0, 2, 1)

    def pass_at_1(self, stop: float) -> float:
        """Closed form of an ideal base model's pass@1: the mean over sizes."""
        return float(np.mean([s.pass_at_1(stop) for s in self.stars]))


_SHARED = {  # what the layout of tokens decides
    "mode_token", "sinks", "label_key", "label_count", "vocab_size", "graph_len", "prompt_len",
    "shortest_query", "read_graph", "decode", "eos",
}  # fmt: skip
