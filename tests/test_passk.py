"""The statistics of pass@k against brute force, exact fractions, closed forms and simulation.

Simulations have fixed seeds; with seeds drawn anew, |z| < 4.5 fails with probability 7e-6. Together with
the one interval tested at 1 %, a right implementation fails with a probability of about 1e-2.
"""

import itertools
import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minifork import passk

Z = 4.5
hypothesis_settings = settings(max_examples=200, deadline=None, derandomize=True, database=None)
probabilities = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=20)


# The unbiased estimator


@hypothesis_settings
@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_unbiased_is_the_mean_over_all_subsets(case):
    n, c, k = case
    outcomes = [1] * c + [0] * (n - c)
    subsets = list(itertools.combinations(outcomes, k))
    expected = sum(any(subset) for subset in subsets) / len(subsets)
    assert passk.unbiased(c, n, k) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 0.97, 1.0])
def test_unbiased_is_unbiased(p):
    """Its binomial mean is 1 - (1 - p)^k exactly, for every k up to n."""
    n, c = 12, np.arange(13)
    mass = np.array([math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in c])
    for k in range(1, n + 1):
        assert mass @ passk.unbiased(c, n, k) == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_unbiased_without_a_success_is_exactly_zero():
    for n, k in [(10, 3), (1024, 64), (10**5, 1000), (10**6, 1), (10**6, 64), (10**6, 500_000), (10**6, 10**6)]:
        assert passk.unbiased(0, n, k) == 0.0


@pytest.mark.parametrize(("c", "k"), [(1, 1), (3, 1), (1, 1000), (7, 64), (2, 500_000), (10**6, 5), (10**6 - 3, 4)])
def test_unbiased_is_stable_for_a_million_rollouts(c, k):
    n = 10**6
    miss = Fraction(1)
    for i in range(min(c, k)):  # C(n-c, k)/C(n, k) is symmetric in c and k
        miss *= Fraction(max(n - max(c, k) - i, 0), n - i)
    assert passk.unbiased(c, n, k) == pytest.approx(float(1 - miss), rel=1e-7)


def miss_rate(c: int, n: int, k: int) -> Decimal:
    """C(n-c, k)/C(n, k), to 40 digits, as the product of its min(c, k) factors (it is symmetric in c and k)."""
    with localcontext() as context:
        context.prec = 60
        miss, many = Decimal(1), max(c, k)
        for i in range(min(c, k)):
            miss = miss * max(n - many - i, 0) / (n - i)
        return miss


@pytest.mark.parametrize(
    ("c", "n", "k"),
    [
        # few factors
        (1, 10**9, 1),
        (1, 10**9, 10**9 - 1),
        (2, 10**9, 10**9 - 2),
        (3, 10**9, 10**9 - 1000),
        (1000, 10**9, 1000),
        (1000, 10**9, 10**6),
        (10**6, 10**9, 1000),
        (10**9 - 5, 10**9, 4),
        (10**9 - 5, 10**9, 6),
        (10, 10**8, 10**8),
        (999, 10**7, 2000),
        # many
        (1001, 10**9, 1001),
        (1001, 10**9, 10**6),
        (10**6, 10**9, 1024),
        (20_000, 10**9, 20_000),
        (30_000, 10**9, 50_000),
        (1500, 10**7, 2048),
        (1500, 4000, 1300),
        (1500, 4000, 2499),
        (1500, 4000, 2500),
        (1500, 4000, 2501),
        (1999, 4000, 2001),
        (4000, 4000, 1500),
        (1500, 4000, 4000),
    ],
)
def test_unbiased_for_any_number_of_rollouts(c, n, k):
    """To nine digits from one success to nothing but successes, for both ways to compute it."""
    expected = float(1 - miss_rate(c, n, k))
    assert passk.unbiased(c, n, k) == pytest.approx(expected, rel=1e-9)
    assert passk.unbiased(k, n, c) == pytest.approx(expected, rel=1e-9)


def test_unbiased_at_its_ends_for_a_billion_rollouts():
    n = 10**9
    for k in (1, 1000, 1001, 10**6, n - 1, n):
        assert passk.unbiased(0, n, k) == 0 and not np.signbit(passk.unbiased(0, n, k))  # not "-0"
        assert passk.unbiased(n, n, k) == 1
    assert (passk.unbiased([0, 1, 1001, n - 1, n], n, n) == [0, 1, 1, 1, 1]).all()
    np.testing.assert_allclose(passk.unbiased([1, 1001, n - 1], n, 1), [1e-9, 1.001e-6, 1 - 1e-9], rtol=1e-14)


