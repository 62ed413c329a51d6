"""The early-stopping curve and the gap above it, by hand; the comparison of finished runs, small."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import study
from experiments.figures import whiskers
from experiments.results import Results, load
from experiments.studies import frontier
from experiments.studies.gap import DRAWS, gap, gap_draws
from experiments.summary import signed
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


def line(*points) -> np.ndarray:
    """A curve of one pair, [1, snapshots, 1 + KS], with the same pass@k for both k."""
    return np.array([[[one, many, many] for one, many in points]])


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ((0.3, 0.9), 0.9 - 1.0),  # the base has as much pass@1, and more
        ((0.5, 0.9), 0.9 - 0.95),  # half way from (.4, 1) to (.6, .9)
        ((0.6, 0.95), 0.05),
        ((0.7, 0.8), 0.8 - 0.9),  # beyond the curve: against the largest pass@1
    ],
)
def test_gap_by_hand(at, expected):
    curve = line((0.4, 1.0), (0.6, 0.9), (0.5, 0.7))  # the last snapshot lost both
    one, many = at
    assert gap(np.array([[one, many, many]]), curve)[0] == pytest.approx([expected] * 2)


def test_a_snapshot_is_never_above_its_own_curve():
    rng = np.random.default_rng(0)
    for _ in range(200):
        curve = rng.random((1, 6, 3))
        assert (gap(curve[:, rng.integers(6)], curve) <= 1e-12).all()


def test_draws_centre_on_the_gap_and_shrink_with_the_problems():
    """Two pairs; every problem of the method is solved .1 more often than where the curve is."""
    rng = np.random.default_rng(1)
    spreads = []
    for n in (100, 1600):
        stopped = rng.random((2, 3, 3, n)) * 0.2 + np.array([0.3, 0.5, 0.7])[None, :, None, None]
        solved = stopped[:, 1] + np.array([0.0, 0.1, 0.1])[None, :, None]
        draws = gap_draws(solved, stopped)
        assert draws.shape == (DRAWS, 2)
        spreads.append(draws.std(axis=0).mean())
    assert spreads[1] < 0.5 * spreads[0]


@pytest.fixture(scope="module")
def finished(trained, small, tmp_path_factory):
    """A pipeline in which the command ran on a few entries; the base and two plain fine-tunings were there."""
    pipeline = Pipeline(tmp_path_factory.mktemp("frontier"), small)
    for name in ("base", "fork0.5", "fork1"):
        shutil.copytree(trained.run(name), pipeline.folder / trained.run(name).name)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(study, "read", lambda _: ENTRIES)
        starts = Starts(patch)
        assert pipeline("frontier") == 0
    assert starts.commands == ["sft"] * 2 + ["wise"] * 2 + ["sft"] * 2  # values first, then what has none to choose
    pipeline.printed = printed.getvalue()
    return pipeline


def test_values_are_chosen_on_validation_problems(finished):
    """The scores are gaps above the curve, computed here from what was measured on validation problems."""
    assert "pass@16 above early stopping on validation problems" in finished.printed
    values, valid = files.read_json(finished.folder / "frontier-values.json"), ["eval.split=valid"]
    results, hot = load(finished.config(*valid)), load(finished.config(*valid, "eval.policy=temperature=2"))

    def solved(one: Results, record: dict) -> list[float]:
        return [one.solved(record, k).mean() for k in (1, 16, 64)]

    plain = results.tuned(0, 1)
    curve = np.array([[solved(results, record) for record in [results.base(0), *plain]]])
    tried = {
        "GEM": {loss: (results, {"loss": loss}, "sft") for loss in ("gem=0.5", "gem=0.9")},
        "WiSE-FT": {share: (results, {"wise.weights": share}, "wise") for share in ("0.25", "0.75")},
        "temperature": {"temperature=1": (results, {}, "sft"), "temperature=2": (hot, {}, "sft")},
    }
    assert values["scores"].keys() == values["chosen"].keys() == tried.keys()
    for name, by_value in tried.items():
        scores = values["scores"][name]
        assert scores.keys() == by_value.keys()
        for value, (one, keys, stage) in by_value.items():
            row = np.array([solved(one, one.where(keys, stage)[-1])])
            assert scores[value] == pytest.approx(gap(row, curve)[0, 0], abs=1e-9)
        assert scores[values["chosen"][name]] == max(scores.values())


def test_compares_the_runs_that_it_made(finished):
    chosen = files.read_json(finished.folder / "frontier-values.json")["chosen"]
    written = files.read_json(finished.folder / "frontier.json")
    assert written["command"] and written["config_hash"] and written["machine"]
    rows = {(row["method"], row["fork_rate"], row["mode"]): row for row in written["methods"]}
    names = {name: f"{name} ({value})" for name, value in chosen.items()}
    at_one = [frontier.PLAIN, "fresh", *names.values()]
    assert list(rows) == [(name, rate, mode) for rate, listed in ((0.5, [frontier.PLAIN, "fresh"]), (1.0, at_one))
                          for mode in ("free", "FWD") for name in listed]  # fmt: skip
    results = load(finished.config())
    of_rows = {
        (frontier.PLAIN, 0.5): results.tuned(0, 0.5),
        (frontier.PLAIN, 1.0): results.tuned(0, 1),
        ("fresh", 1.0): results.where({"fresh": True}),
        (names["GEM"], 1.0): results.where({"loss": chosen["GEM"]}),
        (names["WiSE-FT"], 1.0): results.where({"wise.weights": chosen["WiSE-FT"]}, "wise"),
    }
    for (name, rate), records in of_rows.items():
        row, last = rows[name, rate, "free"], records[-1]
        assert len(records) == (3 if name == frontier.PLAIN else 1)  # of other runs only the end is measured
        assert row["pass_at"] == pytest.approx({k: last["pass_at"][k] for k in ("1", "16", "64")})
        assert row["tokens"] == pytest.approx(last["tokens"]) and row["pairs"] == 1
        trained = results.tuned(0, 1)[-1] if name == names["WiSE-FT"] else last  # a mixture costs what it is made of
        assert row["seconds"] == pytest.approx(results.runs[trained["run"]].record["seconds"])
        forced = last["forced"]["FWD"]["pass_at"]
        assert rows[name, rate, "FWD"]["pass_at"] == pytest.approx({k: forced[k] for k in ("1", "16", "64")})
    for (name, *_), row in rows.items():
        for k in ("above_16", "above_64"):
            low, high = row[k]["ci95"]
            assert low <= high and (name != frontier.PLAIN or row[k]["mean"] <= 1e-12)
    assert [(row["fork_rate"], len(row["recovered"])) for row in written["stratified"]] == [(0.5, 1)] * 4 + [(1, 1)] * 4
    assert "above curve, k = 16" in finished.printed
    drawn = {path.name for path in (finished.folder / "figures").glob("frontier-*.png")}
    assert drawn == {f"frontier-fork{rate}-{mode}.png" for rate in ("0.5", "1") for mode in ("free", "FWD")}


def test_whiskers_of_intervals_that_miss_their_estimate():
    value, low, high = np.array([0.5, 0.2, 0.9]), np.array([0.4, 0.3, 0.7]), np.array([0.7, 0.4, 0.8])
    np.testing.assert_allclose(whiskers(value, low, high), [[0.1, 0, 0.2], [0.2, 0.2, 0]])


def test_nothing_to_compare(copy):
    pipeline = copy("base", measured=True)
    config = pipeline.config()
    with pytest.raises(ValueError, match="no plain fine-tuning to compare with"):
        frontier.compare(config, study.plans(config, ENTRIES[:1], [0]))


def markdown(rows: list[dict], rate: float) -> str:
    """The free rows of a FORK_RATE as the Markdown table of docs/mitigations.md, by falling pass@16."""
    lines = ["| run or decoder | pass@1 | pass@16 | pass@64 | above early stopping at k = 16 | at k = 64 |"]
    lines += ["|---|---|---|---|---|---|"]
    mine = [row for row in rows if row["fork_rate"] == rate and row["mode"] == "free"]
    for row in sorted(mine, key=lambda row: -row["pass_at"]["16"]):
        cells = [f"{row['pass_at'][str(k)]:.3f}" for k in (1, *frontier.KS)]
        cells += [signed(row[f"above_{k}"]) for k in frontier.KS]
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


@pytest.mark.parametrize(("name", "rates"), [("frontier", frontier.RATES), ("frontier-arith", (1.0,))])
def test_the_document_shows_what_was_committed(name, rates):
    root = Path(__file__).parents[3]
    rows = json.loads((root / "experiments" / "results" / f"{name}.json").read_text())["methods"]
    page = (root / "docs" / "mitigations.md").read_text()
    assert all(markdown(rows, rate) in page for rate in rates)
