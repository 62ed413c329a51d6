"""The statistics of pass@k against brute force, exact fractions, closed forms and simulation.

Simulations have fixed seeds; with seeds drawn anew, |z| < 4.5 fails with probability 7e-6.
"""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minifork.statistics import passk

Z = 4.5
hypothesis_settings = settings(max_examples=200, deadline=None, derandomize=True, database=None)
probabilities = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=20)


# The unbiased estimator


@pytest.mark.parametrize("n", range(1, 21))
def test_unbiased_is_the_share_of_subsets(n):
    """Of the k-subsets, those with a success; for counts of any shape and order."""
    for k in range(1, n + 1):
        expected = [1 - math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)]
        values = passk.unbiased(np.stack([np.arange(n + 1), np.arange(n, -1, -1)]), n, k)
        np.testing.assert_allclose(values, [expected, expected[::-1]], atol=1e-12)
        assert values.dtype == np.float64


@pytest.mark.parametrize("p", [0.0, 0.03, 0.5, 0.97, 1.0])
def test_unbiased_is_unbiased(p):
    """Its binomial mean is 1 - (1 - p)^k exactly, for every k up to n."""
    n, c = 12, np.arange(13)
    mass = np.array([math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in c])
    for k in range(1, n + 1):
        assert mass @ passk.unbiased(c, n, k) == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def share_of_subsets(c: int, n: int, k: int) -> float:
    """1 - C(n-c, k)/C(n, k), to 40 digits, as the product of its min(c, k) factors (it is symmetric in c and k)."""
    with localcontext(prec=60):
        factors = (Decimal(max(n - max(c, k) - i, 0)) / (n - i) for i in range(min(c, k)))
        return float(1 - math.prod(factors, start=Decimal(1)))


CASES = {  # n: (c, k), few factors first, then many
    10**9: [(1, 1), (1, 10**9 - 1), (2, 10**9 - 2), (3, 10**9 - 1000), (1000, 1000), (1000, 10**6), (10**6, 1000),
            (10**9 - 5, 4), (10**9 - 5, 6), (1001, 1001), (1001, 10**6), (10**6, 1024), (20_000, 20_000),
            (30_000, 50_000)],
    10**8: [(10, 10**8)],
    10**7: [(999, 2000), (1500, 2048)],
    10**6: [(1, 1), (3, 1), (1, 1000), (7, 64), (2, 500_000), (10**6, 5), (10**6 - 3, 4)],
    4000: [(1500, 1300), (1500, 2499), (1500, 2500), (1500, 2501), (1999, 2001), (4000, 1500), (1500, 4000)],
}  # fmt: skip
MANY = [(10**9, 1100), (10**9, 10**5), (10**9, 10**6), (10**7, 2000), (10**6, 2000), (10**4, 1100), (2200, 1150)]
SEAM = [(n, few, many) for n, many in MANY for few in (999, 1000, 1001, 1100)]  # where a series replaces the product


@pytest.mark.parametrize(("n", "c", "k"), [*((n, *pair) for n in CASES for pair in CASES[n]), *SEAM])
def test_unbiased_for_any_number_of_rollouts(n, c, k):
    """To nine digits from one success to nothing but successes, for both ways to compute it."""
    values = [float(passk.unbiased(c, n, k)), float(passk.unbiased(k, n, c))]
    assert values == pytest.approx([share_of_subsets(c, n, k)] * 2, rel=2e-10)


