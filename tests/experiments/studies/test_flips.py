"""The study of branch flips, small: the runs it makes, its numbers against prompts printed here."""

import numpy as np
import pytest

from experiments import study
from minifork import runs
from minifork.measure import branch_probabilities
from minifork.measuring.problems import evaluation_problems, problem_set
from minifork.storage.files import read_json
from tests.helpers.starts import Starts


def test_flips(copy, monkeypatch, capsys):
    starts, pipeline = Starts(monkeypatch), copy("base", "fork1")
    assert pipeline("flips") == 0 and starts.commands == ["sft"]  # of published order
    written, printed = read_json(pipeline.folder / "flips.json"), capsys.readouterr().out
    assert written["command"] and written["config_hash"] and written["reprints"] == 16
    rows = {(row["trained"], row["printed"]): row for row in written["rows"]}
    names = ("base", "shuffled", "published")
    assert [*rows] == [(name, order) for order in ("shuffled", "published") for name in names]
    assert all(name in printed for name in (*names, "within_share", "1 pair of seeds"))
    config = pipeline.config()
    problems = evaluation_problems(config.data, config.eval)
    for plan in study.plans(config, study.read_study("flips"), [0]):
        model = runs.read_run(runs.folder_of(plan.config, plan.stage)).model()
        for order in ("shuffled", "published"):
            task = config.data.printed(order)
            reprints = [task.reprint(problems, np.random.default_rng(seed)) for seed in range(16)]
            branch = np.array([branch_probabilities(model, problem_set(task, one, "cpu")) for one in reprints])
            right = branch.argmax(axis=2) == 0
            row, others = rows[plan.name, order], ~np.eye(16, dtype=bool)
            assert row["accuracy"]["mean"] == pytest.approx(right.mean())
            assert row["flips"]["mean"] == pytest.approx((right[:, None] != right)[others].mean())
            logit = np.log(branch[..., 0] / branch[..., 1])
            assert row["within"]["mean"] == pytest.approx(logit.var(axis=0, ddof=1).mean())
            assert row["flips"]["ci95"][0] <= row["flips"]["mean"] <= row["flips"]["ci95"][1]
    assert pipeline("flips") == 0 and starts.commands == ["sft"]  # nothing is made twice
