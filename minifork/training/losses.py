"""Losses for fine-tuning: pure functions of logits float[B, T, V] and targets int64[B, T] (IGNORE where there is none).

Each returns a scalar in nats, in fp32, and takes one number that shapes it:

    parse_loss("cross_entropy")    parse_loss("label_smoothing=0.1")    parse_loss("coverage=16")

A sequence's log-probability is the sum over its targets; everything else is a mean over targets.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from data_gen.walks import IGNORE


def cross_entropy(logits: Tensor, targets: Tensor, value: float = 0.0) -> Tensor:
    """-log p(target), the mean over targets."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE)


def label_smoothing(logits: Tensor, targets: Tensor, value: float) -> Tensor:
    """-(1 - value) log p(target) - value mean_v log p(v) (Szegedy et al. 2016, arXiv 1512.00567)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, label_smoothing=value)


def entropy_bonus(logits: Tensor, targets: Tensor, value: float) -> Tensor:
    """-log p(target) - value H(p), H the entropy of the next token (Pereyra et al. 2017, arXiv 1701.06548)."""
    logp = _kept(logits, targets)[0].log_softmax(dim=-1)
    return cross_entropy(logits, targets) - value * _entropy(logp).mean()


def gem(logits: Tensor, targets: Tensor, value: float) -> Tensor:
    """sum_v q(v) log p(v) - log p(target), with q = softmax(logits / value) held fixed (GEM, arXiv 2408.16673).

    The gradient in the logits is q - onehot(target): with value < 1, learning stops once the *sharpened* model is
    sure, so p itself stays softer than under cross-entropy, which is value 1.
    """
    kept, target = _kept(logits, targets)
    logp = kept.log_softmax(dim=-1)
    q = (kept.detach() / value).softmax(dim=-1)
    return ((q * logp).sum(dim=-1) - logp.gather(1, target[:, None])[:, 0]).mean()


def coverage(logits: Tensor, targets: Tensor, value: float) -> Tensor:
    """-log(1 - (1 - p)^N), p the probability of a whole sequence and N = value, the mean over sequences.

    Direct coverage optimisation (arXiv 2502.07154): what N samples cover need not be made more certain, so sequences
    with p well above 1 / N hardly pull. N = 1 is cross-entropy summed over a sequence.
    """
    logp = sequence_logp(logits, targets).double()
    rare = logp < -30  # there 1 - (1 - p)^N is N p but for a share of N p / 2 < 5e-5, and p itself could underflow
    miss = value * torch.log1p(-logp.where(~rare, -1.0).exp().clamp(max=1 - 1e-12))
    covered = torch.where(rare, logp + math.log(value), torch.log(-torch.expm1(miss)))
    return -covered.mean().float()


def drop_tail(logits: Tensor, targets: Tensor, value: float) -> Tensor:
    """Cross-entropy without the share ``value`` of the batch's sequences that are learned best (lowest mean loss).

    After TailSFT (arXiv 2608.25756): sequences that are already over-learned do not train on.
    """
    present = targets != IGNORE
    loss = -sequence_logp(logits, targets)
    count = present.sum(dim=1)
    kept = len(loss) - int(value * len(loss))
    hardest = (loss / count.clamp(min=1)).detach().topk(kept).indices
    return loss[hardest].sum() / count[hardest].sum()


def sequence_logp(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability float[B] of all targets of each sequence."""
    return token_logp(logits, targets).sum(dim=1)


def token_logp(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability float[B, T] of each target, 0 where there is none."""
    logp = logits.float().log_softmax(dim=-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return logp.where(targets != IGNORE, 0.0)


def _kept(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The logits fp32[M, V] and targets int64[M] of the places that have one."""
    present = targets != IGNORE
    return logits[present].float(), targets[present]


def _entropy(logp: Tensor) -> Tensor:
    return -(logp.exp() * logp).sum(dim=-1)


# name: (function, the values it takes, what they must be)
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor, float], Tensor], Callable[[float], bool], str]] = {
    "cross_entropy": (cross_entropy, lambda v: v == 0, "it takes no value"),
    "label_smoothing": (label_smoothing, lambda v: 0 <= v < 1, "give a share in [0, 1)"),
    "entropy_bonus": (entropy_bonus, lambda v: 0 <= v < math.inf, "give a finite weight, 0 or more"),
    "gem": (gem, lambda v: 0 < v < math.inf, "give a temperature above 0"),
    "coverage": (coverage, lambda v: 1 <= v <= 1e9, "give a number of samples N, at least 1 and at most 1e9"),
    "drop_tail": (drop_tail, lambda v: 0 <= v < 1, "give a share in [0, 1)"),
}


@dataclass(frozen=True)
class Loss:
    """A loss and its number; raises ValueError naming what does not exist or is out of range."""

    name: str
    value: float

    def __post_init__(self) -> None:
        if self.name not in LOSSES:
            raise ValueError(f"sft.loss {self.name!r} does not exist: choose from {', '.join(LOSSES)}")
        if math.isnan(self.value) or not LOSSES[self.name][1](self.value):
            raise ValueError(f"sft.loss {self.name} is {self.value:g}: {LOSSES[self.name][2]}")

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss, a scalar."""
        return LOSSES[self.name][0](logits, targets, self.value)


def parse_loss(text: str) -> Loss:
    """The loss written as "name" or "name=value"; raises ValueError naming what is wrong."""
    name, equals, value = text.partition("=")
    try:
        return Loss(name.strip(), float(value) if equals else 0.0)
    except ValueError as error:
        if "could not convert" not in str(error):
            raise
        raise ValueError(f"sft.loss is {text!r}: write it as name=value") from None
