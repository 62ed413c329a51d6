"""RL on forward and reverse traces, compared: every run of the comparison at toy size, numbers checked by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.results import load
from experiments.studies import rl as contrast
from tests.helpers.starts import Starts

SMALL = ["rl.updates=4", "rl.problems=16", "rl.prompts=4", "rl.lr=0.01"]


def test_compares_all_runs(copy, monkeypatch, capsys):
    """The whole command: it makes what is missing, measures it and compares every run with where it started."""
    starts, pipeline = Starts(monkeypatch), copy("base", "fork0.5", "fork1", measured=True)
    assert pipeline("contrast", *SMALL) == 0 and starts.commands == ["sft"] + ["rl"] * 6
    compared = json.loads((pipeline.folder / "contrast.json").read_text())
    config = pipeline.config(*SMALL)
    plans, results = contrast.planned(config), load(config)
    assert [row["run"] for row in compared["runs"]] == [plan.name for plan in plans]
    for plan, row in zip(plans, compared["runs"], strict=True):
        rl, rate = plan.config.rl, plan.config.sft.fork_rate
        mode = None if rl.mode == "free" else rl.mode
        keys = {"fork_rate": rate, "rl.mode": rl.mode, "advantage": rl.advantage, "rl.k": rl.k}
        last = results.where(keys, "rl")[-1]
        (first,) = results.where({"fork_rate": rate}, epoch=1)
        for i, k in enumerate((1, 16, 64)):
            before, after = results.solved(first, k, mode), results.solved(last, k, mode)
            assert row["start"][i] == pytest.approx(before.mean()) and row["end"][i] == pytest.approx(after.mean())
            assert row["change"][str(k)]["mean"] == pytest.approx((after - before).mean())
    by_name = {row["run"]: row for row in compared["runs"]}
    forward, reverse = by_name[contrast.FORWARD], by_name[contrast.REVERSE]
    difference = forward["change"]["64"]["mean"] - reverse["change"]["64"]["mean"]
    assert compared["forward_minus_reverse"]["64"]["mean"] == pytest.approx(difference)
    assert compared["above_grpo"].keys() == {name for name in by_name if "forward" in name} - {contrast.FORWARD}
    line = contrast.trajectory(results, plans[0])
    assert line.shape == (1 + 3, 3, 64) and (np.diff(line, axis=1) >= -1e-12).all()
    assert "forward minus reverse" in capsys.readouterr().out


def test_a_missing_run_is_named(copy):
    pipeline = copy("base", "fork1", measured=True)
    config = pipeline.config(*SMALL)
    with pytest.raises(ValueError, match="no forward, GRPO of pair 0"):
        contrast.compare(config, contrast.planned(config))


def test_the_document_shows_what_was_committed():
    """Every cell of the RL table is a number of the committed result, to its digits."""
    root = Path(__file__).parents[3]
    committed = json.loads((root / "experiments" / "results" / "contrast.json").read_text())
    page = (root / "docs" / "mitigations.md").read_text().replace(" .", " 0.").replace("-.", "-0.").replace("+.", "+0.")
    page = page.replace("[.", "[0.")
    for row in committed["runs"]:
        ends = [f"{a:.3f} to {b:.3f}" for a, b in zip(row["start"], row["end"], strict=True)]
        change = row["change"]["64"]
        low, high = change["ci95"]
        assert f"| {' | '.join(ends)} | {change['mean']:+.3f} [{low:+.3f}, {high:+.3f}] |" in page, row["run"]
