"""Estimates over pairs of seeds: a mean with its 95 % interval, as data and as text."""

from collections.abc import Sequence

import numpy as np

from minifork.statistics import intervals

DRAWS = 1000  # bootstrap resamples behind every interval over pairs
KS = (1, 16, 64)  # the k at which studies give pass@k
LOST = 0.05  # if less than this was lost, there is nothing to recover


def with_interval(mean: float, draws: np.ndarray) -> dict:
    """A mean and the 95 % interval of its bootstrap draws float64[DRAWS]: {"mean": .., "ci95": [.., ..]}."""
    return {"mean": float(mean), "ci95": intervals.interval(draws).tolist()}


def mean_over_pairs(values: np.ndarray) -> dict:
    """The mean of values float64[pairs, n] with its 95 % interval, pairs and problems resampled."""
    return with_interval(values.mean(), intervals.hierarchical(values, DRAWS))


def interval_text(ends: Sequence[float], sign: str = "+") -> str:
    """An interval as [low, high], by default with signs."""
    low, high = ends
    return f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def signed(estimate: dict) -> str:
    """A mean and its interval, as differences are printed."""
    return f"{estimate['mean']:+.3f} {interval_text(estimate['ci95'])}"


def pairs_text(count: int) -> str:
    """How many pairs of seeds, in words."""
    return f"{count} pair{'s' * (count > 1)} of seeds"
