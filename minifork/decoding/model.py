"""A model as the engines see it."""

from typing import Protocol

from torch import Tensor

from minifork.gpt import Rows


class Model(Protocol):
    """What the engines need of a model: `minifork.gpt.GPT`, or an adapter of another causal language model."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens."""

    @property
    def context(self) -> int:
        """The longest sequence, in tokens."""

    def rows_at_once(self, length: int) -> int:
        """How many prefixes or rollouts of sequences of ``length`` tokens are to be decoded at once, at most."""

    def decode(self, tokens: Tensor, rows: Rows) -> Tensor:
        """Append one token int64[R] to every row and return the next logits, float[R, V]."""
