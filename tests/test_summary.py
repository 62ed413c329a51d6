"""The result file of a reproduction: its numbers, its table, and the README's copies of committed ones."""

import json
from pathlib import Path

import pytest

from experiments.results import load
from experiments.summary import summary, table
from minifork import runs

ROOT = Path(__file__).parent.parent
COMMITTED = [
    path for path in sorted((ROOT / "experiments" / "results").glob("*.json")) if "rows" in json.loads(path.read_text())
]


def test_rows_are_means_of_the_last_checkpoints(trained):
    found = summary(trained.config())
    assert json.loads((trained.folder / "summary.json").read_text()) == found and found["pairs"] == 1
    rows = {row["name"]: row for row in found["rows"]}
    names = {row["runs"][0] for row in found["rows"]}
    assert set(rows) == {
        "base", "FORK_RATE 0.5", "FORK_RATE 1", "both modes for every problem", "FORK_RATE 1, branch cued",
        "FORK_RATE 1, fresh traces every epoch",
    }  # fmt: skip
    assert names == {path.name for path in trained.folder.iterdir() if "seed0" in path.name}
    results = load(trained.config())
    last = {
        "FORK_RATE 1": results.tuned(0, "data", 1.0),
        "FORK_RATE 1, branch cued": results.tuned(0, "cued", test_set="cue1"),
    }
    for name, records in last.items():
        for k in (1, 16, 64):
            value = rows[name]["pass_at"][str(k)]
            assert value["mean"] == pytest.approx(records[-1]["pass_at"][str(k)])
            assert value["ci95"][0] <= value["mean"] <= value["ci95"][1]
        assert rows[name]["fork_accuracy"]["mean"] == pytest.approx(records[-1]["fork"]["accuracy"])


def test_folders_that_are_no_runs_do_not_matter(copy):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    runs.write_json(pipeline.folder / "junk" / "meta.json", {})
    assert pipeline("eval") == 0 and summary(pipeline.config())["pairs"] == 1


def test_table():
    value = {"mean": 0.25, "ci95": [0.2, 1.0]}
    row = {"name": "base", "pass_at": {"1": value, "16": value, "64": value}, "fork_accuracy": value}
    assert table({"rows": [row]}).splitlines()[-1] == "| base |" + 4 * " .250 [.200, 1.000] |"


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "results").glob("*-claims.json")), ids=lambda p: p.name)
def test_the_readme_shows_the_claims_that_fail(path):
    found = json.loads(path.read_text())
    assert found["command"] and found["config_hash"] and found["machine"]
    for row in [row for row in found["claims"] if row["verdict"] == "fails"]:
        low, high = row["ci95"]
        number = f"{row['effect']:.3f} [{low:.3f}, {high:.3f}]".replace("0.", ".")
        assert number in (ROOT / "README.md").read_text(), row["id"]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_the_readme_shows_what_was_committed(path):
    found = json.loads(path.read_text())
    assert table(found) in (ROOT / "README.md").read_text()
    assert found["sweep"] and found["config_hash"] and found["machine"] and found["train_minutes"] > 0
