"""The map of settings: folders of their own, S and index as eval.json has them, the figure."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import sensitivity, sweep
from experiments.results import load
from minifork import config as configs


def test_settings_have_folders_of_their_own(copy):
    config = copy("base-seed0").config()
    planned = configs.changed(config, ["reproduce.sweep=sensitivity"])
    found = sensitivity.settings(config, sweep.read(planned, [0, 1]))
    shapes = [(planned.model.width, planned.data.branches) for planned, _ in found]
    assert shapes == [(128, 2), (128, 3), (192, 2), (192, 3)] and len({planned.runs for planned, _ in found}) == 4


def test_a_whole_map_small(copy, tmp_path, monkeypatch, capsys):
    """Bases, runs, evaluations and the figure, as the command makes them."""
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "- {runs: '{runs}/width{model.width}', model.width: [16, 32], pretrain.steps: 4, "
        "sft.lr: [0.001, 0.01], name: 'lr{sft.lr}-seed{pair}'}\n"
    )
    read, config = sweep.read, copy("base-seed0").config()
    mine = configs.changed(config, [f"reproduce.sweep={mine}"])
    monkeypatch.setattr(sweep, "read", lambda _, pairs: read(mine, pairs))
    sensitivity.sensitivity(config)
    found = json.loads((tmp_path / "runs" / "star" / "sensitivity.json").read_text())
    assert [(one["width"], len(one["rows"]), one["epochs"]) for one in found["panels"]] == [
        (16, 2, [1, 2, 4]),
        (32, 2, [1, 2, 4]),
    ]
    planned, _ = sensitivity.settings(config, sweep.read(config, [0]))[1]
    results = load(planned)
    tuned, base = results.tuned(0, "lr0.01")[-1], results.base(0)
    row = next(row for row in found["panels"][1]["rows"] if row["run"] == "lr0.01")
    assert row["S"][-1] == pytest.approx(base["pass_at"]["16"] - tuned["pass_at"]["16"])
    assert row["index"][-1] == pytest.approx(tuned["forced"]["FWD"]["index"]["16"])
    assert (tmp_path / "runs" / "star" / "figures" / "sensitivity.png").stat().st_size > 10_000
    assert "over 4 settings" in capsys.readouterr().out


def test_the_readme_says_what_was_committed():
    root = Path(__file__).parent.parent
    found = json.loads((root / "experiments" / "results" / "sensitivity.json").read_text())
    lost = np.array([row["S"] for one in found["panels"] for row in one["rows"]])  # [settings, epochs 1, 2, 4, ..., 64]
    low, high, early = (f"+{value:.3f}".replace("0.", ".") for value in (lost[:, -1].min(), *lost.max(axis=0)[[-1, 1]]))
    page = " ".join((root / "README.md").read_text().split())
    assert f"in all {len(lost)} settings" in page and f"S_16 lies between {low} and {high} after 64 epochs" in page
    assert f"After two epochs it is {early} at most" in page and (np.diff(lost[:, 2:], axis=1) > 0).all()
