"""The demo: from nothing to a table, a figure and a sentence that is true of them."""

import pytest

from experiments.studies.demo import sentence
from minifork import config as configs
from tests.helpers.starts import Starts

BASE = {"1": 0.2, "4": 0.6, "64": 1.0}


def test_from_nothing(empty, monkeypatch, capsys):
    starts = Starts(monkeypatch)
    assert empty("demo") == 0 and starts.commands == ["pretrain", "sft"]
    *_, header, _, base, tuned, printed, _ = capsys.readouterr().out.splitlines()
    assert header.startswith("| model | pass@1") and base.startswith("| base |") and "forks" in tuned
    assert empty("eval") == 0
    first, *_, last = empty.view()["records"]
    assert printed == sentence(empty.config(), first["pass_at"], last["pass_at"])
    assert (empty.folder / "figures" / "crossing.png").stat().st_size > 10_000
    assert empty("demo", "sft.fork_rate=0.5") == 0 and len(starts.commands) == 2  # nothing is made twice


@pytest.mark.parametrize(
    ("tuned", "crossing"),
    [
        ({"1": 0.5, "4": 0.5, "64": 0.7}, "the curves cross between k = 1 and 4"),
        ({"1": 0.5, "4": 0.6, "64": 0.7}, "the curves cross between k = 1 and 64"),
        ({"1": 0.5, "4": 0.7, "64": 1.0}, "the curves do not cross"),
        ({"1": 0.1, "4": 0.7, "64": 0.9}, "the curves do not cross"),
        (BASE, "the curves do not cross"),
    ],
)
def test_the_sentence(tuned, crossing):
    text = sentence(configs.load_config("star", ["preset=demo"]), BASE, tuned)
    assert f"pass@1 from 0.200 to {tuned['1']:.3f} and pass@64 from 1.000 to {tuned['64']:.3f}: {crossing} (" in text
