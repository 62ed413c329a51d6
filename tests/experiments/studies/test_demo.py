"""The demo: from nothing to a table, a figure and a sentence that is true of them."""

import pytest

from experiments.studies.demo import sentence
from minifork import config as configs
from tests.helpers.starts import Starts

BASE = {"1": 0.2, "4": 0.6, "64": 1.0}


def test_from_nothing(empty, monkeypatch, capsys):
    starts = Starts(monkeypatch)
    assert empty("demo") == 0 and starts.commands == ["pretrain", "sft"]
    *_, header, _, base, tuned, said, _ = capsys.readouterr().out.splitlines()
    assert header.startswith("| model | pass@1") and base.startswith("| base |") and "forks" in tuned
    assert said == sentence(empty.config(), *(record["pass_at"] for record in last(empty)))
    assert (empty.folder / "figures" / "crossing.png").stat().st_size > 10_000
    assert empty("demo") == 0 and len(starts.commands) == 2  # nothing is made twice


def last(pipeline) -> list[dict]:
    """The records of the base and of the fine-tuning's end."""
    assert pipeline("eval") == 0
    records = pipeline.view()["records"]
    return [records[0], records[-1]]


@pytest.mark.parametrize(
    ("tuned", "what"),
    [
        ({"1": 0.5, "4": 0.5, "64": 0.7}, "the curves cross between k = 1 and 4"),
        ({"1": 0.5, "4": 0.6, "64": 0.7}, "the curves cross between k = 1 and 64"),
        ({"1": 0.5, "4": 0.7, "64": 1.0}, "the curves do not cross"),
        ({"1": 0.1, "4": 0.5, "64": 0.9}, "the curves do not cross"),
        ({"1": 0.1, "4": 0.7, "64": 0.9}, "the curves do not cross"),
        (BASE, "the curves do not cross"),
    ],
)
def test_the_sentence(tuned, what):
    said = sentence(configs.load_config("star", ["preset=demo"]), BASE, tuned)
    assert f"pass@1 from 0.200 to {tuned['1']:.3f} and pass@64 from 1.000 to {tuned['64']:.3f}: {what} (" in said
    assert "2 layers of width 64" in said


def test_a_task_without_a_demo(capsys):
    from experiments.cli import main

    assert main(["demo", "--config", "arith"]) == 1
    assert "no preset 'demo'" in capsys.readouterr().err
