"""The comparison of mitigations, small: what is made and measured, which values are chosen, what is written."""

import contextlib
import io
import shutil

import numpy as np
import pytest

from experiments import study
from experiments.estimates import KS
from experiments.results import load_results
from experiments.studies import frontier
from experiments.studies.early_stopping import best_place, early_stopping_curve, gap_values
from minifork.storage import files
from tests.helpers.pipeline import Pipeline
from tests.helpers.starts import Starts

ENTRIES = [
    {"as": frontier.CROSS_ENTROPY, "sft.fork_rate": [0.5, 1]},
    {"as": "rationale", "needs": "RAT", "sft.modes": "RAT"},
    {"as": "fresh", "sft.fresh": True, "sft.fork_rate": [0.5, 1]},
    {"as": "GEM", "choose": "sft.loss", "sft.loss": ["gem=0.5", "gem=0.9"]},
    {"as": "WiSE-FT", "stage": "wise", "choose": "wise.weights", "wise.weights": ["0.25", "0.75"]},
    {"as": "temperature", "choose": "eval.policy", "eval.policy": ["temperature=1", "temperature=2"]},
]


@pytest.fixture(scope="module")
def finished(trained, small, tmp_path_factory):
    """A pipeline in which the command ran on a few entries; the base and two plain fine-tunings were there."""
    pipeline = Pipeline(tmp_path_factory.mktemp("frontier"), small)
    for name in ("base", "fork0.5", "fork1"):
        shutil.copytree(trained.run(name), pipeline.folder / trained.run(name).name)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(study, "read_study", lambda _: ENTRIES)
        starts = Starts(patch)
        assert pipeline("frontier") == 0
    assert starts.commands == ["sft"] * 2 + ["wise"] * 2 + ["sft"] * 2  # values first, then what has none to choose
    pipeline.printed = printed.getvalue()
    pipeline.chosen = files.read_json(pipeline.folder / "frontier-values.json")
    pipeline.written = files.read_json(pipeline.folder / "frontier.json")
    return pipeline


def test_values_are_chosen_on_validation_problems(finished):
    """The scores are gaps above the curve, computed here from what was measured on validation problems."""
    assert "pass@16 above early stopping on validation problems" in finished.printed
    words = ["eval.split=valid"]
    cold, hot = (load_results(finished.config(*words, *more)) for more in ([], ["eval.policy=temperature=2"]))
    (plain,) = study.plans(cold.config, [{}], [0])
    curve = early_stopping_curve(cold, plain, None)
    assert len(curve) == 4 and curve[0, 2].mean() == pytest.approx(cold.base(0)["pass_at"]["16"])
    assert curve[:, 0].mean(axis=1) == pytest.approx([row["skill"] for row in [cold.base(0), *cold.tuned(0, 1)]])
    records = {
        ("GEM", "gem=0.5"): (cold, cold.select({"loss": "gem=0.5"})),
        ("GEM", "gem=0.9"): (cold, cold.select({"loss": "gem=0.9"})),
        ("WiSE-FT", "0.25"): (cold, cold.select({"wise.weights": "0.25"}, "wise")),
        ("WiSE-FT", "0.75"): (cold, cold.select({"wise.weights": "0.75"}, "wise")),
        ("temperature", "temperature=1"): (cold, cold.select()),
        ("temperature", "temperature=2"): (hot, hot.select()),
    }
    scores, chosen = finished.chosen["scores"], finished.chosen["chosen"]
    assert [(name, value) for name in scores for value in scores[name]] == list(records)
    for (name, value), (results, of_run) in records.items():
        passes = results.record_pass_at_ks(of_run[-1], KS)
        method = np.concatenate([results.skill(of_run[-1])[None], passes])
        points = np.concatenate([method[None], curve])[None]
        assert scores[name][value] == pytest.approx(gap_values(points, best_place(points, 16), 16).mean(), abs=1e-9)
        assert scores[name][chosen[name]] >= scores[name][value]


def test_compares_the_runs_that_it_made(finished):
    chosen, written = finished.chosen["chosen"], finished.written
    assert written["command"] and written["config_hash"] and written["machine"]
    rows = {(row["method"], row["fork_rate"], row["mode"]): row for row in written["methods"]}
    plain, names = frontier.CROSS_ENTROPY, {name: f"{name} ({value})" for name, value in chosen.items()}
    methods = {0.5: [plain, "fresh"], 1: [plain, "fresh", *names.values()]}
    assert list(rows) == [(name, rate, mode) for rate in methods for mode in ("free", "FWD") for name in methods[rate]]
    results = load_results(finished.config())
    records = {
        (plain, 0.5): results.tuned(0, 0.5),
        (plain, 1.0): results.tuned(0, 1),
        ("fresh", 1.0): results.select({"fresh": True}),
        (names["GEM"], 1.0): results.select({"loss": chosen["GEM"]}),
        (names["WiSE-FT"], 1.0): results.select({"wise.weights": chosen["WiSE-FT"]}, "wise"),
    }
    for (name, rate), of_run in records.items():
        row, last = rows[name, rate, "free"], of_run[-1]
        assert len(of_run) == (3 if name == plain else 1)  # of other runs only the end is measured
        assert row["tokens"] == pytest.approx(last["tokens"]) and row["pairs"] == 1
        trained = results.tuned(0, 1)[-1] if name == names["WiSE-FT"] else last  # a mixture costs what it is made of
        assert row["seconds"] == pytest.approx(results.runs[trained["run"]].record["seconds"])
        for mode, passed in (("free", last["pass_at"]), ("FWD", last["forced"]["FWD"]["pass_at"])):
            assert rows[name, rate, mode]["pass_at"] == pytest.approx({str(k): passed[str(k)] for k in KS})
        skills = {"free": results.skill(last), "FWD": results.skill(last, "FWD")}
        assert {mode: rows[name, rate, mode]["skill"] for mode in skills} == pytest.approx(
            {mode: skill.mean() for mode, skill in skills.items()}
        )
    for row in rows.values():
        for above in (row[f"above_{k}"] for k in KS[1:]):
            assert above["cannot_be_exceeded"] == (above["mean"] is None) == (above["ci95"] is None)
    assert rows[plain, 1.0, "FWD"]["above_16"]["mean"] == pytest.approx(gap_of_the_end(finished, "FWD"), abs=1e-9)


def gap_of_the_end(finished, mode: str) -> float:
    """The gap in pass@16 of the plain run's end at FORK_RATE 1, at the place chosen on validation problems."""
    curves = []
    for words in (["eval.split=valid"], []):
        results = load_results(finished.config(*words))
        (plan,) = study.plans(results.config, [{}], [0])
        curve = early_stopping_curve(results, plan, mode)
        curves.append(np.concatenate([curve[-1:], curve])[None])
    valid, test = curves
    return float(gap_values(test, best_place(valid, 16), 16).mean())


def test_draws(finished):
    assert all(text in finished.printed for text in ("skill", "above curve, k = 16"))
    figures = {path.name for path in (finished.folder / "figures").glob("frontier-*.png")}
    assert figures == {f"frontier-fork{rate}-{mode}.png" for rate in ("0.5", "1") for mode in ("free", "FWD")}
