"""pass@k where only a part of the probability was sampled: against brute force, exact fractions and its two ends."""

import math
from fractions import Fraction

import numpy as np
import pytest

from minifork.statistics import agreement, passk

PARTS = [  # explored, unknown, q
    (Fraction(1, 5), Fraction(1, 2), Fraction(3, 10)),
    (Fraction(0), Fraction(1), Fraction(1, 7)),
    (Fraction(1, 3), Fraction(2, 3), Fraction(1, 100)),
    (Fraction(9, 10), Fraction(1, 1000), Fraction(99, 100)),
    (Fraction(0), Fraction(1, 10**6), Fraction(1, 2)),
]
EXPLORED, UNKNOWN, Q = np.array(PARTS, dtype=float).T


def chance(c: int, n: int, q: Fraction) -> Fraction:
    return math.comb(n, c) * q**c * (1 - q) ** (n - c)


def polynomial(c: int, n: int, k: int, explored: Fraction, unknown: Fraction) -> Fraction:
    """1 - sum_j C(k, j) b^(k-j) U^j C(n-c, j)/C(n, j), b = 1 - a - U: the estimate of 1 - (b + U (1-q))^k."""
    b = 1 - explored - unknown
    terms = (math.comb(k, j) * b ** (k - j) * unknown**j * Fraction(math.comb(n - c, j), math.comb(n, j))
             for j in range(k + 1))  # fmt: skip
    return 1 - sum(terms)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (6, 3), (7, 7), (40, 16)])
def test_the_estimate_its_mean_and_its_variance(n, k):
    """The estimate for every count; over the counts its mean is 1 - (1-p)^k, and its variance as stated."""
    variance = passk.estimator_variance(Q, n, k, EXPLORED, UNKNOWN)
    for (explored, unknown, q), stated in zip(PARTS, variance, strict=True):
        values = [polynomial(c, n, k, explored, unknown) for c in range(n + 1)]
        a, u = (np.full(n + 1, float(part)) for part in (explored, unknown))
        estimates = passk.remainder_pass_at_k(np.arange(n + 1), n, k, a, u)
        np.testing.assert_allclose(estimates, np.array(values, dtype=float), rtol=1e-12)
        truth = 1 - (1 - explored - unknown * q) ** k
        assert sum(chance(c, n, q) * value for c, value in enumerate(values)) == truth
        squares = sum(chance(c, n, q) * (value - truth) ** 2 for c, value in enumerate(values))
        assert stated == pytest.approx(float(squares), rel=1e-9)


@pytest.mark.parametrize(("n", "k"), [(64, 1), (1024, 16), (1024, 1024), (10**9, 1000)])
def test_its_two_ends(n, k, monkeypatch):
    """All sampled, it is the usual estimator; all explored, pass@k itself, at any k; in blocks of any size."""
    c = np.array([0, 1, 5, n // 2, n - 1, n])
    zero, one, explored = np.zeros(6), np.ones(6), np.array([0.0, 1e-12, 1e-3, 0.5, 1 - 1e-9, 1.0])
    monkeypatch.setattr(passk, "_BLOCK", 1500)
    np.testing.assert_allclose(
        passk.remainder_pass_at_k(c, n, k, zero, one), passk.unbiased_pass_at_k(c, n, k), rtol=1e-9
    )
    expected = passk.problem_pass_at_k(explored, 2 * n)
    assert np.array_equal(passk.remainder_pass_at_k(c, n, 2 * n, explored, zero), expected)
    low, high = (passk.problem_pass_at_k(end, k) for end in (explored / 2, 0.5 + explored / 2))
    inside = passk.remainder_pass_at_k(c, n, k, explored / 2, np.full(6, 0.5))
    assert (low * (1 - 1e-12) <= inside).all() and (inside <= high + 1e-12).all()


@pytest.mark.parametrize(("n", "k", "c"), [(10, 11, 3), (10, 0, 3), (10, 2, 11)])
def test_what_has_no_estimate_is_refused(n, k, c):
    with pytest.raises(ValueError, match="n = 10"):
        passk.remainder_pass_at_k(np.array([c, 0]), n, k, np.zeros(2), np.array([0.5, 0.0]))


def test_whole_counts_are_binomial():
    """PIT over 3,000 problems (level 1e-4), with the ends of explored and unknown among them, and 10^9 rollouts."""
    rng = np.random.default_rng(0)
    unknown = np.where(rng.random(3000) < 0.2, rng.choice([0.0, 1.0], size=3000), rng.random(3000))
    explored, q = rng.random(3000) * (1 - unknown), rng.beta(0.3, 0.3, size=3000)
    whole = agreement.whole_counts(rng.binomial(64, q), 64, explored, unknown, 50, rng)
    assert agreement.uniform_p(agreement.randomised_pit(whole, 50, explored + unknown * q, rng)) > 1e-4
    many = agreement.whole_counts(np.array([0, 10**9]), 10**9, np.zeros(2), np.ones(2), 1000, rng)
    assert many.tolist() == [0, 1000]
