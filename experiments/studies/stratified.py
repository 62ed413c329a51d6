"""The share of what d independent samples miss that d stratified ones find: one on each of d tokens, at the fork or
elsewhere."""

import numpy as np
import torch
from torch import Tensor

from data_gen.task import PAD
from experiments.estimates import interval_text
from experiments.results import Results
from experiments.study import Plan
from minifork import measure
from minifork.decoding import policy, stratified
from minifork.decoding.traces import TraceTree
from minifork.evaluation.targets import problems_for
from minifork.models import pick_device
from minifork.statistics import intervals


def stratified_study(results: Results, plan: Plan) -> dict[str, tuple[np.ndarray, float]]:
    """`stratified_passes` of the last checkpoint of a run, after the pass@d of i.i.d. samples under the name iid.

    Empty where problems have no one d: without a fork, or of several sizes.
    """
    config, record = results.config, results.records_of(plan)[-1]
    device = pick_device(config)
    problems = problems_for(config, device)
    if problems.branches is None or (problems.branches == PAD).any():
        return {}
    model = results.runs[record["run"]].model(record["epoch"]).to(device)
    tree = measure.trace_tree(model, problems, policy.parse_policy(config.eval.policy), config.eval.max_tokens)
    iid = results.record_pass_at_k(record, problems.branches.shape[1])
    return {"iid": (iid, 0.0)} | stratified_passes(tree, *problems.at_fork())


def stratified_passes(tree: TraceTree, fork: Tensor, branches: Tensor) -> dict[str, tuple[np.ndarray, float]]:
    """pass@d float64[n] of samples dealt to d tokens at four places, and the share of problems where this place is the
    fork. The fork comes after the prefix ``fork`` int64[n, F] and has the branches int64[n, d]."""
    d = branches.shape[1]
    at_start = torch.zeros(len(tree), dtype=torch.int64, device=fork.device)
    at_fork = at_start + fork.shape[1]
    trace, place = stratified.highest_entropy(tree)
    hits = float(stratified.right_after(fork, trace, place).float().mean())

    def passes(prefix: Tensor, length: Tensor, tokens: int | Tensor) -> np.ndarray:
        return stratified.dealt_pass_at_k(stratified.stratify(tree, prefix, length, tokens).p_lo, [d])[:, 0]

    return {
        "the branches at the fork": (passes(fork, at_fork, branches), 1.0),
        "the model's top tokens at the fork": (passes(fork, at_fork, d), 1.0),
        "the top first tokens": (passes(fork, at_start, d), 0.0),
        "the top tokens where entropy is highest": (passes(trace, place, d), hits),
    }


def recovered_shares(rate: float, by_pair: list[dict[str, tuple[np.ndarray, float]]]) -> list[dict]:
    """The share of what i.i.d. samples miss that stratified ones find, (strat - iid) / (1 - iid) at pass@d.

    For every pair of seeds, and over pairs with its interval; by_pair: of every pair, from `stratified_study`.
    """
    if not all(by_pair):
        return []
    rows, iid = [], np.stack([places["iid"][0] for places in by_pair])
    for name in list(by_pair[0])[1:]:
        passes = np.stack([places[name][0] for places in by_pair])
        ends = intervals.share_interval(passes - iid, 1 - iid)
        means = list(zip(passes.mean(axis=1).tolist(), iid.mean(axis=1).tolist(), strict=True))
        rows.append(
            {
                "spread_over": name,
                "fork_rate": rate,
                "iid": [chance for _, chance in means],
                "stratified": [mean for mean, _ in means],
                "recovered": [(mean - chance) / (1 - chance) if chance < 1 else None for mean, chance in means],
                "ci95": None if ends is None else ends.tolist(),
                "hit_rate": float(np.mean([places[name][1] for places in by_pair])),
            }
        )
    return rows


def stratified_line(row: dict) -> str:
    """A row of `recovered_shares` as a line."""
    ends = "[no interval: too little is missed]" if row["ci95"] is None else interval_text(row["ci95"], "")
    by_pair = " ".join("-" if value is None else f"{value:.3f}" for value in row["recovered"])
    return (
        f"FORK_RATE {row['fork_rate']:g}, d samples spread over {row['spread_over']}: recovered {by_pair} {ends} of "
        f"what i.i.d. samples miss; this place is the fork in {row['hit_rate']:.0%} of problems"
    )
