"""pass@k given FWD of a checkpoint: exact, and as the coverage law has it."""

from collections.abc import Sequence

import numpy as np

from experiments.results import Results
from minifork.measuring import quantities
from minifork.statistics import law as laws
from minifork.statistics.passk import problem_pass_at_k


def has_fork(record: dict) -> bool:
    """True if a record's traces meet a fork in FWD."""
    return bool(record["fork"]) and record["fork"].get("r") is not None


def symmetrised(branch: np.ndarray, r: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """The exact pass@k of every problem, float64[n, K], averaged over which branch is right (a fair coin).

    branch: the probabilities of the branches float64[n, d], 0 where a problem has fewer. r: float64[n].
    """
    passes = problem_pass_at_k(r[:, None, None] * branch[..., None], ks)  # [n, d, K]
    return passes.sum(axis=1) / (branch > 0).sum(axis=1)[:, None]


def exact_curve(results: Results, record: dict, ks: Sequence[int]) -> np.ndarray:
    """The mean of `symmetrised` over the problems of a record, float64[K]."""
    return symmetrised(results.array(record, "fork"), results.array(record, "r"), ks).mean(axis=0)


def law_curve(results: Results, record: dict, ks: Sequence[int]) -> tuple[np.ndarray, float] | None:
    """The law's pass@k, float64[K], and its sigma; None out of its scope.

    In scope r is at least MIN_R and all problems have equally many branches.
    """
    branch, r = results.array(record, "fork"), results.array(record, "r")
    if r.mean() < laws.MIN_R or not (branch > 0).all():
        return None
    sigma = float(quantities.sigma_values(branch).mean())
    return laws.law_pass_at_k(float(r.mean()), laws.path_points([sigma], branch.shape[1]), ks), sigma
