"""Do two engines agree? Tests whose p-values are uniform if they do, at every p.

Two-sided binomial p-values are not uniform: on polarised p they fail correct code. The randomised probability integral
transform (PIT) is uniform exactly.
"""

import math

import numpy as np

from minifork.statistics.passk import log_choose


def randomised_pit(correct: np.ndarray, n: int, p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Randomised PIT float64[m]: uniform exactly if correct[i] ~ Binomial(n, p[i]).

    F(c - 1) + v (F(c) - F(c - 1)) with v uniform and F the distribution function. F sums only counts within twelve
    standard deviations plus 40 of the mean, as the other counts weigh less than 1e-30.
    """
    p = np.clip(p, 1e-300, 1 - 1e-16)
    reach = min(n, math.ceil(12 * math.sqrt(n * float((p * (1 - p)).max()))) + 40)
    c = np.rint(n * p).astype(np.int64)[:, None] + np.arange(-reach, reach + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])

    def mass(c: np.ndarray) -> np.ndarray:
        inside = np.clip(c, 0, n)
        log = log_factorial[n] - log_factorial[inside] - log_factorial[n - inside]
        log += inside * np.log(p)[:, None] + (n - inside) * np.log1p(-p)[:, None]
        return np.where(c == inside, np.exp(log), 0.0)

    below = np.where(c < correct[:, None], mass(c), 0.0).sum(axis=1)
    return np.clip(below + (1 - rng.random(len(correct))) * mass(correct[:, None])[:, 0], 0.0, 1.0)


def two_sample_pit(
    correct: np.ndarray, n: int, second: np.ndarray, n_second: int, rng: np.random.Generator
) -> np.ndarray:
    """Randomised PIT float64[m]: uniform exactly if both counts come from the same p[i], whatever it is.

    Given the sum of the two, correct[i] is hypergeometric (Fisher's exact test).
    """
    c, total, rows = np.arange(n + 1), (correct + second)[:, None], np.arange(len(correct))
    mass = np.exp(log_choose(n, c) + log_choose(n_second, total - c) - log_choose(n + n_second, total))
    upper = np.cumsum(mass, axis=1)[rows, correct]
    return np.clip(upper - rng.random(len(correct)) * mass[rows, correct], 0.0, 1.0)


def whole_counts(
    correct: np.ndarray, n: int, explored: np.ndarray, unknown: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Counts int64[m] ~ Binomial(size, explored + unknown q) from counts int64[m] ~ Binomial(n, q), for size <= n.

    A trace is in the unknown part with probability unknown [m], and explored and accepted with probability explored
    [m]. correct: accepted among n rollouts of the unknown part. Of ``size`` rollouts of whole traces, those that are in
    it are taken from the n without replacement.
    """
    inside = rng.binomial(size, np.clip(unknown, 0.0, 1.0))
    share = np.divide(explored, 1 - unknown, out=np.zeros(len(correct)), where=unknown < 1).clip(0.0, 1.0)
    accepted, failed = (np.minimum(counts, 10**9 - 1) for counts in (correct, n - correct))  # numpy takes no more
    return rng.binomial(size - inside, share) + rng.hypergeometric(accepted, failed, inside)


def outside_p(correct: np.ndarray, n: int, p_lo: np.ndarray, p_hi: np.ndarray) -> float:
    """p-value that every correct[i] ~ Binomial(n, p[i]) with p[i] inside its bounds; both tails, Bonferroni."""
    rows, c, smallest = np.arange(len(correct)), np.arange(n + 1), 1.0
    for bound, counts in ((p_hi, correct), (1 - p_lo, n - correct)):
        p = np.clip(bound, 1e-300, 1 - 1e-16)[:, None]
        mass = np.exp(log_choose(n, c) + c * np.log(p) + (n - c) * np.log1p(-p))
        tail = np.cumsum(mass[:, ::-1], axis=1)[rows, n - counts]
        smallest = min(smallest, float(tail.min()))
    return min(1.0, 2 * len(correct) * smallest)


def ks_uniform(u: np.ndarray) -> float:
    """p-value of the Kolmogorov-Smirnov test that u [m] is uniform on [0, 1] (Stephens 1970)."""
    m = len(u)
    u, grid = np.sort(u), np.arange(m)
    distance = max(((grid + 1) / m - u).max(), (u - grid / m).max())
    x = (math.sqrt(m) + 0.12 + 0.11 / math.sqrt(m)) * distance
    if x < 0.2:  # the p-value is 1 to 12 digits, and the series below would need more terms
        return 1.0
    j = np.arange(1, 101)
    return float(np.clip(2 * np.sum((-1.0) ** (j - 1) * np.exp(-2 * (j * x) ** 2)), 0.0, 1.0))


def uniform_p(u: np.ndarray) -> float:
    """p-value that u [m] is uniform, also against errors that push some problems up and others down.

    It is twice the smaller p-value of the KS tests of u and of u folded at 1/2.
    """
    return min(1.0, 2 * min(ks_uniform(u), ks_uniform(np.abs(2 * u - 1))))
