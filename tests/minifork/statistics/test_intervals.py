"""Intervals: of p given counts, of means over pairs and problems; by closed forms (their coverage
over pairs and problems is in test_coverage.py).

Simulations have fixed seeds; with seeds drawn anew, |z| < 4.5 fails with probability 7e-6.
"""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from minifork.statistics import intervals

Z = 4.5


# The interval of p


@pytest.mark.parametrize(
    ("c", "n", "level", "low", "high"),
    # from scipy.special.betaincinv
    [
        (0, 1, 0.95, 0.0003855809807559, 0.8532536836904248),
        (5, 10, 0.5, 0.3971065714840441, 0.6028934285159560),
        (3, 20, 0.95, 0.0441313419751559, 0.3485777108584540),
        (0, 1000, 0.999, 1.9630048527801e-10, 0.0060380150166527),
        (341, 1024, 0.95, 0.3046449012983106, 0.3623132106368663),
        (10**6 - 1, 10**6, 0.5, 0.9999979458291285, 0.9999993937335807),
        (3, 10**9, 0.95, 8.4493459103789e-10, 8.0063821152716e-09),
        (10**9 // 3, 10**9, 0.999, 0.3332842819824111, 0.3333823865348259),
    ],
)
def test_beta_interval_against_known_values(c, n, level, low, high):
    """The mirrored case included, in which p is so near 1 that 1 - p has few digits."""
    ends = intervals.beta_interval(c, n, level)
    assert ends.shape == (2,)
    np.testing.assert_allclose(ends, [low, high], rtol=2e-5)
    np.testing.assert_allclose(1 - intervals.beta_interval(n - c, n, level)[::-1], ends, atol=1e-9)


def test_beta_interval_covers_as_it_says():
    """Exactly at its level on average over p drawn from Beta(1/2, 1/2), and for every number of successes."""
    rng, n, worlds = np.random.default_rng(0), 20, 40_000
    p = rng.beta(0.5, 0.5, size=worlds)
    counts = rng.binomial(n, p)
    for level in (0.5, 0.95):
        low, high = intervals.beta_interval(np.arange(n + 1), n, level)
        inside = (low[counts] <= p) & (p <= high[counts])
        assert abs(inside.mean() - level) < Z * math.sqrt(level * (1 - level) / worlds)
        for side in (p < low[counts], p > high[counts]):
            assert abs(side.mean() - (1 - level) / 2) < Z * math.sqrt((1 - level) / 2 / worlds)


def test_beta_interval_takes_arrays():
    counts = np.array([[0, 3, 9], [12, 1, 0]])
    one_by_one = [[intervals.beta_interval(int(c), 12) for c in row] for row in counts]
    np.testing.assert_allclose(intervals.beta_interval(counts, 12), np.moveaxis(one_by_one, -1, 0), rtol=1e-12)


# Means over pairs and problems


@pytest.mark.parametrize(
    ("df", "t"),
    [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (30, 2.04227), (999, 1.962341), (10**9, 1.959964)],
)
def test_quantiles_of_students_t(df, t):
    assert intervals.t_quantile(df) == pytest.approx(t, rel=2e-6)


def by_hand(values: np.ndarray) -> float:
    """Half the width of the interval, from mean squares summed up in loops."""
    (pairs, problems), mean = values.shape, values.mean()
    ms_pair = sum(problems * (row.mean() - mean) ** 2 for row in values) / (pairs - 1)
    ms_problem = sum(pairs * (column.mean() - mean) ** 2 for column in values.T) / (problems - 1)
    cells = np.ndindex(values.shape)
    squares = [(values[i, j] - values[i].mean() - values[:, j].mean() + mean) ** 2 for i, j in cells]
    ms_rest = sum(squares) / ((pairs - 1) * (problems - 1))
    pair_part, problem_part = max(ms_pair - ms_rest, 0), max(ms_problem, ms_rest)
    return math.sqrt((3.182446**2 * pair_part + 2.045230**2 * problem_part) / values.size)  # t of 3 and 29


@pytest.mark.parametrize("pair_sd", [0.0, 0.5])
@pytest.mark.parametrize("problem_sd", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_mean_interval_by_hand(pair_sd, problem_sd, seed):
    rng = np.random.default_rng(seed)
    values = pair_sd * rng.normal(size=(4, 1)) + problem_sd * rng.normal(size=30) + rng.normal(size=(4, 30))
    half_width = max(by_hand(values), 3 / 30)
    np.testing.assert_allclose(
        intervals.mean_interval(values), values.mean() + half_width * np.array([-1, 1]), rtol=1e-5, atol=1e-6
    )


def test_one_pair_is_about_problems_only():
    row = np.random.default_rng(0).normal(size=(1, 50))
    half_width = 2.00958 * row.std(ddof=1) / math.sqrt(50)  # of t with 49 degrees of freedom
    np.testing.assert_allclose(intervals.mean_interval(row), row.mean() + half_width * np.array([-1, 1]), rtol=1e-5)


@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_what_does_not_vary_has_an_interval_all_the_same(pairs):
    """An event that happened in none of 1,000 problems may happen in 3 of 1,000."""
    np.testing.assert_allclose(intervals.mean_interval(np.zeros((pairs, 1000))), [-0.003, 0.003])
    np.testing.assert_allclose(intervals.probability_interval(np.ones((pairs, 1000))), [0.997, 1])
    np.testing.assert_allclose(intervals.probability_interval(np.zeros((pairs, 1000))), [0, 0.003])
    np.testing.assert_allclose(intervals.mean_interval(np.full((pairs, 1), 0.4)), [-2.6, 3.4])


@given(values=arrays(float, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(0, 1)))
def test_intervals_of_probabilities_stay_in_0_to_1(values):
    low, high = intervals.probability_interval(values)
    mean, slack = values.mean(), 3 / values.shape[1]
    assert 0 <= low <= max(0, mean - slack) + 1e-9 and min(1, mean + slack) - 1e-9 <= high <= 1


def test_pseudo_values():
    """For a mean they are the values. For a ratio their mean is the ratio, with the variance of the delta method."""
    rng = np.random.default_rng(0)
    values = rng.random((2, 500))
    np.testing.assert_allclose(intervals.pseudo_values(lambda means: means[:, 0], values), values[0])
    pseudo = intervals.pseudo_values(lambda means: means[:, 0] / means[:, 1], values)
    ratio = values[0].mean() / values[1].mean()
    delta = ratio + (values[0] - ratio * values[1]) / values[1].mean()
    assert pseudo.mean() == pytest.approx(ratio)
    np.testing.assert_allclose(pseudo, delta, atol=0.01)


def test_difference_interval():
    """Far from 0 and 1 it is that of the mean; of 1 and a probability it is the probability's interval, reflected."""
    rng = np.random.default_rng(0)
    first, second = 0.5 + 0.1 * rng.normal(size=(2, 5, 300))
    ends = intervals.difference_interval(first, second)
    np.testing.assert_allclose(ends, intervals.mean_interval(first - second), atol=2e-3)
    near = 1 - 0.02 * np.exp(rng.normal(size=(5, 1))) * rng.random((5, 300))
    reflected = 1 - intervals.probability_interval(near)[::-1]
    np.testing.assert_allclose(intervals.difference_interval(np.ones_like(near), near)[1], reflected[1], rtol=1e-6)


def test_share_interval():
    """Its ends are the shares that are just not refuted; None if the interval of the whole contains 0."""
    rng = np.random.default_rng(0)
    whole = 0.3 + 0.3 * rng.normal(size=(3, 200))
    gain = 0.7 * whole + 0.2 * rng.normal(size=(3, 200))
    ends = intervals.share_interval(gain, whole)
    assert ends is not None and ends[0] < gain.mean() / whole.mean() < ends[1]
    for end in ends:
        low, high = intervals.mean_interval(gain - end * whole)
        assert min(abs(low), abs(high)) < 1e-4 < max(abs(low), abs(high))
    assert intervals.share_interval(gain, whole - whole.mean() + 0.001) is None
