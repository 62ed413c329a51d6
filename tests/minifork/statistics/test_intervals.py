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


def beta_cdf(x: float, c: int, n: int) -> float:
    """P(p <= x) under Beta(c + 1/2, n - c + 1/2).

    In p = sin^2 t the density is sin^(2c) t cos^(2(n-c)) t, without poles; Simpson's rule over the 16 standard
    deviations 1/(2 sqrt n) around its top.
    """
    top, reach = math.asin(math.sqrt(c / n)), 8 / math.sqrt(n)
    low, high = max(0.0, top - reach), min(math.pi / 2, top + reach)
    cut = min(max(math.asin(math.sqrt(x)), low), high)

    def log_density(t: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = [m * np.log(f) if m else 0 * f for m, f in ((2 * c, np.sin(t)), (2 * (n - c), np.cos(t)))]
        return parts[0] + parts[1]

    def simpson(a: float, b: float) -> float:
        t = np.linspace(a, b, 4001)
        weights = np.ones(4001)
        weights[1:-1:2], weights[2:-1:2] = 4, 2
        return float(weights @ np.exp(log_density(t) - log_density(np.array(top)))) * (b - a) / 12_000

    left, right = simpson(low, cut), simpson(cut, high)
    return left / (left + right)


@pytest.mark.parametrize(
    ("c", "n", "low", "high"),
    # from the incomplete beta function to 30 digits
    [
        (0, 1, 0.000385580981, 0.853253683690),
        (0, 10, 4.78904332e-5, 0.217196267509),
        (1, 10, 0.011011673763, 0.381314771067),
        (5, 10, 0.223528670253, 0.776471329747),
        (3, 20, 0.044131341975, 0.348577710858),
        (10, 100, 0.052584675291, 0.170123929652),
        (0, 1000, 4.90911695e-7, 0.002508164341),
    ],
)
def test_beta_interval_against_known_values(c, n, low, high):
    got = intervals.beta_interval(c, n)
    assert got.shape == (2,)
    np.testing.assert_allclose(got, [low, high], rtol=1e-5)
    np.testing.assert_allclose(1 - intervals.beta_interval(n - c, n)[::-1], got, atol=1e-9)


@pytest.mark.parametrize("n", [1, 7, 1024, 10**6, 10**9])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_beta_interval_leaves_the_tails_it_should(n, level):
    """By an integral of another form, from no success to nothing but."""
    counts = sorted({0, min(1, n), min(3, n), n // 3, n // 2, n - 1, n})
    low, high = intervals.beta_interval(counts, n, level)
    tail = (1 - level) / 2
    for c, a, b in zip(counts, low, high, strict=True):
        assert 0 < a < b <= 1
        if c < n:  # above, fp64 has too few numbers below 1
            assert beta_cdf(a, c, n) == pytest.approx(tail, rel=1e-3)
            assert 1 - beta_cdf(b, c, n) == pytest.approx(tail, rel=1e-3)
    mirrored = intervals.beta_interval([n - c for c in counts], n, level)
    np.testing.assert_allclose(1 - mirrored[::-1], [low, high], atol=1e-9)


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
    got = intervals.beta_interval(counts, 12, 0.9)
    assert got.shape == (2, 2, 3)
    for i, j in np.ndindex(counts.shape):
        np.testing.assert_allclose(got[:, i, j], intervals.beta_interval(int(counts[i, j]), 12, 0.9), rtol=1e-12)
    assert (np.diff(intervals.beta_interval(np.arange(13), 12), axis=1) > 0).all()


# Means over pairs and problems


@pytest.mark.parametrize(
    ("df", "t"),
    [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (30, 2.04227), (999, 1.962341), (10**9, 1.959964)],
)
def test_quantiles_of_students_t(df, t):
    assert intervals.t_quantile(df) == pytest.approx(t, rel=2e-6)


def by_hand(values: np.ndarray) -> float:
    """Half the width of the interval, from mean squares summed up in loops."""
    pairs, problems = values.shape
    mean, cells = values.mean(), np.ndindex(values.shape)
    ms_pair = sum(problems * (row.mean() - mean) ** 2 for row in values) / (pairs - 1)
    ms_problem = sum(pairs * (column.mean() - mean) ** 2 for column in values.T) / (problems - 1)
    squares = [(values[i, j] - values[i].mean() - values[:, j].mean() + mean) ** 2 for i, j in cells]
    ms_rest = sum(squares) / ((pairs - 1) * (problems - 1))
    of_pairs, of_problems = (max(ms, ms_rest) / values.size for ms in (ms_pair, ms_problem))
    return math.sqrt(3.182446**2 * (of_pairs - ms_rest / values.size) + 2.045230**2 * of_problems)  # t of 3 and 29


@pytest.mark.parametrize("of_pair", [0.0, 0.5])
@pytest.mark.parametrize("of_problem", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_mean_interval_by_hand(of_pair, of_problem, seed):
    rng = np.random.default_rng(seed)
    values = of_pair * rng.normal(size=(4, 1)) + of_problem * rng.normal(size=30) + rng.normal(size=(4, 30))
    low, high = intervals.mean_interval(values)
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(max(by_hand(values), 3 / 30), rel=1e-5)


def test_one_pair_is_about_problems_only():
    row = np.random.default_rng(0).normal(size=(1, 50))
    half_width = 2.00958 * row.std(ddof=1) / math.sqrt(50)  # of t with 49 degrees of freedom
    np.testing.assert_allclose(intervals.mean_interval(row), row.mean() + half_width * np.array([-1, 1]), rtol=1e-5)


@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_what_does_not_vary_has_an_interval_all_the_same(pairs):
    """What happened in none of 1,000 problems may happen in 3 of 1,000."""
    np.testing.assert_allclose(intervals.mean_interval(np.zeros((pairs, 1000))), [-0.003, 0.003])
    np.testing.assert_allclose(intervals.probability_interval(np.ones((pairs, 1000))), [0.997, 1])
    np.testing.assert_allclose(intervals.probability_interval(np.zeros((pairs, 1000))), [0, 0.003])
    np.testing.assert_allclose(intervals.mean_interval(np.full((pairs, 1), 0.4)), [-2.6, 3.4])


@given(values=arrays(float, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(0, 1)))
def test_intervals_of_probabilities_stay_in_0_to_1(values):
    low, high = intervals.probability_interval(values)
    assert 0 <= low <= values.mean() + 1e-12 and values.mean() - 1e-12 <= high <= 1
    half_width = 3 / values.shape[1]
    assert low <= max(0, values.mean() - half_width) + 1e-9 and high >= min(1, values.mean() + half_width) - 1e-9


def test_pseudo_values():
    """Of a mean they are the values; of a ratio their mean is the ratio, and they vary as the delta method says."""
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
    one, other = 0.5 + 0.1 * rng.normal(size=(2, 5, 300))
    np.testing.assert_allclose(
        intervals.difference_interval(one, other), intervals.mean_interval(one - other), atol=2e-3
    )
    near = 1 - 0.02 * np.exp(rng.normal(size=(5, 1))) * rng.random((5, 300))
    reflected = 1 - intervals.probability_interval(near)[::-1]
    np.testing.assert_allclose(intervals.difference_interval(np.ones_like(near), near)[1], reflected[1], rtol=1e-6)


def test_share_interval():
    """Its ends are the shares that are just not refuted; where hardly anything was lost there is none."""
    rng = np.random.default_rng(0)
    lost = 0.3 + 0.3 * rng.normal(size=(3, 200))
    won = 0.7 * lost + 0.2 * rng.normal(size=(3, 200))
    ends = intervals.share_interval(won, lost)
    assert ends is not None and ends[0] < won.mean() / lost.mean() < ends[1]
    for end in ends:
        low, high = intervals.mean_interval(won - end * lost)
        assert min(abs(low), abs(high)) < 1e-4 < max(abs(low), abs(high))
    assert intervals.share_interval(won, lost - lost.mean() + 0.001) is None
