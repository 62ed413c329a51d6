"""The early-stopping curve and the gap above it, by hand and by simulation."""

import numpy as np
import pytest

from experiments.studies.early_stopping import above_curve, early_stopping_gap


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
    curve = np.array([[0.4, 1.0, 1.0], [0.6, 0.9, 0.9], [0.5, 0.7, 0.7]])  # the last snapshot lost both
    one, many = at
    assert early_stopping_gap(np.array([[one, many, many]]), curve[None])[0] == pytest.approx([expected] * 2)


def test_a_snapshot_is_never_above_its_curve():
    rng = np.random.default_rng(0)
    for curve in rng.random((200, 1, 6, 3)):
        assert (early_stopping_gap(curve[:, rng.integers(6)], curve) <= 1e-12).all()


def test_intervals_are_centred_on_the_gap_and_shrink_with_the_problems():
    """Two pairs; every problem of the method is methods .1 more often than where the curve is."""
    rng, widths = np.random.default_rng(1), []
    for n in (100, 1600):
        curves = rng.random((2, 3, 3, n)) * 0.2 + np.array([0.3, 0.5, 0.7])[None, :, None, None]
        methods = curves[:, 1] + np.array([0.0, 0.1, 0.1])[None, :, None]
        above = above_curve(methods, curves)
        mean = early_stopping_gap(methods.mean(axis=2), curves.mean(axis=3)).mean(axis=0)
        assert [above[k]["mean"] for k in ("16", "64")] == pytest.approx(mean)
        widths.append(np.mean([np.diff(value["ci95"]) for value in above.values()]))
    assert widths[1] < 0.5 * widths[0]
