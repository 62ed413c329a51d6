"""What samples spread over d tokens find that d independent ones miss, at the fork and where a decoder may guess."""

import numpy as np
import torch

from data_gen.task import PAD
from experiments.studies.gap import DRAWS
from minifork.decoding import stratified
from minifork.decoding.traces import Tree
from minifork.measuring.problems import ProblemSet
from minifork.statistics import intervals


def spread(tree: Tree, problems: ProblemSet, iid: np.ndarray) -> dict[str, tuple]:
    """Solve rates float64[n] at k = d of samples spread over d tokens at four places, with the share of problems where
    that place is the fork; beside those of d i.i.d. samples. Problems of several sizes have no one d: none."""
    fork, d = problems.fork, problems.branches.shape[1]
    if (problems.branches == PAD).any():
        return {}
    at_fork = torch.full((len(tree),), fork.shape[1], device=fork.device)
    trace, place = stratified.highest_entropy(tree)
    hits = stratified.right_after(fork, trace, place)
    ways = {
        "the branches at the fork": (fork, at_fork, problems.branches, 1.0),
        "the model's top tokens at the fork": (fork, at_fork, d, 1.0),
        "the top first tokens": (fork, torch.zeros_like(at_fork), d, 0.0),
        "the top tokens where entropy is highest": (trace, place, d, float(hits.float().mean())),
    }
    found = {
        name: (stratified.solve_rate(stratified.stratify(tree, prefix, length, m).p_lo, [d])[:, 0], hit)
        for name, (prefix, length, m, hit) in ways.items()
    }
    return {"iid": (iid, None), **found}


def recovered_shares(rate: float, spreads: list[dict[str, tuple]]) -> list[dict]:
    """The share of what i.i.d. samples miss that stratified ones find, (strat - iid) / (1 - iid) at pass@d, by pair of
    seeds and together with its interval."""
    if not all(spreads):
        return []
    iid = np.stack([one["iid"][0] for one in spreads])
    rows = []
    for name in [name for name in spreads[0] if name != "iid"]:
        found = np.stack([one[name][0] for one in spreads])
        draws = [intervals.hierarchical(values, DRAWS) for values in (found, iid)]  # of the same pairs and problems
        low, high = intervals.interval((draws[0] - draws[1]) / (1 - draws[1]))
        by_pair = (found - iid).mean(axis=1) / (1 - iid.mean(axis=1))
        rows.append(
            {
                "spread_over": name,
                "fork_rate": rate,
                "iid": iid.mean(axis=1).tolist(),
                "stratified": found.mean(axis=1).tolist(),
                "recovered": by_pair.tolist(),
                "ci95": [float(low), float(high)],
                "hit_rate": float(np.mean([one[name][1] for one in spreads])),
            }
        )
    return rows


def spread_line(row: dict) -> str:
    """A row of `recovered_shares` as a line."""
    recovered = " ".join(f"{value:.3f}" for value in row["recovered"])
    low, high = row["ci95"]
    return (
        f"r = {row['fork_rate']:g}, d samples spread over {row['spread_over']}: recovered {recovered} "
        f"[{low:.3f}, {high:.3f}] of what i.i.d. samples miss; at the fork in {row['hit_rate']:.0%} of problems"
    )
