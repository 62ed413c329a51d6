"""Patterns as automata over the tokens of a language model: every tokenisation of an accepted text counts.

A table [state, token] of 50,000 tokens would be too large for a pattern of a thousand states. So the tokens that may
follow a state are looked up when the state is first met, and kept as long as these automata are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from minifork.decoding.automata import Successors
from minifork.language.patterns import Pattern
from minifork.language.vocabulary import Vocabulary

OUTCOMES = ("accepted", "rejected", "ended_early", "too_long")
REJECTED, ENDED_EARLY = OUTCOMES.index("rejected"), OUTCOMES.index("ended_early")


def token_automata(patterns: Sequence[Pattern], vocabulary: Vocabulary) -> "TokenAutomata":
    """The automata of these patterns, one a question."""
    return TokenAutomata(patterns, vocabulary, max(pattern.live for pattern in patterns))


@dataclass(frozen=True)
class TokenAutomata:
    """`minifork.decoding.automata.Automata` of one pattern a question, over one vocabulary.

    A text is *accepted* as soon as its pattern accepts all that begins with it, or when it ends where it may. It is
    *rejected* as soon as nothing that begins with it is accepted, and with a token without bytes. It has *ended early*
    if it ends where it may not, and is *too long* if neither happens within its length.

    first_outcome: a number above all live states of all patterns.
    """

    patterns: Sequence[Pattern]
    vocabulary: Vocabulary
    first_outcome: int
    _allowed: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.patterns)

    def __getitem__(self, index: slice | Tensor) -> "TokenAutomata":
        numbers = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        return replace(self, patterns=[self.patterns[number] for number in numbers])

    @property
    def outcome_count(self) -> int:
        return len(OUTCOMES)

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def allowed(self, problem: int, state: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens int64[E] after a live state that are not rejected, in order, and the state int64[E] after each."""
        key = id(self.patterns[problem]), state
        if key not in self._allowed:
            tokens = np.arange(self.vocab_size)
            after = self._after(self.patterns[problem], np.full(self.vocab_size, state), tokens)
            is_allowed = after != self.first_outcome + REJECTED
            self._allowed[key] = tokens[is_allowed], after[is_allowed]
        return self._allowed[key]

    def step(self, problem: Tensor, state: Tensor, token: Tensor) -> Tensor:
        """The states int64[R] after one token int64[R] each."""
        after, tokens = state.cpu().numpy().copy(), token.cpu().numpy()
        problems = problem.cpu().numpy()
        for number in np.unique(problems[after < self.first_outcome]):
            rows = np.flatnonzero((problems == number) & (after < self.first_outcome))
            after[rows] = self._after(self.patterns[number], after[rows], tokens[rows])
        return torch.from_numpy(after).to(state.device)

    def successors(self, problem: Tensor, state: Tensor, weight: Tensor) -> Successors:
        """The next tokens of positive weight [R, V]; those that are rejected count together, as token -1."""
        allowed = [self.allowed(*pair) for pair in zip(problem.tolist(), state.tolist(), strict=True)]
        counts = torch.tensor([len(tokens) for tokens, _ in allowed], dtype=torch.int64)
        every, device = torch.arange(len(weight)), weight.device
        row = every.repeat_interleave(counts).to(device)
        token, after = (_joined([pair[i] for pair in allowed]).to(device) for i in range(2))
        chosen = weight[row, token]
        rest = (weight.sum(dim=1) - torch.zeros_like(weight[:, 0]).index_add_(0, row, chosen)).clamp(min=0)
        every = every.to(device)
        every_rejected = torch.full_like(every, self.first_outcome + REJECTED)
        parts = ((row, every), (token, torch.full_like(every, -1)), (after, every_rejected), (chosen, rest))
        joined = Successors(*map(torch.cat, parts))
        return Successors(*(part[joined.weight > 0] for part in joined))

    def _after(self, pattern: Pattern, state: np.ndarray, token: np.ndarray) -> np.ndarray:
        """The states int64[K] after tokens int64[K] from live states int64[K] of one pattern."""
        after, active, place = state.copy(), np.arange(len(token)), 0
        length, ends = self.vocabulary.length[token], self.vocabulary.ends[token]
        while len(active := active[(length[active] > place) & (after[active] < pattern.live)]):
            after[active] = pattern.next[after[active], self.vocabulary.bytes[token[active], place]]
            place += 1
        after = np.where(after < pattern.live, after, after - pattern.live + self.first_outcome)
        after[length == 0] = self.first_outcome + REJECTED
        after[ends] = self.first_outcome + np.where(pattern.accepts_end[state[ends]], 0, ENDED_EARLY)
        return after


def _joined(arrays: list[np.ndarray]) -> Tensor:
    """int64[E]: arrays int64 one after the other, of which there may be none."""
    return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *arrays]))
