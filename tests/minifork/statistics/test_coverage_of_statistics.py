"""Coverage of 95 % intervals of every kind of statistic that claims use: probabilities, other means, pseudo-values,
differences and shares. Numbers of worlds and bounds are those of `tests.helpers.coverage`.

At the fork the logits z[i, j] of pair i are normal with the standard deviation s_i. Half of their variance belongs to
the problem. p = .95 / (1 + exp(-z)).
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from minifork.measuring import quantities
from minifork.statistics import intervals, passk
from tests.helpers.coverage import PAIRS, coverage, is_right

PROBLEMS = 300
SPREAD, REST = 5.0, 0.95
HERMITE = np.polynomial.hermite_e.hermegauss(20)
NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 20_000) for i in range(20_000)])


def logits(rng: np.random.Generator, spread: float = SPREAD) -> np.ndarray:
    """z [PAIRS, PROBLEMS] with s_i = spread exp(.2 g_i)."""
    shared, rest = rng.normal(size=PROBLEMS), rng.normal(size=(PAIRS, PROBLEMS))
    return spread * np.exp(0.2 * rng.normal(size=(PAIRS, 1))) * (shared + rest) / math.sqrt(2)


def right(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def solved(z: np.ndarray) -> np.ndarray:
    """pass@16 of every problem."""
    return passk.problem_pass_at_k(REST * right(z), 16)


def fork_values(z: np.ndarray, quantity: str) -> np.ndarray:
    return quantities.fork_values(np.stack([right(z), right(-z)], axis=-1), quantity)


def sigma(z: np.ndarray) -> np.ndarray:
    return quantities.sigma_values(np.stack([right(z), right(-z)], axis=-1))


STATISTICS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], bool]] = {  # of z [n], whether it is a probability
    "pass@1": (lambda z: REST * right(z), True),
    "pass@16": (solved, True),
    "index@16": (lambda z: quantities.index_values(REST * right(z), solved(z), 16), False),
    "fork accuracy": (lambda z: fork_values(z, "accuracy"), True),
    "fork entropy": (lambda z: fork_values(z, "entropy"), False),
    "confidence right": (lambda z: fork_values(z, "confidence_right"), False),
    "sigma": (sigma, False),
    "confidence wrong": (lambda z: fork_values(z, "confidence_wrong"), False),
}


def expected(statistic: Callable[[np.ndarray], np.ndarray], spread: float = SPREAD) -> float:
    """A statistic of endless problems and pairs, by quadrature."""
    nodes, weights = HERMITE
    pairs = [statistic(spread * math.exp(0.2 * g) * NORMAL).mean() for g in nodes]
    return float(np.average(pairs, weights=weights))


@pytest.mark.parametrize("name", STATISTICS)
def test_intervals_of_statistics_cover(worlds, name):
    """Coverages are .945 to .965."""
    statistic, is_probability = STATISTICS[name]
    interval = intervals.probability_interval if is_probability else intervals.mean_interval
    draw = lambda rng: interval(np.stack([statistic(z) for z in logits(rng)]))  # noqa: E731
    share = coverage(worlds, expected(statistic), draw)
    assert is_right(share, worlds), share


def test_intervals_of_training_problems_cover(worlds):
    """Every pair has training problems of its own, so there are no effects of problems. Coverage is .97."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        pair_effect = 0.2 * rng.normal(size=(PAIRS, 1))
        return intervals.probability_interval(right(1 + pair_effect + rng.normal(size=(PAIRS, 300))))

    nodes, weights = HERMITE
    truth = float(np.average([right(1 + math.sqrt(1.04) * g) for g in nodes], weights=weights))
    share = coverage(worlds, truth, draw)
    assert is_right(share, worlds), share


def two_arms(rng: np.random.Generator) -> list[np.ndarray]:
    """pass@16 [PAIRS, PROBLEMS] of two trainings with spreads 3 and 5, which share effects of problems."""
    shared, arms = rng.normal(size=PROBLEMS), []
    for spread in (3.0, 5.0):
        scale = spread * np.exp(0.2 * rng.normal(size=(PAIRS, 1)))
        arms.append(solved(scale * (shared + rng.normal(size=(PAIRS, PROBLEMS))) / math.sqrt(2)))
    return arms


def test_intervals_of_differences_and_shares_cover(worlds):
    """Coverages are .945 to .955."""
    better, worse = expected(solved, 3.0), expected(solved, 5.0)

    def recovered(rng: np.random.Generator) -> np.ndarray:
        first, second = two_arms(rng)
        ends = intervals.share_interval(first - second, 1 - second)
        return np.array([-np.inf, np.inf]) if ends is None else ends

    share = coverage(worlds, better - worse, lambda rng: intervals.difference_interval(*two_arms(rng)))
    assert is_right(share, worlds), share
    share = coverage(worlds, (better - worse) / (1 - worse), recovered)
    assert is_right(share, worlds), share
