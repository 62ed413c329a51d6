"""The study of anchoring: its runs, its rows against what was measured, the figure."""

import pytest

from experiments import study
from experiments.results import load_results
from minifork.storage.files import read_json
from tests.helpers.starts import Starts


def test_a_whole_study_small(copy, monkeypatch, capsys):
    """It makes what is missing, measures every epoch, and draws."""
    starts, pipeline, epochs = Starts(monkeypatch), copy("base", measured=True), "sft.epochs=8"
    assert pipeline("anchoring", epochs) == 0 and starts.commands == ["sft"] * 7
    rows, config = read_json(pipeline.folder / "anchoring.json")["rows"], pipeline.config(epochs)
    plans, results = study.plans(config, study.read_study("anchoring"), [0]), load_results(config)
    expected = [(plan.name, record["epoch"]) for plan in plans for record in results.records_of(plan)]
    assert [(row["run"], row["epoch"]) for row in rows] == expected
    records = [record for plan in plans for record in results.records_of(plan)]
    for row, record in zip(rows, records, strict=True):
        forced, fork = record["forced"]["FWD"], record["fork"]
        assert row["pass@16"]["mean"] == pytest.approx(record["pass_at"]["16"])
        assert row["pass@16 FWD"]["mean"] == pytest.approx(forced["pass_at"]["16"])
        assert row["skill FWD"]["mean"] == pytest.approx(record["r"])
        assert row["sigma"]["mean"] == pytest.approx(fork["sigma"], rel=1e-3)
        assert row["train sigma"]["mean"] == pytest.approx(record["fork_train"]["sigma"], rel=1e-3)
    at_rate_1 = [record for record in records if record["fork_rate"] == 1 and "sft.epochs" not in record["tags"]]
    assert len({record["weights_hash"] for record in at_rate_1 if record["epoch"] == 1}) == 1  # plain until epoch 1
    assert len({record["weights_hash"] for record in at_rate_1 if record["epoch"] == 8}) == 4
    assert (pipeline.folder / "figures" / "anchoring.png").stat().st_size > 10_000
    assert "train fork accuracy" in capsys.readouterr().out
