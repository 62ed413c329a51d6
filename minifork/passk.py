"""pass@k and what it is made of.

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


def solve_rate(p: ArrayLike, k: ArrayLike) -> np.ndarray:
    """1 - (1 - p)^k in fp64, stable for p near 0 and 1; p and k broadcast against each other."""
    p = np.clip(np.asarray(p, dtype=np.float64), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return -np.expm1(np.asarray(k, dtype=np.float64) * np.log1p(-p))


def pass_at_k(p: np.ndarray, ks: ArrayLike) -> np.ndarray:
    """pass@k for each of ks, float64[K], from per-problem probabilities float64[n]."""
    return solve_rate(p[:, None], ks).mean(axis=0)


def unbiased(correct: ArrayLike, n: int, k: int) -> np.ndarray:
    """The unbiased estimator 1 - C(n-c, k)/C(n, k) of Chen et al. (2021), float64, one value a problem.

    correct: int[...], accepted rollouts out of n. Raises ValueError for k outside 1..n, where the
    estimator does not exist, and for counts outside 0..n.
    """
    correct = np.asarray(correct)
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}: with n = {n} rollouts pass@k can be estimated for k = 1 .. {n}")
    if ((correct < 0) | (correct > n)).any():
        raise ValueError(f"correct has counts outside 0 .. n = {n}")
    # C(n-c, k)/C(n, k) is the product over j < c of (n-k-j)/(n-j): c factors, no large numbers to cancel
    most = min(int(correct.max(initial=0)), n - k)
    log_miss = np.concatenate([[0.0], np.cumsum(np.log1p(-k / (n - np.arange(most))))])
    return np.where(n - correct < k, 1.0, -np.expm1(log_miss[np.minimum(correct, most)]))


def resamples(n: int, count: int, seed: int = 0) -> np.ndarray:
    """Bootstrap weights float64[count, n]: each row resamples n problems, as shares that sum to 1.

    Used for every run on the same problems, the weights make all comparisons between runs paired.
    """
    rng = np.random.default_rng([seed, n, count])
    return rng.multinomial(n, np.full(n, 1 / n), size=count) / n


def interval(draws: np.ndarray, level: float = 0.95) -> np.ndarray:
    """The percentile interval of bootstrap draws float64[count, ...], float64[2, ...]."""
    return np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)


def polarisation(mean_p: np.ndarray, passed: np.ndarray, ks: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """J_k and the polarisation index from mean p [...] and pass@k [..., K]; the index is 0/0 = 0 at k = 1."""
    mean_p = np.asarray(mean_p)[..., None]
    ceiling = solve_rate(mean_p, ks)
    loss = np.maximum(ceiling - passed, 0.0)
    room = ceiling - mean_p
    return loss, np.divide(loss, room, out=np.zeros_like(loss), where=room > 1e-12)


def rho(p: np.ndarray) -> float:
    """Var(p) / (mean p (1 - mean p)); 0 when the mean is 0 or 1."""
    mean = float(p.mean())
    return float(p.var()) / (mean * (1 - mean)) if 0 < mean < 1 else 0.0


def randomised_pit(correct: np.ndarray, n: int, p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Randomised probability integral transform, float64[m]: uniform exactly if correct ~ Binomial(n, p).

    F(c - 1) + v (F(c) - F(c - 1)) with v uniform, F the binomial distribution function. Unlike two-sided
    p-values it is uniform at every p, also for polarised ones.
    """
    c = np.arange(n + 1)
    log_choose = math.lgamma(n + 1) - np.array([math.lgamma(i + 1) + math.lgamma(n - i + 1) for i in c])
    p = np.clip(p, 1e-300, 1 - 1e-16)[:, None]
    mass = np.exp(log_choose + c * np.log(p) + (n - c) * np.log1p(-p))
    upper = np.cumsum(mass, axis=1)[np.arange(len(correct)), correct]
    return np.clip(upper - rng.random(len(correct)) * mass[np.arange(len(correct)), correct], 0.0, 1.0)


def ks_uniform(u: np.ndarray) -> float:
    """p-value of the Kolmogorov-Smirnov test that u [m] is uniform on [0, 1] (Stephens 1970)."""
    m = len(u)
    u, grid = np.sort(u), np.arange(m)
    distance = max(((grid + 1) / m - u).max(), (u - grid / m).max())
    x = (math.sqrt(m) + 0.12 + 0.11 / math.sqrt(m)) * distance
    if x < 0.2:  # the series below needs ever more terms there, and the p-value is 1 to 12 digits
        return 1.0
    j = np.arange(1, 101)
    return float(np.clip(2 * np.sum((-1.0) ** (j - 1) * np.exp(-2 * (j * x) ** 2)), 0.0, 1.0))
