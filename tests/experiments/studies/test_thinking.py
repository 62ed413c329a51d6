"""Over- and under-thinking by forced first tokens: the command on a small config, and verdicts on made-up values."""

import numpy as np
import pytest

from experiments.cli import main
from experiments.estimates import agreements, alternatives_text, compare_alternatives, stack_pairs
from experiments.results import load_results
from minifork.storage.files import read_json
from tests.conftest import SMALL
from tests.data_gen.test_tasks import TaskPipeline
from tests.helpers.starts import Starts

FEW = ["walks.seq_len=36", "sft.epochs=1", "eval.problems=16", "eval.rollouts=64", "eval.check_problems=4"]
SEARCHING = ["data.modes=FWD,SEARCH", "sft.modes=FWD,SEARCH", "sft.fork_rate=0.5"]
TABLE = "data.openers=FWD 0.45 0.45 0.05 0.05, SEARCH 0.05 0.05 0.45 0.45"
QUANTITIES = ["tokens", "tokens beyond the shortest", "pass@1", "pass@16", "pass@1 lost", "tokens saved"]


def test_every_opener(tmp_path, monkeypatch, capsys):
    """The whole command, from the base on; what it writes is what was measured, place by place."""
    starts, pipeline = Starts(monkeypatch), TaskPipeline(tmp_path, "openers", [*SMALL, *FEW, *SEARCHING, TABLE])
    assert pipeline("thinking") == 0 and starts.commands == ["sft"]
    (run,) = read_json(pipeline.folder / "thinking.json")["runs"]
    changes = {"hard, T=5": ["eval.max_tokens=5"], "easy": ["eval.forked=false"], "hard": []}
    assert list(run["problems"]) == [*changes] and run["run"] == "openers"
    for place, overrides in changes.items():
        results, rows = load_results(pipeline.config(*overrides)), run["problems"][place]
        record = results.select()[-1]
        p = {name: results.problem_p(record, name).mean() for name in "ABCD"}
        assert record["mode"]["p"].keys() == record["forced"].keys() == p.keys() == rows.keys()
        for name, row in rows.items():
            assert {*row} == {*QUANTITIES, *(["P(SEARCH)"] if place == "hard" else [])}
            assert row["pass@1"]["mean"] == pytest.approx(p[name])
            assert row["pass@1 lost"]["mean"] == pytest.approx(max(p.values()) - p[name])
            assert row["tokens beyond the shortest"]["mean"] == pytest.approx(row["tokens"]["mean"] - 5)
            assert 2 <= row["tokens"]["mean"] <= (5 if "T" in place else 8)
    assert [pair["names"] for pair in run["synonyms"]] == [["A", "B"], ["C", "D"]]
    p_search = {name: row["P(SEARCH)"]["mean"] for name, row in run["problems"]["hard"].items()}
    assert run["synonyms"][0]["difference"]["mean"] == pytest.approx(p_search["A"] - p_search["B"])
    assert "synonyms A and B" in (printed := capsys.readouterr().out) and "hard, T=5" in printed


def test_every_mode_of_star(tmp_path, monkeypatch, capsys):
    """Without openers the first tokens are the modes."""
    Starts(monkeypatch)
    pipeline = TaskPipeline(tmp_path, "star", [*SMALL, *FEW, *SEARCHING, "reproduce.study=openers"])
    assert pipeline("thinking") == 0
    (run,) = read_json(pipeline.folder / "thinking.json")["runs"]
    assert {place: [*rows] for place, rows in run["problems"].items()}["hard"] == ["FWD", "SEARCH"]
    assert run["synonyms"] == [] and "SEARCH" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--config=arith"], ["data.branches=1"]])
def test_tasks_without_a_fork_of_a_star_are_refused(words, capsys):
    assert main(["thinking", *words]) == 1 and "thinking needs a star with a fork" in capsys.readouterr().err


def test_alternatives():
    """Losses against the best, and verdicts on both sides of the limit."""
    rng = np.random.default_rng(0)
    pair = {name: {"pass@1": np.full(200, p), "tokens": rng.normal(tokens, 0.1, 200), "P(X)": np.full(200, x)}
            for name, p, tokens, x in (("A", 0.5, 5, 0.1), ("B", 0.9, 9, 0.115), ("C", 0.6, 6, 0.14))}  # fmt: skip
    values = stack_pairs([pair, pair])
    assert values["A"]["tokens"].shape == (2, 200)
    rows = compare_alternatives(values)
    assert [row["pass@1 lost"]["mean"] for row in rows.values()] == pytest.approx([0.4, 0, 0.3])
    assert [row["tokens saved"]["mean"] for row in rows.values()] == pytest.approx([4, 0, 3], abs=0.1)
    verdicts = agreements(values, [("A", "B"), ("C", "A")], "P(", 0.02)
    assert [(row["quantity"], row["agree"]) for row in verdicts] == [("P(X)", True), ("P(X)", False)]
    assert verdicts[1]["difference"]["mean"] == pytest.approx(0.04)
    assert len(alternatives_text("hard", rows).splitlines()) == 1 + 5
