"""The result file of a reproduction: its numbers and its table."""

from dataclasses import replace

import pytest

from experiments import summary
from experiments.figures import draw_all
from experiments.results import load_results
from experiments.summary import summary_rows, summary_table, write_summary
from minifork.storage.files import read_json


def test_rows_are_means_of_the_last_checkpoints(trained):
    """One row for the base and for each run of the study that was made, of the test set that the run is about."""
    results = load_results(trained.config())
    write_summary(trained.config())
    summed = read_json(trained.folder / "summary.json")
    assert (summed["study"], summed["pairs"]) == ("star", 1) and summed["command"] and summed["config_hash"]
    assert summed["train_minutes"] == round(sum(run.record["seconds"] for run in results.runs.values()) / 60, 1)
    rows = {row["name"]: row for row in summed["rows"]}
    records = {
        "base": results.base(0),
        "FORK_RATE 0.5": results.tuned(0, 0.5)[-1],
        "FORK_RATE 1": results.tuned(0, 1)[-1],
        "both modes for every problem": results.select({"fork_rate": 0.5, "allocation": "problem"})[-1],
        "FORK_RATE 1, fresh traces every epoch": results.select({"fresh": True})[-1],
        "FORK_RATE 1, branch cued": results.select({"cue_rate": 1}, test_set="cue1")[-1],
    }
    assert rows.keys() == records.keys()
    for name, record in records.items():
        assert rows[name]["runs"] == [record["run"]]
        for k, value in rows[name]["pass_at"].items():
            assert value["mean"] == pytest.approx(record["pass_at"][k])
            assert value["ci95"][0] <= value["mean"] <= value["ci95"][1]
        assert rows[name]["fork_accuracy"]["mean"] == pytest.approx(record["fork"]["accuracy"])


def test_a_run_that_not_every_pair_has_is_left_out(trained, monkeypatch):
    entries = [{"as": "all", "sft.fork_rate": 1}, {"as": "first", "pairs": 1, "sft.fork_rate": 0.5}]
    monkeypatch.setattr(summary.study, "read_study", lambda name: entries)
    loaded = load_results(trained.config())
    assert [row["name"] for row in summary_rows(loaded, [0])] == ["base", "all", "first"]
    monkeypatch.setattr(type(loaded), "base", lambda results, pair: results.select(stage="base", pair=0)[0])
    assert [row["name"] for row in summary_rows(loaded, [0, 1])] == ["base"]


def test_a_task_without_a_fork(trained):
    """Its records say so; it has no accuracy at the fork, and no figure of it."""
    loaded = load_results(trained.config())
    forkless = replace(loaded, records=[record | {"fork": None, "fork_train": None} for record in loaded.records])
    rows = summary_rows(forkless, [0])
    assert [row["fork_accuracy"] for row in rows] == [None] * 6 and summary_table(rows).count("| - |") == 6
    assert draw_all(loaded, [0]).keys() - draw_all(forkless, [0]).keys() == {"fork"}
