"""RL on forward and reverse traces, compared: every run of the comparison at toy size, numbers checked by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import contrast
from experiments.results import load

SMALL = ["rl.updates=4", "rl.problems=16", "rl.prompts=4", "rl.lr=0.01"]


@pytest.fixture
def finished(copy):
    pipeline = copy("base-seed0", "sft-fork0.5-seed0", "sft-fork1-seed0")
    assert pipeline("sft", "sft.fork_rate=0") == 0
    for run in contrast.RUNS:
        assert pipeline("rl", *run.overrides, *SMALL) == 0
    assert pipeline("eval") == 0
    return pipeline


def test_compares_all_runs(finished, capsys):
    contrast.compare(finished.config())
    found = json.loads((finished.folder / "contrast.json").read_text())
    results = load(finished.config())
    for run, row in zip(contrast.RUNS, found["runs"], strict=True):
        mode = None if run.mode == "free" else run.mode
        k = "" if run.advantage == "grpo" else run.k
        last = results.tuned(0, f"rl-{run.advantage}{k}-{run.mode}-fork{run.rate:g}-epoch1")[-1]
        first = next(r for r in results.tuned(0, fork_rate=run.rate) if r["epoch"] == 1)
        for i, k in enumerate((1, 16, 64)):
            before, after = results.solved(first, k, mode), results.solved(last, k, mode)
            assert row["start"][i] == pytest.approx(before.mean()) and row["end"][i] == pytest.approx(after.mean())
            assert row["change"][str(k)]["mean"] == pytest.approx((after - before).mean())
    forward, reverse = (next(r for r in found["runs"] if r["run"].startswith(n)) for n in ("forward", "reverse"))
    difference = forward["change"]["64"]["mean"] - reverse["change"]["64"]["mean"]
    assert found["forward_minus_reverse"]["64"]["mean"] == pytest.approx(difference)
    assert set(found["above_grpo"]) == {r.name for r in contrast.RUNS if r.mode == "FWD"} - {contrast.FORWARD.name}
    line = contrast.trajectory(finished.config(), results, 0, contrast.FORWARD)
    assert line.shape == (1 + 3, 3, 64) and (np.diff(line, axis=1) >= -1e-12).all()
    assert "forward minus reverse" in capsys.readouterr().out


def test_a_missing_run_is_named(copy):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("eval") == 0
    with pytest.raises(ValueError, match="no forward, GRPO of pair 0"):
        contrast.compare(pipeline.config())
    with pytest.raises(ValueError, match="no pair of base and fine-tuned run"):
        contrast.compare(pipeline.config("sft.loss=gem=0.7"))


def test_the_document_shows_what_was_committed():
    """Every cell of the RL table is a number of the committed result, to its digits."""
    root = Path(__file__).parent.parent
    found = json.loads((root / "experiments" / "results" / "contrast.json").read_text())
    page = (root / "docs" / "mitigations.md").read_text().replace(" .", " 0.").replace("-.", "-0.").replace("+.", "+0.")
    page = page.replace("[.", "[0.")
    for row in found["runs"]:
        ends = [f"{a:.3f} to {b:.3f}" for a, b in zip(row["start"], row["end"], strict=True)]
        change = row["change"]["64"]
        low, high = change["ci95"]
        assert f"| {' | '.join(ends)} | {change['mean']:+.3f} [{low:+.3f}, {high:+.3f}] |" in page, row["run"]
