"""The RL lab at toy size: the whole command, its rows against what they stand for, and what it does not do twice."""

from unittest import mock

import numpy as np
import pytest

from experiments import study
from experiments.results import load_results
from experiments.studies import rl_lab
from minifork import runs
from minifork.storage.files import read_json
from tests.helpers.starts import Starts

SMALL = ["rl.updates=4", "rl.problems=16", "rl.prompts=4", "rl.lr=0.01"]


def test_the_whole_lab(copy, monkeypatch, capsys):
    monkeypatch.setattr(rl_lab, "PROBLEMS", 2)
    monkeypatch.setattr(rl_lab, "UPDATES", 10)
    starts, pipeline = Starts(monkeypatch), copy("base", "fork1", measured=True)
    assert pipeline("rl-lab", *SMALL) == 0 and starts.commands == ["rl"] * 16
    result, config = read_json(pipeline.folder / "rl-lab.json"), pipeline.config(*SMALL)
    plans, results = study.plans(config, study.read_study("rl_lab"), [0]), load_results(config)

    rows = {row["run"]: row for row in result["runs"]}
    assert [*rows] == ["start", *(plan.name for plan in plans)]
    for plan in plans:
        row, record = rows[plan.name], results.records_of(plan)[-1]
        assert row["pass@64"]["mean"] == pytest.approx(results.record_pass_at_k(record, 64, "FWD").mean())
        assert row["sigma"]["mean"] == pytest.approx(record["fork"]["sigma"], rel=0.01)
    (start,) = results.select({}, epoch=1)
    assert rows["start"]["pass@1"]["mean"] == pytest.approx(results.problem_p(start, "FWD").mean())
    weights = [runs.require_run(plans[0].config, stage).checkpoint(1 if stage == "sft" else 4).tensors()
               for stage in ("sft", "rl")]  # fmt: skip
    differences = [(weights[0][name] - weights[1][name]).flatten().numpy() for name in weights[0]]
    assert rows[plans[0].name]["moved"]["mean"] == pytest.approx(np.linalg.norm(np.concatenate(differences)), rel=1e-4)
    assert rows["GRPO, none, of 16"]["M tokens"]["mean"] == pytest.approx(4 * 4 * 16 * (11 + 5 - 1) / 1e6)

    objectives = {(row["epoch"], row["objective"]): row for row in result["objectives"]}
    assert len(objectives) == 2 * (8 * 3 + 3) and len(result["kl"]) == 2 * 13  # at epochs 1 and 4
    assert {plan.name for plan in plans} <= {name for _, name in objectives}
    assert objectives["4", "centred, none, of 16"]["length to pass@1"]["mean"] == pytest.approx(15 / 16)
    assert objectives["1", "pass@2 advantage"]["climbs"] == "(2/2) arcsin sqrt(pass@2)"
    assert "GRPO, token_mean, of 64" in capsys.readouterr().out

    again = mock.Mock(side_effect=AssertionError, __module__=rl_lab.compare_gradients.__module__)
    monkeypatch.setattr(rl_lab, "compare_gradients", again)  # a second call must not compare anew
    assert pipeline("rl-lab", *SMALL) == 0 and starts.commands == ["rl"] * 16
    assert read_json(pipeline.folder / "rl-lab.json") == result


def test_runs_differ_from_the_first_in_their_objective_alone(empty):
    plans = study.plans(empty.config(), study.read_study("rl_lab"), [0])
    changed = [plan.config.rl for plan in plans]
    assert len({plan.name for plan in plans}) == len({*changed}) == 16 and {rl.kl for rl in changed} == {0.0}
