"""The map of settings: which bases it needs, S and index as they were measured, the figure."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import study
from experiments.results import load
from minifork import runs
from tests.helpers.starts import Starts


def test_every_width_and_number_of_branches_has_a_base(copy):
    plans = study.plans(copy().config(), study.read("sensitivity"), [0, 1])
    shapes = {runs.identity(plan.config, "base"): (plan.config.model.width, plan.config.data.branches, plan.config.seed)
              for plan in plans}  # fmt: skip
    assert sorted(shapes.values()) == [(w, d, s) for w in (128, 192) for d in (2, 3) for s in (0, 1)]
    assert len({plan.name for plan in plans}) == len(plans) / 8 == 9


def test_a_whole_map_small(copy, monkeypatch, capsys):
    """Bases, runs, evaluations and the figure, as the command makes them."""
    entry = {"as": "lr {sft.lr}", "model.width": [16, 32], "sft.lr": [0.001, 0.01]}
    monkeypatch.setattr(study, "read", lambda _: [entry])
    starts, pipeline = Starts(monkeypatch), copy()
    assert pipeline("sensitivity", "pretrain.steps=4") == 0 and starts.commands == ["pretrain"] * 2 + ["sft"] * 4
    drawn = json.loads((pipeline.folder / "sensitivity.json").read_text())
    assert [(one["width"], one["branches"], one["epochs"]) for one in drawn["panels"]] == [
        (width, 2, [1, 2, 4]) for width in (16, 32)
    ]
    assert drawn["command"] and drawn["config_hash"] and drawn["machine"]
    for panel in drawn["panels"]:
        results = load(pipeline.config(f"model.width={panel['width']}", "pretrain.steps=4"))
        base = results.base(0)["pass_at"]["16"]
        assert [row["run"] for row in panel["rows"]] == ["lr 0.001", "lr 0.01"]
        for row, lr in zip(panel["rows"], (0.001, 0.01), strict=True):
            records = results.where({"sft.lr": lr})
            assert row["S"] == pytest.approx([base - record["pass_at"]["16"] for record in records])
            assert row["index"] == pytest.approx([record["forced"]["FWD"]["index"]["16"] for record in records])
    assert (pipeline.folder / "figures" / "sensitivity.png").stat().st_size > 10_000
    assert "over 4 settings" in capsys.readouterr().out


def test_the_readme_says_what_was_committed():
    root = Path(__file__).parents[3]
    committed = json.loads((root / "experiments" / "results" / "sensitivity.json").read_text())
    lost = np.array([row["S"] for one in committed["panels"] for row in one["rows"]])  # [settings, epochs]
    low, high, early = (f"+{value:.3f}".replace("0.", ".") for value in (lost[:, -1].min(), *lost.max(axis=0)[[-1, 1]]))
    page = " ".join((root / "README.md").read_text().split())
    assert f"in all {len(lost)} settings" in page and f"S_16 lies between {low} and {high} after 64 epochs" in page
    assert f"After two epochs it is {early} at most" in page and (np.diff(lost[:, 2:], axis=1) > 0).all()
