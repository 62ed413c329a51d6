"""The result file of a reproduction: its numbers, its table, and the README's copies of committed ones."""

import json
from pathlib import Path

import pytest

from experiments.results import load
from experiments.summary import summary, table

ROOT = Path(__file__).parents[2]
COMMITTED = [
    path for path in sorted((ROOT / "experiments" / "results").glob("*.json")) if "rows" in json.loads(path.read_text())
]


def test_rows_are_means_of_the_last_checkpoints(trained):
    """One row for the base and for each run of the study that was made, of the test set that the run is about."""
    results = load(trained.config())
    summed = summary(trained.config())
    assert json.loads((trained.folder / "summary.json").read_text()) == summed
    assert (summed["study"], summed["pairs"]) == ("star", 1) and summed["command"] and summed["config_hash"]
    assert summed["train_minutes"] == round(sum(run.record["seconds"] for run in results.runs.values()) / 60, 1)
    rows = {row["name"]: row for row in summed["rows"]}
    names = {
        "base": results.base(0),
        "FORK_RATE 0.5": results.tuned(0, 0.5)[-1],
        "FORK_RATE 1": results.tuned(0, 1)[-1],
        "both modes for every problem": results.where({"fork_rate": 0.5, "allocation": "problem"})[-1],
        "FORK_RATE 1, fresh traces every epoch": results.where({"fresh": True})[-1],
        "FORK_RATE 1, branch cued": results.where({"cue_rate": 1}, test_set="cue1")[-1],
    }
    assert set(rows) == set(names)
    for name, record in names.items():
        assert rows[name]["runs"] == [record["run"]]
        for k in (1, 16, 64):
            value = rows[name]["pass_at"][str(k)]
            assert value["mean"] == pytest.approx(record["pass_at"][str(k)])
            assert value["ci95"][0] <= value["mean"] <= value["ci95"][1]
        assert rows[name]["fork_accuracy"]["mean"] == pytest.approx(record["fork"]["accuracy"])


def test_table():
    value = {"mean": 0.25, "ci95": [0.2, 1.0]}
    row = {"name": "base", "pass_at": {"1": value, "16": value, "64": value}, "fork_accuracy": value}
    assert table({"rows": [row]}).splitlines()[-1] == "| base |" + 4 * " .250 [.200, 1.000] |"


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "results").glob("*-claims.json")), ids=lambda p: p.name)
def test_the_readme_shows_the_claims_that_fail(path):
    committed = json.loads(path.read_text())
    assert committed["command"] and committed["config_hash"] and committed["machine"]
    for row in [row for row in committed["claims"] if row["verdict"] == "fails"]:
        low, high = row["ci95"]
        number = f"{row['effect']:.3f} [{low:.3f}, {high:.3f}]".replace("0.", ".")
        assert number in (ROOT / "README.md").read_text(), row["id"]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_the_readme_shows_what_was_committed(path):
    committed = json.loads(path.read_text())
    assert table(committed) in (ROOT / "README.md").read_text()
    assert {"study", "sweep"} & committed.keys()  # "sweep" is what version 0.1 wrote
    assert committed["config_hash"] and committed["machine"] and committed["train_minutes"] > 0
