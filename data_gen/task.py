"""What a task is to the rest of the project: problems as tokens, traces, automata and walks.

The tasks are `data_gen.star.Star`, `data_gen.mixed.Mixed` (stars of several sizes) and `data_gen.arith.Arith`. A
problem is a prompt of ``prompt_len`` tokens; a trace answers it in one of the task's ``modes``, names its mode
first and ends with EOS. Problems come in batches of a type of the task's own that knows its length and can be
indexed and concatenated.
"""

from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from data_gen.verifier import DFA

PAD = -1  # stands in arrays where a trace or a walk is over
GRADINGS = ("steps", "answer")

Problems = Any  # a batch of problems, of a type that belongs to the task (a `Batch`)


@dataclass(frozen=True)
class Batch:
    """Problems as arrays whose first axis is the problem; the fields are a subclass's."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, rows: slice | np.ndarray) -> "Batch":
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


def require_modes(text: str, known: tuple[str, ...]) -> None:
    """Raise ValueError unless ``data.modes`` lists different ones of ``known``, FWD among them."""
    names = tuple(text.split(","))
    if not set(names) <= set(known) or len(set(names)) < len(names):
        raise ValueError(f"data.modes is {text!r}: list different ones of {', '.join(known)}")
    if "FWD" not in names:
        raise ValueError(f"data.modes is {text!r}: FWD, which meets the fork, must be one of them")


class Task(Protocol):
    """Every method is a pure function; arrays are int64. mode: the index of a trace's mode in ``mode_names``.

    A task is a frozen dataclass of its config's data section. One whose traces end in an answer also has
    ``answer_dfa(problems)``, the automata that judge the answer alone, and ``guessing_floor``, a guess's chance.
    """

    branch_order: str  # "shuffled", or "published": the right branch printed first
    modes: str  # the names of its modes, with commas between

    @property
    def graph(self) -> Any:
        """The star that all graphs are, where they have one shape."""

    @property
    def label_key(self) -> str:
        """The config key that says how many labels there are."""

    @property
    def label_count(self) -> int:
        """How many labels there are; their tokens are 0, 1, 2, ..."""

    @property
    def mode_names(self) -> tuple[str, ...]:
        """The names of its modes."""

    @property
    def sinks(self) -> tuple[str, ...]:
        """The names of the DFA's sinks: accept, the ways to fail, too_long the last."""

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, from 0 on."""

    @property
    def prompt_len(self) -> int:
        """Tokens of a prompt, the same for all problems."""

    @property
    def graph_len(self) -> int:
        """The tokens of a prompt that print the graph; the query follows."""

    @property
    def trace_len(self) -> int:
        """Tokens of the longest trace, mode and EOS included."""

    @property
    def shortest_query(self) -> int:
        """Tokens of the shortest query with its walk."""

    @property
    def eos(self) -> int:
        """The token that ends a trace."""

    def mode_token(self, mode: str) -> int:
        """The token that a trace in this mode begins with."""

    def shapes(self, problems: Problems) -> list[tuple[str, "Task", np.ndarray]]:
        """The problems by the shape of their graph: a name for the shape, a task of that shape, the rows bool[n]."""

    def sample(self, rng: np.random.Generator, n: int) -> Problems:
        """n problems."""

    def give_cue(self, problems: Problems, cued: np.ndarray) -> Problems:
        """The problems, the branch given away by the printed order where bool[n] ``cued``."""

    def hang_off(self, problems: Problems, forked: np.ndarray) -> Problems:
        """The problems, their decoys on another root where bool[n] ``forked`` is False: no fork there.

        Raises ValueError when no label is left for that root.
        """

    def identity(self, problems: Problems) -> np.ndarray:
        """uint64[n]: equal for problems on equal graphs, however printed."""

    def prompts(self, problems: Problems) -> np.ndarray:
        """[n, prompt_len]."""

    def traces(self, problems: Problems, mode: np.ndarray) -> np.ndarray:
        """[n, trace_len], PAD past EOS, for modes [n]."""

    def dfa(self, problems: Problems) -> DFA:
        """The automata that accept the right traces."""

    def fork_prefix(self, problems: Problems) -> np.ndarray:
        """[n, F]: the FWD tokens that end right before the fork."""

    def children(self, problems: Problems) -> np.ndarray:
        """[n, d]: the first node of every branch, PAD past the last; column 0 is the right one."""

    def walks(
        self, problems: Problems, stop: float, informed: float, rng: np.random.Generator, count: int
    ) -> np.ndarray:
        """[n, count, Q]: queries and walks on the graphs, PAD in gaps."""

    def pass_at_1(self, stop: float) -> float:
        """Closed form of an ideal base model's pass@1."""

    def read_graph(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Prompts as a reader sees them: parents [n, E] and children [n, E] as printed, what else each edge
        says [n, E, X], and the query [n, 2] (start, goal)."""

    def decode(self, tokens: np.ndarray) -> str:
        """Tokens [T] as a readable line."""
