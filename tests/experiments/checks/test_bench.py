"""The benchmark runs on the small pipeline."""

import json

from experiments.checks import bench
from minifork import config as configs
from tests.helpers.pipeline import BASE

STEPS = (bench.PRETRAINING, bench.OPTIMIZER, bench.FINE_TUNING)


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
    assert {"eval a checkpoint", *STEPS} <= set(result["engines"]) and 0 < result["optimizer_share"] < 1
    assert all(share > 0 for share in result["share_of_peak"].values()) and "instruction_sets" in result


def test_flops_of_steps_are_counted(small):
    config = configs.load_config("star", small)
    steps, flops = bench.training_calls(config, "cpu")
    assert set(steps) == {*STEPS} and min(flops.values()) > 6 * config.model.width * config.data.vocab_size
