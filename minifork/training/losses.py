"""Losses for fine-tuning: pure functions of logits float[B, T, V] and targets int64[B, T] (IGNORE where there is none).

Each returns a scalar in nats, in fp32, and takes one number that shapes it:

    parse_loss("cross_entropy")    parse_loss("label_smoothing=0.1")    parse_loss("coverage=16")

A sequence's log-probability is the sum over its targets; everything else is a mean over targets.

To add a loss: write a function, enter it in LOSSES, name it at sft.loss in minifork/configs/defaults.yaml, and add it
to EXAMPLES, BY_HAND and IMPOSSIBLE in tests/minifork/training/test_losses.py, and to DETACHED if it holds a part fixed.
Cast with .float(), which the test of gradients replaces. A finished run does not notice that the code of its loss has
changed.
"""

import math
from collections.abc import Callable

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
    logp = logits[targets != IGNORE].float().log_softmax(dim=-1)
    entropy = -(logp.exp() * logp).sum(dim=-1)
    return cross_entropy(logits, targets) - value * entropy.mean()


def gem(logits: Tensor, targets: Tensor, value: float) -> Tensor:
    """sum_v q(v) log p(v) - log p(target), with q = softmax(logits / value) held fixed (GEM, arXiv 2408.16673).

    The gradient in the logits is q - onehot(target). With value < 1 it vanishes once the *sharpened* model q is sure,
    so p itself stays softer than under cross-entropy, whose gradient is that of value 1.
    """
    present = targets != IGNORE
    at_targets = logits[present].float()
    logp = at_targets.log_softmax(dim=-1)
    q = (at_targets.detach() / value).softmax(dim=-1)
    return ((q * logp).sum(dim=-1) - logp.gather(1, targets[present][:, None])[:, 0]).mean()


def coverage(logits: Tensor, targets: Tensor, value: float) -> Tensor:
    """-log(1 - (1 - p)^N), p the probability of a whole sequence and N = value, the mean over sequences.

    Direct coverage optimisation (arXiv 2502.07154). A sequence with p well above 1 / N is covered by N samples already,
    so it has hardly any gradient. N = 1 is cross-entropy summed over a sequence.
    """
    logp = sequence_logp(logits, targets).double()
    rare = logp < -30  # there N p replaces 1 - (1 - p)^N, with a relative error of N p / 2 < 5e-5; p could underflow
    miss = value * torch.log1p(-logp.where(~rare, -1.0).exp().clamp(max=1 - 1e-12))
    log_passed = torch.where(rare, logp + math.log(value), torch.log(-torch.expm1(miss)))
    return -log_passed.mean().float()


def drop_tail(logits: Tensor, targets: Tensor, value: float) -> Tensor:
    """Cross-entropy without the share ``value`` of the batch's sequences that are learned best (lowest mean loss).

    After TailSFT (arXiv 2608.25756): the model does not train on sequences that it has over-learned.
    """
    loss = -sequence_logp(logits, targets)
    count = (targets != IGNORE).sum(dim=1)
    size = len(loss) - int(value * len(loss))
    hardest = (loss / count.clamp(min=1)).detach().topk(size).indices
    return loss[hardest].sum() / count[hardest].sum()


def sequence_logp(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability float[B] of all targets of each sequence."""
    return token_logp(logits, targets).sum(dim=1)


def token_logp(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability float[B, T] of each target, 0 where there is none."""
    logp = logits.float().log_softmax(dim=-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return logp.where(targets != IGNORE, 0.0)


# name: (function, the condition on its value, the text in which an error asks for it)
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor, float], Tensor], Callable[[float], bool], str]] = {
    "cross_entropy": (cross_entropy, lambda v: v == 0, "it takes no value"),
    "label_smoothing": (label_smoothing, lambda v: 0 <= v < 1, "give a share in [0, 1)"),
    "entropy_bonus": (entropy_bonus, lambda v: 0 <= v < math.inf, "give a finite weight, 0 or more"),
    "gem": (gem, lambda v: 0 < v < math.inf, "give a temperature above 0"),
    "coverage": (coverage, lambda v: 1 <= v <= 1e9, "give a number of samples N, at least 1 and at most 1e9"),
    "drop_tail": (drop_tail, lambda v: 0 <= v < 1, "give a share in [0, 1)"),
}
Loss = Callable[[Tensor, Tensor], Tensor]  # a function of logits and targets that returns a scalar


def parse_loss(text: str) -> Loss:
    """The loss written as "cross_entropy" or "name=value".

    Raises ValueError for a name that does not exist, and for a value that is missing or out of range.
    """
    name, equals, number = text.partition("=")
    name = name.strip()
    if name not in LOSSES:
        raise ValueError(f"sft.loss {name!r} does not exist: choose from {', '.join(LOSSES)}")
    function, fits, need = LOSSES[name]
    if not equals and name != "cross_entropy":
        raise ValueError(f"sft.loss is {text!r}: it needs a value, write it as name=value; {need}")
    try:
        value = float(number) if equals else 0.0
    except ValueError:
        raise ValueError(f"sft.loss is {text!r}: write it as name=value") from None
    if not fits(value):
        raise ValueError(f"sft.loss {name} is {value:g}: {need}")
    return lambda logits, targets: function(logits, targets, value)
