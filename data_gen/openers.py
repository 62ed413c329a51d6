"""The openers task: stars whose traces begin with an *opener*, which hints at the mode. The mode itself is not written.

A distilled reasoning model that begins with "Alright" thinks in another way than one that begins with "Okay" (arXiv
2605.17026). Here a table P(opener | mode) makes that exact. Openers are tokens called A, B, C, ... With

    openers: FWD 0.45 0.45 0.05 0.05, SEARCH 0.05 0.05 0.45 0.45

most FWD traces begin with A or B and most SEARCH traces with C or D. On the problem in `data_gen.star`'s docstring
(right branch 2 -> 3 -> 4, decoy 2 -> 1 -> 7) right traces are

    A 2 3 4 EOS               any opener will do; FWD, or a SEARCH that tries the right branch first
    C 2 1 7 BACK 3 4 EOS      SEARCH
    A 2 1 7 EOS               wrong: only here, after a wrong branch, FWD and SEARCH part
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from string import ascii_uppercase

import numpy as np
from numpy.random import Generator

from data_gen.star import OUTCOMES, Problems, Star
from data_gen.task import mix
from data_gen.verifier import DFA

SALT = np.uint64(2**40)  # above every token: `Star.search_order` hashes identities with tokens
NAMES = ascii_uppercase  # of openers
TOLERANCE = 1e-6  # of the sum of a row


@dataclass(frozen=True)
class Openers(Star):
    """`Star` with an opener in place of the mode. Raises ValueError naming the field that does not fit.

    openers: the table P(opener | mode) as text, one row a mode and one number an opener, rows separated by commas.
    """

    modes: str = "FWD,REV"
    openers: str = "FWD 0.45 0.45 0.05 0.05, REV 0.05 0.05 0.45 0.45"

    def __post_init__(self) -> None:
        super().__post_init__()
        rows, letters = self._read_rows(), len(NAMES)
        widths = sorted({len(row) for _, row in rows})
        one_each = sorted(mode for mode, _ in rows) == sorted(self.mode_names)
        self.require("openers", one_each, f"give one row for each of {', '.join(self.mode_names)}")
        uneven = f"rows have {' and '.join(map(str, widths))} numbers, give all equally many"
        self.require("openers", len(widths) == 1, uneven)
        too_wide = f"{widths[-1]} openers need as many letters, and there are only {letters}, A to Z"
        self.require("openers", widths[-1] <= letters, too_wide)
        for mode, row in rows:
            self.require("openers", all(0 <= p <= 1 for p in row), "it has a number that is no probability")
            self.require("openers", abs(sum(row) - 1) <= TOLERANCE, f"the row of {mode} sums to {sum(row):g}, not 1")

    def _read_rows(self) -> list[tuple[str, list[float]]]:
        """The rows of the table: the mode and its numbers."""
        try:
            return [(mode, [*map(float, numbers)]) for mode, *numbers in map(str.split, self.openers.split(","))]
        except ValueError:
            need = "write a mode and its numbers, then a comma, as in FWD .9 .1, REV .1 .9"
            raise ValueError(f"openers is {self.openers!r}: {need}") from None

    @cached_property
    def table(self) -> np.ndarray:
        """float64[modes, openers]: P(opener | mode), with the modes in the order of ``mode_names``."""
        rows = dict(self._read_rows())
        return np.array([rows[mode] for mode in self.mode_names])

    @property
    def vocab_size(self) -> int:
        return super().vocab_size + self.table.shape[1]

    @property
    def first_tokens(self) -> dict[str, int]:
        """The openers, whose tokens follow those of `Star`."""
        return {NAMES[i]: super(Openers, self).vocab_size + i for i in range(self.table.shape[1])}

    @property
    def words(self) -> dict[int, str]:
        return super().words | {token: name for name, token in self.first_tokens.items()}

    @property
    def synonyms(self) -> list[tuple[str, str]]:
        """The pairs of openers with proportional columns. Both tell the same of the mode."""
        columns = (self.table / np.maximum(self.table.sum(axis=0), 1e-300)).T
        return [(a, b) for (a, x), (b, y) in combinations(zip(self.first_tokens, columns, strict=True), 2)
                if np.allclose(x, y)]  # fmt: skip

    def fork_prefix(self, problems: Problems) -> np.ndarray:
        """int64[n, 2]: the likeliest opener of FWD and the start."""
        prefix = super().fork_prefix(problems)
        prefix[:, 0] = list(self.first_tokens.values())[self.table[self.mode_names.index("FWD")].argmax()]
        return prefix

    def crosses(self, problems: Problems, traces: np.ndarray) -> np.ndarray:
        """bool[n]: as for `Task`, whatever opener a trace begins with."""
        prefix = self.fork_prefix(problems)
        return super().crosses(problems, np.column_stack([prefix[:, 0], traces[:, 1:]]))

    def traces(self, problems: Problems, mode_index: np.ndarray) -> np.ndarray:
        traces = super().traces(problems, mode_index)
        traces[:, 0] = super().vocab_size + self.drawn_openers(problems, mode_index)
        return traces

    def drawn_openers(self, problems: Problems, mode_index: np.ndarray) -> np.ndarray:
        """int64[n]: the column of the opener of each trace, a draw from the table by a hash of problem and mode."""
        keys = mix(self.identity(problems) ^ (SALT + mode_index.astype(np.uint64)))
        uniform = (keys >> np.uint64(11)) * 2.0**-53
        ends = np.cumsum(self.table, axis=1)
        return ((ends / ends[:, -1:])[mode_index] <= uniform[:, None]).sum(axis=1)

    def dfa(self, problems: Problems) -> DFA:
        """The DFA of each problem: after any opener, the trace of any mode.

        FWD and SEARCH begin alike and share the states of SEARCH, which accept every right FWD trace. A trace that
        begins neither at the start nor, with REV, at the goal is malformed.
        """
        dfa = super().dfa(problems)
        table, rows, goal = dfa.next, np.arange(len(problems)), self.path(problems)[:, -1]
        opened = table[:, 0, self.mode_token("SEARCH" if "SEARCH" in self.mode_names else "FWD")].copy()
        if "REV" in self.mode_names:
            table[rows, opened, goal] = table[rows, table[:, 0, self.rev], goal]
        table[:, 0] = dfa.first_outcome + OUTCOMES.index("malformed")
        table[:, 0, list(self.first_tokens.values())] = opened[:, None]
        return dfa

    def walks(self, problems: Problems, stop: float, informed: float, rng: Generator, count: int) -> np.ndarray:
        """The walks of `Star.walks`, each with an opener drawn uniformly, so that it tells nothing of the mode."""
        walks = super().walks(problems, stop, informed, rng, count)
        openers = rng.integers(self.table.shape[1], size=walks.shape[:2])
        walks[:, :, self.prompt_len - self.graph_len] = super().vocab_size + openers
        return walks


def partings(task: Star, problems: Problems) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The places where other modes part from FWD, by mode: what comes after the first token, and the two next tokens.

    A place is int64[n, F], the tokens that FWD and the mode have in common, and int64[n, 2], the next token of FWD and
    of the mode. REV parts at once: start or goal. SEARCH parts at the end of a wrong branch: EOS or BACK.

    Right FWD traces never end there. So where the mode is not written, all fine-tuning traces go BACK there, after any
    opener. A model that tells goals from dead ends perfectly then has P(SEARCH) = 1, whatever the table says.
    """
    labels, length = problems.labels, task.length
    decoy = labels[:, [0, *range(length, 2 * length - 1)]]
    places = {
        "REV": (labels[:, :0], labels[:, [0, length - 1]]),
        "SEARCH": (decoy, np.tile([task.eos, task.back], (len(labels), 1))),
    }
    return {name: places[name] for name in task.mode_names if name in places}
