"""Cross-checks: a result of one engine is tested against samples of another one, on the first problems.

Each function returns {"engine", "by", "p_value", "problems", "n", "seconds"}: which engine is checked by which, the
p-value that both agree, the number of counts compared, the rollouts behind each, and the time it took.
"""

import itertools
import time

import numpy as np
from torch import Tensor

from minifork.decoding import stratified
from minifork.decoding.split import split
from minifork.decoding.stratified import Strata
from minifork.decoding.traces import Result, TraceTree
from minifork.gpu.backends import sample
from minifork.settings import Eval
from minifork.statistics import agreement

CHECK_SEED = 1  # `minifork.measure.SEED` is another one: samples that check a result did not make it


def check_result(settings: Eval, tree: TraceTree, result: Result) -> dict:
    """Test p of each problem. Rollouts are checked by split, all else by rollouts.

    If p was computed, the counts of the other engine must follow it (randomised PIT). If p is bounded, no count may
    contradict the bounds. If p was sampled, both samples must come from the same p (conditional randomised PIT). Where
    only the remainder was, counts of the whole are drawn from its counts and the explored probability.
    """
    started, n = time.monotonic(), settings.check_rollouts
    sampler = split if result.engine == "rollout" else sample
    second = sampler(tree[: settings.check_problems], n, CHECK_SEED)
    counts, first = second.accepted, slice(0, len(second.accepted))
    if result.n is None:
        p_value = _computed_p_value(counts, n, result.p_lo[first], result.p_hi[first], result.exact)
    else:
        rng, correct, size = np.random.default_rng(0), result.accepted[first], result.n
        if result.explored is not None:
            size, parts = min(size, 10**6), (result.p_lo[first], result.unknown[first])
            correct = agreement.whole_counts(correct, result.n, *parts, size, rng)
        p_value = agreement.uniform_p(agreement.two_sample_pit(counts, n, correct, size, rng))
    return _verdict(result.engine, second.engine, p_value, len(counts), n, started)


def check_strata(settings: Eval, tree: TraceTree, strata: Strata, prefix: Tensor, length: Tensor) -> dict:
    """Test p_ij of each problem and stratum, which `stratified.stratify` computed from prefix and length.

    Each stratum is sampled with a seed of its own: CHECK_SEED, CHECK_SEED + 1, ... With a common seed their counts
    would depend on each other.
    """
    started, n, first = time.monotonic(), settings.check_rollouts, slice(0, settings.check_problems)
    seeds = itertools.count(CHECK_SEED)

    def sample_stratum(stratum: TraceTree) -> Result:
        """n rollouts a problem with the next seed."""
        return sample(stratum, n, next(seeds))

    second = stratified.stratify(tree[first], prefix[first], length[first], settings.strata, sample_stratum)
    counts = np.rint(second.p_lo * n).astype(int).ravel()
    low, high = strata.p_lo[first].ravel(), strata.p_hi[first].ravel()
    p_value = _computed_p_value(counts, n, low, high, np.array_equal(low, high))
    return _verdict("exact", "rollout", p_value, len(counts), n, started)


def _computed_p_value(counts: np.ndarray, n: int, low: np.ndarray, high: np.ndarray, exact: bool) -> float:
    """The p-value of counts out of n, given p = low if it is exact, else given its bounds."""
    if exact:
        return agreement.uniform_p(agreement.randomised_pit(counts, n, low, np.random.default_rng(0)))
    return agreement.outside_p(counts, n, low, high)


def _verdict(engine: str, by: str, p_value: float, problems: int, n: int, started: float) -> dict:
    seconds = time.monotonic() - started
    return {"engine": engine, "by": by, "p_value": p_value, "problems": problems, "n": n, "seconds": seconds}
