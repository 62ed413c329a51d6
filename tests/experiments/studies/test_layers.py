"""The study of layers, small: its runs, and its numbers against those of records and of traces forced here."""

import numpy as np
import pytest

from experiments import study
from experiments.results import load_results
from experiments.studies import layers
from minifork import runs
from minifork.measure import branch_probabilities
from minifork.measuring.problems import evaluation_problems, problem_set
from minifork.statistics import passk
from minifork.storage.files import read_json
from tests.data_gen.test_tasks import FEW, GENERAL, TaskPipeline
from tests.helpers.starts import Starts

LAYERS = "data.nodes=16 data.layers=2 data.forks=2 walks.seq_len=40 rl.updates=2 rl.problems=16 rl.prompts=4".split()
STUDY = [
    {"as": "base", "stage": "base", "data.forks": [0, 2]},
    {"as": "SFT", "sft.fork_rate": 1, "data.forks": [0, 2]},
    {"as": "base", "stage": "base", "data.right_paths": 2},
    {"as": "RL", "stage": "rl", "data.right_paths": 2},
]


def test_layers(tmp_path, monkeypatch, capsys):
    starts = Starts(monkeypatch)
    monkeypatch.setattr(study, "read_study", lambda name: STUDY)
    pipeline = TaskPipeline(tmp_path, "layers", [*GENERAL, *FEW, *LAYERS])
    assert pipeline("layers") == 0 and starts.commands == ["sft", "sft", "sft", "rl"]  # one base serves all
    written, printed = read_json(pipeline.folder / "layers.json"), capsys.readouterr().out
    names = [(row["run"], row["forks"], row["right paths"]) for row in written["runs"]]
    assert names == [("base", 0, 1), ("SFT", 0, 1), ("base", 2, 1), ("SFT", 2, 1), ("base", 2, 2), ("RL", 2, 2)]
    assert [(row["run"], row["forks"], row["fork"]) for row in written["forks"]] == [
        (run, forks, number) for run, forks, right_paths in names for number in range(1, forks + 1)
    ]
    assert [row["run"] for row in written["paths"]] == ["base", "RL"] and "paths@64" in printed
    for row in written["runs"]:
        config = pipeline.config(f"data.forks={row['forks']}", f"data.right_paths={row['right paths']}")
        stage = row["run"].lower()
        record = [record for record in load_results(config).records if record["stage"] == stage][-1]
        assert row["pass@64"]["mean"] == pytest.approx(record["pass_at"]["64"])
    for row, paths in zip(written["runs"][4:], written["paths"], strict=True):
        assert row["pass@64"]["mean"] <= paths["paths@64"]["mean"] <= 2 * row["pass@64"]["mean"]
    (first, second) = [row for row in written["forks"] if row["run"] == "SFT"]
    config = pipeline.config("data.forks=2")
    plan = study.plans(config, STUDY[1:2], [0])[1]
    problems = problem_set(config.data, evaluation_problems(config.data, config.eval), "cpu")
    branch = branch_probabilities(runs.read_run(runs.folder_of(plan.config, "sft")).model(), problems)
    predicted = [row["law@16"] for row in written["runs"]]
    assert [value is None for value in predicted] == [True, True, False, False, True, True]
    assert first["accuracy"]["mean"] == pytest.approx((branch.argmax(axis=1) == 0).mean()) and second["fork"] == 2
    assert pipeline("layers") == 0 and len(starts.commands) == 4  # nothing is made twice


def test_the_law_of_several_forks():
    """Independent normal branch logits are what the law assumes, so it gives their curve; wrong sigmas do not."""
    b = 1 / (1 + np.exp(-np.random.default_rng(0).normal(size=(20_000, 2)) * [2, 4]))
    p = 0.95 * b.prod(axis=1)
    forks = [np.stack([column, 1 - column], axis=1) for column in b.T]
    predicted = layers.predicted_passes(
        [[fork[:10_000] for fork in forks], [fork[10_000:] for fork in forks]], p.mean()
    )
    assert list(predicted.values()) == pytest.approx(passk.pass_at_k(p, layers.LAW_KS), abs=0.01)
    same_sigma = layers.predicted_passes([[forks[0], forks[0]]], p.mean())
    assert same_sigma["law@64"] != pytest.approx(predicted["law@64"], abs=0.05)
    assert layers.predicted_passes([[]], 0.5) == {"law@16": None, "law@64": None}


def test_refusals(tmp_path, capsys):
    pipeline = TaskPipeline(tmp_path, "layers", [*GENERAL, *FEW, *LAYERS])
    for command, override, words in (
        ("pretrain", "data.forks=3", "data.forks is 3: give 0 to layers=2, or null"),
        ("pretrain", "data.right_paths=5", "data.right_paths is 5: 2 branches at 2 forks allow 1 to 4"),
        ("pretrain", "data.layers=3", "data.nodes is 16: 2 branches in 3 layers need at least 27"),
    ):
        assert words in pipeline.refused(capsys, command, override)
