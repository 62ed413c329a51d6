"""Interpolated weights: the ends are the base and the tuned model, the middle lies between."""

from pathlib import Path

import torch

from minifork import runs
from minifork.storage.weights import load_weights
from tests.helpers.pipeline import snapshot, weights_hash


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_weights(path)["model"]


def test_interpolates_every_snapshot(copy):
    """Each share is measured as a run of its own; at the ends with the base's and the tuned run's pass@1."""
    pipeline = copy("base", "fork1")
    assert pipeline("wise", "wise.weights=0,0.25,1") == pipeline("eval") == 0
    base = weights(pipeline.run("base") / "ckpt.pt")
    for epoch in (1, 2, 4):
        tuned = weights(pipeline.run("fork1") / runs.snapshot(epoch))
        for share in (0, 0.25, 1):
            mixed = weights(pipeline.at("wise", f"wise.weights={share}") / runs.snapshot(epoch))
            expected = {name: base[name].lerp(tuned[name], share) for name in base}
            assert all(torch.equal(mixed[name], expected[name]) for name in base)
    records = pipeline.view()["records"]
    passed = {(r["stage"], r["tags"].get("wise.weights"), r["epoch"]): r["pass_at"]["1"] for r in records}
    assert passed["wise", "0", 4] == passed["base", None, None] and passed["wise", "1", 4] == passed["sft", None, 4]
    assert len({r["identity"] for r in records}) == 5


def test_each_share_is_a_run_of_its_own(copy):
    """It names the run that it is a mixture of; made again it stays as it is, however the shares are listed."""
    pipeline = copy("base", "fresh")
    assert pipeline("wise", "sft.fresh=true", "wise.weights=0.25,0.5") == 0
    run = runs.read_run(pipeline.at("wise", "sft.fresh=true", "wise.weights=0.5"))
    tuned = runs.read_run(pipeline.run("fresh"))
    assert run.complete and run.tags(pipeline.config()) == {"sft.fresh": True, "wise.weights": "0.5"}
    file = "epochs/e4.pt"
    assert run.record["parent"] == {"run": tuned.name, "file": file, "weights": tuned.record["weights"][file]}
    assert all(checkpoint.weights_hash == weights_hash(checkpoint.path) for checkpoint in run.checkpoints())
    before = snapshot(pipeline.folder)
    assert pipeline("wise", "sft.fresh=true", "wise.weights=0.50,0.25", "name=other") == 0
    assert snapshot(pipeline.folder) == before


def test_between_early_and_late(copy, capsys):
    """The early end is a snapshot of the run itself; later ones only are mixed with it."""
    pipeline = copy("base", "fork1")
    assert pipeline("wise", "wise.weights=0.5", "wise.early=2") == 0
    tuned, mixed = pipeline.run("fork1") / "epochs", pipeline.at("wise", "wise.weights=0.5", "wise.early=2") / "epochs"
    assert [path.name for path in mixed.iterdir()] == ["e4.pt"]
    early, late, half = weights(tuned / "e2.pt"), weights(tuned / "e4.pt"), weights(mixed / "e4.pt")
    for name in early:
        torch.testing.assert_close(half[name], (early[name] + late[name]) / 2)
    assert "e3.pt: no such weights" in pipeline.refused(capsys, "wise", "wise.early=3")
    assert "wise.early must leave one" in pipeline.refused(capsys, "wise", "wise.early=4")


def test_missing_runs_and_bad_shares(copy, capsys):
    pipeline = copy("base", "fork1")
    assert "no such finished run; make it with `minifork sft" in pipeline.refused(capsys, "wise", "sft.lr=0.5")
    for changes in ("weights=1.5", "weights=half", "weights=0.5,0.50", "weights=", "early=-1"):
        assert f"wise.{changes.split('=')[0]}" in pipeline.refused(capsys, "wise", f"wise.{changes}")
    assert {*pipeline.folder.iterdir()} == {pipeline.run("base"), pipeline.run("fork1")}
