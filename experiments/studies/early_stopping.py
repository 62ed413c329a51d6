"""Early stopping as the line to beat: how far a method lies above it, pass@k at no less pass@1, with an interval.

A curve runs from where a run started over its snapshots. Arrays of solve rates hold pass@1 first and then one entry
for every other k of KS, [.., 1 + K, ..].
"""

import numpy as np

from experiments.estimates import DRAWS, KS, with_interval
from experiments.results import Results
from experiments.study import Plan
from minifork import runs
from minifork.statistics import intervals


def curve(results: Results, plan: Plan, mode: str | None) -> np.ndarray:
    """Solve rates float64[1 + snapshots, 1 + K, n] of every problem: where a run started, then every snapshot.

    Raises ValueError when the start or the run was not measured.
    """
    start, snapshots = results.parent_of(plan), results.records_of(plan)
    if not start or not snapshots:
        root = runs.task_folder(plan.config)
        raise ValueError(f"{root}: no {plan.name} of pair {plan.config.seed} to compare with; run the study again")
    return np.stack([results.solve_rates(record, KS, mode) for record in start + snapshots])


def gap(method: np.ndarray, stopped: np.ndarray) -> np.ndarray:
    """float64[pairs, K]: pass@k of methods [pairs, 1 + K] above curves [pairs, snapshots, 1 + K] at no less pass@1.

    The curve runs from snapshot to snapshot. Of all places on it with at least the method's pass@1 the best counts, and
    beyond its largest pass@1 the snapshot that has it.
    """
    return np.array([row[1:] - _reach(line, row[0]) for row, line in zip(method, stopped, strict=True)])


def _reach(line: np.ndarray, x: float) -> np.ndarray:
    """The largest pass@k float64[K] that a curve [snapshots, 1 + K] has at pass@1 >= x or where it crosses x."""
    ones, many = line[:, 0], line[:, 1:]
    reached = [many[ones.argmax()]] if x > ones.max() else list(many[ones >= x])
    for i in range(len(ones) - 1):
        if (ones[i] - x) * (ones[i + 1] - x) < 0:
            share = (x - ones[i]) / (ones[i + 1] - ones[i])
            reached.append(many[i] + share * (many[i + 1] - many[i]))
    return np.max(reached, axis=0)


def gap_draws(solved: np.ndarray, stopped: np.ndarray) -> np.ndarray:
    """Bootstrap draws float64[DRAWS, K] of the mean gap, from solve rates of every problem: methods
    [pairs, 1 + K, n] above curves [pairs, snapshots, 1 + K, n].

    Pairs and problems are resampled independently (`intervals.hierarchical`).
    """
    weights = intervals.resamples(solved.shape[2], DRAWS)
    of_pairs = intervals.pair_resamples(len(solved), DRAWS, 1)
    method = np.einsum("dn,pkn->dpk", weights, solved)
    lines = np.einsum("dn,pskn->dpsk", weights, stopped)
    return np.stack([of_pairs[d] @ gap(method[d], lines[d]) for d in range(DRAWS)])


def above_curve(solved: np.ndarray, stopped: np.ndarray) -> dict[str, dict]:
    """The mean gap with its interval by k, from solve rates as in `gap_draws`."""
    mean, draws = gap(solved.mean(axis=2), stopped.mean(axis=3)).mean(axis=0), gap_draws(solved, stopped)
    return {str(k): with_interval(mean[i], draws[:, i]) for i, k in enumerate(KS[1:])}
