"""Decode policies: pure functions from logits to logits, the same in every engine.

A policy removes a token by setting its logit to -inf. Tokens are ranked by higher logit, equal logits by lower id.
Steps are applied in the order in which they are written:

    parse_policy("temperature=0.7,top_p=0.95")    divide logits by .7, then keep the nucleus of the result

Logits are float[..., V]; all arithmetic is fp32.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


def temperature(logits: Tensor, value: float) -> Tensor:
    """logits / value; 0 is its limit, `greedy`."""
    return logits / value if value > 0 else greedy(logits, 1)


def greedy(logits: Tensor, value: float = 1) -> Tensor:
    """Only the first-ranked token."""
    return top_k(logits, 1)


def top_k(logits: Tensor, value: float) -> Tensor:
    """Only the ``value`` first-ranked tokens (Fan et al. 2018)."""
    order = logits.sort(dim=-1, descending=True, stable=True).indices
    return logits.scatter(-1, order[..., int(min(value, logits.shape[-1])) :], -math.inf)


def top_p(logits: Tensor, value: float) -> Tensor:
    """The nucleus (Holtzman et al. 2020): a token stays while the mass ranked before it is below ``value``.

    So the first-ranked token stays, and so does the one whose mass reaches ``value``. 1 keeps all tokens.
    """
    if value >= 1:  # rounding must not cut the tail
        return logits
    order = logits.sort(dim=-1, descending=True, stable=True)
    p = torch.softmax(order.values, dim=-1)
    before = p.cumsum(dim=-1) - p
    late = before >= max(value, 1e-30)  # a smaller value would be 0 in fp32 and remove even the first token
    outside = torch.empty_like(late).scatter_(-1, order.indices, late)
    return logits.masked_fill(outside, -math.inf)


def min_p(logits: Tensor, value: float) -> Tensor:
    """Tokens at least ``value`` times as probable as the most probable one (Nguyen et al. 2024)."""
    p = torch.softmax(logits, dim=-1)
    return logits.masked_fill(p < value * p.amax(dim=-1, keepdim=True), -math.inf)


def top_n_sigma(logits: Tensor, value: float) -> Tensor:
    """Tokens within ``value`` standard deviations of the largest logit (Tang et al. 2024).

    The deviation is the population's, over tokens that are not removed yet.
    """
    possible = torch.isfinite(logits)
    count = possible.sum(dim=-1, keepdim=True)
    mean = logits.where(possible, 0).sum(dim=-1, keepdim=True) / count
    variance = ((logits - mean) ** 2).where(possible, 0).sum(dim=-1, keepdim=True) / count
    return logits.masked_fill(logits < logits.amax(dim=-1, keepdim=True) - value * variance.sqrt(), -math.inf)


class Step(NamedTuple):
    """A step of policies: its function of logits and value, the test of a value, the text of the error."""

    function: Callable[[Tensor, float], Tensor]
    fits: Callable[[float], bool]
    need: str


# To add a step: write its function above, give it a line here, name it at eval.policy in configs/defaults.yaml, and add
# it to `values`, `LARGE` and `stay` of tests/minifork/decoding/test_policy.py. Its `fits` must refuse negative numbers,
# nan and inf.
# An edit of this file changes the measuring version (`minifork.storage.version`). Older measurements are kept, marked
# as not current, and made anew by `minifork eval --again`.
# On a GPU, a policy with a step that is not in KERNEL_STEPS of gpu/kernel.py runs in torch, several times slower.
STEPS = {
    "temperature": Step(temperature, lambda v: v == 0 or 1e-20 <= v <= 1e20, "give 0 (greedy) or 1e-20 to 1e20"),
    "greedy": Step(greedy, lambda v: v == 1, "it takes no value"),
    "top_k": Step(top_k, lambda v: 1 <= v < math.inf and v == int(v), "give a whole number of tokens, at least 1"),
    "top_p": Step(top_p, lambda v: 0 < v <= 1, "give a probability in (0, 1]"),
    "min_p": Step(min_p, lambda v: 0 <= v <= 1, "give a share of the largest probability, in [0, 1]"),
    "top_n_sigma": Step(top_n_sigma, lambda v: 0 <= v < math.inf, "give a finite number of deviations, 0 or more"),
}


@dataclass(frozen=True)
class Policy:
    """A sequence of (name, value) steps, applied in order. Without steps it samples from the model as it is.

    Raises ValueError naming a step that does not exist or whose value is out of range.
    """

    steps: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for name, value in self.steps:
            if name not in STEPS:
                raise ValueError(f"policy {name!r} does not exist: choose from {', '.join(STEPS)}")
            if not STEPS[name].fits(value):
                raise ValueError(f"policy {name} is {_text(value)}: {STEPS[name].need}")

    def __call__(self, logits: Tensor) -> Tensor:
        """The logits float32[..., V] to sample from, -inf for removed tokens."""
        logits = logits.float()
        for name, value in self.steps:
            logits = STEPS[name].function(logits, value)
        return logits

    @property
    def functions(self) -> list[Callable[[Tensor, float], Tensor]]:
        """The functions of the steps, in order."""
        return [STEPS[name].function for name, _ in self.steps]

    def __str__(self) -> str:
        words = [name if name == "greedy" else f"{name}={_text(value)}" for name, value in self.steps]
        return ",".join(words) or "temperature=1"


def parse_policy(text: str) -> Policy:
    """The policy written as "name=value,name=value"; raises ValueError naming the step that is wrong."""
    steps = []
    for word in text.split(","):
        name, equals, value = word.strip().partition("=")
        try:
            steps.append((name, float(value) if equals or name != "greedy" else 1.0))
        except ValueError:
            raise ValueError(f"policy {word.strip()!r}: write a policy as name=value,name=value") from None
    return Policy(tuple(step for step in steps if step != ("temperature", 1.0)))


def _text(value: float) -> str:
    """The value with all digits, so that it is parsed to the same value; "50" for 50.0."""
    return str(float(value)).removesuffix(".0")
