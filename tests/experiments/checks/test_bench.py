"""The benchmark runs on the small pipeline."""

import json

from experiments.checks import bench
from tests.helpers.pipeline import BASE


def test_bench(copy, monkeypatch, capsys):
    """The benchmark runs, and its last line is JSON."""
    monkeypatch.setattr(bench, "ROUNDS", 1)
    pipeline = copy(BASE)
    assert "no such finished run" in pipeline.refused(capsys, "bench", "model.width=48")
    assert pipeline("bench") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"prefill", "exact", "split", "rollout", "recompute"} <= set(result["engines"])
    assert all(job["seconds"] > 0 for job in result["engines"].values())
    assert result["rollout_against"]["recompute"] > 0