@pytest.mark.parametrize("switch", [20, 10**5])
def test_unbiased_has_no_seam(switch, monkeypatch):
    """Around the number of factors from which a series replaces the product, either gives the same."""
    cases = [
        (few, n, many)
        for few in (999, 1000, 1001, 1100)
        for n, many in [(10**9, 1100), (10**9, 10**6), (10**6, 2000), (10**4, 1100), (2200, 1100), (2200, 1150)]
    ]
    values = [[float(passk.unbiased(c, n, k)), float(passk.unbiased(k, n, c))] for c, n, k in cases]
    monkeypatch.setattr(passk, "_FACTORS", switch)
    others = [[float(passk.unbiased(c, n, k)), float(passk.unbiased(k, n, c))] for c, n, k in cases]
    np.testing.assert_allclose(values, others, rtol=1e-9)


@pytest.mark.parametrize(("n", "fixed"), [(10**7, 2000), (10**9, 10**5)])
def test_unbiased_grows_across_the_seam(n, fixed):
    """In k and in c, by what one rollout more brings: c/(n-k) of the misses."""
    grid = np.arange(980, 1021)
    by_k = np.array([float(passk.unbiased(fixed, n, int(k))) for k in grid])
    np.testing.assert_allclose(np.diff(by_k), (1 - by_k[:-1]) * fixed / (n - grid[:-1]), rtol=1e-6)
    np.testing.assert_allclose(passk.unbiased(grid, n, fixed), by_k, rtol=1e-9)


@hypothesis_settings
@given(st.integers(2, 10**9), st.data())
def test_unbiased_is_monotone(n, data):
    c, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n - 1))
    here = passk.unbiased([c, c + 1], n, k)
    more = passk.unbiased([c, c + 1], n, k + 1)
    assert 0 <= here[0] <= here[1] * (1 + 1e-9) and here[1] <= 1
    assert here[0] <= more[0] * (1 + 1e-9) and more[0] <= 1


def test_unbiased_takes_arrays_and_grows_with_k():
    correct = np.array([[0, 1], [5, 20]])
    values = np.stack([passk.unbiased(correct, 20, k) for k in range(1, 21)])
    assert values.shape == (20, 2, 2) and values.dtype == np.float64
    assert (np.diff(values, axis=0) >= -1e-12).all() and (values >= 0).all() and (values <= 1).all()
    np.testing.assert_allclose(values[0], correct / 20, rtol=1e-12)
    assert (values[-1] == [[0, 1], [1, 1]]).all()


@pytest.mark.parametrize("k", [11, 0, -1, 10**9])
def test_unbiased_refuses_k_outside_1_to_n(k):
    with pytest.raises(ValueError, match=f"k is {k}.*n = 10"):
        passk.unbiased([0, 3], 10, k)


@pytest.mark.parametrize("correct", [-1, 11, [3, 12]])
def test_unbiased_refuses_impossible_counts(correct):
    with pytest.raises(ValueError, match="correct"):
        passk.unbiased(correct, 10, 2)


# pass@k from p


def test_solve_rate_is_stable():
    assert passk.solve_rate(1e-18, 1) == pytest.approx(1e-18, rel=1e-12)
    assert passk.solve_rate(1e-18, 10**15) == pytest.approx(1e-3, rel=1e-3)
    assert passk.solve_rate(1e-18, 10**18) == pytest.approx(-math.expm1(-1), rel=1e-12)
    assert passk.solve_rate(1 - 1e-12, 1) == pytest.approx(1 - 1e-12, rel=1e-15)
    assert (passk.solve_rate([0.0, 1.0], [[1], [10**18]]) == [[0, 1], [0, 1]]).all()
    assert passk.solve_rate(1 + 1e-15, 3) == 1.0 and passk.solve_rate(-1e-17, 3) == 0.0


@hypothesis_settings
@given(st.integers(0, 1000), st.integers(1, 50))
def test_solve_rate_is_the_closed_form(thousandths, k):
    exact = 1 - (1 - Fraction(thousandths, 1000)) ** k
    assert passk.solve_rate(thousandths / 1000, k) == pytest.approx(float(exact), rel=1e-12)


