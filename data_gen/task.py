"""The base class of tasks: problems as tokens, traces, automata and walks.

The tasks that ship are `data_gen.star.Star`, `data_gen.sizes.Sizes` (stars of several sizes), `data_gen.arith.Arith`,
`data_gen.openers.Openers` and `data_gen.layers.Layers` (several forks). `examples/new_task.py` is one from scratch. A
problem is a prompt of ``prompt_len`` tokens. A trace answers it in one of the task's ``modes``: it begins with the
token of its mode (or with another of `Task.first_tokens`) and ends with EOS. A mode_name is the name of a mode, a
mode_index its place in `Task.mode_names`. Problems come in batches. The type of a task's batches is a subclass of
`Batch`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Generic, TypeVar

import numpy as np
from numpy.random import Generator

from data_gen.verifier import DFA

PAD = -1  # fills arrays after the end of a trace or a walk
GRADINGS = ("steps", "answer")

P = TypeVar("P", bound="Batch")
T = TypeVar("T", bound="Task")


class Checked:
    """The base of dataclasses that check their fields."""

    def require(self, key: str, condition: bool, need: str) -> None:
        """Raise ValueError naming a field, its value and what it needs, unless the condition holds.

        A field may be named with its section (``optim.lr``). Without one, `minifork.config` adds it.
        """
        if not condition:
            raise ValueError(f"{key} is {getattr(self, key.split('.')[-1])!r}: {need}")


@dataclass(frozen=True)
class Batch:
    """Problems as arrays whose first axis is the problem. A subclass has the fields."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self: P, rows: slice | np.ndarray) -> P:
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


def concatenate(batches: list[P]) -> P:
    """One batch with the problems of all."""
    names = [field.name for field in fields(batches[0])]
    return type(batches[0])(*(np.concatenate([getattr(batch, name) for batch in batches]) for name in names))


