"""Automata as the engines see them: the states of B problems, and what each next token does to them.

An engine asks two things: the state after a token (`step`), and the states after every token that may come next
(`successors`). Tables of a task's small vocabulary answer both (`Tables`). Automata of a language model's vocabulary
answer them without a table (`minifork.language.automata`).
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


class Successors(NamedTuple):
    """E next tokens of R rows, by row: the row, the token and the state after it, int64[E], and its weight [E].

    The token is -1 where tokens of one row that end traces in the same outcome are counted together.
    """

    row: Tensor
    token: Tensor
    state: Tensor
    weight: Tensor


class Automata(Protocol):
    """One automaton for each of B problems. State 0 is the start.

    The ``outcome_count`` states from ``first_outcome`` on end traces. The first of them accepts, the last takes traces
    that outgrow their length.
    """

    @property
    def vocab_size(self) -> int:
        """The number of tokens that it reads."""

    @property
    def first_outcome(self) -> int:
        """The state of accepted traces."""

    @property
    def outcome_count(self) -> int:
        """The number of outcomes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: slice | Tensor) -> "Automata":
        """The automata of the problems that an index chooses."""

    def step(self, problem: Tensor, state: Tensor, token: Tensor) -> Tensor:
        """The states int64[R] after one token int64[R] each, from live states int64[R] or outcomes, which stay."""

    def successors(self, problem: Tensor, state: Tensor, weight: Tensor) -> Successors:
        """The next tokens of positive weight [R, V] after live states int64[R]."""


@dataclass(frozen=True)
class Tables:
    """Automata as tables next int64[B, S, V] (`data_gen.verifier.DFA`). The last ``outcome_count`` states end traces.

    Raises ValueError for states that do not exist and for an ``outcome_count`` that does not fit.
    """

    next: Tensor
    outcome_count: int

    def __post_init__(self) -> None:
        states = self.next.shape[1]
        if not (self.next.min() >= 0 and self.next.max() < states):
            raise ValueError(f"dfa has states outside 0 .. {states - 1}")
        if not 0 < self.outcome_count < states:
            raise ValueError(f"outcome_count is {self.outcome_count}: give 1 to {states - 1}")

    def __len__(self) -> int:
        return len(self.next)

    def __getitem__(self, index: slice | Tensor) -> "Tables":
        return Tables(self.next[index], self.outcome_count)

    @property
    def vocab_size(self) -> int:
        return self.next.shape[2]

    @property
    def first_outcome(self) -> int:
        return self.next.shape[1] - self.outcome_count

    def step(self, problem: Tensor, state: Tensor, token: Tensor) -> Tensor:
        """The states int64[R] after one token int64[R] each."""
        return self.next[problem, state, token]

    def successors(self, problem: Tensor, state: Tensor, weight: Tensor) -> Successors:
        """Every token of positive weight [R, V] by itself."""
        row, token = (weight > 0).nonzero(as_tuple=True)
        return Successors(row, token, self.next[problem[row], state[row], token], weight[row, token])
