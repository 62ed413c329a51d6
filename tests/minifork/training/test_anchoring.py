"""The anchored loss by hand and against cross-entropy; a run with it resumes bit for bit; its notation."""

import numpy as np
import pytest
import torch

from data_gen.walks import IGNORE
from minifork import config as configs
from minifork.schema import Anchor, parse_anchor
from minifork.storage.weights import load_weights
from minifork.training.anchoring import anchored_loss
from minifork.training.losses import cross_entropy
from tests.helpers.pipeline import BASE, assert_same_training, ctrl_c

ANCHOR = "sft.anchor=renormalised,epoch=1,entropy=0.2,mode=1"


def logits_of(p: list[list[float]]) -> torch.Tensor:
    """Logits [1, T, V] that give these probabilities."""
    return torch.tensor([p]).log()


P = logits_of([[0.2, 0.3, 0.5], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])
REFERENCE = logits_of([[0.5, 0.49, 0.01], [0.3, 0.6, 0.1], [0.98, 0.01, 0.01]])  # undecided at the first two places
TARGETS = torch.tensor([[2, 0, 1]])
PLAIN = -np.log([0.5, 0.1, 0.25])  # cross-entropy at the three places
MODE = -(np.log(0.2) * 0.5 + np.log(0.3) * 0.49) / 0.99  # renormalised at the first place; min-p drops its last token
BY_HAND = {
    Anchor("mask"): PLAIN[[0, 2]].mean(),
    Anchor("mask", mode=1): PLAIN[2],
    Anchor("mask", entropy=5.0): PLAIN.mean(),
    Anchor("renormalised", min_p=0.2): np.mean([PLAIN[0], -(np.log(0.1) * 0.3 + np.log(0.6) * 0.6) / 0.9, PLAIN[2]]),
    Anchor("renormalised", min_p=0.0): np.mean([PLAIN[0], -(np.log([0.1, 0.6, 0.3]) @ [0.3, 0.6, 0.1]), PLAIN[2]]),
    Anchor("uniform", min_p=0.2): np.mean([PLAIN[0], -(np.log(0.1) + np.log(0.6)) / 2, PLAIN[2]]),
    Anchor("renormalised", min_p=0.2, entropy=0.5, mode=1): np.mean(
        [MODE, -(np.log(0.1) * 0.3 + np.log(0.6) * 0.6) / 0.9, PLAIN[2]]
    ),
}


@pytest.mark.parametrize("anchor", BY_HAND, ids=str)
def test_by_hand(anchor):
    """min-p .2 of the second place drops its token with .1 < .2 x .6."""
    assert float(anchored_loss(P, REFERENCE, TARGETS, anchor)) == pytest.approx(BY_HAND[anchor], rel=1e-5)


def test_where_nothing_is_undecided_it_is_cross_entropy():
    rng = torch.Generator().manual_seed(0)
    logits, reference = (torch.randn(4, 5, 7, generator=rng) for _ in range(2))
    targets = torch.randint(7, (4, 5), generator=rng)
    targets[:, :2] = IGNORE
    for target in ("mask", "renormalised", "uniform"):
        loss = anchored_loss(logits, reference, targets, Anchor(target, entropy=3.0))
        torch.testing.assert_close(loss, cross_entropy(logits, targets))


def test_the_gradient_vanishes_at_the_reference_where_it_is_undecided():
    logits = REFERENCE.clone().requires_grad_()
    anchored_loss(logits, REFERENCE, TARGETS, Anchor("renormalised", min_p=0.0, mode=1, entropy=0.2)).backward()
    assert logits.grad[0, :2].abs().max() < 1e-6 < logits.grad[0, 2].abs().max()


def test_a_mask_that_leaves_nothing_is_refused(copy, capsys):
    with pytest.raises(ValueError, match="it masks every token of a batch; give a larger entropy"):
        anchored_loss(P, REFERENCE, TARGETS, Anchor("mask", entropy=0.0, mode=1))
    assert "masks every token" in copy(BASE).refused(capsys, "sft", "sft.anchor=mask,entropy=0,mode=1")


def test_a_run_is_plain_until_its_reference_and_resumes_bit_for_bit(copy, tmp_path):
    """Its first epoch is that of the plain run. Stopped when the reference is written it ends with the same weights."""
    pipeline, plain = copy(BASE, "fork1"), "epochs/e1.pt"
    assert pipeline("sft", ANCHOR) == 0
    whole, cross_entropy_run = pipeline.at("sft", ANCHOR), pipeline.run("fork1")
    same, later = ([load_weights(run / file)["model"]["head.weight"] for run in (whole, cross_entropy_run)]
                   for file in (plain, "epochs/e4.pt"))  # fmt: skip
    assert torch.equal(*same) and not torch.equal(*later)
    reference = whole.rename(tmp_path / "whole")
    with ctrl_c("between", 3):
        assert pipeline("sft", ANCHOR) == 130
    assert pipeline("sft", "--resume", ANCHOR) == 0
    assert_same_training(whole, reference)


def test_a_missing_snapshot_is_named(copy, capsys):
    pipeline = copy(BASE)
    with ctrl_c("between", 3):
        assert pipeline("sft", ANCHOR) == 130
    file = pipeline.at("sft", ANCHOR) / "epochs" / "e1.pt"
    file.unlink()
    assert f"{file}: sft.anchor needs this snapshot" in pipeline.refused(capsys, "sft", "--resume", ANCHOR)


def test_the_base_as_reference(copy):
    """It is anchored from the first step on."""
    pipeline, words = copy(BASE, "fork1"), "sft.anchor=uniform,epoch=0,mode=1"
    assert pipeline("sft", words) == 0
    first, plain = (load_weights(run / "epochs/e1.pt")["model"]["head.weight"]
                    for run in (pipeline.at("sft", words), pipeline.run("fork1")))  # fmt: skip
    assert not torch.equal(first, plain)


REFUSED = {
    "choose mask, renormalised, uniform": "keep", "write it as": "mask,k=3 mask,entropy=x mask,mode",
    "in \\[0, 1\\]": "mask,min_p=2", "not negative": "mask,entropy=-1 mask,entropy=nan", "give 0 or 1": "mask,mode=2",
    "its epoch must be 0": "mask,epoch=3 mask,epoch=64 mask,epoch=128", "at least 0": "mask,epoch=-1",
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_no_anchor_is_refused(message):
    for text in REFUSED[message].split():
        with pytest.raises(ValueError, match=f"sft.anchor is '{text}.*{message}"):
            configs.load_config("star", [f"sft.anchor={text}"])
    with pytest.raises(ValueError, match="needs loss=cross_entropy"):
        configs.load_config("star", ["sft.anchor=mask", "sft.loss=gem=0.7"])


def test_one_anchor_has_one_spelling():
    spellings = ["mask", "mask,mode=0", "mask,epoch=1,entropy=0.30"]
    values = {configs.load_config("star", [f"sft.anchor={text}"]).sft.anchor for text in spellings}
    assert values == {str(Anchor("mask"))} and parse_anchor(values.pop()) == Anchor("mask")
    assert parse_anchor("none") is None