def test_pass_at_k_averages_problems():
    p = np.array([0.0, 0.5, 1.0, 0.25])
    expected = [np.mean([1 - (1 - x) ** k for x in p]) for k in (1, 2, 7)]
    np.testing.assert_allclose(passk.pass_at_k(p, [1, 2, 7]), expected, rtol=1e-12)


def test_cover_at_counts_the_problems_that_reach_a_level():
    p = np.array([0.0, 0.25, 0.5, 0.5, 1.0])
    levels = [0.0, 0.2, 0.25, 0.3, 0.5, 0.6, 1.0]
    np.testing.assert_allclose(passk.cover_at(p, levels), [sum(x >= t for x in p) / 5 for t in levels], rtol=1e-15)
    np.testing.assert_allclose(passk.cover_at(p, levels), [1, 0.8, 0.8, 0.6, 0.6, 0.2, 0.2], rtol=1e-15)


# How far off the estimator is


def brute_variance(p: Fraction, n: int, k: int) -> Fraction:
    """The squared deviation of 1 - C(n-c, k)/C(n, k) from 1 - (1-p)^k, averaged over the outcomes c."""
    truth = 1 - (1 - p) ** k
    return sum(
        math.comb(n, c) * p**c * (1 - p) ** (n - c) * (1 - Fraction(math.comb(n - c, k), math.comb(n, k)) - truth) ** 2
        for c in range(n + 1)
    )


def subset_variance(p: Fraction, n: int, k: int) -> Fraction:
    """The same for large n and small k, from the covariance of two k-subsets that share j rollouts."""
    miss = 1 - p
    return sum(
        Fraction(math.comb(k, j) * math.comb(n - k, k - j), math.comb(n, k)) * (miss ** (2 * k - j) - miss ** (2 * k))
        for j in range(1, k + 1)
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13])
def test_estimator_variance_is_the_mean_square_over_all_outcomes(n):
    rates = [Fraction(0), Fraction(1, 10**9), Fraction(3, 100), Fraction(1, 2), Fraction(97, 100), Fraction(1)]
    for k in range(1, n + 1):
        got = passk.estimator_variance(np.array([float(p) for p in rates]), n, k)
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, [float(brute_variance(p, n, k)) for p in rates], rtol=1e-9)
        assert got[0] == got[-1] == 0


@pytest.mark.parametrize("n", [10**3, 10**6, 10**9])
@pytest.mark.parametrize("k", [1, 2, 16])
def test_estimator_variance_for_many_rollouts(n, k):
    rates = [Fraction(1, 10**9), Fraction(1, 1000), Fraction(1, 3), Fraction(999, 1000)]
    got = passk.estimator_variance(np.array([float(p) for p in rates]), n, k)
    np.testing.assert_allclose(got, [float(subset_variance(p, n, k)) for p in rates], rtol=1e-9)


def test_estimator_variance_for_many_rollouts_and_large_k():
    """Towards its limit k^2 (1-p)^(2k-2) p (1-p) / n, and that of one coin at k = n."""
    p = np.array([1e-6, 1e-4, 1e-3])
    for k in (1000, 1024):
        limit = k**2 * (1 - p) ** (2 * k - 2) * p * (1 - p) / 10**9
        np.testing.assert_allclose(passk.estimator_variance(p, 10**9, k), limit, rtol=1e-5)
        solved = 1 - (1 - p) ** k
        np.testing.assert_allclose(passk.estimator_variance(p, k, k), solved * (1 - solved), rtol=1e-9)


@pytest.mark.parametrize("k", [0, -1, 11])
def test_estimator_variance_refuses_k_outside_1_to_n(k):
    with pytest.raises(ValueError, match=f"k is {k}.*n = 10"):
        passk.estimator_variance(np.array([0.5]), 10, k)


def test_sampling_error_is_that_of_the_mean_over_problems():
    rates = [Fraction(0), Fraction(1, 20), Fraction(1, 2), Fraction(9, 10), Fraction(1)]
    p = np.array([float(rate) for rate in rates])
    for n, k in [(4, 1), (9, 4), (9, 9)]:
        variance = sum(brute_variance(rate, n, k) for rate in rates) / len(rates) ** 2
        assert passk.sampling_error(p, n, k) == pytest.approx(math.sqrt(variance), rel=1e-9)


