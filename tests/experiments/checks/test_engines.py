"""The test of the engines against each other runs on the small pipeline."""

import json

from tests.helpers.pipeline import BASE


def test_agreement(copy, capsys):
    """The whole grid of engines, models and policies on the small pipeline; false alarms below 1e-3."""
    pipeline = copy(BASE, "fork0.5", "fork1")
    assert f"{pipeline.at('sft', 'sft.fork_rate=0')}: no such finished run" in pipeline.refused(capsys, "agreement")
    assert pipeline("sft", "sft.fork_rate=0") == 0
    assert pipeline("agreement") == 0
    assert capsys.readouterr().out.count("agree   ") == 16
    tests = json.loads((pipeline.folder / "agreement.json").read_text(encoding="utf-8"))["tests"]
    assert {t["test"] for t in tests} == {"exact/split", "exact/rollout", "split/rollout"}
    assert len({t["outcome"] for t in tests}) > 3 and len(tests) > 100
