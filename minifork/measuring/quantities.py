"""The statistics of one checkpoint: pure functions from engine results to plain dictionaries."""

from collections.abc import Iterable, Sequence

import numpy as np

from minifork.decoding import stratified
from minifork.decoding.stratified import Strata
from minifork.decoding.traces import Result
from minifork.statistics import intervals, passk

MIN_PROBLEMS = 5  # fewest problems for a mean over a part of them, such as confidence_wrong
TAUS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)


def pass_statistics(result: Result, ks: Sequence[int]) -> dict:
    """pass@k, its ceiling's losses, and the spread of p, from one engine result.

    pass_at: if p was computed, the certified lower bound. pass_at_lo and pass_at_hi are both bounds. If these differ,
    J, index and rho are null, because they need the mean p. If p was sampled, pass_at is the unbiased estimate, for
    k <= n only; it has no bounds unless the engine is remainder. ci95: the 95 % interval over problems.
    """
    p, n, low, high, errors = result.p, result.n, None, None, None
    if result.certified:
        low, high = (by_k(ks, passk.pass_at_k(bound, ks)) for bound in (result.p_lo, result.p_hi))
    if n is None:
        per_problem = passk.problem_pass_at_k(p[:, None], ks)
        rho = passk.rho(p)
    else:
        ks = [k for k in ks if k <= n]
        per_problem = _estimates(result, ks)
        rho = float(passk.polarisation(p.mean(), _estimates(result, [2]).mean(axis=0), [2])[1][0])
        errors = by_k(ks, [sampling_error(result, result.accepted / n, k) for k in ks])
    pass_at_k = per_problem.mean(axis=0)
    loss, index = passk.polarisation(p.mean(), pass_at_k, ks)
    mean_known = result.exact or n is not None
    return {
        "engine": result.engine,
        "n": n,
        "tokens": float(result.tokens.sum() / result.outcomes.sum()) if result.outcomes.any() else None,
        "pass_at": by_k(ks, pass_at_k),
        "pass_at_lo": low,
        "pass_at_hi": high,
        "ci95": ci95(ks, per_problem),
        "J": by_k(ks, loss) if mean_known else None,
        "index": by_k(ks, index) if mean_known else None,
        "rho": rho if mean_known else None,
        "cover_at": {f"{tau:g}": float(share) for tau, share in zip(TAUS, passk.cover_at(p, TAUS), strict=True)},
        "sampling_error": errors,
    }


def _estimates(result: Result, ks: Sequence[int]) -> np.ndarray:
    """The unbiased estimate of 1 - (1 - p_i)^k, float64[n, K], from sampled traces."""
    n, correct = result.n, result.accepted
    assert n is not None
    if result.explored is None:
        return np.stack([passk.unbiased_pass_at_k(correct, n, k) for k in ks], axis=1)
    return np.stack([passk.remainder_pass_at_k(correct, n, k, result.p_lo, result.unknown) for k in ks], axis=1)


def sampling_error(result: Result, q: np.ndarray, k: int) -> float:
    """The standard error of the estimated pass@k of a sampled result, if its rollouts are accepted at q float64[n]."""
    assert result.n is not None
    parts = (0.0, 1.0) if result.explored is None else (result.p_lo, result.unknown)
    return passk.sampling_error(q, result.n, k, *parts)


def p_interval(result: Result) -> np.ndarray:
    """float64[2, n]: the certified bounds of each p, or its Jeffreys 95 % interval if all was sampled."""
    if result.certified:
        return np.stack([result.p_lo, result.p_hi])
    assert result.n is not None
    return intervals.beta_interval(result.accepted, result.n)


def wasted(result: Result, shortest: np.ndarray) -> float | None:
    """Tokens by which an accepted trace is longer than it had to be, averaged over accepted traces; None without any.

    shortest: int64[n], the tokens of the shortest accepted trace of each problem.
    """
    accepted = result.outcomes[:, 0]
    longer = max(0.0, float((result.tokens[:, 0] - accepted * shortest).sum()))  # rounding may give less than 0
    return longer / float(accepted.sum()) if accepted.any() else None


def stratified_coverage(strata: Strata, ks: Sequence[int], pool: int) -> dict:
    """pass@k of a stratified decoder, scored as eval.pool says. Keys defined for i.i.d. samples only are null."""

    def passes(p: np.ndarray) -> np.ndarray:
        if pool == 0:
            return stratified.dealt_pass_at_k(p, ks)
        return stratified.pooled_pass_at_k(p, stratified.deal(pool, p.shape[1]), ks)

    per_problem, highest = passes(strata.p_lo), passes(strata.p_hi)
    return {
        "engine": "exact",
        "n": None,
        "pass_at": by_k(ks, per_problem.mean(axis=0)),
        "pass_at_lo": by_k(ks, per_problem.mean(axis=0)),
        "pass_at_hi": by_k(ks, highest.mean(axis=0)),
        "ci95": ci95(ks, per_problem),
        **dict.fromkeys(("tokens", "J", "index", "rho", "cover_at", "sampling_error")),
    }


def by_k(ks: Iterable[int], values: Iterable[float]) -> dict[str, float]:
    """The values of each k as a record stores them: {"1": .., "2": .., "4": ..}."""
    return {str(k): float(v) for k, v in zip(ks, values, strict=True)}


def ci95(ks: Sequence[int], per_problem: np.ndarray) -> dict[str, list[float]]:
    """The 95 % interval of pass@k at each k, from 1 - (1 - p_i)^k of the problems, float64[n, K]."""
    ends = [intervals.probability_interval(column[None]).tolist() for column in per_problem.T]
    return dict(zip(map(str, ks), ends, strict=True))


