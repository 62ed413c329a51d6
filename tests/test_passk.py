"""The statistics of pass@k against brute force, closed forms and simulation.

Simulations have fixed seeds; with seeds drawn anew, |z| < 4.5 fails with probability 7e-6 and a KS p-value
below 1e-4 with probability 1e-4: together below 1e-3 for the whole file.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minifork import passk

Z, KS_LEVEL = 4.5, 1e-4
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


# PIT and KS


def polarised(rng: np.random.Generator, m: int) -> np.ndarray:
    return np.where(rng.random(m) < 0.3, rng.choice([0.0, 1.0, 1e-6, 1 - 1e-6], size=m), rng.beta(0.2, 0.2, size=m))


@pytest.mark.parametrize("n", [1, 16, 1024])
def test_pit_is_uniform_under_the_truth(n):
    """Also for polarised p, where two-sided p-values pile up."""
    rng = np.random.default_rng(n)
    p = polarised(rng, 3000)
    pit = passk.randomised_pit(rng.binomial(n, p), n, p, rng)
    assert (pit >= 0).all() and (pit <= 1).all()
    assert passk.ks_uniform(pit) > KS_LEVEL
    assert abs(pit.mean() - 0.5) * math.sqrt(12 * 3000) < Z


@pytest.mark.parametrize("wrong", [lambda p: 0.9 * p, lambda p: p**1.2, lambda p: np.full_like(p, p.mean())])
def test_pit_is_not_uniform_under_a_wrong_p(wrong):
    rng = np.random.default_rng(0)
    p = polarised(rng, 3000)
    pit = passk.randomised_pit(rng.binomial(64, p), 64, wrong(p), rng)
    assert passk.ks_uniform(pit) < 1e-6


def test_pit_of_dependent_rollouts_is_not_uniform():
    """All rollouts of a problem equal: the mean is right, the spread is not."""
    rng = np.random.default_rng(0)
    p = rng.beta(1, 1, size=3000)
    counts = np.where(rng.random(3000) < p, 64, 0)
    assert passk.ks_uniform(passk.randomised_pit(counts, 64, p, rng)) < 1e-6


def test_pit_lies_between_the_distribution_values():
    n, p, rng = 10, 0.3, np.random.default_rng(0)
    upper = np.cumsum([math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(n + 1)])
    lower = np.concatenate([[0], upper[:-1]])
    for c in range(n + 1):
        pit = passk.randomised_pit(np.full(200, c), n, np.full(200, p), rng)
        assert (lower[c] - 1e-12 <= pit).all() and (pit <= upper[c] + 1e-12).all()
        assert np.ptp(pit) > 0.9 * (upper[c] - lower[c])


def at_distance(m: int, distance: float) -> np.ndarray:
    """A sorted sample of size m whose empirical distribution lies ``distance`` above the uniform one."""
    return np.maximum((np.arange(m) + 1) / m - distance, 0.0)


@pytest.mark.parametrize(
    ("m", "distance", "level"),
    # the tables of Smirnov (1948) and Miller (1956): two-sided critical values
    [
        (10, 0.40925, 0.05),
        (10, 0.48893, 0.01),
        (20, 0.29408, 0.05),
        (20, 0.35241, 0.01),
        (40, 0.21012, 0.05),
        (10**6, 1.2238e-3, 0.10),
        (10**6, 1.3581e-3, 0.05),
        (10**6, 1.6276e-3, 0.01),
        (10**6, 1.9495e-3, 0.001),
    ],
)
def test_ks_against_critical_values(m, distance, level):
    u = at_distance(m, distance)
    assert passk.ks_uniform(u) == pytest.approx(level, rel=0.05)
    assert passk.ks_uniform(1 - u) == pytest.approx(level, rel=0.05)
    assert passk.ks_uniform(np.random.default_rng(0).permutation(u)) == passk.ks_uniform(u)


def test_ks_extremes():
    assert passk.ks_uniform((np.arange(1000) + 0.5) / 1000) == 1.0
    assert passk.ks_uniform(np.full(100, 0.5)) < 1e-9
    assert passk.ks_uniform(np.zeros(100)) < 1e-9 and passk.ks_uniform(np.ones(100)) < 1e-9
    values = [passk.ks_uniform(at_distance(100, d)) for d in np.linspace(0.02, 0.5, 40)]
    assert all(0 <= v <= 1 for v in values) and (np.diff(values) <= 1e-12).all()


def test_ks_p_values_are_uniform():
    """On 400 uniform samples of 50, its own p-values are uniform (up to the approximation's 1 %)."""
    rng = np.random.default_rng(0)
    assert passk.ks_uniform(np.array([passk.ks_uniform(rng.random(50)) for _ in range(400)])) > KS_LEVEL
