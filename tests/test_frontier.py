"""The early-stopping curve and the gap above it, by hand; the comparison of finished runs, small."""

import json

import numpy as np
import pytest

from experiments import frontier
from experiments.figures import whiskers
from experiments.frontier import gap, gap_draws


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
        assert draws.shape == (frontier.DRAWS, 2)
        spreads.append(draws.std(axis=0).mean())
    assert spreads[1] < 0.5 * spreads[0]


def test_compares_finished_runs(copy, capsys):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    for overrides in (["sft.loss=gem=0.7"], ["sft.fresh=true"]):
        assert pipeline("sft", "sft.fork_rate=1", *overrides) == 0
    assert pipeline("wise", "wise.weights=0.5") == pipeline("eval") == 0
    frontier.compare(pipeline.config())
    rows = json.loads((pipeline.folder / "frontier.json").read_text())
    names = {row["method"] for row in rows if row["mode"] == "free"}
    assert {"data", "data-gem0.7", "data-fresh", "data-wise0.5", "temperature=2"} <= names
    assert any("at the fork" in name for name in names)
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
        frontier.compare(pipeline.config())
