"""Do the tests of agreement raise an alarm as often as they say, and when they should?

Simulations have fixed seeds; with seeds drawn anew, |z| < 4.5 fails with probability 7e-6 and a KS p-value
below 1e-4 with probability 1e-4: together below 2e-3 for the whole file.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minifork.statistics import agreement

Z, KS_LEVEL = 4.5, 1e-4
hypothesis_settings = settings(max_examples=60, deadline=None, derandomize=True, database=None)


# One sample against known p


def polarised(rng: np.random.Generator, m: int) -> np.ndarray:
    return np.where(rng.random(m) < 0.3, rng.choice([0.0, 1.0, 1e-6, 1 - 1e-6], size=m), rng.beta(0.2, 0.2, size=m))


def assert_uniform(pit: np.ndarray) -> None:
    assert (pit >= 0).all() and (pit <= 1).all()
    assert agreement.uniform_p(pit) > KS_LEVEL
    assert abs(pit.mean() - 0.5) * math.sqrt(12 * len(pit)) < Z


@pytest.mark.parametrize("n", [1, 16, 1024])
def test_pit_is_uniform_under_the_truth(n):
    """Polarised p included, for which two-sided p-values pile up."""
    rng = np.random.default_rng(n)
    p = polarised(rng, 3000)
    assert_uniform(agreement.randomised_pit(rng.binomial(n, p), n, p, rng))


WRONG = [lambda p: 0.9 * p, lambda p: p**1.2, lambda p: 1 - 0.9 * (1 - p), lambda p: np.full_like(p, p.mean())]


@pytest.mark.parametrize("wrong", WRONG)
def test_pit_is_not_uniform_under_a_wrong_p(wrong):
    """Nor the two-sample PIT, whichever sample is the wrong one and however large the second is."""
    rng = np.random.default_rng(0)
    p = polarised(rng, 3000)
    assert agreement.ks_uniform(agreement.randomised_pit(rng.binomial(64, p), 64, wrong(p), rng)) < 1e-6
    for n_second in (64, 10**6):
        for a, b in ((p, wrong(p)), (wrong(p), p)):
            counts, second = rng.binomial(64, a), rng.binomial(n_second, b)
            assert agreement.uniform_p(agreement.two_sample_pit(counts, 64, second, n_second, rng)) < 1e-6


def test_pit_of_dependent_rollouts_is_not_uniform():
    """All rollouts of a problem equal, or in fours: the mean is right, the spread is not."""
    rng = np.random.default_rng(0)
    p = rng.beta(1, 1, size=3000)
    equal, fours = np.where(rng.random(3000) < p, 64, 0), 4 * rng.binomial(16, p)
    assert agreement.ks_uniform(agreement.randomised_pit(equal, 64, p, rng)) < 1e-6
    assert agreement.uniform_p(agreement.randomised_pit(fours, 64, p, rng)) < 1e-9


def test_pit_lies_between_the_distribution_values():
    n, p, rng = 10, 0.3, np.random.default_rng(0)
    mass = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    for c in range(n + 1):
        pit = agreement.randomised_pit(np.full(200, c), n, np.full(200, p), rng)
        assert (sum(mass[:c]) - 1e-12 <= pit).all() and (pit <= sum(mass[: c + 1]) + 1e-12).all()
        assert np.ptp(pit) > 0.9 * mass[c]


@pytest.mark.parametrize(("p", "possible", "impossible"), [(0.0, 0, 1), (1.0, 16, 15)])
def test_pit_at_p_0_and_1(p, possible, impossible):
    """Uniform with the only counts that can be, at an end with any other."""
    rng = np.random.default_rng(0)
    pit, end = (
        agreement.randomised_pit(np.full(3000, count), 16, np.full(3000, p), rng) for count in (possible, impossible)
    )
    assert agreement.ks_uniform(pit) > KS_LEVEL and np.abs(end - (1 - p)).max() < 1e-12


# Two samples with the same unknown p


@hypothesis_settings
@given(st.integers(1, 8), st.integers(1, 12), st.data())
def test_two_sample_pit_lies_between_the_distribution_values(n, n_second, data):
    """P(c successes fall in the first n | both in all), up to c - 1 and up to c; and it fills what lies between."""
    both = data.draw(st.integers(0, n + n_second))
    c = data.draw(st.integers(max(0, both - n_second), min(n, both)))
    ways = [math.comb(n, i) * math.comb(n_second, both - i) for i in range(c + 1)]
    below, at = (sum(part) / math.comb(n + n_second, both) for part in (ways[:-1], ways[-1:]))
    rng = np.random.default_rng([n, n_second, both])
    pit = agreement.two_sample_pit(np.full(100, c), n, np.full(100, both - c), n_second, rng)
    assert (below - 1e-11 <= pit).all() and (pit <= below + at + 1e-11).all()
    assert np.ptp(pit) > 0.85 * at


@pytest.mark.parametrize(("n", "n_second"), [(1, 1), (1, 64), (64, 16), (16, 1024), (64, 10**6), (1, 10**9)])
def test_two_sample_pit_is_uniform_under_one_p(n, n_second):
    """Whatever p is, also polarised, and however many rollouts the second sample has."""
    rng = np.random.default_rng([n, n_second])
    p = polarised(rng, 3000)
    assert_uniform(agreement.two_sample_pit(rng.binomial(n, p), n, rng.binomial(n_second, p), n_second, rng))


def test_two_sample_pit_sees_errors_that_cancel_on_average():
    """p of one problem up, of the next down: too many PIT near both ends."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.2, 0.8, size=2000)
    moved = p + 0.08 * rng.choice([-1, 1], size=2000)
    pit = agreement.two_sample_pit(rng.binomial(64, moved), 64, rng.binomial(1024, p), 1024, rng)
    assert abs(pit.mean() - 0.5) < 0.03 and agreement.uniform_p(pit) < 1e-6


