"""Intervals: of one problem's p, and of means over pairs of seeds and problems.

All pairs of seeds are measured on the same problems, so values[pair, problem] have two crossed random effects:

    values[i, j] = mean + pair_i + problem_j + rest_ij

The variance of their mean has a part of the pairs and one of the problems and the rest, both from mean squares of this
table. Each part is multiplied by the square of its own quantile of Student's t, and the sum is the square of the half
width (Howe 1974). Satterthwaite's one t for both parts covers less where pairs are few: with three, .91 to .95.

With one pair the intervals are about problems only. No interval is narrower than the rule of three allows: what never
happens in n problems can still have the rate 3 / n.
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

MAX_PAIR_SD = 1.25  # of logits over pairs: up to a true one of 1, intervals that are shown cover .90 (test_coverage.py)
_MAX_SHARE = 1e6  # largest end of an interval of a share that is looked for


def beta_interval(correct: ArrayLike, n: int, level: float = 0.95) -> np.ndarray:
    """Jeffreys interval of p for each problem, float64[2, ...]: quantiles of Beta(c + 1/2, n - c + 1/2).

    correct: int[...], accepted rollouts out of n.
    """
    correct = np.asarray(correct)
    distinct, place = np.unique(correct, return_inverse=True)
    tails = [(1 - level) / 2, (1 + level) / 2]
    ends = 1 / (1 + np.exp(-np.array([_beta_quantiles(c + 0.5, n - c + 0.5, tails) for c in distinct])))
    return ends[place.reshape(correct.shape)].transpose(-1, *range(correct.ndim))


def _beta_quantiles(a: float, b: float, q: list[float]) -> np.ndarray:
    """Log-odds of quantiles of Beta(a, b), by integrating its density over log-odds, where it is log-concave."""
    mode, spread = math.log(a / b), math.sqrt(1 / a + 1 / b)
    # the tails fall off at least like exp(-a t) to the left and exp(-b t) to the right
    left, right = max(12 * spread, 40 / a), max(12 * spread, 40 / b)
    grid = np.linspace(-1, 1, 20_001)
    t = mode + np.where(grid < 0, -left, right) * grid**2
    log_density = -a * np.logaddexp(0, -t) - b * np.logaddexp(0, t)
    density = np.exp(log_density - log_density.max())
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(t))])
    return np.interp(q, mass / mass[-1], t)


@lru_cache
def t_quantile(df: int) -> float:
    """The t within which, on both sides of 0, Student's t with df degrees of freedom lies with probability .95.

    df / (df + t^2) follows Beta(df / 2, 1 / 2).
    """
    return math.sqrt(df * math.exp(-_beta_quantiles(df / 2, 0.5, [0.05])[0]))


def mean_interval(values: np.ndarray) -> np.ndarray:
    """The 95 % interval [low, high] of the mean of values float64[pairs, problems]."""
    half_width = max(_half_width(values), 3 / values.shape[1])
    return values.mean() + np.array([-half_width, half_width])


def probability_interval(values: np.ndarray) -> np.ndarray:
    """The 95 % interval of the mean of probabilities float64[pairs, problems], made on the logit scale.

    Near 0 and 1 the means of pairs are skewed, and a few of them seldom show how much. So the variance of the pairs is
    also estimated from their logits, as that of a lognormal, and the larger of both counts. Not to be shown where
    `pairs_differ`.
    """
    mean, slack = float(values.mean()), 3 / values.shape[1]
    ends = np.array([mean, mean])
    if 0 < mean < 1:
        slope = mean * (1 - mean)
        half_width = _half_width(values, slope**2 * math.expm1(min(_logit_variance(values), 100.0))) / slope
        with np.errstate(over="ignore"):
            ends = 1 / (1 + np.exp(np.array([half_width, -half_width]) - _logit(mean)))
    return np.clip([min(ends[0], mean - slack), max(ends[1], mean + slack)], 0.0, 1.0)


def difference_interval(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The 95 % interval of the mean of one - other, probabilities float64[pairs, problems] each.

    It is that of `mean_interval`, but on each side as much longer, in squares, as the intervals of the two means are on
    the logit scale. So near 0 and 1 it is as skewed as they are (the method of variance estimates recovery, Zou and
    Donner 2008). Not to be shown where the pairs of either differ (`pairs_differ`).
    """
    below_one, above_one = _skew(one)
    below_other, above_other = _skew(other)
    square, slack = _half_width(one - other) ** 2, 3 / one.shape[1]
    below, above = math.sqrt(square + below_one + above_other), math.sqrt(square + above_one + below_other)
    return float((one - other).mean()) + np.array([-max(below, slack), max(above, slack)])


