"""Intervals: of one problem's p, of a mean over problems, of a mean over pairs of seeds and problems."""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

_T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # of Student's t with 1, 2, ... degrees


def beta_interval(correct: ArrayLike, n: int, level: float = 0.95) -> np.ndarray:
    """Jeffreys interval of p for each problem, float64[2, ...]: quantiles of Beta(c + 1/2, n - c + 1/2).

    correct: int[...], accepted rollouts out of n.
    """
    correct = np.asarray(correct)
    distinct, place = np.unique(correct, return_inverse=True)
    tails = [(1 - level) / 2, (1 + level) / 2]
    ends = np.array([_beta_quantiles(c + 0.5, n - c + 0.5, tails) for c in distinct])
    return ends[place.reshape(correct.shape)].transpose(-1, *range(correct.ndim))


def _beta_quantiles(a: float, b: float, q: list[float]) -> np.ndarray:
    """Quantiles of Beta(a, b), by integrating its density over log-odds, where it is log-concave."""
    mode, spread = math.log(a / b), math.sqrt(1 / a + 1 / b)
    # the tails fall off at least like exp(-a t) to the left and exp(-b t) to the right
    left, right = max(12 * spread, 40 / a), max(12 * spread, 40 / b)
    grid = np.linspace(-1, 1, 20_001)
    t = mode + np.where(grid < 0, -left, right) * grid**2
    log_density = -a * np.logaddexp(0, -t) - b * np.logaddexp(0, t)
    density = np.exp(log_density - log_density.max())
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(t))])
    return 1 / (1 + np.exp(-np.interp(q, mass / mass[-1], t)))


@lru_cache(maxsize=8)
def resamples(n: int, count: int, seed: int = 0) -> np.ndarray:
    """Bootstrap weights float64[count, n]: each row resamples n problems, as shares that sum to 1.

    Used for every run on the same problems, the weights make all comparisons between runs paired.
    """
    rng = np.random.default_rng([seed, n, count])
    weights = rng.multinomial(n, np.full(n, 1 / n), size=count) / n
    weights.setflags(write=False)  # it is kept, and shared by all who ask again
    return weights


def interval(draws: np.ndarray, level: float = 0.95) -> np.ndarray:
    """The percentile interval of bootstrap draws float64[count, ...], float64[2, ...]."""
    return np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)


@lru_cache(maxsize=8)
def pair_resamples(pairs: int, count: int, seed: int = 0) -> np.ndarray:
    """Weights float64[count, pairs] of few pairs of seeds, for percentile intervals of what is linear in the pairs.

    Plain resamples of n values give intervals that are too short: their variance is short by (n - 1) / n, and few
    values have the tails of Student's t. So deviations from equal weights are stretched by
    sqrt(n / (n - 1)) t_{n-1} / 1.96, which makes the interval that of the t-test where values are normal (for two
    pairs .72 of it, as they have three resamples only; for one there is nothing to resample: its interval is about
    problems only). Stretched weights can be negative.
    """
    weights = resamples(pairs, count, seed)
    if pairs == 1:
        return weights
    free = pairs - 1
    quantile = _T975[free - 1] if free <= len(_T975) else 1.96 + 2.4 / free
    stretched = 1 / pairs + math.sqrt(pairs / free) * quantile / 1.96 * (weights - 1 / pairs)
    stretched.setflags(write=False)
    return stretched


def hierarchical(values: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Bootstrap draws float64[count] of the mean of values float64[pairs, n], one row a pair of seeds.

    Seed pairs and problems are resampled independently of each other, the same problems for every pair,
    because all pairs are measured on the same problems (the pigeonhole bootstrap of Owen 2007); pairs as in
    `pair_resamples`.
    """
    of_pairs, of_problems = pair_resamples(len(values), count, seed + 1), resamples(values.shape[1], count, seed)
    return ((of_pairs @ values) * of_problems).sum(axis=1)
