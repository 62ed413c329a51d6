"""The benchmark runs on the small pipeline."""

import json

import torch

from experiments.checks import bench
from minifork import config as configs
from minifork.training import stages
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


def test_a_step_of_every_stage_changes_the_model(small):
    """The step that is timed trains, and the optimizers that are timed alone have gradients."""
    trainer = bench._Trainer(
        config := configs.load_config("star", small), "cpu", stages.sft_batches(config), config.sft
    )
    before, matrix = trainer.model.head.weight.clone(), 2 * config.model.width * config.data.vocab_size
    assert trainer.flops() > 3 * matrix and not torch.equal(trainer.model.head.weight, before)
    steps, _ = bench.training_steps(config, "cpu")
    assert set(steps) == {*STEPS}
    assert all(p.grad is not None for p in steps[bench.OPTIMIZER].__self__.model.parameters())