@pytest.mark.parametrize("n", [10, 1024, 10**6, 10**9])
def test_unbiased_at_its_ends(n):
    for k in {1, 3, n // 2, min(n, 1000), min(n, 1001), n - 1, n}:
        assert passk.unbiased(0, n, k) == 0 and not np.signbit(passk.unbiased(0, n, k))  # not "-0"
        assert passk.unbiased(n, n, k) == 1
    assert (passk.unbiased([0, 1, n // 2, n - 1, n], n, n) == [0, 1, 1, 1, 1]).all()
    np.testing.assert_allclose(passk.unbiased([1, n // 2, n - 1], n, 1), [1 / n, 0.5, 1 - 1 / n], rtol=1e-14)


@hypothesis_settings
@given(st.integers(2, 10**9), st.data())
def test_unbiased_is_monotone(n, data):
    c, k = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n - 1))
    here, there = passk.unbiased([c, c + 1], n, k), passk.unbiased([c, c + 1], n, k + 1)
    assert 0 <= here[0] <= min(here[1], there[0]) * (1 + 1e-9) and max(here[1], there[0]) <= 1


@pytest.mark.parametrize("k", [11, 0, -1, 10**9])
def test_k_outside_1_to_n_is_refused(k):
    for estimate in (lambda: passk.unbiased([0, 3], 10, k), lambda: passk.estimator_variance(np.array([0.5]), 10, k)):
        with pytest.raises(ValueError, match=f"k is {k}.*n = 10"):
            estimate()


@pytest.mark.parametrize("correct", [-1, 11, [3, 12]])
def test_unbiased_refuses_impossible_counts(correct):
    with pytest.raises(ValueError, match="correct"):
        passk.unbiased(correct, 10, 2)


# pass@k from p


def test_problem_pass_at_k_is_stable():
    assert passk.problem_pass_at_k(1e-18, 1) == pytest.approx(1e-18, rel=1e-12)
    assert passk.problem_pass_at_k(1e-18, 10**15) == pytest.approx(1e-3, rel=1e-3)
    assert passk.problem_pass_at_k(1e-18, 10**18) == pytest.approx(-math.expm1(-1), rel=1e-12)
    assert passk.problem_pass_at_k(1 - 1e-12, 1) == pytest.approx(1 - 1e-12, rel=1e-15)
    assert (passk.problem_pass_at_k([0.0, 1.0], [[1], [10**18]]) == [[0, 1], [0, 1]]).all()
    assert passk.problem_pass_at_k(1 + 1e-15, 3) == 1.0 and passk.problem_pass_at_k(-1e-17, 3) == 0.0


@hypothesis_settings
@given(st.integers(0, 1000), st.integers(1, 50))
def test_problem_pass_at_k_is_the_closed_form(thousandths, k):
    exact = 1 - (1 - Fraction(thousandths, 1000)) ** k
    assert passk.problem_pass_at_k(thousandths / 1000, k) == pytest.approx(float(exact), rel=1e-12)


def test_pass_at_k_averages_problems():
    p = np.array([0.0, 0.5, 1.0, 0.25])
    expected = [np.mean([1 - (1 - x) ** k for x in p]) for k in (1, 2, 7)]
    np.testing.assert_allclose(passk.pass_at_k(p, [1, 2, 7]), expected, rtol=1e-12)


def test_cover_at_counts_the_problems_that_reach_a_level():
    p = np.array([0.0, 0.25, 0.5, 0.5, 1.0])
    np.testing.assert_allclose(
        passk.cover_at(p, [0.0, 0.2, 0.25, 0.3, 0.5, 0.6, 1.0]), [1, 0.8, 0.8, 0.6, 0.6, 0.2, 0.2], rtol=1e-15
    )


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
    """And the sampling error is that of the mean over problems."""
    rates = [Fraction(0), Fraction(1, 10**9), Fraction(3, 100), Fraction(1, 2), Fraction(97, 100), Fraction(1)]
    p = np.array(rates, dtype=float)
    for k in range(1, n + 1):
        got, expected = passk.estimator_variance(p, n, k), [float(brute_variance(rate, n, k)) for rate in rates]
        np.testing.assert_allclose(got, expected, rtol=1e-9)
        assert got.dtype == np.float64 and got[0] == got[-1] == 0
        assert passk.sampling_error(p, n, k) == pytest.approx(math.sqrt(sum(expected)) / len(p), rel=1e-9)


@pytest.mark.parametrize("n", [10**3, 10**6, 10**9])
@pytest.mark.parametrize("k", [1, 2, 16])
def test_estimator_variance_for_many_rollouts(n, k):
    rates = [Fraction(1, 10**9), Fraction(1, 1000), Fraction(1, 3), Fraction(999, 1000)]
    got = passk.estimator_variance(np.array(rates, dtype=float), n, k)
    np.testing.assert_allclose(got, [float(subset_variance(p, n, k)) for p in rates], rtol=1e-9)


def test_estimator_variance_for_many_rollouts_and_large_k():
    """Towards its limit k^2 (1-p)^(2k-2) p (1-p) / n, and that of one coin at k = n."""
    p = np.array([1e-6, 1e-4, 1e-3])
    for k in (1000, 1024):
        limit = k**2 * (1 - p) ** (2 * k - 2) * p * (1 - p) / 10**9
        np.testing.assert_allclose(passk.estimator_variance(p, 10**9, k), limit, rtol=1e-5)
        solved = 1 - (1 - p) ** k
        np.testing.assert_allclose(passk.estimator_variance(p, k, k), solved * (1 - solved), rtol=1e-9)


def test_estimator_variance_in_blocks(monkeypatch):
    """However few problems fit a block at large k."""
    p = np.random.default_rng(0).random(50)
    whole = passk.estimator_variance(p, 1000, 300)
    for size in (1, 1000, 10**9):
        monkeypatch.setattr(passk, "_BLOCK", size)
        np.testing.assert_allclose(passk.estimator_variance(p, 1000, 300), whole, rtol=1e-12)


def test_sampling_error_is_the_spread_of_simulated_estimates():
    rng = np.random.default_rng(0)
    p, n, k, worlds = rng.beta(0.3, 0.5, size=30), 16, 4, 10_000
    estimates = passk.unbiased(rng.binomial(n, p, size=(worlds, 30)), n, k).mean(axis=1)
    error = passk.sampling_error(p, n, k)
    assert abs(estimates.mean() - passk.pass_at_k(p, [k])[0]) < Z * error / math.sqrt(worlds)
    assert abs(estimates.std() / error - 1) < Z / math.sqrt(2 * worlds)


# Polarisation


@hypothesis_settings
@given(probabilities)
def test_polarisation_is_within_its_bounds(values):
    """And at k = 2 the index is rho."""
    p, ks = np.array(values), [1, 2, 4, 16, 1024]
    passed = passk.pass_at_k(p, ks)
    assert (passed <= passk.problem_pass_at_k(p.mean(), ks) + 1e-12).all()  # Jensen, without the clip
    loss, index = passk.polarisation(p.mean(), passed, ks)
    assert (loss >= 0).all() and loss[0] < 1e-12
    assert (index >= 0).all() and (index <= 1 + 1e-6).all() and index[0] == 0
    assert 0 <= passk.rho(p) <= 1 + 1e-9
    if 0.01 < p.mean() < 0.99:
        assert index[ks.index(2)] == pytest.approx(passk.rho(p), abs=1e-9)


def polarisation(p: np.ndarray, ks: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return passk.polarisation(p.mean(), passk.pass_at_k(p, ks), ks)


@pytest.mark.parametrize("solved", [1, 3, 9])
def test_polarisation_is_complete(solved):
    p, ks = np.repeat([1.0, 0.0], [solved, 10 - solved]), [2, 4, 64, 1024]
    loss, index = polarisation(p, ks)
    np.testing.assert_allclose(index, 1, rtol=1e-12)
    np.testing.assert_allclose(loss, passk.problem_pass_at_k(solved / 10, ks) - solved / 10, rtol=1e-12)
    assert passk.rho(p) == pytest.approx(1)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_no_polarisation(level):
    p = np.full(10, level)
    loss, index = polarisation(p, [2, 4, 64, 1024])
    assert loss.max() < 1e-12 and index.max() < 1e-9 and passk.rho(p) == pytest.approx(0, abs=1e-12)


def test_polarisation_of_many_at_once():
    """Leading axes (bootstrap draws) give what one at a time gives."""
    p, ks = np.random.default_rng(0).beta(0.3, 0.5, size=(5, 40)), [1, 2, 16]
    passed = np.stack([passk.pass_at_k(row, ks) for row in p])
    together, single = passk.polarisation(p.mean(axis=1), passed, ks), [polarisation(row, ks) for row in p]
    np.testing.assert_array_equal(together, np.stack(single, axis=1))


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
