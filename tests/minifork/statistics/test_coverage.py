"""Coverage of 95 % intervals over pairs and problems, by simulation: 400 worlds, 4,000 with --slow.

With 4,000 worlds the bounds are .93 and .985, and .90 where few pairs of skewed values cannot do better. With 400 they
are wider. At the coverages that are noted a right implementation leaves the bounds with a probability below 1e-4.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest

from minifork.measuring import quantities
from minifork.statistics import intervals, passk

PAIRS, PROBLEMS = 5, 1000


@pytest.fixture(scope="module")
def worlds(request) -> int:
    return 4000 if request.config.getoption("--slow") else 400


def coverage(worlds: int, truth: float, draw: Callable[[np.random.Generator], np.ndarray]) -> float:
    """The share of worlds whose interval, from ``draw``, holds the truth."""
    ends = np.array([draw(np.random.default_rng([11, world])) for world in range(worlds)])
    return float(((ends[:, 0] <= truth) & (truth <= ends[:, 1])).mean())


def is_right(share: float, worlds: int, least: float = 0.93) -> bool:
    """Whether a simulated coverage is within the bounds."""
    return least <= share <= 0.985 if worlds == 4000 else least - 0.035 <= share < 0.9975


def effects(rng: np.random.Generator, pair: float, problem: float, rest: float) -> np.ndarray:
    """Normal values [PAIRS, PROBLEMS] from three standard deviations."""
    of_pair, of_problem = rng.normal(size=(PAIRS, 1)), rng.normal(size=PROBLEMS)
    return pair * of_pair + problem * of_problem + rest * rng.normal(size=(PAIRS, PROBLEMS))


@pytest.mark.parametrize(
    "parts",
    [(0, 0, 0.42), (0.02, 0.3, 0.3), (0.1, 0, 0.3), (0.02, 0.3, 0)],
    ids=["independent noise", "all three", "the pair effect dominates", "problems dominate"],
)
def test_mean_interval_covers(worlds, parts):
    """Coverages are .945 to .965."""
    share = coverage(worlds, 0.0, lambda rng: intervals.mean_interval(effects(rng, *parts)))
    assert is_right(share, worlds), share


@pytest.mark.parametrize("pairs", [1, 2, 3, 8])
def test_mean_interval_of_other_numbers_of_pairs_covers(worlds, pairs):
    """Coverages are .94 to .965, with two pairs .91; one pair has no effect of its own here, as its interval is about
    problems only."""

    def draw(rng: np.random.Generator) -> np.ndarray:
        of_pair = 0.05 * rng.normal(size=(pairs, 1)) * (pairs > 1)
        return intervals.mean_interval(of_pair + 0.3 * rng.normal(size=200) + 0.3 * rng.normal(size=(pairs, 200)))

    share = coverage(worlds, 0.0, draw)
    assert is_right(share, worlds, 0.89 if pairs == 2 else 0.93), share


def rare(rng: np.random.Generator) -> np.ndarray:
    """Values 0 or 1: 3 % of problems are failed by half of the pairs, the rest hardly ever."""
    miss = np.where(rng.random(PROBLEMS) < 0.03, 0.5, 0.001)
    return (rng.random((PAIRS, PROBLEMS)) >= miss).astype(float)


def test_probability_interval_of_rare_failures_covers(worlds):
    """Coverage is .957."""
    share = coverage(worlds, 1 - (0.03 * 0.5 + 0.97 * 0.001), lambda rng: intervals.probability_interval(rare(rng)))
    assert is_right(share, worlds), share


def near_one(rng: np.random.Generator, sd: float) -> np.ndarray:
    """Values near 1: what a pair misses is lognormal with this sd, and some problems are missed more than others."""
    miss = 0.01 * np.exp(sd * rng.normal(size=(PAIRS, 1)))
    skew = np.exp(rng.normal(size=PROBLEMS) - 0.5 + 0.5 * rng.normal(size=(PAIRS, PROBLEMS)) - 0.125)
    return 1 - np.minimum(miss * skew, 1)


@pytest.mark.parametrize("sd", [0.5, 1.0])
def test_intervals_near_one_cover(worlds, sd):
    """Of a probability and of its difference from 1, coverages are .95 and .92; raw intervals have .94 and .83.

    At sd 1 an interval is shown in .86 of the worlds, of which it covers .91. Pairs that differ more are not always
    seen: at sd 1.5 it is shown in .47, of which it covers .77.
    """
    truth, least = 0.01 * math.exp(sd**2 / 2), 0.93 if sd == 0.5 else 0.90
    drawn = [near_one(np.random.default_rng([11, world]), sd) for world in range(worlds)]
    shown = np.array([not intervals.pairs_differ(values) for values in drawn])
    ends = np.array([intervals.probability_interval(values) for values in drawn])
    loss = np.array([intervals.difference_interval(np.ones_like(values), values) for values in drawn])
    for low, high, at in ((*ends.T, 1 - truth), (*loss.T, truth)):
        covered = (low <= at) & (at <= high)
        assert is_right(covered.mean(), worlds, least), covered.mean()
        assert is_right(covered[shown].mean(), worlds, least), covered[shown].mean()
    assert shown.mean() > (0.97 if sd == 0.5 else 0.7)


def test_pairs_that_differ_too_much_are_seen():
    """With sd = 4, where coverage is far below .9, few worlds would show an interval; with sd = .1 all do."""
    seen = [intervals.pairs_differ(near_one(np.random.default_rng(i), 4.0)) for i in range(200)]
    assert np.mean(seen) > 0.9
    assert not any(intervals.pairs_differ(near_one(np.random.default_rng(i), 0.1)) for i in range(200))
    assert not intervals.pairs_differ(np.array([[0.0, 1.0] * 500]))


# Coverage of every kind of statistic that claims use: probabilities, other means, pseudo-values, differences, shares.
# At the fork the logits z[i, j] of pair i are normal with the standard deviation s_i. Half of their variance belongs to
# the problem. p = .95 / (1 + exp(-z)).

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
    "pass@16": (lambda z: passk.solve_rate(REST * right(z), 16), True),
    "index@16": (lambda z: quantities.index_values(REST * right(z), passk.solve_rate(REST * right(z), 16), 16), False),
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
    better, worse = (passk.solve_rate(REST * right(of_arm), 16) for of_arm in z)
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
