"""pass@k, its ceiling and its polarisation loss.

With p_i the probability that one sampled trace for problem i is accepted:

    pass@k   = mean_i 1 - (1 - p_i)^k                exact p_i
    ceiling  C_k = 1 - (1 - mean p)^k                the pass@k if every problem had the mean p
    loss     J_k = C_k - pass@k                      polarisation loss (Jensen gap), >= 0
    index        = J_k / (C_k - mean p)              polarisation index, in [0, 1]
    rho      = Var(p) / (mean p (1 - mean p))        the index at k = 2

A fall in pass@k is a fall of the ceiling (mean skill) plus a rise of J_k (polarisation).
"""

import math

import numpy as np
from numpy.typing import ArrayLike

_BLOCK = 4_000_000  # entries of the largest array, which bounds memory
_FACTORS = 1000  # of a product; with more, its Stirling series is as accurate


def problem_pass_at_k(p: ArrayLike, k: ArrayLike) -> np.ndarray:
    """1 - (1 - p)^k in fp64, stable for p near 0 and 1; p and k broadcast against each other."""
    p = np.clip(np.asarray(p, dtype=np.float64), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return -np.expm1(np.asarray(k, dtype=np.float64) * np.log1p(-p))


def pass_at_k(p: ArrayLike, ks: ArrayLike) -> np.ndarray:
    """pass@k for each of ks, float64[K], from the problems' probabilities float64[n].

    Raises ValueError if p is no list of probabilities or one of ks is below 1.
    """
    p, ks = np.asarray(p, dtype=np.float64), np.atleast_1d(ks)
    if p.ndim != 1 or not len(p) or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p has the shape {p.shape}: give one probability in [0, 1] for every problem")
    if ks.ndim != 1 or not (ks >= 1).all():
        raise ValueError(f"ks is {ks.tolist()}: give numbers of samples, each at least 1")
    return problem_pass_at_k(p[:, None], ks).mean(axis=0)


def split_by_mode(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The shares float64[4, ...] of problems that the first mode alone solves, the second alone, both, and neither.

    first, second: the probability that k independent samples in a mode solve a problem, 1 - (1 - p)^k of its forced p,
    the same shape each. The four shares sum to 1. The first and the third sum to the coverage of the first mode, and
    the first three to that of both modes together. So the second share is what only both together add to the first.
    """
    return np.stack([first * (1 - second), (1 - first) * second, first * second, (1 - first) * (1 - second)])


def unbiased_pass_at_k(correct: ArrayLike, n: int, k: int) -> np.ndarray:
    """The unbiased estimator 1 - C(n-c, k)/C(n, k) of Chen et al. (2021), float64, one value a problem.

    correct: int[...], accepted rollouts out of n. Raises ValueError for k outside 1..n, where the
    estimator does not exist, and for counts outside 0..n.
    """
    correct = np.asarray(correct)
    _require_estimable(correct, n, k)
    distinct, place = np.unique(correct, return_inverse=True)
    log_miss = _log_miss(distinct.astype(np.float64), n, k)[place.reshape(correct.shape)]
    return np.where(n - correct < k, 1.0, 0.0 - np.expm1(log_miss))  # 0 - 0 is 0, -0 would print its sign


def _require_estimable(correct: np.ndarray, n: int, k: int) -> None:
    """Raise ValueError for k outside 1 .. n and for counts outside 0 .. n."""
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}: with n = {n} rollouts pass@k can be estimated for k = 1 .. {n}")
    if ((correct < 0) | (correct > n)).any():
        raise ValueError(f"correct has counts outside 0 .. n = {n}")


def remainder_pass_at_k(correct: np.ndarray, n: int, k: int, explored: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """The unbiased estimate of 1 - (1 - p)^k, float64[m], where p = explored + unknown q and q was sampled.

    correct: int[m], accepted rollouts out of n, each accepted with probability q; explored, unknown: float64[m]. Of k
    samples that are no explored accepted trace, a binomial number j falls into the unknown part. There the estimate is
    that of `unbiased_pass_at_k` at j. So all terms are positive, and the estimate lies between pass@k of
    p = explored and of p = explored + unknown. Raises ValueError as `unbiased_pass_at_k` does, unless unknown is 0.
    """
    estimate = problem_pass_at_k(explored, k)
    if not unknown.any():
        return estimate
    _require_estimable(correct, n, k)
    j = np.arange(1, k + 1)
    log_ways = log_choose(k, j)
    for rows in _blocks(np.flatnonzero(unknown > 0), k):
        share = np.minimum(unknown[rows] / (1 - explored[rows]), 1.0)[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            # C(n-c, j)/C(n, j) is the product of 1 - c/n, 1 - c/(n-1), ..., j factors
            log_miss = np.cumsum(np.log1p(-np.minimum(correct[rows, None] / (n - j + 1), 1.0)), axis=1)
            log_weight = log_ways + j * np.log(share) + np.where(j < k, (k - j) * np.log1p(-share), 0.0)
        estimate[rows] += (1 - estimate[rows]) * (np.exp(log_weight) * -np.expm1(log_miss)).sum(axis=1)
    return np.minimum(estimate, 1.0)


def _blocks(rows: np.ndarray, width: int) -> list[np.ndarray]:
    """The rows in parts, so that an array of a part's rows and this width has at most about _BLOCK entries."""
    return np.array_split(rows, max(1, min(len(rows), len(rows) * width // _BLOCK)))


def _log_miss(c: np.ndarray, n: int, k: int) -> np.ndarray:
    """log C(n-c, k)/C(n, k), float64[m], from c [m]; meaningless if c + k > n.

    The ratio is a product of min(c, k) factors 1 - max(c, k)/(n - j). If there are more than _FACTORS, it is computed
    as the difference of Stirling series instead, in which the terms of order n log n cancel exactly.
    """
    smaller, larger = np.minimum(c, k), np.maximum(c, k)
    j = np.arange(min(_FACTORS, int(smaller.max(initial=0))))
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = np.where(j < smaller[:, None], np.log1p(-larger[:, None] / (n - j)), 0.0)
        c = np.minimum(c, n - k - 1.0)
        a, b, rest = n - c, n - float(k), n - c - k
        series = (a + 0.5) * np.log1p(-c / n) + (b + 0.5) * np.log1p(-k / n) - (rest + 0.5) * np.log1p(-(c + k) / n)
        series += (1 / a + 1 / np.maximum(b, 1) - 1 / n - 1 / rest) / 12
    return np.where(smaller > _FACTORS, series, factors.sum(axis=1))


def estimator_variance(
    q: np.ndarray, n: int, k: int, explored: ArrayLike = 0.0, unknown: ArrayLike = 1.0
) -> np.ndarray:
    """Variance of `remainder_pass_at_k` from n rollouts of one problem, float64[m], at q float64[m], for k <= n.

    With the defaults, where p = q, it is that of `unbiased_pass_at_k`. Hoeffding's decomposition of the estimate has an
    uncorrelated part for each s = 1 .. k: C(k, s) unknown^s (1-p)^(k-s) times the mean, over all sets of s rollouts, of
    the product of their deviations from q. That mean has the variance (q (1-q))^s / C(n, s).
    """
    q, explored, unknown = np.clip(q, 0.0, 1.0), np.asarray(explored), np.asarray(unknown)
    s = np.arange(1, k + 1)
    # log C(k, s)^2/C(n, s), from ratios of neighbours: log factorials lack digits at large n.
    log_ways = np.cumsum(2 * np.log(k - s + 1) - np.log(s) - np.log(n - s + 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        log_miss = np.log1p(-(explored + unknown * q))
        log_deviation = np.log(q) + np.log1p(-q) + 2 * np.log(unknown)
    variance = np.zeros(len(q))
    for rows in _blocks(np.flatnonzero(np.isfinite(log_miss + log_deviation)), k):
        log_terms = log_ways + s * log_deviation[rows, None] + 2 * (k - s) * log_miss[rows, None]
        variance[rows] = np.exp(log_terms).sum(axis=1)
    return variance


def sampling_error(q: np.ndarray, n: int, k: int, explored: ArrayLike = 0.0, unknown: ArrayLike = 1.0) -> float:
    """The standard error of pass@k of these problems, estimated from n rollouts a problem (`estimator_variance`).

    With estimates c/n in place of q, problems with c = 0 or c = n seem to add none.
    """
    return math.sqrt(estimator_variance(q, n, k, explored, unknown).sum()) / len(q)


def cover_at(p: np.ndarray, taus: ArrayLike) -> np.ndarray:
    """Cover@tau, float64[T]: the share of problems with p_i >= tau. (pass@k at large k rewards rare luck.)"""
    return (p[:, None] >= np.asarray(taus)).mean(axis=0)


def polarisation(mean_p: np.ndarray, pass_at_k: np.ndarray, ks: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """J_k and the polarisation index from mean p [...] and pass@k [..., K]. At k = 1 the index, 0/0, is set to 0."""
    mean_p = np.asarray(mean_p)[..., None]
    ceiling = problem_pass_at_k(mean_p, ks)
    loss = np.maximum(ceiling - pass_at_k, 0.0)
    room = ceiling - mean_p
    return loss, np.divide(loss, room, out=np.zeros_like(loss), where=room > 1e-12)


def rho(p: np.ndarray) -> float:
    """Var(p) / (mean p (1 - mean p)); 0 when the mean is 0 or 1."""
    mean = float(p.mean())
    return float(p.var()) / (mean * (1 - mean)) if 0 < mean < 1 else 0.0


def log_choose(n: int, k: ArrayLike) -> np.ndarray:
    """log C(n, k), float64[...], to about 1e-16 n log n; -inf outside 0 .. n."""
    k = np.asarray(k)
    factorial = np.vectorize(math.lgamma, otypes=[float])
    inside = (k >= 0) & (k <= n)
    clipped = np.where(inside, k, 0)
    log = math.lgamma(n + 1) - factorial(clipped + 1.0) - factorial(n - clipped + 1.0)
    return np.where(inside, log, -np.inf)
