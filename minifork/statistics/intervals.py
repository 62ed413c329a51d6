"""Intervals: of one problem's p, and of means over pairs of seeds and problems.

All pairs of seeds are measured on the same problems, so values[pair, problem] have two crossed random effects:

    values[i, j] = mean + pair_i + problem_j + rest_ij

The variance of their mean has a part of the pairs and a part of the problems and the rest, both from mean squares of
this table. Each part is multiplied by the square of its own quantile of Student's t. The sum is the square of the
half-width (Howe 1974). One t for both parts (Satterthwaite) covers too rarely with few pairs: .91 to .95 with three.

With one pair the intervals are about problems only. No interval is narrower than the rule of three allows: an event
that happened in none of n problems can still have the rate 3 / n (at 95 %).
"""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

MAX_PAIR_SD = 1.25  # of logits over pairs: up to a true one of 1, intervals that are shown cover .90 (test_coverage.py)
_MAX_SHARE = 1e6  # the search for the ends of an interval of a share stops here


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
    # The tails fall off at least like exp(-a t) to the left and exp(-b t) to the right.
    reach_below, reach_above = max(12 * spread, 40 / a), max(12 * spread, 40 / b)
    grid = np.linspace(-1, 1, 20_001)
    t = mode + np.where(grid < 0, -reach_below, reach_above) * grid**2
    log_density = -a * np.logaddexp(0, -t) - b * np.logaddexp(0, t)
    density = np.exp(log_density - log_density.max())
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(t))])
    return np.interp(q, mass / mass[-1], t)


@lru_cache
def t_quantile(df: int, level: float = 0.95) -> float:
    """The t for which Student's t with df degrees of freedom lies in [-t, t] with probability ``level``.

    df / (df + t^2) follows Beta(df / 2, 1 / 2).
    """
    return math.sqrt(df * math.exp(-_beta_quantiles(df / 2, 0.5, [1 - level])[0]))


def mean_interval(values: np.ndarray, level: float = 0.95) -> np.ndarray:
    """The interval [low, high] of the mean of values float64[pairs, problems]."""
    half_width = max(_half_width(values, level), _slack(values, level))
    return values.mean() + np.array([-half_width, half_width])


def probability_interval(values: np.ndarray, level: float = 0.95) -> np.ndarray:
    """The interval of the mean of probabilities float64[pairs, problems], computed on the logit scale.

    Near 0 and 1 the means of pairs are skewed, and a few pairs seldom show how much. So the variance of the pairs is
    also estimated from their logits, as that of a lognormal, and the larger estimate is used. Do not show the interval
    if `pairs_differ`.
    """
    mean, slack = float(values.mean()), _slack(values, level)
    ends = np.array([mean, mean])
    if 0 < mean < 1:
        slope = mean * (1 - mean)
        half_width = _half_width(values, level, slope**2 * math.expm1(min(_logit_variance(values), 100.0))) / slope
        with np.errstate(over="ignore"):
            ends = 1 / (1 + np.exp(np.array([half_width, -half_width]) - _logit(mean)))
    return np.clip([min(ends[0], mean - slack), max(ends[1], mean + slack)], 0.0, 1.0)


def difference_interval(first: np.ndarray, second: np.ndarray, level: float = 0.95) -> np.ndarray:
    """The interval of the mean of first - second, probabilities float64[pairs, problems] each.

    It is `mean_interval` of the difference, widened near 0 and 1, where intervals of probabilities are skewed: to the
    square of each side it adds what the logit scale adds to the squares of the sides of both means (the method of
    variance estimates recovery, Zou and Donner 2008). Do not show it if the pairs of either differ (`pairs_differ`).
    """
    (first_below, first_above), (second_below, second_above) = _skew(first, level), _skew(second, level)
    square, slack = _half_width(first - second, level) ** 2, _slack(first, level)
    below, above = math.sqrt(square + first_below + second_above), math.sqrt(square + first_above + second_below)
    return float((first - second).mean()) + np.array([-max(below, slack), max(above, slack)])


def _skew(values: np.ndarray, level: float) -> np.ndarray:
    """The excess of the squared sides, below and above, of `probability_interval` over those of `mean_interval`."""
    sides = values.mean() - probability_interval(values, level)
    return np.maximum(sides**2 - max(_half_width(values, level), _slack(values, level)) ** 2, 0.0)


def _slack(values: np.ndarray, level: float) -> float:
    """The rate that an event which happened in none of the problems can still have: 3 / n at 95 %."""
    return 3 * math.log(1 - level) / math.log(1 - 0.95) / values.shape[1]