# Bounds on p


def tail(n: int, c: int, p: Fraction) -> Fraction:
    """P(at least c of n)."""
    return sum((math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(c, n + 1)), Fraction(0))


@hypothesis_settings
@given(st.integers(1, 10), st.data())
def test_outside_p_is_the_least_tail_times_the_tails(n, data):
    """P(as many or more at the upper bound) and P(as few or fewer at the lower), of all problems."""
    point = st.integers(0, 64).map(lambda part: Fraction(part, 64))
    problems = data.draw(st.lists(st.tuples(st.integers(0, n), point, point), min_size=1, max_size=4))
    problems = [(c, *sorted(bounds)) for c, *bounds in problems]
    tails = [min(tail(n, c, high), tail(n, n - c, 1 - low)) for c, low, high in problems]
    counts, low, high = np.array(problems, dtype=float).T
    p_value = agreement.outside_p(counts.astype(int), n, low, high)
    assert p_value == pytest.approx(min(1.0, 2 * len(problems) * min(tails)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("width", [0.0, 0.05])
@pytest.mark.parametrize("m", [1, 30])
def test_outside_p_is_small_no_more_often_than_it_says(width, m):
    """With p at a bound or anywhere inside; nearly as often for one problem with p known."""
    rng, n, worlds = np.random.default_rng(0), 200, 1000
    values = np.empty(worlds)
    for world in range(worlds):
        p = np.clip(polarised(rng, m) if m > 1 else rng.uniform(0.3, 0.7, size=m), width, 1 - width)
        low = p - width * rng.choice([0.0, 0.3, 1.0], size=m)
        values[world] = agreement.outside_p(rng.binomial(n, p), n, low, low + width)
    for level in (0.01, 0.05, 0.2):
        assert (values <= level).mean() < level + Z * math.sqrt(level * (1 - level) / worlds)
    if width == 0 and m == 1:
        assert (values <= 0.2).mean() > 0.13  # the tails are discrete; half of it would be 0.1


@pytest.mark.parametrize(("count", "low", "high"), [(40, 0.0, 0.1), (24, 0.9, 1.0), (64, 0.2, 0.4), (0, 0.3, 0.8)])
def test_outside_p_finds_one_problem_outside(count, low, high):
    rng, m = np.random.default_rng(0), 200
    p = rng.uniform(size=m)
    counts, p_lo, p_hi = rng.binomial(64, p), np.maximum(p - 0.02, 0), np.minimum(p + 0.02, 1)
    assert agreement.outside_p(counts, 64, p_lo, p_hi) > 1e-4
    counts[17], p_lo[17], p_hi[17] = count, low, high
    assert agreement.outside_p(counts, 64, p_lo, p_hi) < 1e-6


@pytest.mark.parametrize("n", [1, 1024])
def test_outside_p_at_0_and_1(n):
    zeros, ones, one_wrong = np.zeros(50, dtype=int), np.ones(50), np.eye(50, dtype=int)[3]
    assert agreement.outside_p(zeros, n, 0 * ones, 0 * ones) == agreement.outside_p(zeros + n, n, ones, ones) == 1
    assert agreement.outside_p(one_wrong, n, 0 * ones, 0 * ones) < 1e-9
    assert agreement.outside_p(n - one_wrong, n, ones, ones) < 1e-9
    assert all(agreement.outside_p(zeros + count, n, 0 * ones, ones) == 1 for count in (0, n // 2, n))


# Is it uniform?


CRITICAL = {  # size: (distance, level), two-sided, of the tables of Smirnov (1948) and Miller (1956)
    10: [(0.40925, 0.05), (0.48893, 0.01)],
    20: [(0.29408, 0.05), (0.35241, 0.01)],
    10**5: [(x / 10**2.5, level) for x, level in ((1.2238, 0.1), (1.3581, 0.05), (1.6276, 0.01), (1.9495, 0.001))],
}


@pytest.mark.parametrize(("m", "distance", "level"), [(m, *pair) for m in CRITICAL for pair in CRITICAL[m]])
def test_ks_against_critical_values(m, distance, level):
    """The sample's empirical distribution lies ``distance`` above the uniform one; its order does not matter."""
    u = np.maximum((np.arange(m) + 1) / m - distance, 0.0)
    for sample in (u, 1 - u, np.random.default_rng(0).permutation(u)):
        assert agreement.ks_uniform(sample) == pytest.approx(level, rel=0.05)


@hypothesis_settings
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_ks_is_its_definition(values):
    """The largest gap between empirical and uniform distribution, on either side of every step."""
    m = len(values)
    gaps = [max(abs(sum(v <= u for v in values) / m - u), abs(sum(v < u for v in values) / m - u)) for u in values]
    x = max(gaps) * (math.sqrt(m) + 0.12 + 0.11 / math.sqrt(m))
    # Kolmogorov's distribution in its other form, which converges where the alternating series does not
    below = math.sqrt(2 * math.pi) / x * sum(math.exp(-(((2 * j - 1) * math.pi / x) ** 2) / 8) for j in range(1, 40))
    assert agreement.ks_uniform(np.array(values)) == pytest.approx(1 - below, abs=1e-9)


@pytest.mark.parametrize("m", [30, 300])
def test_uniform_p_is_small_as_often_as_it_says(m):
    """No more often, and not much less: the two tests it takes the smaller of are nearly independent."""
    rng, worlds = np.random.default_rng(m), 2000
    values = np.array([agreement.uniform_p(rng.random(m)) for _ in range(worlds)])
    for level in (0.01, 0.05, 0.2):
        noise = Z * math.sqrt(level * (1 - level) / worlds)
        assert 0.8 * level - noise < (values <= level).mean() < level + noise


@pytest.mark.parametrize("power", [0.8, 1.25])
def test_uniform_p_sees_a_wrong_spread_and_a_shift(power):
    """The plain test is almost blind to the spread, which folding finds. Folding loses the shift."""
    rng = np.random.default_rng(0)
    spread, shifted = rng.beta(power, power, size=4000), rng.random(4000) ** power
    assert agreement.uniform_p(spread) < 1e-5 and agreement.uniform_p(spread) < agreement.ks_uniform(spread) / 100
    assert agreement.uniform_p(shifted) < 1e-5
    assert agreement.uniform_p(1 - shifted) == pytest.approx(agreement.uniform_p(shifted), rel=1e-6)