def test_sampling_error_is_the_spread_of_simulated_estimates():
    rng = np.random.default_rng(0)
    p, n, k, worlds = rng.beta(0.3, 0.5, size=30), 16, 4, 10_000
    estimates = passk.unbiased(rng.binomial(n, p, size=(worlds, 30)), n, k).mean(axis=1)
    error = passk.sampling_error(p, n, k)
    assert abs(estimates.mean() - passk.pass_at_k(p, [k])[0]) < Z * error / math.sqrt(worlds)
    assert abs(estimates.std() / error - 1) < Z / math.sqrt(2 * worlds)


@hypothesis_settings
@given(probabilities, st.integers(1, 6), st.floats(0.02, 0.6))
def test_rollouts_needed_is_the_fewest(values, k, error):
    """By trying every n from k up."""
    p = np.array(values)
    first = next((n for n in range(k, 300) if passk.sampling_error(p, n, k) <= error), None)
    assert passk.rollouts_needed(p, k, error, most=299) == first


@pytest.mark.parametrize("needed", [1, 2, 3, 900, 1024, 1025, 10**6 + 1, 900_000_000, 10**9])
def test_rollouts_needed_in_closed_form(needed):
    """At k = 1 the variance is p(1-p)/n; ``most`` counts as possible, whatever lies between powers of two."""
    p, error = np.array([0.5]), math.sqrt(0.25 / (needed - 0.5))
    assert passk.rollouts_needed(p, 1, error) == needed
    assert passk.rollouts_needed(p, 1, error, most=needed) == needed
    if needed > 1:
        assert passk.rollouts_needed(p, 1, error, most=needed - 1) is None


def test_rollouts_needed_at_its_ends():
    assert passk.rollouts_needed(np.array([0.0, 1.0]), 7, 1e-9) == 7  # nothing to learn, and k is the fewest
    assert passk.rollouts_needed(np.array([0.5]), 1, 1e-9) is None
    assert passk.rollouts_needed(np.array([0.0]), 8, 0.1, most=7) is None
    p = np.random.default_rng(0).beta(0.3, 0.5, size=200)
    n = passk.rollouts_needed(p, 256, 2e-3)
    assert n > 256 and passk.sampling_error(p, n, 256) <= 2e-3 < passk.sampling_error(p, n - 1, 256)


@pytest.mark.parametrize("error", [0.0, -0.1, math.nan])
def test_rollouts_needed_refuses_an_impossible_error(error):
    with pytest.raises(ValueError, match="error is"):
        passk.rollouts_needed(np.array([0.5]), 1, error)


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
    got = passk.beta_interval(c, n)
    assert got.shape == (2,)
    np.testing.assert_allclose(got, [low, high], rtol=1e-5)
    np.testing.assert_allclose(1 - passk.beta_interval(n - c, n)[::-1], got, atol=1e-9)