def pairs_differ(values: np.ndarray) -> bool:
    """True if pairs differ so much that `probability_interval` of values [pairs, problems] covers too rarely.

    This is so if the logits of their means have a standard deviation above MAX_PAIR_SD.
    """
    return _logit_variance(values) > MAX_PAIR_SD**2


def _logit_variance(values: np.ndarray) -> float:
    """The variance over pairs of the logits of their means, which are shrunk a little so that no logit is infinite."""
    pairs, problems = values.shape
    return float(_logit((values.mean(axis=1) * problems + 0.5) / (problems + 1)).var(ddof=1)) if pairs > 1 else 0.0


def share_interval(gain: np.ndarray, whole: np.ndarray, level: float = 0.95) -> np.ndarray | None:
    """The interval of mean gain / mean whole, float64[pairs, problems] each (Fieller 1954).

    It holds every share c for which the interval of gain - c whole contains 0. None if the interval of whole
    contains 0, as no share is refuted then.
    """
    if np.prod(mean_interval(whole, level)) <= 0:
        return None
    gain_squares, whole_squares = _mean_squares(gain), _mean_squares(whole)
    products = (_mean_squares(gain + whole) - gain_squares - whole_squares) / 2
    share, slack = float(gain.mean() / whole.mean()), _slack(gain, level)

    def refuted(c: float) -> bool:
        squares = np.maximum(gain_squares - 2 * c * products + c * c * whole_squares, 0.0)  # those of gain - c whole
        return abs(gain.mean() - c * whole.mean()) > max(_half_width_from(squares, gain.shape, level), slack)

    return np.array([_farthest(refuted, share, direction) for direction in (-1.0, 1.0)])


def _farthest(refuted: Callable[[float], bool], share: float, direction: float) -> float:
    """The share farthest from an estimate, in a direction (-1 or 1), that is not refuted."""
    inside, outside = 0.0, 0.01
    while not refuted(share + direction * outside) and outside < _MAX_SHARE:
        inside, outside = outside, 2 * outside
    while outside - inside > 1e-6 * outside:
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if refuted(share + direction * middle) else (middle, outside)
    return share + direction * inside


def pseudo_values(statistic: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """A statistic of means over problems, plus the influence of each problem on it, float64[n, ...].

    The mean of pseudo-values is the statistic, and their variance gives its variance. values: float64[m, n], with the
    axes [quantities, problems]; the other tables of this module are [pairs, problems]. statistic: a function from means
    [rows, quantities] to values [rows, ...]. The influence is that of the jackknife, which leaves out one problem at a
    time (Tukey 1958). Raises ValueError for a single problem.
    """
    n = values.shape[1]
    if n < 2:
        raise ValueError("an interval needs at least 2 problems: raise eval.problems")
    without = statistic(((values.sum(axis=1, keepdims=True) - values) / (n - 1)).T)
    return statistic(values.mean(axis=1)[None]) + (n - 1) * (without.mean(axis=0) - without)


def _half_width(values: np.ndarray, level: float, pair_variance: float = 0.0) -> float:
    """Half the width of the interval of the mean of values [pairs, problems].

    pair_variance: a lower bound of the variance of the pairs' means.
    """
    squares = _mean_squares(values)
    squares[0] = max(squares[0], values.shape[1] * pair_variance)
    return _half_width_from(squares, values.shape, level)


def _half_width_from(squares: np.ndarray, shape: tuple[int, ...], level: float) -> float:
    """Half the width of the interval of a table [pairs, problems], from its `_mean_squares`."""
    ms_pairs, ms_problems, ms_rest = squares
    t_pairs, t_problems = (t_quantile(max(count - 1, 1), level) for count in shape)
    total = t_pairs**2 * max(ms_pairs - ms_rest, 0.0) + t_problems**2 * max(ms_problems, ms_rest)
    return math.sqrt(total / math.prod(shape))


def _mean_squares(values: np.ndarray) -> np.ndarray:
    """The mean squares of pairs, problems and the rest, float64[3], of a table [pairs, problems].

    One without degrees of freedom is 0.
    """
    pairs, problems = values.shape
    pair_means, problem_means, mean = values.mean(axis=1, keepdims=True), values.mean(axis=0), values.mean()
    rest = values - pair_means - problem_means + mean
    sums = [problems * ((pair_means - mean) ** 2).sum(), pairs * ((problem_means - mean) ** 2).sum(), (rest**2).sum()]
    return np.array(sums) / np.maximum([pairs - 1, problems - 1, (pairs - 1) * (problems - 1)], 1)


def _logit(p: ArrayLike) -> np.ndarray:
    """log p / (1 - p)."""
    return np.log(p) - np.log1p(-np.asarray(p))
