"""Losses against cases worked out by hand, against fp64 formulas, and their gradients against finite differences."""

import math

import numpy as np
import pytest
import torch

from data_gen.walks import IGNORE
from minifork.training import losses
from minifork.training.losses import LOSSES, parse_loss

DETACHED = {"gem"}  # losses that hold a part fixed, so differences do not give their gradient
EXAMPLES = ["cross_entropy", "label_smoothing=0.2", "entropy_bonus=0.3", "gem=0.7", "coverage=8", "drop_tail=0.5"]


def batch(seed: int, scale: float = 2.0, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [4, 5, 7] and targets of which some are missing; every sequence has at least one."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(7, size=(4, 5))
    targets[:, :2] = IGNORE
    targets[0, 3] = IGNORE
    return torch.tensor(scale * rng.standard_normal((4, 5, 7)), dtype=dtype), torch.tensor(targets)


def two_tokens(p: float) -> torch.Tensor:
    """Logits [1, 1, 2] that give token 0 the probability p."""
    return torch.tensor([[[math.log(p), math.log(1 - p)]]])


BY_HAND = {  # of p = 1/4 and 3/4
    **dict.fromkeys(("cross_entropy", "coverage=1", "drop_tail=0"), math.log(4)),
    "label_smoothing=0.2": -0.9 * math.log(0.25) - 0.1 * math.log(0.75),
    "entropy_bonus=2": math.log(4) - 2 * (0.25 * math.log(4) + 0.75 * math.log(4 / 3)),
    "gem=1": 0.25 * math.log(0.25) + 0.75 * math.log(0.75) - math.log(0.25),
    "gem=0.5": 0.1 * math.log(0.25) + 0.9 * math.log(0.75) - math.log(0.25),  # q ~ p^2: 1 : 9
    "coverage=3": -math.log(1 - 0.75**3),
}


@pytest.mark.parametrize("text", BY_HAND)
def test_by_hand(text):
    assert float(parse_loss(text)(two_tokens(0.25), torch.tensor([[0]]))) == pytest.approx(BY_HAND[text], rel=1e-5)


def test_coverage_is_of_whole_sequences():
    """Two tokens of probability 1/2 each: p = 1/4; the mean over two sequences."""
    logits = torch.zeros(2, 2, 2)
    targets = torch.tensor([[0, 1], [1, IGNORE]])
    expected = -(math.log(1 - 0.75**4) + math.log(1 - 0.5**4)) / 2
    assert float(parse_loss("coverage=4")(logits, targets)) == pytest.approx(expected, rel=1e-6)


def test_drop_tail_drops_the_best_learned():
    """The two of four sequences with the lowest mean loss leave. Lengths differ, so sums would choose others."""
    logits = torch.zeros(4, 3, 2)
    logits[0, 0, 0], logits[1, :, 0], logits[2, 0, 0] = 5, 1, -3
    targets = torch.tensor([[0, IGNORE, IGNORE], [0, 0, 0], [0, IGNORE, IGNORE], [0, 0, IGNORE]])
    expected = losses.cross_entropy(logits[2:], targets[2:])
    assert float(parse_loss("drop_tail=0.5")(logits, targets)) == pytest.approx(float(expected), rel=1e-6)
    logits.requires_grad_()
    parse_loss("drop_tail=0.5")(logits, targets).backward()
    assert (logits.grad[:2] == 0).all() and (logits.grad[2:, 0] != 0).all()


@pytest.mark.parametrize("text", [text for text in EXAMPLES if text.split("=")[0] not in DETACHED])
@pytest.mark.parametrize("seed", range(3))
def test_gradients(text, seed, monkeypatch):
    """Against central differences, in fp64."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)  # losses work in fp32; the check needs fp64
    logits, targets = batch(seed)
    assert torch.autograd.gradcheck(lambda z: parse_loss(text)(z, targets).double(), logits.requires_grad_(), atol=1e-6)


@pytest.mark.parametrize("beta", [0.3, 0.7, 1.0, 2.0])
def test_gradient_of_gem(beta):
    """softmax(logits / beta) - onehot(target), the mean over targets; at beta 1 that of cross-entropy."""
    logits, targets = batch(0, dtype=torch.float32)
    logits.requires_grad_()
    parse_loss(f"gem={beta}")(logits, targets).backward()
    present = targets != IGNORE
    onehot = torch.nn.functional.one_hot(targets.clamp(min=0), 7) * present[..., None]
    expected = ((logits.detach() / beta).softmax(dim=-1) * present[..., None] - onehot) / present.sum()
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("text", EXAMPLES)
def test_places_without_a_target_do_not_count(text):
    logits, targets = batch(1, dtype=torch.float32)
    changed = torch.where((targets == IGNORE)[..., None], torch.randn(4, 5, 7), logits)
    assert float(parse_loss(text)(logits, targets)) == float(parse_loss(text)(changed, targets))


@pytest.mark.parametrize("logit", [-200.0, -31.0, -29.0, 0.0, 29.0, 200.0])
def test_coverage_stays_finite(logit):
    """p from 1e-87 to 1: value and gradient are finite, and fall as p rises."""
    logits = torch.tensor([[[logit, 0.0]]], requires_grad=True)
    loss = losses.coverage(logits, torch.tensor([[0]]), 16)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all() and float(loss.detach()) >= 0
    assert float(logits.grad[0, 0, 0]) <= 0


@pytest.mark.parametrize("n", [1, 2, 16, 256, 10_000])
def test_coverage_lets_go(n):
    """The gradient in log p is N p (1-p)^(N-1) / (1 - (1-p)^N): 1 for rare sequences, next to 0 well above 1/N."""
    for p in (1e-9, 0.5 / n, 1 / n, min(0.9, 8 / n)):
        p = min(p, 0.9)
        logits, passed = two_tokens(p).requires_grad_(), -math.expm1(n * math.log1p(-p))
        loss = losses.coverage(logits, torch.tensor([[0]]), n)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(-math.log(passed), rel=1e-3, abs=1e-6)
        pull = n * p * (1 - p) ** (n - 1) / passed
        assert float(logits.grad[0, 0, 0]) == pytest.approx(-pull * (1 - p), rel=2e-3)


IMPOSSIBLE = {
    "does not exist": "hinge", "give a share in": "label_smoothing=1 label_smoothing=-0.1 drop_tail=1",
    "at least 1": "coverage=0.5 coverage", "at most 1e9": "coverage=1e15", "above 0": "gem=0 gem=nan",
    "finite": "entropy_bonus=inf", "no value": "cross_entropy=1", "name=value": "gem=warm",
    "needs a value": "label_smoothing entropy_bonus gem coverage drop_tail",
}  # fmt: skip


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_impossible_losses_are_refused(message):
    for text in IMPOSSIBLE[message].split():
        with pytest.raises(ValueError, match=message):
            parse_loss(text)


def test_every_loss_is_tried():
    for name, tried in (("EXAMPLES", EXAMPLES), ("BY_HAND", BY_HAND)):
        untried = set(LOSSES) - {text.split("=")[0] for text in tried}
        assert not untried, f"add each of {untried} with a value to {name}"
