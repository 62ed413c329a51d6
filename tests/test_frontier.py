"""The early-stopping curve and the gap above it, by hand; the comparison of finished runs, small."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments import frontier
from experiments.figures import whiskers
from experiments.gap import DRAWS, gap, gap_draws
from experiments.results import load
from minifork import config as configs
from minifork import runs
from minifork.evaluate import evaluate


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


def test_compares_finished_runs(copy, capsys):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    for overrides in (["sft.loss=gem=0.7"], ["sft.fresh=true"]):
        assert pipeline("sft", "sft.fork_rate=1", *overrides) == 0
    assert (
        pipeline("wise", "wise.weights=0.5") == evaluate(pipeline.config(), frontier.compared(pipeline.config())) == 0
    )
    frontier.compare(pipeline.config(), {"temperature": "2", "GEM": "0.5"})
    found = json.loads((pipeline.folder / "frontier.json").read_text())
    rows, spreads = found["methods"], found["stratified"]
    names = {row["method"] for row in rows if row["mode"] == "free"}
    assert names == {"data", "data-fresh", "data-wise0.5", "temperature=2"}  # another GEM was chosen
    assert all(row["seconds"] > 0 and row["tokens"] > 0 for row in rows)
    assert [len(row["recovered"]) for row in spreads] == [1] * 4
    assert {row["mode"] for row in rows} == {"free", "FWD"} and {row["fork_rate"] for row in rows} == {1.0}
    for row in rows:
        for k in ("above_16", "above_64"):
            low, high = row[k]["ci95"]
            assert low <= high and (row["method"] != "data" or row[k]["mean"] <= 1e-12)
    assert "above curve, k = 16" in capsys.readouterr().out
    drawn = sorted(path.name for path in (pipeline.folder / "figures").glob("frontier-*.png"))
    assert drawn == ["frontier-fork1-FWD.png", "frontier-fork1-free.png"]


def test_whiskers_of_intervals_that_miss_their_estimate():
    value, low, high = np.array([0.5, 0.2, 0.9]), np.array([0.4, 0.3, 0.7]), np.array([0.7, 0.4, 0.8])
    np.testing.assert_allclose(whiskers(value, low, high), [[0.1, 0, 0.2], [0.2, 0.2, 0]])


def test_nothing_to_compare(copy, capsys):
    pipeline = copy("base-seed0")
    assert pipeline("eval") == 0
    with pytest.raises(ValueError, match="no plain fine-tuning"):
        frontier.compare(pipeline.config(), {})


def test_values_are_chosen_on_validation_problems(copy, capsys):
    """The scores are gaps above the validation curve, computed here from an evaluation of its own."""
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    gems = ("0.5", "0.9")
    for value in gems:
        assert pipeline("sft", f"sft.loss=gem={value}") == 0
    assert pipeline("wise", "wise.weights=0.25,0.75") == 0
    methods = [
        frontier.Method("GEM", "sft", "sft.loss=gem={value}", gems),
        frontier.Method("WiSE", "wise", "wise.weights={value}", ("0.25", "0.75")),
        frontier.Method("hot", "decode", "temperature={value}", ("1", "2")),
        frontier.Method("fresh", "sft", "sft.fresh=true"),
    ]
    chosen = frontier.choose(pipeline.config(), methods)
    scores = runs.read_json(pipeline.folder / "frontier-values.json")["scores"]
    assert pipeline("eval", "eval.split=valid") == 0
    results = load(pipeline.config())
    curve = frontier.curve(results, 0, 1.0, None).mean(axis=2)
    last = {
        "GEM": [results.tuned(0, f"data-gem{value}")[-1] for value in gems],
        "WiSE": [results.tuned(0, f"data-wise{value}")[-1] for value in ("0.25", "0.75")],
    }
    for name, records in last.items():
        expected = [gap(frontier.solve(results, r, None).mean(axis=1)[None], curve[None])[0, 0] for r in records]
        assert list(scores[name].values()) == pytest.approx(expected, abs=1e-6)
    assert scores["hot"]["1"] == pytest.approx(0, abs=1e-6)  # the curve's own end
    assert all(scores[name][value] == max(scores[name].values()) for name, value in chosen.items() if name in scores)
    assert chosen["fresh"] == "" and "pass@16 above early stopping" in capsys.readouterr().out


def test_every_method_can_be_planned_for_every_config_with_its_mode():
    """Before anything is trained; mixed is no task of the frontier, but has FWD and REV all the same."""
    folder = Path(__file__).parent.parent / "experiments" / "configs"
    for name, preset in (("star", []), ("star", ["preset=search"]), ("arith", []), ("mixed", [])):
        config = configs.load(folder / f"{name}.yaml", preset)
        for method in frontier.METHODS:
            for rate in method.rates if method.stage != "decode" and method.mode in config.data.mode_names else ():
                configs.changed(config, method.overrides(config, method.values[0], rate, 0))


@pytest.mark.parametrize(("name", "rates"), [("frontier", frontier.RATES), ("frontier-arith", (1.0,))])
def test_the_document_shows_what_was_committed(name, rates):
    root = Path(__file__).parent.parent
    rows = json.loads((root / "experiments" / "results" / f"{name}.json").read_text())["methods"]
    page = (root / "docs" / "mitigations.md").read_text()
    assert all(frontier.markdown(rows, rate) in page for rate in rates)