def errors(result: Result, outcomes: Sequence[str]) -> dict[str, float]:
    """The share of each way to fail, averaged over problems. With pass@1 they sum to 1 if every p is exact."""
    return dict(zip(outcomes[1:], result.outcomes.mean(axis=0)[1:].tolist(), strict=True))


def fork_statistics(branch: np.ndarray, r: np.ndarray | None) -> dict:
    """Statistics of a model at the fork, from float64[n, d] with the right branch first; entropies in nats.

    sigma, kurtosis: the standard deviation and the kurtosis (3 if normal) over problems of `branch_logit`, root mean
    square and mean over the wrong branches; null if problems differ in their number of branches. r: float64[n] as in
    `minifork.measure.skill_arrays`, or None; the statistics have its mean and its correlation with the branch logit.
    """
    values = {name: value[~np.isnan(value)] for name, value in fork_quantities(branch).items()}
    statistics: dict = {name: float(value.mean()) if len(value) else None for name, value in values.items()}
    statistics |= dict.fromkeys(("sigma", "kurtosis", "r", "corr_r")) | {"n": len(branch)}
    if (z := branch_logit(branch)) is not None:
        centred = z - z.mean(axis=0)
        variance = (centred**2).mean(axis=0)
        statistics["sigma"] = float(np.sqrt(variance.mean()))
        statistics["kurtosis"] = float(((centred**4).mean(axis=0) / variance**2).mean()) if variance.all() else None
    if r is not None:
        statistics["r"] = float(r.mean())
        if z is not None and len(r) > 1 and r.std() > 0 < variance.min():
            statistics["corr_r"] = float(np.corrcoef(r, z.mean(axis=1))[0, 1])
    return statistics


def branch_logit(branch: np.ndarray) -> np.ndarray | None:
    """log p(right) - log p(wrong) float64[n, d - 1] of every wrong branch; None if problems differ in d."""
    if branch.shape[1] < 2 or branch.min() == 0:
        return None
    return np.log(branch[:, :1]) - np.log(branch[:, 1:])


def sigma_values(branch: np.ndarray) -> np.ndarray:
    """sigma, as in `fork_statistics`, as pseudo-values of every problem, float64[n].

    Raises ValueError if problems differ in their number of branches.
    """
    z = branch_logit(branch)
    if z is None:
        raise ValueError("sigma needs forks with equally many branches, two or more")
    count = z.shape[1]

    def sigma(means: np.ndarray) -> np.ndarray:
        variance = means[:, count:] - means[:, :count] ** 2
        return np.sqrt(np.maximum(variance, 0).mean(axis=1))

    return intervals.pseudo_values(sigma, np.concatenate([z, z**2], axis=1).T)


def kurtosis_values(branch: np.ndarray) -> np.ndarray:
    """The kurtosis, as in `fork_statistics`, as pseudo-values of every problem, float64[n]."""
    z = branch_logit(branch)
    if z is None:
        raise ValueError("kurtosis needs forks with equally many branches, two or more")
    moments = np.stack([z**power for power in (1, 2, 3, 4)])  # [4, n, d - 1]

    def kurtosis(means: np.ndarray) -> np.ndarray:
        m1, m2, m3, m4 = means.reshape(len(means), 4, -1).transpose(1, 0, 2)
        fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
        return (fourth / (m2 - m1**2) ** 2).mean(axis=1)

    return intervals.pseudo_values(kurtosis, moments.transpose(0, 2, 1).reshape(-1, len(z)))


def fork_quantities(branch: np.ndarray) -> dict[str, np.ndarray]:
    """The values float64[n] whose means are the fork statistics; nan for problems that a mean leaves out."""
    largest, right = branch.max(axis=1), branch.argmax(axis=1) == 0
    return {
        "p_right": branch[:, 0],
        "accuracy": right.astype(float),
        "entropy": entropy(branch),
        "confidence_right": np.where(right, largest, np.nan),
        "confidence_wrong": np.where(right, np.nan, largest),
        "wrong_commit": (branch[:, 0] < 0.05).astype(float),
    }


def fork_values(branch: np.ndarray, quantity: str) -> np.ndarray:
    """A fork statistic of branch probabilities [n, d] as values or pseudo-values of every problem, float64[n].

    All are nan if its mean is over fewer than MIN_PROBLEMS problems, too few for an interval.
    """
    value = fork_quantities(branch)[quantity]
    present = ~np.isnan(value)
    if present.sum() < MIN_PROBLEMS:
        return np.full(len(value), np.nan)
    if present.all():
        return value
    sums = np.stack([np.where(present, value, 0.0), present.astype(float)])
    return intervals.pseudo_values(lambda means: means[:, 0] / means[:, 1], sums)


def index_values(p: np.ndarray, per_problem: np.ndarray, k: int) -> np.ndarray:
    """The polarisation index at k as pseudo-values of every problem, float64[n], from p_i and 1 - (1 - p_i)^k."""
    values = np.stack([p, per_problem])
    return intervals.pseudo_values(lambda means: passk.polarisation(means[:, 0], means[:, 1:], [k])[1][:, 0], values)


def mode_statistics(modes: np.ndarray, names: Sequence[str]) -> dict:
    """Mean probability of each mode, from float64[n, modes], and the mean entropy (nats) of the choice."""
    mean = dict(zip(names, modes.mean(axis=0).tolist(), strict=True))
    return {"p_forward": mean.get("FWD"), "entropy": float(entropy(modes).mean()), "p": mean}


def entropy(p: np.ndarray) -> np.ndarray:
    """Entropy in nats of the last axis."""
    return -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)
