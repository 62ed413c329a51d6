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


def fork(z: np.ndarray) -> np.ndarray:
    return np.stack([right(z), right(-z)], axis=-1)


STATISTICS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], bool]] = {  # of z [n], whether it is a probability
    "pass@1": (lambda z: REST * right(z), True),
    "pass@16": (lambda z: passk.problem_pass_at_k(REST * right(z), 16), True),
    "index@16": (
        lambda z: quantities.index_values(REST * right(z), passk.problem_pass_at_k(REST * right(z), 16), 16),
        False,
    ),
    "fork accuracy": (lambda z: quantities.fork_values(fork(z), "accuracy"), True),
    "fork entropy": (lambda z: quantities.fork_values(fork(z), "entropy"), False),
    "confidence right": (lambda z: quantities.fork_values(fork(z), "confidence_right"), False),
    "confidence wrong": (lambda z: quantities.fork_values(fork(z), "confidence_wrong"), False),
}


def expected(statistic: Callable[[np.ndarray], np.ndarray], spread: float = SPREAD) -> float:
    """A statistic of endless problems and pairs, by quadrature."""
    nodes, weights = HERMITE
    of_pairs = [statistic(spread * math.exp(0.2 * g) * NORMAL).mean() for g in nodes]
    return float(np.average(of_pairs, weights=weights))


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
        of_pair = 0.2 * rng.normal(size=(PAIRS, 1))
        return intervals.probability_interval(right(1 + of_pair + rng.normal(size=(PAIRS, 300))))

    nodes, weights = HERMITE
    truth = float(np.average([right(1 + math.sqrt(1.04) * g) for g in nodes], weights=weights))
    share = coverage(worlds, truth, draw)
    assert is_right(share, worlds), share


def two_arms(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """pass@16 [PAIRS, PROBLEMS] of two trainings with spreads 3 and 5, which share effects of problems."""
    shared = rng.normal(size=PROBLEMS)
    z = [
        spread
        * np.exp(0.2 * rng.normal(size=(PAIRS, 1)))
        * (shared + rng.normal(size=(PAIRS, PROBLEMS)))
        / math.sqrt(2)
        for spread in (3.0, 5.0)
    ]
    better, worse = (passk.problem_pass_at_k(REST * right(of_arm), 16) for of_arm in z)
    return better, worse


def test_intervals_of_differences_and_shares_cover(worlds):
    """Coverages are .945 to .955."""
    solved = STATISTICS["pass@16"][0]
    better, worse = expected(solved, 3.0), expected(solved, 5.0)

    def difference(rng: np.random.Generator) -> np.ndarray:
        arms = two_arms(rng)
        return intervals.difference_interval(*arms)

    def recovered(rng: np.random.Generator) -> np.ndarray:
        arms = two_arms(rng)
        ends = intervals.share_interval(arms[0] - arms[1], 1 - arms[1])
        return np.array([-np.inf, np.inf]) if ends is None else ends

    for draw, truth in ((difference, better - worse), (recovered, (better - worse) / (1 - worse))):
        share = coverage(worlds, truth, draw)
        assert is_right(share, worlds), share
