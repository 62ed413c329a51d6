"""The map of settings: which bases it needs, S and index as they were measured, the figure."""

import pytest

from experiments import study
from experiments.cli import main
from experiments.results import load_results
from minifork import config as configs
from minifork import runs
from minifork.storage.files import read_json
from tests.helpers.starts import Starts


def test_every_width_and_number_of_branches_has_a_base():
    plans = study.plans(configs.load_config("star"), study.read_study("sensitivity"), [0, 1])
    shapes = {runs.identity(plan.config, "base"): (plan.config.model.width, plan.config.data.branches, plan.config.seed)
              for plan in plans}  # fmt: skip
    assert sorted(shapes.values()) == [(w, d, s) for w in (128, 192) for d in (2, 3) for s in (0, 1)]
    assert len({plan.name for plan in plans}) == len(plans) / 8 == 9


@pytest.mark.parametrize("command", ["sensitivity", "anchoring", "frontier", "sigma"])
@pytest.mark.parametrize("words", [["--config", "openers"], ["--config", "layers", "data.forks=0"]])
def test_tasks_without_the_fork_that_a_study_needs_are_refused(monkeypatch, capsys, tmp_path, command, words):
    """Before anything is trained."""
    starts = Starts(monkeypatch)
    assert main([command, *words, f"runs={tmp_path}"]) == 1 and not starts.commands
    assert f"{command} needs problems with a fork" in capsys.readouterr().err


def test_a_whole_map_small(copy, monkeypatch, capsys):
    """Bases, runs, evaluations and the figure, as the command makes them."""
    entry = {"as": "lr {sft.lr}", "model.width": [16, 32], "sft.lr": [0.001, 0.01]}
    monkeypatch.setattr(study, "read_study", lambda _: [entry])
    starts, pipeline = Starts(monkeypatch), copy()
    assert pipeline("sensitivity", "pretrain.steps=4") == 0 and starts.commands == ["pretrain"] * 2 + ["sft"] * 4
    written = read_json(pipeline.folder / "sensitivity.json")
    assert written["command"] and written["config_hash"] and written["machine"]
    shapes = [(panel["width"], panel["branches"], panel["epochs"]) for panel in written["panels"]]
    assert shapes == [(width, 2, [1, 2, 4]) for width in (16, 32)]
    for panel in written["panels"]:
        results = load_results(pipeline.config(f"model.width={panel['width']}", "pretrain.steps=4"))
        base = results.base(0)["pass_at"]["16"]
        for row, lr in zip(panel["rows"], (0.001, 0.01), strict=True):
            records = results.select({"sft.lr": lr})
            assert row["run"] == f"lr {lr}"
            assert row["S"] == pytest.approx([base - record["pass_at"]["16"] for record in records])
            assert row["index"] == pytest.approx([record["forced"]["FWD"]["index"]["16"] for record in records])
    assert (pipeline.folder / "figures" / "sensitivity.png").stat().st_size > 10_000
    assert "over 4 settings" in capsys.readouterr().out
