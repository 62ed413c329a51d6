"""What a task is to the rest of the project: problems as tokens, traces, automata and walks.

The tasks that ship are `data_gen.star.Star`, `data_gen.sizes.Sizes` (stars of several sizes) and
`data_gen.arith.Arith`; `examples/new_task.py` is one from scratch. A problem is a prompt of ``prompt_len`` tokens; a
trace answers it in one of the task's ``modes``, names its mode first and ends with EOS. Problems come in batches of a
type of the task's own, a subclass of `Batch`.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Generic, TypeVar

import numpy as np

from data_gen.verifier import DFA

PAD = -1  # stands in arrays where a trace or a walk is over
GRADINGS = ("steps", "answer")

P = TypeVar("P", bound="Batch")
T = TypeVar("T", bound="Task")


@dataclass(frozen=True)
class Batch:
    """Problems as arrays whose first axis is the problem; the fields are a subclass's."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self: P, rows: slice | np.ndarray) -> P:
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))


Problems = Batch  # of any task


class MissingMemberError(NotImplementedError, ValueError):
    """A task lacks a member that it has to write."""

    def __init__(self, task: "Task[Any]", member: str):
        super().__init__(f"{type(task).__name__} lacks {member}: data_gen/task.py says what it must give")


@dataclass(frozen=True)
class Task(Generic[P]):
    """The base of every task: a frozen dataclass whose fields are the data section of its config.

    Methods are pure functions, arrays are int64, n is the number of problems. A task has to write:

        vocab_size               how many tokens there are: 0, 1, 2, ...
        eos                      the token that ends a trace
        prompt_len               tokens of a prompt, the same for all problems
        trace_len                tokens of the longest trace, mode and EOS included
        mode_token(mode)         the token that a trace in this mode begins with
        sample(rng, n)           n problems
        prompts(problems)        [n, prompt_len]
        traces(problems, mode)   [n, trace_len], PAD past EOS; mode [n], an index into ``mode_names`` for each
        dfa(problems)            the automata that accept the right traces (see `data_gen.verifier`)

    and most tasks also write:

        reprint(problems, rng)   the same problems printed in another way
        identity(problems)       uint64[n]: equal for equal problems, however printed; it decides a problem's stream
        fork_prefix(problems)    [n, F]: the tokens of a trace that end right before the fork, mode first
        children(problems)       [n, d]: the tokens that may come next there, PAD past the last; column 0 is right
        walks(problems, ...)     what the base model learns from

    All else has a default that works. ``modes``, a class attribute or a field ("FWD,REV" by default), names the modes.
    What a task of sums modulo 10 with traces in two modes writes, for the problem 3 + 4:

        prompt   3 4 SEP          vocab_size 14: digits, SEP, EOS, FWD, REV
        traces   FWD 3 4 7 EOS    trace_len 5
                 REV 7 4 3 EOS
    """

    branch_order = "shuffled"  # a field of tasks that can print the right branch first: "published"
    modes = "FWD,REV"

    # What a task has to write.

    @property
    def vocab_size(self) -> int:
        raise MissingMemberError(self, "vocab_size")

    @property
    def eos(self) -> int:
        raise MissingMemberError(self, "eos")

    @property
    def prompt_len(self) -> int:
        raise MissingMemberError(self, "prompt_len")

    @property
    def trace_len(self) -> int:
        raise MissingMemberError(self, "trace_len")

    def mode_token(self, mode: str) -> int:
        raise MissingMemberError(self, "mode_token(mode)")

    def sample(self, rng: np.random.Generator, n: int) -> P:
        raise MissingMemberError(self, "sample(rng, n)")

    def prompts(self, problems: P) -> np.ndarray:
        raise MissingMemberError(self, "prompts(problems)")

    def traces(self, problems: P, mode: np.ndarray) -> np.ndarray:
        raise MissingMemberError(self, "traces(problems, mode)")

    def dfa(self, problems: P) -> DFA:
        raise MissingMemberError(self, "dfa(problems)")

    # What most tasks also write.

    def reprint(self, problems: P, rng: np.random.Generator) -> P:
        """The problems in another print; themselves by default, for one way to print."""
        return problems

    def identity(self, problems: P) -> np.ndarray:
        """uint64[n]; a hash of the prompt by default, which is right where `reprint` changes nothing."""
        return hashed(self.prompts(problems))

    def fork_prefix(self, problems: P) -> np.ndarray | None:
        """int64[n, F], or None: the task declares no fork."""
        return None

    def children(self, problems: P) -> np.ndarray | None:
        """int64[n, d], or None: the task declares no fork."""
        return None

    def walks(self, problems: P, stop: float, informed: float, rng: np.random.Generator, count: int) -> np.ndarray:
        """``count`` queries and walks for every problem's sequence, [n, count, Q], PAD in gaps.

        What is left of a prompt after ``graph_len`` tokens, and a walk that stops before every step with probability
        ``stop``; of a share ``informed`` the query names where they end. By default whole prompts, each with a right
        trace in a random mode, of the problem itself and those after it in the batch.
        """
        n = len(problems)
        rows = ((np.arange(n)[:, None] + np.arange(count)) % n).ravel()
        mode = rng.integers(len(self.mode_names), size=n * count)
        queries = [self.prompts(problems)[rows], self.traces(problems[rows], mode)]
        return np.concatenate(queries, axis=1).reshape(n, count, -1)

    # What has a default that works.

    @property
    def mode_names(self) -> tuple[str, ...]:
        """The names of its modes."""
        return tuple(self.modes.split(","))

    @property
    def graph_len(self) -> int:
        """Tokens of a prompt that a sequence of walks prints once; the query follows."""
        return 0

    @property
    def shortest_query(self) -> int:
        """Tokens of the shortest query with its walk, at most; too few cost time only."""
        return self.prompt_len - self.graph_len + 2

    @property
    def label_key(self) -> str:
        """The field that says how many labels there are, "" for none; labels are the tokens 0, 1, 2, ..."""
        return ""

    @property
    def label_count(self) -> int:
        """How many labels there are."""
        return getattr(self, self.label_key) if self.label_key else 0

    @property
    def words(self) -> dict[int, str]:
        """What tokens are called; the others go by their number."""
        return {self.eos: "EOS"} | {self.mode_token(mode): mode for mode in self.mode_names}

    def decode(self, tokens: np.ndarray) -> str:
        """Token ids int[T] as a readable line."""
        words = self.words
        return " ".join(words.get(int(token), str(token)) for token in tokens)

    def forked(self, problems: P) -> np.ndarray:
        """bool[n]: which problems show the fork."""
        return np.full(len(problems), self.children(problems) is not None)

    def printed(self: T, branch_order: str) -> T:
        """The task with its branches printed in this order; itself where that is no field."""
        changes = {field.name: branch_order for field in fields(self) if field.name == "branch_order"}
        return replace(self, **changes)

    def give_cue(self, problems: P, cued: np.ndarray) -> P:
        """The problems, the branch given away by the printed order where bool[n] ``cued``."""
        raise ValueError(f"cue_rate: {type(self).__name__} prints no cue that gives the branch away; give 0")

    def remove_fork(self, problems: P, forked: np.ndarray) -> P:
        """The problems, without a fork where not bool[n] ``forked``. Raises ValueError where that cannot be."""
        raise ValueError(f"{type(self).__name__} has no problems without a fork: give fork_in_graph=false, forked=true")

    @property
    def guessing_floor(self) -> float | None:
        """The chance that a guess is the answer; None where traces end in no answer."""
        return None

    def answer_dfa(self, problems: P) -> DFA:
        """The automata that judge the answer alone; raises ValueError where traces end in no answer."""
        raise ValueError(f"grading: traces of {type(self).__name__} end in no answer, choose steps")

    def read_graph(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Prompts as read: parents [n, E], children [n, E] as printed, what else each edge says [n, E, X], the query
        [n, 2] (start, goal). Raises ValueError where prompts print no graph."""
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