@pytest.mark.parametrize("n", [1, 7, 1024, 10**6, 10**9])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_beta_interval_leaves_the_tails_it_should(n, level):
    """By an integral of another form, from no success to nothing but."""
    counts = sorted({0, min(1, n), min(3, n), n // 3, n // 2, n - 1, n})
    low, high = passk.beta_interval(counts, n, level)
    tail = (1 - level) / 2
    for c, a, b in zip(counts, low, high, strict=True):
        assert 0 < a < b <= 1
        if c < n:  # above, fp64 has too few numbers below 1
            assert beta_cdf(a, c, n) == pytest.approx(tail, rel=1e-3)
            assert 1 - beta_cdf(b, c, n) == pytest.approx(tail, rel=1e-3)
    mirrored = passk.beta_interval([n - c for c in counts], n, level)
    np.testing.assert_allclose(1 - mirrored[::-1], [low, high], atol=1e-9)


def test_beta_interval_covers_as_it_says():
    """Exactly at its level on average over p drawn from Beta(1/2, 1/2), and for every number of successes."""
    rng, n, worlds = np.random.default_rng(0), 20, 40_000
    p = rng.beta(0.5, 0.5, size=worlds)
    counts = rng.binomial(n, p)
    for level in (0.5, 0.95):
        low, high = passk.beta_interval(np.arange(n + 1), n, level)
        inside = (low[counts] <= p) & (p <= high[counts])
        assert abs(inside.mean() - level) < Z * math.sqrt(level * (1 - level) / worlds)
        for side in (p < low[counts], p > high[counts]):
            assert abs(side.mean() - (1 - level) / 2) < Z * math.sqrt((1 - level) / 2 / worlds)


def test_beta_interval_takes_arrays():
    counts = np.array([[0, 3, 9], [12, 1, 0]])
    got = passk.beta_interval(counts, 12, 0.9)
    assert got.shape == (2, 2, 3)
    for i, j in np.ndindex(counts.shape):
        np.testing.assert_allclose(got[:, i, j], passk.beta_interval(int(counts[i, j]), 12, 0.9), rtol=1e-12)
    assert (np.diff(passk.beta_interval(np.arange(13), 12), axis=1) > 0).all()


# Polarisation


@hypothesis_settings
@given(probabilities)
def test_polarisation_is_within_its_bounds(values):
    p, ks = np.array(values), [1, 2, 4, 16, 1024]
    passed = passk.pass_at_k(p, ks)
    assert (passed <= passk.solve_rate(p.mean(), ks) + 1e-12).all()  # Jensen, without the clip
    loss, index = passk.polarisation(p.mean(), passed, ks)
    assert (loss >= 0).all() and loss[0] < 1e-12
    assert (index >= 0).all() and (index <= 1 + 1e-6).all() and index[0] == 0
    assert 0 <= passk.rho(p) <= 1 + 1e-9


@hypothesis_settings
@given(probabilities)
def test_index_at_2_is_rho(values):
    p = np.array(values)
    assume(0.01 < p.mean() < 0.99)
    index = passk.polarisation(p.mean(), passk.pass_at_k(p, [2]), [2])[1]
    assert index[0] == pytest.approx(passk.rho(p), abs=1e-9)


def test_polarisation_extremes():
    ks = [2, 4, 64, 1024]
    for solved in (1, 3, 9):
        p = np.array([1.0] * solved + [0.0] * (10 - solved))
        loss, index = passk.polarisation(p.mean(), passk.pass_at_k(p, ks), ks)
        np.testing.assert_allclose(index, 1, rtol=1e-12)
        np.testing.assert_allclose(loss, passk.solve_rate(solved / 10, ks) - solved / 10, rtol=1e-12)
        assert passk.rho(p) == pytest.approx(1)
    for level in (0.0, 0.3, 1.0):
        p = np.full(10, level)
        loss, index = passk.polarisation(p.mean(), passk.pass_at_k(p, ks), ks)
        assert loss.max() < 1e-12 and index.max() < 1e-9 and passk.rho(p) == pytest.approx(0, abs=1e-12)


def test_polarisation_of_many_at_once():
    """Leading axes (bootstrap draws) give what one at a time gives."""
    p, ks = np.random.default_rng(0).beta(0.3, 0.5, size=(5, 40)), [1, 2, 16]
    passed = np.stack([passk.pass_at_k(row, ks) for row in p])
    loss, index = passk.polarisation(p.mean(axis=1), passed, ks)
    for i, row in enumerate(p):
        one_loss, one_index = passk.polarisation(row.mean(), passed[i], ks)
        np.testing.assert_array_equal(loss[i], one_loss)
        np.testing.assert_array_equal(index[i], one_index)


# Bootstrap


def test_resamples():
    weights = passk.resamples(40, 300)
    assert weights.shape == (300, 40)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(weights * 40, np.round(weights * 40), atol=1e-9)
    np.testing.assert_array_equal(weights, passk.resamples(40, 300))
    assert not np.array_equal(weights, passk.resamples(40, 300, seed=1))
    # each problem is drawn Binomial(40, 1/40) times a row
    z = (weights.sum(axis=0) - 300 / 40) / math.sqrt(300 / 40 * (1 - 1 / 40) / 40)
    assert np.abs(z).max() < Z


def test_interval_is_the_percentile_interval():
    draws = np.random.default_rng(0).permutation(np.arange(1001.0))
    np.testing.assert_allclose(passk.interval(draws), [25, 975])
    np.testing.assert_allclose(passk.interval(np.stack([draws, -draws], axis=1), 0.5), [[250, -750], [750, -250]])


def test_interval_covers_the_truth():
    """The 95 % interval of pass@16 over 100 problems covers in 95 % of 600 worlds, less a little for n = 100.

    With a true coverage of .93 to .96, 600 worlds stay inside .90 to .98 but for a chance below 1 %.
    """
    rng, weights, k = np.random.default_rng(1), passk.resamples(100, 400), 16
    solved = passk.solve_rate(rng.beta(0.4, 1.0, size=(600, 100)), k)
    truth = 1 - math.gamma(1 + k) * math.gamma(1.4) / math.gamma(1.4 + k)  # 1 - E (1 - p)^k of the Beta
    low, high = passk.interval(weights @ solved.T)
    covered = ((low <= truth) & (truth <= high)).mean()
    assert 0.90 < covered < 0.98


def test_hierarchical_is_centred_on_the_mean_and_repeats():
    values = np.random.default_rng(0).normal(size=(5, 40)) + 3
    draws = passk.hierarchical(values, 4000)
    assert draws.shape == (4000,)
    assert abs(draws.mean() - values.mean()) < Z * draws.std() / math.sqrt(4000)
    np.testing.assert_array_equal(draws, passk.hierarchical(values, 4000))
    assert not np.array_equal(draws, passk.hierarchical(values, 4000, seed=1))


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
    draws = passk.hierarchical(values, count)
    # the log of a standard deviation has error 1/sqrt(2 count) for normal draws; products have heavier tails
    assert abs(math.log(draws.std() / by_hand.std())) < Z * 1.5 / math.sqrt(count)
    for q in (0.1, 0.5, 0.9):
        assert abs(np.quantile(draws, q) - np.quantile(by_hand, q)) < Z * 2.5 * by_hand.std() / math.sqrt(count)


def test_hierarchical_of_square_values_draws_pairs_and_problems_apart():
    """As many pairs as problems must not get the same draws: values that count equal draws would show it."""
    draws = passk.hierarchical(np.eye(8), 4000)
    # the mean of I[i, j] over independent draws is 1/8; over equal ones it would be the sum of squared shares
    assert abs(draws.mean() - 1 / 8) < Z * draws.std() / math.sqrt(4000)


@pytest.mark.parametrize("pairs", [2, 3, 5, 8, 20])
def test_intervals_of_few_pairs_cover(pairs):
    """The truth lies in the 95 % interval of normal values in .92 to .98 of 1,000 worlds (z beyond 4 at .95)."""
    rng, weights = np.random.default_rng(pairs), passk.pair_resamples(pairs, 2000)
    low, high = passk.interval(weights @ rng.normal(size=(pairs, 1000)))
    assert 0.92 < ((low <= 0) & (high >= 0)).mean() < 0.98
    assert np.allclose(weights.sum(axis=1), 1)


def test_hierarchical_without_spread():
    np.testing.assert_allclose(passk.hierarchical(np.full((4, 30), 0.7), 500), 0.7, rtol=1e-12)


def test_hierarchical_of_one_pair_is_the_bootstrap_over_problems():
    row = np.random.default_rng(0).normal(size=30)
    np.testing.assert_allclose(passk.hierarchical(row[None], 500, seed=3), passk.resamples(30, 500, 3) @ row, rtol=1e-9)


# Binomial coefficients


def test_log_choose_is_the_log_of_comb():
    for n in (0, 1, 2, 7, 60, 500):
        expected = [math.log(math.comb(n, k)) for k in range(n + 1)]
        np.testing.assert_allclose(passk.log_choose(n, np.arange(n + 1)), expected, rtol=1e-11, atol=1e-12)
    for n in (10**4, 10**6, 10**9):
        expected = [math.log(math.comb(n, k)) for k in (0, 1, 2, 30)]
        np.testing.assert_allclose(passk.log_choose(n, [0, 1, 2, 30]), expected, atol=1e-15 * n * math.log(n))
        np.testing.assert_allclose(passk.log_choose(n, [n, n - 2]), expected[::2], atol=1e-15 * n * math.log(n))


def test_log_choose_outside_is_minus_infinity():
    got = passk.log_choose(5, np.array([[-1, 0, 5], [6, 10**12, -(10**12)]]))
    assert got.shape == (2, 3) and np.isfinite(got[0, 1:]).all()
    assert (got[1] == -np.inf).all() and got[0, 0] == -np.inf
    assert passk.log_choose(0, 0) == 0 and passk.log_choose(0, 1) == -np.inf