def _skew(values: np.ndarray) -> np.ndarray:
    """How much the square of either side of the logit interval of probabilities is beyond that of the raw one."""
    sides = values.mean() - probability_interval(values)
    return np.maximum(sides**2 - max(_half_width(values), 3 / values.shape[1]) ** 2, 0.0)


def pairs_differ(values: np.ndarray) -> bool:
    """Whether pairs of seeds differ so much that `probability_interval` of values [pairs, problems] covers too rarely:
    the logits of their means have a standard deviation above MAX_PAIR_SD."""
    return _logit_variance(values) > MAX_PAIR_SD**2


def _logit_variance(values: np.ndarray) -> float:
    """The variance over pairs of the logits of their means. The means are shrunk a little, so no logit is infinite."""
    pairs, problems = values.shape
    return float(_logit((values.mean(axis=1) * problems + 0.5) / (problems + 1)).var(ddof=1)) if pairs > 1 else 0.0


def share_interval(won: np.ndarray, lost: np.ndarray) -> np.ndarray | None:
    """The 95 % interval of mean won / mean lost, float64[pairs, problems] each: every share c for which the interval
    of won - c lost contains 0 (Fieller 1954). None where the interval of lost contains 0, as no share is refuted then.
    """
    if np.prod(mean_interval(lost)) <= 0:
        return None
    of_won, of_lost = _mean_squares(won), _mean_squares(lost)
    mixed = (_mean_squares(won + lost) - of_won - of_lost) / 2
    share, slack = float(won.mean() / lost.mean()), 3 / won.shape[1]

    def refuted(c: float) -> bool:
        squares = np.maximum(of_won - 2 * c * mixed + c * c * of_lost, 0.0)  # the mean squares of won - c lost
        return abs(won.mean() - c * lost.mean()) > max(_from_mean_squares(squares, won.shape), slack)

    return np.array([_last_before(refuted, share, direction) for direction in (-1.0, 1.0)])


def _last_before(refuted: Callable[[float], bool], share: float, direction: float) -> float:
    """The share farthest from an estimate, in a direction, that is not refuted."""
    inside, outside = 0.0, 0.01
    while not refuted(share + direction * outside) and outside < _MAX_SHARE:
        inside, outside = outside, 2 * outside
    while outside - inside > 1e-6 * outside:
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if refuted(share + direction * middle) else (middle, outside)
    return share + direction * inside


def pseudo_values(statistic: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """Estimate + influence of every problem, float64[n, ...], of a statistic of the means over problems.

    Their mean is the estimate, and they vary over problems as it does. values: float64[m, n], m quantities of every
    problem; statistic: a function from means [draws, m] to values [draws, ...]. Influence is that of the jackknife,
    which leaves out one problem at a time (Tukey 1958). Raises ValueError for a single problem.
    """
    n = values.shape[1]
    if n < 2:
        raise ValueError("an interval needs at least 2 problems: raise eval.problems")
    without = statistic(((values.sum(axis=1, keepdims=True) - values) / (n - 1)).T)
    return statistic(values.mean(axis=1)[None]) + (n - 1) * (without.mean(axis=0) - without)


def _half_width(values: np.ndarray, pair_variance: float = 0.0) -> float:
    """Half the width of the 95 % interval of the mean of values [pairs, problems].

    pair_variance: the least that the variance of the pairs' means is taken for.
    """
    squares = _mean_squares(values)
    squares[0] = max(squares[0], values.shape[1] * pair_variance)
    return _from_mean_squares(squares, values.shape)


def _from_mean_squares(squares: np.ndarray, shape: tuple[int, ...]) -> float:
    """Half the width of an interval, from `_mean_squares` of a table [pairs, problems]."""
    of_pairs, of_problems, of_rest = squares
    t_pairs, t_problems = (t_quantile(max(count - 1, 1)) for count in shape)
    total = t_pairs**2 * max(of_pairs - of_rest, 0.0) + t_problems**2 * max(of_problems, of_rest)
    return math.sqrt(total / math.prod(shape))


def _mean_squares(values: np.ndarray) -> np.ndarray:
    """The mean squares of pairs, problems and the rest, float64[3], of a table [pairs, problems]; 0 without freedom."""
    pairs, problems = values.shape
    pair_means, problem_means, mean = values.mean(axis=1, keepdims=True), values.mean(axis=0), values.mean()
    rest = values - pair_means - problem_means + mean
    sums = [problems * ((pair_means - mean) ** 2).sum(), pairs * ((problem_means - mean) ** 2).sum(), (rest**2).sum()]
    return np.array(sums) / np.maximum([pairs - 1, problems - 1, (pairs - 1) * (problems - 1)], 1)


def _logit(p: ArrayLike) -> np.ndarray:
    """log p / (1 - p)."""
    return np.log(p) - np.log1p(-np.asarray(p))
