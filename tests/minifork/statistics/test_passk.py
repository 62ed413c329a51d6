"""The statistics of pass@k against brute force, exact fractions and closed forms."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minifork.statistics import passk

hypothesis_settings = settings(max_examples=100, deadline=None, derandomize=True, database=None)
probabilities = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=20)


# The unbiased estimator


@pytest.mark.parametrize("n", [1, 2, 7, 20])
def test_unbiased_is_the_share_of_subsets(n):
    """The share of k-subsets with a success, for counts of any shape and order."""
    for k in range(1, n + 1):
        expected = [1 - math.comb(n - c, k) / math.comb(n, k) for c in range(n + 1)]
        values = passk.unbiased_pass_at_k(np.stack([np.arange(n + 1), np.arange(n, -1, -1)]), n, k)
        np.testing.assert_allclose(values, [expected, expected[::-1]], atol=1e-12)
        assert values.dtype == np.float64


def share_of_subsets(c: int, n: int, k: int) -> float:
    """1 - C(n-c, k)/C(n, k), to 40 digits, as the product of its min(c, k) factors (it is symmetric in c and k)."""
    with localcontext(prec=60):
        factors = (Decimal(max(n - max(c, k) - i, 0)) / (n - i) for i in range(min(c, k)))
        return float(1 - math.prod(factors, start=Decimal(1)))


CASES = {  # n: (c, k), in which one of the two is small, then both are large
    10**9: [(1, 1), (1, 10**9 - 1), (2, 10**9 - 2), (3, 10**9 - 1000), (1000, 1000), (1000, 10**6), (10**9 - 5, 4),
            (10**9 - 5, 6), (1001, 1001), (1001, 10**6), (20_000, 20_000), (30_000, 50_000)],
    10**6: [(1, 1), (3, 1), (1, 1000), (7, 64), (2, 500_000), (10**6, 5), (10**6 - 3, 4), (1500, 2048)],
    4000: [(1500, 1300), (1500, 2499), (1500, 2500), (1500, 2501), (1999, 2001), (4000, 1500)],
}  # fmt: skip
LARGE = [(10**9, 1100), (10**9, 10**6), (10**7, 2000), (10**4, 1100), (2200, 1150)]
SEAM = [(n, c, k) for n, k in LARGE for c in (999, 1000, 1001, 1100)]  # where a series replaces the product


@pytest.mark.parametrize(("n", "c", "k"), [*((n, *pair) for n in CASES for pair in CASES[n]), *SEAM])
def test_unbiased_for_any_number_of_rollouts(n, c, k):
    """To nine digits from one success to nothing but successes, for both ways to compute it."""
    values = [float(passk.unbiased_pass_at_k(c, n, k)), float(passk.unbiased_pass_at_k(k, n, c))]
    assert values == pytest.approx([share_of_subsets(c, n, k)] * 2, rel=2e-10)


@pytest.mark.parametrize("n", [10, 1024, 10**9])
def test_unbiased_at_its_ends(n):
    for k in {1, n // 2, min(n, 1001), n}:
        zero, one = passk.unbiased_pass_at_k([0, n], n, k)
        assert (zero, one) == (0, 1) and not np.signbit(zero)  # not "-0"
    assert (passk.unbiased_pass_at_k([0, 1, n // 2, n - 1, n], n, n) == [0, 1, 1, 1, 1]).all()


@pytest.mark.parametrize(("correct", "k"), [([0, 3], 11), ([0, 3], 0), ([0, 3], 10**9), (-1, 2), ([3, 12], 2)])
def test_what_has_no_estimate_is_refused(correct, k):
    with pytest.raises(ValueError, match=r"n = 10"):
        passk.unbiased_pass_at_k(correct, 10, k)


# pass@k from p


@hypothesis_settings
@given(st.integers(0, 1000), st.integers(1, 50))
def test_problem_pass_at_k_is_the_closed_form(thousandths, k):
    exact = 1 - (1 - Fraction(thousandths, 1000)) ** k
    assert passk.problem_pass_at_k(thousandths / 1000, k) == pytest.approx(float(exact), rel=1e-12)


def test_problem_pass_at_k_is_stable():
    p, k = [1e-18, 1e-18, 1e-18, 1 - 1e-12, 1e-300], [1, 10**15, 10**18, 1, 1]
    expected = [1e-18, 1e-3 - 5e-7, -math.expm1(-1), 1 - 1e-12, 1e-300]
    np.testing.assert_allclose(passk.problem_pass_at_k(p, k), expected, rtol=1e-6)
    assert (passk.problem_pass_at_k([-1e-17, 0.0, 1.0, 1 + 1e-15], [[1], [10**18]]) == [0, 0, 1, 1]).all()


def test_means_over_problems():
    p, taus = np.array([0.0, 0.25, 0.5, 0.5, 1.0]), [0.0, 0.2, 0.25, 0.3, 0.5, 0.6, 1.0]
    expected = [np.mean([1 - (1 - x) ** k for x in p]) for k in (1, 2, 7)]
    np.testing.assert_allclose(passk.pass_at_k(p, [1, 2, 7]), expected, rtol=1e-12)
    np.testing.assert_allclose(passk.cover_at(p, taus), [1, 0.8, 0.8, 0.6, 0.6, 0.2, 0.2], rtol=1e-15)


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


@pytest.mark.parametrize("n", [1, 2, 5, 13])
def test_estimator_variance_is_the_mean_square_over_all_outcomes(n):
    """The sampling error is that of the mean over problems."""
    rates = [Fraction(0), Fraction(1, 10**9), Fraction(3, 100), Fraction(1, 2), Fraction(97, 100), Fraction(1)]
    p = np.array(rates, dtype=float)
    for k in range(1, n + 1):
        expected = [float(brute_variance(rate, n, k)) for rate in rates]
        np.testing.assert_allclose(passk.estimator_variance(p, n, k), expected, rtol=1e-9, atol=0)
        assert passk.sampling_error(p, n, k) == pytest.approx(math.sqrt(sum(expected)) / len(p), rel=1e-9)


@pytest.mark.parametrize("n", [10**3, 10**6, 10**9])
@pytest.mark.parametrize("k", [1, 2, 16])
def test_estimator_variance_for_many_rollouts(n, k):
    rates = [Fraction(1, 10**9), Fraction(1, 1000), Fraction(1, 3), Fraction(999, 1000)]
    variance = passk.estimator_variance(np.array(rates, dtype=float), n, k)
    np.testing.assert_allclose(variance, [float(subset_variance(p, n, k)) for p in rates], rtol=1e-9)


@pytest.mark.parametrize("k", [1000, 1024])
def test_estimator_variance_for_large_k(k, monkeypatch):
    """Towards its limit k^2 (1-p)^(2k-2) p (1-p) / n, and that of one coin at k = n; in blocks of any size."""
    p = np.array([1e-6, 1e-4, 1e-3])
    limit, passed = k**2 * (1 - p) ** (2 * k - 2) * p * (1 - p) / 10**9, 1 - (1 - p) ** k
    for size in (1, 1500, 10**9):
        monkeypatch.setattr(passk, "_BLOCK", size)
        np.testing.assert_allclose(passk.estimator_variance(p, 10**9, k), limit, rtol=1e-5)
        np.testing.assert_allclose(passk.estimator_variance(p, k, k), passed * (1 - passed), rtol=1e-9)


# Polarisation


@hypothesis_settings
@given(probabilities)
def test_polarisation_is_within_its_bounds(values):
    """At k = 2 the index is rho."""
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


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_polarisation_is_complete_or_absent(share):
    """A share of problems has p = 1 and the rest p = 0; then all have p = share."""
    ks = [2, 4, 64, 1024]
    p = np.repeat([1.0, 0.0], [round(10 * share), 10 - round(10 * share)])
    loss, index = polarisation(p, ks)
    np.testing.assert_allclose(index, 1, rtol=1e-12)
    np.testing.assert_allclose(loss, passk.problem_pass_at_k(share, ks) - share, rtol=1e-12)
    assert passk.rho(p) == pytest.approx(1)
    for level in (0.0, share, 1.0):
        loss, index = polarisation(np.full(10, level), ks)
        assert loss.max() < 1e-12 and index.max() < 1e-9 and passk.rho(np.full(10, level)) < 1e-12


def test_polarisation_of_many_at_once():
    """Leading axes (pseudo-values) give what one at a time gives."""
    p, ks = np.random.default_rng(0).beta(0.3, 0.5, size=(5, 40)), [1, 2, 16]
    passed = np.stack([passk.pass_at_k(row, ks) for row in p])
    together, single = passk.polarisation(p.mean(axis=1), passed, ks), [polarisation(row, ks) for row in p]
    np.testing.assert_array_equal(together, np.stack(single, axis=1))


# Binomial coefficients


@pytest.mark.parametrize("n", [0, 1, 2, 7, 500, 10**6, 10**9])
def test_log_choose_is_the_log_of_comb(n):
    """-inf outside 0 .. n, in the shape of k."""
    inside = [*range(min(n, 30) + 1), *range(max(0, n - 30), n + 1)]
    expected = [math.log(math.comb(n, min(k, n - k))) for k in inside]
    np.testing.assert_allclose(passk.log_choose(n, inside), expected, rtol=1e-11, atol=1e-12 + 1e-14 * n)
    outside = passk.log_choose(n, np.array([[-1, n + 1], [10**12, -(10**12)]]))
    assert outside.shape == (2, 2) and (outside == -np.inf).all()


def test_coverage_is_split_by_mode():
    """The shares add up to 1, to the coverage of each mode, and to that of the samples of both together."""
    p = np.random.default_rng(0).random((2, 1, 50))
    first, second = passk.problem_pass_at_k(p, np.array([[1], [16]]))
    alone, second_alone, both, neither = passk.split_by_mode(first, second)
    np.testing.assert_allclose(alone + second_alone + both + neither, 1)
    np.testing.assert_allclose([alone + both, second_alone + both], [first, second])
    np.testing.assert_allclose(neither, ((1 - p[0]) * (1 - p[1])) ** np.array([[1], [16]]), atol=1e-12)
