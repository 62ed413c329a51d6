"""Interpolated weights: the ends are the base and the tuned model, the middle lies between."""

import json

import pytest
import torch

from minifork import runs
from minifork.wise import interpolate


def weights(path) -> dict:
    return torch.load(path, weights_only=True)["model"]


def test_interpolates_every_snapshot(copy):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("wise", "wise.weights=0,0.25,1") == pipeline("eval") == 0
    base = weights(pipeline.folder / "base-seed0" / "ckpt.pt")
    for epoch in (1, 2, 4):
        tuned = weights(pipeline.folder / "sft-fork1-seed0" / "epochs" / f"e{epoch}.pt")
        mixed = {
            share: weights(pipeline.folder / f"sft-fork1-seed0-wise{share}" / "epochs" / f"e{epoch}.pt")
            for share in ("0", "0.25", "1")
        }
        for name in base:
            assert torch.equal(mixed["0"][name], base[name]) and torch.equal(mixed["1"][name], tuned[name])
            torch.testing.assert_close(mixed["0.25"][name], 0.75 * base[name] + 0.25 * tuned[name])
    records = json.loads((pipeline.folder / "eval.json").read_text())["records"]
    of = {(r["variant"], r["epoch"]): r["pass_at"]["1"] for r in records}
    assert of["data-wise0", 4] == of["base", None] and of["data-wise1", 4] == of["data", 4]
    assert len({r["config_hash"] for r in records}) == 5


def test_a_run_by_name(copy):
    pipeline = copy("base-seed0", "fresh-seed0")
    assert pipeline("wise", "name=fresh-seed0", "wise.weights=0.5") == 0
    meta = runs.read_json(pipeline.folder / "fresh-seed0-wise0.5" / "meta.json")
    assert meta["variant"] == "fresh-wise0.5" and meta["weight"] == 0.5


def test_between_early_and_late(copy, capsys):
    """The early end is a snapshot of the run itself; later ones only are mixed with it."""
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("wise", "wise.weights=0.5", "wise.early=2") == pipeline("eval") == 0
    tuned, mixed = (pipeline.folder / f"sft-fork1-seed0{kind}" / "epochs" for kind in ("", "-wise0.5-early2"))
    assert [path.name for path in mixed.iterdir()] == ["e4.pt"]
    early, late, half = weights(tuned / "e2.pt"), weights(tuned / "e4.pt"), weights(mixed / "e4.pt")
    for name in early:
        torch.testing.assert_close(half[name], (early[name] + late[name]) / 2)
    assert "kept no such snapshot" in pipeline.refused(capsys, "wise", "wise.early=3")
    assert "wise.early must leave one" in pipeline.refused(capsys, "wise", "wise.early=4")
    assert "wise.early" in pipeline.refused(capsys, "wise", "wise.early=-1")


def test_files_that_are_not_its_own_stay(copy):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    mine = pipeline.folder / "sft-fork1-seed0-wise0.5" / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert pipeline("wise", "wise.weights=0.5") == 0 and mine.read_text() == "mine"


def test_missing_and_foreign_runs(copy, capsys):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert "no finished run" in pipeline.refused(capsys, "wise", "sft.fork_rate=0.5")
    assert "wise.weights" in pipeline.refused(capsys, "wise", "wise.weights=1.5")
    assert "wise.weights" in pipeline.refused(capsys, "wise", "wise.weights=half")
    assert pipeline("pretrain", "base_seed=1") == 0
    assert "base_seed: 0 -> 1" in pipeline.refused(capsys, "wise", "base_seed=1")
    assert "but from base-seed0" in pipeline.refused(capsys, "wise", "base_seed=1", "name=sft-fork1-seed0")
    assert "sft.lr: 0.001 -> 0.5" in pipeline.refused(capsys, "wise", "sft.lr=0.5")
    meta = pipeline.folder / "sft-fork1-seed0" / "meta.json"
    runs.write_json(meta, {key: value for key, value in runs.read_json(meta).items() if key != "stage"})
    assert "meta.json: has no 'stage'" in pipeline.refused(capsys, "wise", "name=sft-fork1-seed0")


def test_mixtures_belong_to_one_run(copy, capsys):
    """Of a run that was made anew they are left out; a mixture is not mixed again, as nothing could say what it is."""
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("wise", "wise.weights=0.5") == 0
    assert "is a mixture itself" in pipeline.refused(capsys, "wise", "name=sft-fork1-seed0-wise0.5")
    path = pipeline.folder / "sft-fork1-seed0" / "epochs" / "e4.pt"
    saved = runs.load_weights(path)
    saved["model"]["head.weight"] *= 1.5
    runs.save_weights(path, saved)
    assert pipeline("eval") == 0
    said = capsys.readouterr().out
    assert "sft-fork1-seed0-wise0.5: left out" in said and "mixed from other weights than" in said


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="e4.pt: its parameters have other names or shapes"):
        interpolate({"a": torch.zeros(2)}, {"a": torch.zeros(3)}, 0.5, "e4.pt")
    with pytest.raises(ValueError, match="names or shapes"):
        interpolate({"a": torch.zeros(2)}, {"b": torch.zeros(2)}, 0.5, "e4.pt")
