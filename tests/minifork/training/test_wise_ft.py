"""Interpolated weights: the ends are the base and the tuned model, the middle lies between."""

import pytest
import torch

from minifork import runs
from minifork.storage.weights import load_weights, weights_hash
from minifork.training.wise_ft import interpolate
from tests.helpers.pipeline import snapshot


def weights(path) -> dict:
    return load_weights(path)["model"]


def mixture(pipeline, share: str, *overrides: str):
    """The folder of a mixture of the plain run at FORK_RATE 1."""
    return pipeline.at("wise", f"wise.weights={share}", *overrides)


def test_interpolates_every_snapshot(copy):
    pipeline = copy("base", "fork1")
    assert pipeline("wise", "wise.weights=0,0.25,1") == pipeline("eval") == 0
    base = weights(pipeline.run("base") / "ckpt.pt")
    for epoch in (1, 2, 4):
        tuned = weights(pipeline.run("fork1") / runs.snapshot(epoch))
        mixed = {share: weights(mixture(pipeline, share) / runs.snapshot(epoch)) for share in ("0", "0.25", "1")}
        for name in base:
            assert torch.equal(mixed["0"][name], base[name]) and torch.equal(mixed["1"][name], tuned[name])
            torch.testing.assert_close(mixed["0.25"][name], 0.75 * base[name] + 0.25 * tuned[name])
    records = pipeline.view()["records"]
    passed = {(r["stage"], r["tags"].get("wise.weights"), r["epoch"]): r["pass_at"]["1"] for r in records}
    assert passed["wise", "0", 4] == passed["base", None, None] and passed["wise", "1", 4] == passed["sft", None, 4]
    assert len({r["identity"] for r in records}) == 5


def test_each_share_is_a_run_of_its_own(copy):
    """It names the run that it is a mixture of; made again it stays as it is, however the shares are listed."""
    pipeline = copy("base", "fresh")
    assert pipeline("wise", "sft.fresh=true", "wise.weights=0.25,0.5") == 0
    run = runs.read_run(mixture(pipeline, "0.5", "sft.fresh=true"))
    tuned = runs.read_run(pipeline.run("fresh"))
    assert run.complete and run.stage == "wise"
    assert run.tags(pipeline.config()) == {"sft.fresh": True, "wise.weights": "0.5"}
    last = {"run": tuned.name, "file": "epochs/e4.pt", "weights": tuned.record["weights"]["epochs/e4.pt"]}
    assert run.record["parent"] == last
    assert all(one.weights == weights_hash(one.path) for one in run.checkpoints())
    before = snapshot(pipeline.folder)
    assert pipeline("wise", "sft.fresh=true", "wise.weights=0.50,0.25", "name=other") == 0
    assert snapshot(pipeline.folder) == before


def test_between_early_and_late(copy, capsys):
    """The early end is a snapshot of the run itself; later ones only are mixed with it."""
    pipeline = copy("base", "fork1")
    assert pipeline("wise", "wise.weights=0.5", "wise.early=2") == pipeline("eval") == 0
    tuned, mixed = pipeline.run("fork1") / "epochs", mixture(pipeline, "0.5", "wise.early=2") / "epochs"
    assert [path.name for path in mixed.iterdir()] == ["e4.pt"]
    early, late, half = weights(tuned / "e2.pt"), weights(tuned / "e4.pt"), weights(mixed / "e4.pt")
    for name in early:
        torch.testing.assert_close(half[name], (early[name] + late[name]) / 2)
    assert "e3.pt: no such weights" in pipeline.refused(capsys, "wise", "wise.early=3")
    assert "wise.early must leave one" in pipeline.refused(capsys, "wise", "wise.early=4")
    assert "wise.early" in pipeline.refused(capsys, "wise", "wise.early=-1")


def test_missing_runs_and_bad_shares(copy, capsys):
    pipeline = copy("base", "fork1")
    for override in ("sft.fork_rate=0.5", "sft.lr=0.5", "base_seed=1"):
        assert "no such finished run; make it with `minifork sft" in pipeline.refused(capsys, "wise", override)
    for shares in ("1.5", "half", "0.5,0.50", ""):
        assert "wise.weights" in pipeline.refused(capsys, "wise", f"wise.weights={shares}")
    assert {*pipeline.folder.iterdir()} == {pipeline.run("base"), pipeline.run("fork1")}


def test_other_names_and_shapes_are_refused():
    for other in ({"a": torch.zeros(3)}, {"b": torch.zeros(2)}):
        with pytest.raises(ValueError, match=r"e4\.pt: its parameters have other names or shapes"):
            interpolate({"a": torch.zeros(2)}, other, 0.5, "e4.pt")