@dataclass(frozen=True)
class Task(Checked, ABC, Generic[P]):
    """The base of every task: a frozen dataclass whose fields are the data section of its config.

    Methods are pure functions, arrays are int64, n is the number of problems. The class attribute or field ``modes``
    names the modes. A task of sums modulo 10 with traces in two modes writes, for the problem 3 + 4:

        prompt   3 4 SEP          vocab_size 14: digits, SEP, EOS, FWD, REV
        traces   FWD 3 4 7 EOS    trace_len 5
                 REV 7 4 3 EOS
    """

    branch_order = "shuffled"  # tasks that can also print the right branch first ("published") have it as a field
    modes = "FWD,REV"
    unwalked = frozenset({"branch_order"})  # fields that decide no base, as walks ignore them
    label_key = ""  # the field with the number of labels, "" for none; labels are the tokens 0, 1, 2, ...

    # Every task writes these.

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The number of tokens: 0, 1, 2, ..."""

    @property
    @abstractmethod
    def eos(self) -> int:
        """The token that ends a trace."""

    @property
    @abstractmethod
    def prompt_len(self) -> int:
        """Tokens of a prompt, the same for all problems."""

    @property
    @abstractmethod
    def trace_len(self) -> int:
        """Tokens of the longest trace, mode and EOS included."""

    @abstractmethod
    def mode_token(self, mode_name: str) -> int:
        """The token that a trace in this mode begins with, such as that of "FWD"."""

    @abstractmethod
    def sample(self, rng: Generator, n: int) -> P:
        """n problems."""

    @abstractmethod
    def prompts(self, problems: P) -> np.ndarray:
        """int64[n, prompt_len]."""

    @abstractmethod
    def traces(self, problems: P, mode_index: np.ndarray) -> np.ndarray:
        """int64[n, trace_len], PAD past EOS. mode_index: int64[n], the place in ``mode_names`` of each trace's mode."""

    @abstractmethod
    def dfa(self, problems: P) -> DFA:
        """The automata that accept the right traces (see `data_gen.verifier`)."""

    # Most tasks also write these.

    def reprint(self, problems: P, rng: Generator) -> P:
        """The same problems printed in another way. By default there is one way."""
        return problems

    def identity(self, problems: P) -> np.ndarray:
        """uint64[n]: equal for equal problems, however printed. It decides a problem's stream.

        By default it is a hash of the prompt, which is right if `reprint` changes nothing.
        """
        return hashed(self.prompts(problems))

    def fork_prefix(self, problems: P) -> np.ndarray | None:
        """int64[n, F]: the tokens of a trace that end right before the fork, mode first. None: there is no fork."""
        return None

    def crosses(self, problems: P, traces: np.ndarray) -> np.ndarray:
        """bool[n]: which traces int64[n, T] pass the fork of their problem."""
        prefix = self.fork_prefix(problems)
        if prefix is None:
            return np.zeros(len(traces), dtype=bool)
        return (traces[:, : prefix.shape[1]] == prefix).all(axis=1) & self.forked(problems)

    def children(self, problems: P) -> np.ndarray | None:
        """int64[n, d]: the tokens that may come next at the fork, PAD past the last. Column 0 is right."""
        return None

    def decision_points(self, problems: P) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The forks on the way along a right trace in FWD, the first one first.

        Each is (prefix int64[n, F], children int64[n, d], right bool[n, d]): what `fork_prefix` and `children` give of
        it, and which branches can still be accepted, that of column 0 among them. Where a problem has no such fork,
        children is PAD and right False. By default there is the declared fork only.
        """
        prefix, children = self.fork_prefix(problems), self.children(problems)
        if prefix is None or children is None:
            return []
        return [(prefix, children, np.tile(np.arange(children.shape[1]) == 0, (len(children), 1)))]

    def walks(self, problems: P, stop: float, informed: float, rng: Generator, count: int) -> np.ndarray:
        """``count`` queries with walks for the sequence of every problem, int64[n, count, Q], PAD in gaps.

        A query is a prompt without its first ``graph_len`` tokens. A walk stops before every step with probability
        ``stop``. In a share ``informed`` of queries, the query names where the walk ends. By default queries are whole
        prompts with right traces in random modes: of the problem itself and of the problems after it in the batch.
        """
        n = len(problems)
        rows = ((np.arange(n)[:, None] + np.arange(count)) % n).ravel()
        mode_index = rng.integers(len(self.mode_names), size=n * count)
        queries = [self.prompts(problems)[rows], self.traces(problems[rows], mode_index)]
        return np.concatenate(queries, axis=1).reshape(n, count, -1)

    # Few tasks need to change these.

    @property
    def mode_names(self) -> tuple[str, ...]:
        """The names of its modes, such as ("FWD", "REV")."""
        return tuple(self.modes.split(","))

    @property
    def first_tokens(self) -> dict[str, int]:
        """The tokens that a trace may begin with, by name: the modes and their tokens.

        A task whose traces do not write their mode gives others (`data_gen.openers`). Then no trace has a `mode_token`.
        """
        return {name: self.mode_token(name) for name in self.mode_names}

    @property
    def graph_len(self) -> int:
        """The first tokens of a prompt, which a sequence of walks prints once; the query follows. 0: there are none."""
        return 0

    @property
    def shortest_query(self) -> int:
        """Tokens of the shortest query with its walk. A lower bound is enough, but makes `walks` draw more queries."""
        return self.prompt_len - self.graph_len + 2

    @property
    def label_count(self) -> int:
        """The number of labels."""
        return getattr(self, self.label_key) if self.label_key else 0

    @property
    def words(self) -> dict[int, str]:
        """The names of tokens. A token without a name is shown as its number."""
        return {self.eos: "EOS"} | {self.mode_token(name): name for name in self.mode_names}

    def decode(self, tokens: np.ndarray) -> str:
        """Token ids int[T] as a readable line."""
        words = self.words
        return " ".join(words.get(int(token), str(token)) for token in tokens)

    def forked(self, problems: P) -> np.ndarray:
        """bool[n]: True if a problem shows the fork."""
        return np.full(len(problems), self.children(problems) is not None)

    def printed(self: T, branch_order: str) -> T:
        """The task with its branches printed in this order. A task without that field is returned as it is."""
        changes = {field.name: branch_order for field in fields(self) if field.name == "branch_order"}
        return replace(self, **changes)

    @property
    def walk_task(self: T) -> T:
        """The task whose graphs a base walks on. It ignores the fields in ``unwalked``."""
        return self.printed("shuffled")

    def give_cue(self, problems: P, cued: np.ndarray) -> P:
        """The problems, with the branch given away by the printed order where bool[n] ``cued``."""
        raise ValueError(f"cue_rate: {type(self).__name__} prints no cue that gives the branch away; give 0")

    def remove_fork(self, problems: P, keep: np.ndarray) -> P:
        """The problems, without their fork where bool[n] ``keep`` is False.

        Raises ValueError for a task that has no such problems.
        """
        raise ValueError(f"{type(self).__name__} has no problems without a fork: give fork_in_graph=false, forked=true")

    @property
    def guessing_floor(self) -> float | None:
        """The chance that a guess is the answer. None if traces end in no answer."""
        return None

    def answer_dfa(self, problems: P) -> DFA:
        """The automata that judge the answer alone. Raises ValueError if traces end in no answer."""
        raise ValueError(f"grading: traces of {type(self).__name__} end in no answer, choose steps")

    def read_graph(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The graphs that prompts print, as int64 arrays. Raises ValueError if prompts print no graph.

        They are: parents [n, E] and children [n, E] as printed, what else each edge says [n, E, X], and the query
        (start, goal) [n, 2].
        """
        raise ValueError(f"{type(self).__name__} prints no graph of edges")


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): a bijection of uint64 that scatters every bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hashed(rows: np.ndarray) -> np.ndarray:
    """uint64[n]: a hash of every row of integers [n, T]."""
    state = np.zeros(len(rows), dtype=np.uint64)
    for column in rows.astype(np.uint64).T:
        state = mix(state ^ column)
    return state
