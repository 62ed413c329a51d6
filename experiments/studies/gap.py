"""How far a method lies above the early-stopping curve: pass@k at no less pass@1, with a bootstrap interval.

Arrays of solve rates hold pass@1 first and then one entry for every other k, [1 + K, ...].
"""

import numpy as np

from minifork.statistics import intervals

DRAWS = 1000  # bootstrap resamples behind every interval over pairs
LOST = 0.05  # less than this was not lost, so there is nothing to recover


def gap(method: np.ndarray, stopped: np.ndarray) -> np.ndarray:
    """float64[pairs, K]: pass@k of methods [pairs, 1 + K] above curves [pairs, snapshots, 1 + K] at no less pass@1.

    The curve runs from snapshot to snapshot. Of all places on it with at least the method's pass@1 the best counts, and
    beyond its largest pass@1 the snapshot that has it.
    """
    return np.array(
        [
            [row[1 + i] - _reach(line, row[0], i) for i in range(len(row) - 1)]
            for row, line in zip(method, stopped, strict=True)
        ]
    )


def _reach(line: np.ndarray, x: float, i: int) -> float:
    """The largest pass@k (the i-th after pass@1) that a curve [snapshots, 1 + K] has at pass@1 >= x or where it
    crosses x."""
    ones, many = line[:, 0], line[:, 1 + i]
    reached = [many[ones.argmax()]] if x > ones.max() else list(many[ones >= x])
    for a, b in zip(range(len(ones) - 1), range(1, len(ones)), strict=True):
        if (ones[a] - x) * (ones[b] - x) < 0:
            share = (x - ones[a]) / (ones[b] - ones[a])
            reached.append(many[a] + share * (many[b] - many[a]))
    return max(reached)


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
