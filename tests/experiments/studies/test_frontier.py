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
from experiments.studies.early_stopping import curve, early_stopping_gap
from experiments.studies.stratified import recovered_shares, stratified_line
from minifork.storage import files
from tests.helpers.pipeline import Pipeline
from tests.helpers.starts import Starts

ENTRIES = [
    {"as": frontier.PLAIN, "sft.fork_rate": [0.5, 1]},
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
    scores, valid = finished.chosen["scores"], ["eval.split=valid"]
    results, hot = (
        load_results(finished.config(*valid)),
        load_results(finished.config(*valid, "eval.policy=temperature=2")),
    )
    (plain,) = study.plans(results.config, [{}], [0])
    stopped = curve(results, plain, None).mean(axis=2)
    assert len(stopped) == 4 and stopped[0, 1] == pytest.approx(results.base(0)["pass_at"]["16"])
    tried = {
        "GEM": {loss: (results, {"loss": loss}, "sft") for loss in ("gem=0.5", "gem=0.9")},
        "WiSE-FT": {share: (results, {"wise.weights": share}, "wise") for share in ("0.25", "0.75")},
        "temperature": {"temperature=1": (results, {}, "sft"), "temperature=2": (hot, {}, "sft")},
    }
    assert scores.keys() == finished.chosen["chosen"].keys() == tried.keys()
    for name, by_value in tried.items():
        assert scores[name].keys() == by_value.keys()
        for value, (one, keys, stage) in by_value.items():
            solved = one.problem_pass_at_ks(one.where(keys, stage)[-1], KS).mean(axis=1)
            assert scores[name][value] == pytest.approx(early_stopping_gap(solved[None], stopped[None])[0, 0], abs=1e-9)
        assert scores[name][finished.chosen["chosen"][name]] == max(scores[name].values())


def test_compares_the_runs_that_it_made(finished):
    chosen, written = finished.chosen["chosen"], finished.written
    assert written["command"] and written["config_hash"] and written["machine"]
    rows = {(row["method"], row["fork_rate"], row["mode"]): row for row in written["methods"]}
    names = {name: f"{name} ({value})" for name, value in chosen.items()}
    at_one = [frontier.PLAIN, "fresh", *names.values()]
    assert list(rows) == [(name, rate, mode) for rate, listed in ((0.5, [frontier.PLAIN, "fresh"]), (1.0, at_one))
                          for mode in ("free", "FWD") for name in listed]  # fmt: skip
    results = load_results(finished.config())
    records = {
        (frontier.PLAIN, 0.5): results.tuned(0, 0.5),
        (frontier.PLAIN, 1.0): results.tuned(0, 1),
        ("fresh", 1.0): results.where({"fresh": True}),
        (names["GEM"], 1.0): results.where({"loss": chosen["GEM"]}),
        (names["WiSE-FT"], 1.0): results.where({"wise.weights": chosen["WiSE-FT"]}, "wise"),
    }
    for (name, rate), of_run in records.items():
        row, last = rows[name, rate, "free"], of_run[-1]
        assert len(of_run) == (3 if name == frontier.PLAIN else 1)  # of other runs only the end is measured
        assert row["tokens"] == pytest.approx(last["tokens"]) and row["pairs"] == 1
        trained = results.tuned(0, 1)[-1] if name == names["WiSE-FT"] else last  # a mixture costs what it is made of
        assert row["seconds"] == pytest.approx(results.runs[trained["run"]].record["seconds"])
        for mode, passed in (("free", last["pass_at"]), ("FWD", last["forced"]["FWD"]["pass_at"])):
            assert rows[name, rate, mode]["pass_at"] == pytest.approx({str(k): passed[str(k)] for k in KS})
    for (name, *_), row in rows.items():
        for above in (row["above_16"], row["above_64"]):
            assert above["ci95"][0] <= above["ci95"][1] and (name != frontier.PLAIN or above["mean"] <= 1e-12)


def test_samples_that_miss_nothing_have_nothing_to_recover():
    """Then there is no share, and what is written down holds no NaN."""
    spread = {"iid": (np.ones(50), 0.0), "the top first tokens": (np.ones(50), 0.0)}
    (row,) = recovered_shares(1.0, [spread, spread])
    assert row["recovered"] == [None, None] and row["ci95"] is None
    assert "recovered - - [too little missed]" in stratified_line(row)


def test_spreads_samples_over_branches_and_draws(finished):
    stratified = finished.written["stratified"]
    assert [(row["fork_rate"], len(row["recovered"])) for row in stratified] == [(0.5, 1)] * 4 + [(1, 1)] * 4
    assert (
        "1 pair of seeds (intervals are about problems only); the gap to early stopping is biased" in finished.printed
    )
    assert "above curve, k = 16" in finished.printed and "d samples spread over" in finished.printed
    drawn = {path.name for path in (finished.folder / "figures").glob("frontier-*.png")}
    assert drawn == {f"frontier-fork{rate}-{mode}.png" for rate in ("0.5", "1") for mode in ("free", "FWD")}
