"""Coverage split between two modes, on the small runs of star: every number from p of every problem by hand."""

import numpy as np
import pytest

from experiments.estimates import KS
from experiments.results import load_results
from minifork.storage.files import read_json
from tests.helpers.starts import Starts


def test_competence_splits_coverage(copy, monkeypatch, capsys):
    starts, pipeline = Starts(monkeypatch), copy("base", "fork0.5", measured=True)
    assert pipeline("competence") == 0 and starts.commands == ["sft"]  # the run with both modes for every problem
    written, results = read_json(pipeline.folder / "competence.json"), load_results(pipeline.config())
    assert written["pairs"] == 1 and written["command"]
    data, problem = written["runs"]
    for row, allocation in ((data, "data"), (problem, "problem")):
        assert row["run"] == f"modes at the level of the {allocation}"
        record = results.select({"fork_rate": 0.5, "allocation": allocation})[-1]
        forward, reverse, modes = (results.array(record, name) for name in ("FWD", "REV", "modes"))
        for k in KS:
            missed = (1 - forward) ** k, (1 - reverse) ** k
            by_hand = {
                "free": 1 - (1 - results.problem_p(record)) ** k,
                "FWD": 1 - missed[0],
                "REV": 1 - missed[1],
                "FWD only": (1 - missed[0]) * missed[1],
                "REV only": missed[0] * (1 - missed[1]),
                "both": (1 - missed[0]) * (1 - missed[1]),
                "neither": missed[0] * missed[1],
            }
            measured = {name: values[str(k)]["mean"] for name, values in row["coverage"].items()}
            assert measured == pytest.approx({name: values.mean() for name, values in by_hand.items()})
        shares = [share["mean"] for share in row["mode_share"]]
        assert shares == pytest.approx(np.histogram(modes[:, 0], bins=10, range=(0, 1))[0] / len(modes))
    out = capsys.readouterr().out
    assert "share of problems by P(FWD) in 10 equal bins" in out and "REV only" in out
