"""The coverage law: the whole pass@k curve of a model that must guess at forks, from two numbers.

At a fork that nothing visible decides, a problem is solved with p = r b. r is the probability of everything but the
choice: of any branch token, and of the rest after the right one. b is the probability of the right branch among d. The
law says that the branch logits of problems are independent normal variables, so that b is their softmax. sigma is the
standard deviation of the difference of two of them. With two branches, with g a standard normal variable,

    b = 1 / (1 + exp(-sigma g))        pass@k = E_g [ 1 - (1 - r b)^k ], for large sigma about Phi(ln k / sigma)

A trace with several forks has the product of their b. Beside the law stand others with two parameters, which get the
first two moments of p. Neighbours: beta-binomial p (arXiv 2510.05197), heavy tails of p (arXiv 2502.17578).
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from minifork.statistics.passk import problem_pass_at_k

MIN_R = 0.9  # the law is about models with a mean r of at least this
POINTS = 2**14  # at which expectations over normal variables are taken; the error of pass@k is below .001
ITERATIONS = 40  # of searches for a zero or a fixed point


@lru_cache
def normal_points(dims: int) -> np.ndarray:
    """float64[POINTS, dims]: points of the standard normal distribution, spread evenly instead of drawn.

    The quantiles of an additive recurrence with the generalised golden ratio (Roberts 2018).
    """
    ratio = 2.0
    for _ in range(ITERATIONS):
        ratio = (1 + ratio) ** (1 / (dims + 1))
    steps = np.outer(np.arange(1, POINTS + 1), ratio ** -np.arange(1.0, dims + 1))
    points = np.vectorize(NormalDist().inv_cdf)((0.5 + steps) % 1)
    points.setflags(write=False)
    return points


def path_points(sigmas: Sequence[float], branches: int = 2) -> np.ndarray:
    """float64[POINTS, branches ** F]: the probability of every path through F forks, the right one first.

    sigmas: of each fork. The rows are equally probable problems under the law; each sums to 1.
    """
    logits = normal_points(len(sigmas) * branches).reshape(POINTS, len(sigmas), branches)
    odds = np.exp(logits * np.reshape(sigmas, (-1, 1)) / math.sqrt(2))
    by_fork, paths = odds / odds.sum(axis=2, keepdims=True), np.ones((POINTS, 1))
    for fork in range(len(sigmas)):
        paths = (paths[:, :, None] * by_fork[:, fork, None]).reshape(POINTS, -1)
    return paths


def mixture_points(sigma: float, kurtosis: float) -> np.ndarray:
    """float64[POINTS, 2]: `path_points` of one fork whose logit is a symmetric mixture of two normals.

    Their common deviation and their distance give the logit this sigma and this kurtosis, at most 3 (3: one normal).
    """
    shift = sigma * (max(3 - kurtosis, 0) / 2) ** 0.25
    spread = math.sqrt(max(sigma**2 - shift**2, 0))
    b = 1 / (1 + np.exp(-(shift + spread * normal_points(1))))
    return np.concatenate([b, 1 - b], axis=1)  # the other normal is the mirror image


def law_pass_at_k(r: float, paths: np.ndarray, ks: ArrayLike) -> np.ndarray:
    """pass@k float64[K] under the law, from r and the points of `path_points` or `mixture_points`."""
    return problem_pass_at_k(r * paths.reshape(-1, 1), ks).mean(axis=0)


def law_deviation(r: float, paths: np.ndarray, ks: ArrayLike, symmetrised: bool) -> np.ndarray:
    """float64[K]: the deviation of 1 - (1 - p)^k over problems under the law, raw or averaged over paths."""
    passes = problem_pass_at_k(r * paths[..., None], ks)
    return (passes.mean(axis=1) if symmetrised else passes[:, 0]).std(axis=0)


def free_pass_at_k(paths: np.ndarray, r: float, reverse: float, mode: tuple[float, float], ks: ArrayLike) -> np.ndarray:
    """pass@k float64[K] of free samples, which choose between the mode that meets the fork and one that does not.

    The logit of that choice is normal over problems, with this mean and deviation, and independent of the branch.
    reverse: the probability of a right trace in the mode without a fork. paths, r: as `law_pass_at_k`.
    """
    mean, deviation = mode
    q = 1 / (1 + np.exp(-(mean + deviation * normal_points(paths.shape[1] + 1)[:, -1:])))
    return problem_pass_at_k((q * r * paths + (1 - q) * reverse).reshape(-1, 1), ks).mean(axis=0)


# laws with two parameters, from the first two moments of p


def beta_pass_at_k(mean: float, variance: float, ks: ArrayLike) -> np.ndarray:
    """pass@k float64[K] if p has the Beta distribution with these moments, 1 - B(a, b + k) / B(a, b)."""
    total = mean * (1 - mean) / variance - 1
    b = (1 - mean) * total
    logs = [math.lgamma(total) + math.lgamma(b + k) - math.lgamma(b) - math.lgamma(total + k) for k in np.ravel(ks)]
    return -np.expm1(logs)


def logit_normal_pass_at_k(mean: float, variance: float, ks: ArrayLike) -> np.ndarray:
    """pass@k float64[K] if logit p is normal, with a free mean, and p has these moments."""
    g = normal_points(1)[: 2**11]  # solved for twice, so with fewer points

    def p_of(spread: float) -> np.ndarray:
        centre = bisect(lambda centre: float((1 / (1 + np.exp(-(centre + spread * g)))).mean()) - mean, -60, 60)
        return 1 / (1 + np.exp(-(centre + spread * g)))

    spread = bisect(lambda spread: float(p_of(spread).var()) - variance, 1e-3, 60)
    return problem_pass_at_k(p_of(spread), ks).mean(axis=0)


def two_point_pass_at_k(mean: float, variance: float, ks: ArrayLike) -> np.ndarray:
    """pass@k float64[K] if p is 0 for some problems and one value for all the rest, with these moments."""
    value = mean + variance / mean
    return mean / value * problem_pass_at_k(np.array([[value]]), ks)[0]


def fork_pass_at_k(mean: float, variance: float, ks: ArrayLike, branches: int = 2) -> np.ndarray:
    """pass@k float64[K] under the law at one fork whose r and sigma give p these moments."""
    r = branches * mean
    sigma = bisect(lambda sigma: float((r * path_points([sigma], branches)).var()) - variance, 1e-3, 60)
    return law_pass_at_k(r, path_points([sigma], branches), ks)


def bisect(rising: Callable[[float], float], low: float, high: float) -> float:
    """The zero of a rising function between two ends, or the nearer end if there is none."""
    for _ in range(ITERATIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2
