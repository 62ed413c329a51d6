"""The test of the engines against each other runs on the small pipeline."""

import json

import pytest

from experiments.checks import engines
from tests.helpers.pipeline import BASE


def test_agreement(copy, capsys):
    """The whole grid of engines, models and policies on the small pipeline; false alarms below 1e-3."""
    pipeline = copy(BASE, "fork0.5", "fork1")
    assert f"{pipeline.at('sft', 'sft.fork_rate=0')}: no such finished run" in pipeline.refused(capsys, "agreement")
    assert pipeline("sft", "sft.fork_rate=0") == 0
    assert pipeline("agreement") == 0
    printed = capsys.readouterr().out
    assert printed.count("agree   ") == 16 and printed.count("decoded; standard error") == 3
    rows = json.loads((pipeline.folder / "efficiency.json").read_text(encoding="utf-8"))["engines"]
    for row in rows:
        assert row["cost"]["1"] == pytest.approx(row["error"]["1"] ** 2 * row["evaluated"], rel=1e-3)
    assert [row["engine"] for row in rows] == ["remainder", "split", "rollout"]
    assert rows[0]["error"]["1"] <= rows[1]["error"]["1"] == rows[2]["error"]["1"]
    tests = json.loads((pipeline.folder / "agreement.json").read_text(encoding="utf-8"))["tests"]
    assert {t["test"] for t in tests} == {*engines.ENGINE_PAIRS}
    assert len({t["outcome"] for t in tests}) > 3 and len(tests) > 100
