"""The gap between a method and early stopping, the line to beat: pass@k at no less pass@1, with an interval.

The early-stopping curve goes from where a run started through its snapshots. Arrays of passes hold pass@1 first and
then one entry for every other k of KS, [.., 1 + K, ..].

The gap to the curve is biased. The curve is the best of noisy snapshots, so it lies too high and the gap too low. No
interval repairs that.
"""

import numpy as np

from experiments.estimates import KS, estimate_by_k, mean_over_pairs
from experiments.results import Results
from experiments.study import Plan
from minifork import runs
from minifork.statistics import intervals

BIAS = (
    "the gap to early stopping is biased downward: the curve is the best of noisy snapshots, and intervals ignore that"
)


def early_stopping_curve(results: Results, plan: Plan, mode: str | None) -> np.ndarray:
    """Passes float64[1 + snapshots, 1 + K, n] of every problem: where a run started, then every snapshot.

    Raises ValueError when the start or the run was not measured.
    """
    start, snapshots = results.parent_of(plan), results.records_of(plan)
    if not start or not snapshots:
        root = runs.task_folder(plan.config)
        raise ValueError(f"{root}: no {plan.name} of pair {plan.config.seed} to compare with; run the study again")
    return np.stack([results.record_pass_at_ks(record, KS, mode) for record in start + snapshots])


def early_stopping_gap(methods: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """float64[pairs, K]: pass@k of methods [pairs, 1 + K] above curves [pairs, snapshots, 1 + K] at no less pass@1.

    The curve runs from snapshot to snapshot. Of all places on it with at least the method's pass@1 the best counts.
    Beyond its largest pass@1 the snapshot with that pass@1 counts.
    """
    return np.array([method[1:] - _reach(curve, method[0]) for method, curve in zip(methods, curves, strict=True)])


def _reach(curve: np.ndarray, x: float) -> np.ndarray:
    """The largest pass@k float64[K] that a curve [snapshots, 1 + K] has at pass@1 >= x or where it crosses x."""
    ones, rest = curve[:, 0], curve[:, 1:]
    reached = [rest[ones.argmax()]] if x > ones.max() else list(rest[ones >= x])
    for i in range(len(ones) - 1):
        if (ones[i] - x) * (ones[i + 1] - x) < 0:
            share = (x - ones[i]) / (ones[i + 1] - ones[i])
            reached.append(rest[i] + share * (rest[i + 1] - rest[i]))
    return np.max(reached, axis=0)


def above_curve(methods: np.ndarray, curves: np.ndarray) -> dict[str, dict]:
    """The mean gap with its interval by k, from the passes of every problem: methods [pairs, 1 + K, n] above curves
    [pairs, snapshots, 1 + K, n]."""
    pseudo = np.stack([_pseudo_values(*pair) for pair in zip(methods, curves, strict=True)])
    return estimate_by_k(mean_over_pairs, pseudo.swapaxes(1, 2), ks=KS[1:])


def _pseudo_values(method: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """The gap of one pair as pseudo-values float64[n, K], from passes [1 + K, n] and [snapshots, 1 + K, n]."""
    entries, problems = method.shape

    def gap(means: np.ndarray) -> np.ndarray:
        return early_stopping_gap(means[:, :entries], means[:, entries:].reshape(len(means), -1, entries))

    return intervals.pseudo_values(gap, np.concatenate([method, curve.reshape(-1, problems)]))
