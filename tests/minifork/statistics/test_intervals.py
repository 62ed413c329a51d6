"""Intervals: of p given counts, of means over problems, over pairs and problems; by closed forms and simulation.

Simulations have fixed seeds; with seeds drawn anew, |z| < 4.5 fails with probability 7e-6. Together with
the one interval tested at 1 %, a right implementation fails with a probability of about 1e-2.
"""

import math

import numpy as np
import pytest

from minifork.statistics import intervals, passk

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


# Bootstrap


def test_resamples():
    weights = intervals.resamples(40, 300)
    assert weights.shape == (300, 40)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(weights * 40, np.round(weights * 40), atol=1e-9)
    np.testing.assert_array_equal(weights, intervals.resamples(40, 300))
    assert not np.array_equal(weights, intervals.resamples(40, 300, seed=1))
    # each problem is drawn Binomial(40, 1/40) times a row
    z = (weights.sum(axis=0) - 300 / 40) / math.sqrt(300 / 40 * (1 - 1 / 40) / 40)
    assert np.abs(z).max() < Z


def test_interval_is_the_percentile_interval():
    draws = np.random.default_rng(0).permutation(np.arange(1001.0))
    np.testing.assert_allclose(intervals.interval(draws), [25, 975])
    np.testing.assert_allclose(intervals.interval(np.stack([draws, -draws], axis=1), 0.5), [[250, -750], [750, -250]])


def test_interval_covers_the_truth():
    """The 95 % interval of pass@16 over 100 problems covers in 95 % of 600 worlds, less a little for n = 100.

    With a true coverage of .93 to .96, 600 worlds stay inside .90 to .98 but for a chance below 1 %.
    """
    rng, weights, k = np.random.default_rng(1), intervals.resamples(100, 400), 16
    solved = passk.solve_rate(rng.beta(0.4, 1.0, size=(600, 100)), k)
    truth = 1 - math.gamma(1 + k) * math.gamma(1.4) / math.gamma(1.4 + k)  # 1 - E (1 - p)^k of the Beta
    low, high = intervals.interval(weights @ solved.T)
    covered = ((low <= truth) & (truth <= high)).mean()
    assert 0.90 < covered < 0.98


def test_hierarchical_is_centred_on_the_mean_and_repeats():
    values = np.random.default_rng(0).normal(size=(5, 40)) + 3
    draws = intervals.hierarchical(values, 4000)
    assert draws.shape == (4000,)
    assert abs(draws.mean() - values.mean()) < Z * draws.std() / math.sqrt(4000)
    np.testing.assert_array_equal(draws, intervals.hierarchical(values, 4000))
    assert not np.array_equal(draws, intervals.hierarchical(values, 4000, seed=1))


@pytest.mark.parametrize("parts", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.3, 0.3, 0.3)])
def test_hierarchical_spreads_like_resampling_by_hand(parts):
    """Pairs and problems drawn with replacement, what is drawn of the pairs stretched by sqrt(6/5) t_5/1.96; for
    effects of the pairs, of the problems, of both at once, and of all."""
    rng, count = np.random.default_rng(0), 4000
    of_pairs, of_problems, of_both = parts
    values = of_pairs * rng.normal(size=(6, 1)) + of_problems * rng.normal(size=(1, 25))
    values = values + of_both * rng.normal(size=(6, 25))
    stretch = math.sqrt(6 / 5) * 2.571 / 1.96
    by_hand = np.empty(count)
    for i in range(count):
        of_pair = values[:, rng.integers(25, size=25)].mean(axis=1)
        by_hand[i] = of_pair.mean() + stretch * (of_pair[rng.integers(6, size=6)] - of_pair.mean()).mean()
    draws = intervals.hierarchical(values, count)
    # the log of a standard deviation has error 1/sqrt(2 count) for normal draws; products have heavier tails
    assert abs(math.log(draws.std() / by_hand.std())) < Z * 1.5 / math.sqrt(count)
    for q in (0.1, 0.5, 0.9):
        assert abs(np.quantile(draws, q) - np.quantile(by_hand, q)) < Z * 2.5 * by_hand.std() / math.sqrt(count)


def test_hierarchical_of_square_values_draws_pairs_and_problems_apart():
    """As many pairs as problems must not get the same draws: values that count equal draws would show it."""
    draws = intervals.hierarchical(np.eye(8), 4000)
    # the mean of I[i, j] over independent draws is 1/8; over equal ones it would be the sum of squared shares
    assert abs(draws.mean() - 1 / 8) < Z * draws.std() / math.sqrt(4000)


@pytest.mark.parametrize("pairs", [2, 3, 5, 8, 20])
def test_intervals_of_few_pairs_cover(pairs):
    """The truth lies in the 95 % interval of normal values in .92 to .98 of 1,000 worlds (z beyond 4 at .95)."""
    rng, weights = np.random.default_rng(pairs), intervals.pair_resamples(pairs, 2000)
    low, high = intervals.interval(weights @ rng.normal(size=(pairs, 1000)))
    assert 0.92 < ((low <= 0) & (high >= 0)).mean() < 0.98
    assert np.allclose(weights.sum(axis=1), 1)


def test_hierarchical_without_spread():
    np.testing.assert_allclose(intervals.hierarchical(np.full((4, 30), 0.7), 500), 0.7, rtol=1e-12)


def test_hierarchical_of_one_pair_is_the_bootstrap_over_problems():
    row = np.random.default_rng(0).normal(size=30)
    np.testing.assert_allclose(
        intervals.hierarchical(row[None], 500, seed=3), intervals.resamples(30, 500, 3) @ row, rtol=1e-9
    )
