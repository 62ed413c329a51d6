"""What is said of one checkpoint: pure functions from engine results to plain dictionaries."""

from collections.abc import Iterable, Sequence

import numpy as np

from minifork.decoding import stratified
from minifork.decoding.stratified import Strata
from minifork.decoding.traces import Result
from minifork.statistics import intervals, passk

COUNTED = 5  # problems that a mean over some of them needs
TAUS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)


def coverage(result: Result, ks: Sequence[int]) -> dict:
    """pass@k and what it is made of, from one engine result.

    pass_at: computed where p is, with certified pass_at_lo and pass_at_hi (where these are not equal,
    pass_at is the lower one, and what depends on the mean p is null); the unbiased estimate, for k <= n only
    and without bounds, where p is sampled. ci95: the 95 % interval over problems.
    """
    p = result.p_lo
    if result.n is None:
        solved = passk.problem_pass_at_k(p[:, None], ks)
        low, high = (passk.pass_at_k(bound, ks) for bound in (result.p_lo, result.p_hi))
        rho = passk.rho(p)
    else:
        ks = [k for k in ks if k <= result.n]
        solved, low, high = unbiased(result.accepted, result.n, ks), None, None
        rho = float(passk.polarisation(p.mean(), unbiased(result.accepted, result.n, [2]).mean(axis=0), [2])[1][0])
    passed = solved.mean(axis=0)
    loss, index = passk.polarisation(p.mean(), passed, ks)
    determined = result.exact or result.n is not None
    return {
        "engine": result.engine,
        "n": result.n,
        "tokens": float(result.tokens.sum() / result.outcomes.sum()) if result.outcomes.any() else None,
        "pass_at": by_k(ks, passed),
        "pass_at_lo": None if low is None else by_k(ks, low),
        "pass_at_hi": None if high is None else by_k(ks, high),
        "ci95": ci95(ks, solved),
        "J": by_k(ks, loss) if determined else None,
        "index": by_k(ks, index) if determined else None,
        "rho": rho if determined else None,
        "cover_at": {f"{tau:g}": float(v) for tau, v in zip(TAUS, passk.cover_at(p, TAUS), strict=True)},
        "sampling_error": None if result.n is None else by_k(ks, [passk.sampling_error(p, result.n, k) for k in ks]),
    }


def wasted(result: Result, shortest: np.ndarray) -> float | None:
    """Tokens by which an accepted trace is longer than it had to be, averaged over accepted traces; None without any.

    shortest: int64[B], the tokens of the shortest accepted trace of each problem.
    """
    accepted = result.outcomes[:, 0]
    longer = max(0.0, float((result.tokens[:, 0] - accepted * shortest).sum()))  # never negative but for rounding
    return longer / float(accepted.sum()) if accepted.any() else None


def unbiased(accepted: np.ndarray, n: int, ks: Sequence[int]) -> np.ndarray:
    """The unbiased estimate of 1 - (1 - p_i)^k, float64[B, K], from the accepted traces int64[B] of n."""
    return np.stack([passk.unbiased(accepted, n, k) for k in ks], axis=1)


def stratified_coverage(result: Strata, ks: Sequence[int]) -> dict:
    """pass@k of a stratified decoder; what is defined for i.i.d. samples only is null."""
    low, high = (stratified.dealt_pass_at_k(p, ks) for p in (result.p_lo, result.p_hi))
    missing = dict.fromkeys(("tokens", "J", "index", "rho", "cover_at", "sampling_error"))
    return {
        "engine": "exact",
        "n": None,
        "pass_at": by_k(ks, low.mean(axis=0)),
        "pass_at_lo": by_k(ks, low.mean(axis=0)),
        "pass_at_hi": by_k(ks, high.mean(axis=0)),
        "ci95": ci95(ks, low),
        **missing,
    }


def by_k(ks: Iterable[int], values: Iterable[float]) -> dict[str, float]:
    """{"1": .., "2": .., ..}"""
    return {str(k): float(v) for k, v in zip(ks, values, strict=True)}


def ci95(ks: Sequence[int], solved: np.ndarray) -> dict[str, list[float]]:
    """The 95 % interval of pass@k at each k, from the problems' probabilities float64[n, K]."""
    return {str(k): intervals.probability_interval(p[None]).tolist() for k, p in zip(ks, solved.T, strict=True)}


def errors(result: Result, outcomes: Sequence[str]) -> dict[str, float]:
    """The share of each way to fail, averaged over problems; with pass@1 they sum to 1 where all is known."""
    return dict(zip(outcomes[1:], result.outcomes.mean(axis=0)[1:].tolist(), strict=True))


def fork_statistics(branch: np.ndarray) -> dict:
    """What a model does at the fork, from float64[n, d] with the right branch first; entropies in nats."""
    statistics = {}
    for name, (value, where) in fork_quantities(branch).items():
        statistics[name] = float(value[where].mean()) if where.any() else None
    return {**statistics, "n": len(branch)}


def fork_quantities(branch: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The per-problem values [n] behind each fork statistic, and the problems bool[n] it averages over."""
    top, right, everywhere = branch.max(axis=1), branch.argmax(axis=1) == 0, np.ones(len(branch), dtype=bool)
    return {
        "p_right": (branch[:, 0], everywhere),
        "accuracy": (right.astype(float), everywhere),
        "entropy": (entropy(branch), everywhere),
        "confidence_right": (top, right),
        "confidence_wrong": (top, ~right),
        "wrong_commit": ((branch[:, 0] < 0.05).astype(float), everywhere),
    }


def fork_values(branch: np.ndarray, quantity: str) -> np.ndarray:
    """A fork statistic of branch probabilities [n, d] as values or pseudo-values of every problem, float64[n].

    All are nan where fewer than COUNTED problems count, as an interval would say nothing.
    """
    value, where = fork_quantities(branch)[quantity]
    if where.sum() < COUNTED:
        return np.full(len(value), np.nan)
    if where.all():
        return value

    sums = np.stack([value * where, where.astype(float)])
    return intervals.pseudo_values(lambda means: means[:, 0] / means[:, 1], sums)


def index_values(p: np.ndarray, solved: np.ndarray, k: int) -> np.ndarray:
    """The polarisation index at k as pseudo-values of every problem, float64[n], from p and solve rates at k."""
    means = np.stack([p, solved])
    return intervals.pseudo_values(lambda m: passk.polarisation(m[:, 0], m[:, 1:], [k])[1][:, 0], means)


def mode_statistics(modes: np.ndarray, names: Sequence[str]) -> dict:
    """Mean probability of each mode, float64[n, modes], and the mean entropy (nats) of the choice."""
    mean = dict(zip(names, modes.mean(axis=0).tolist(), strict=True))
    return {"p_forward": mean.get("FWD"), "entropy": float(entropy(modes).mean()), "p": mean}


def entropy(p: np.ndarray) -> np.ndarray:
    """Entropy in nats of the last axis."""
    return -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)
