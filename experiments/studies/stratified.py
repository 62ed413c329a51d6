"""`make spread`: what samples gain that are spread over the top tokens of one position.

First, the share of what d independent samples miss that d stratified ones find: one on each of d tokens, at the fork or
elsewhere. Second, the decoder of arXiv 2605.17026, which spreads a pool of 64 samples over the top 8 first tokens. Its
first token is uniform over them, so part of its gain is had by i.i.d. samples whose first token is drawn so
(*flattening*). The rest is due to equal numbers (*spreading*). As the first token is the mode, most of 8 are wasted;
beside it stands the same decoder over as many first tokens as the task has modes.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data_gen.task import PAD
from experiments.estimates import KS, difference_over_pairs, interval_text, pairs_text, probability_over_pairs, signed
from experiments.results import Results, load_results, write_result
from experiments.studies.steps import evaluate_and_check, last_checkpoint, make_runs, print_minutes
from experiments.study import grouped
from minifork.decoding import stratified
from minifork.decoding.traces import TraceTree
from minifork.measuring.problems import ProblemSet
from minifork.schema import Config
from minifork.statistics import intervals, passk

POOL, FIRST_TOKENS = 64, 8  # of the decoder of arXiv 2605.17026: samples in its pool, first tokens they are spread over
MIN_GAIN = 0.05  # of a smaller gain no parts are told apart
Places = dict[str, tuple[np.ndarray, float]]  # pass@d float64[n] and a hit rate, by the place where samples are spread
Decoders = dict[int, dict[str, np.ndarray]]  # pass@k float64[n, K] by number of first tokens and decoder


def spread(config: Config) -> None:
    """Make the missing runs, measure each after its last step, print the rows, write runs/<task>/spread.json.

    Raises ValueError naming a run that failed.
    """
    with print_minutes("spread"):
        plans = make_runs(config, "spread")
        identities = {plan.identity for plan in plans}
        evaluate_and_check(config, lambda checkpoint: checkpoint.final and checkpoint.run.identity in identities)
        results = load_results(config)
        rows: dict[str, list[dict]] = {"stratified": [], "first_tokens": []}
        for rate, of_rate in grouped(plans, lambda plan: plan.config.sft.fork_rate).items():
            last = [last_checkpoint(results, plan) for plan in of_rate]
            rows["stratified"] += recovered_shares(rate, [branch_passes(results, *one) for one in last])
            rows["first_tokens"] += first_token_rows(rate, [first_token_passes(results, *one) for one in last])
        print(*map(stratified_line, rows["stratified"]), *map(first_token_line, rows["first_tokens"]), sep="\n")
        print(pairs_text(config.reproduce.pairs))
        write_result(config, "spread", rows)


def branch_passes(results: Results, record: dict, problems: ProblemSet, tree: TraceTree) -> Places:
    """`stratified_passes` of a checkpoint, after the pass@d of i.i.d. samples under the name iid.

    Empty where problems have no one d: without a fork, or of several sizes.
    """
    if problems.branches is None or (problems.branches == PAD).any():
        return {}
    iid = results.record_pass_at_k(record, problems.branches.shape[1])
    return {"iid": (iid, 0.0)} | stratified_passes(tree, *problems.at_fork())


def stratified_passes(tree: TraceTree, fork: Tensor, branches: Tensor) -> Places:
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


def recovered_shares(rate: float, by_pair: Sequence[Places]) -> list[dict]:
    """The share of what i.i.d. samples miss that stratified ones find, (strat - iid) / (1 - iid) at pass@d.

    For every pair of seeds, and over pairs with its interval; by_pair: of every pair, from `branch_passes`.
    """
    if not all(by_pair):
        return []
    rows, iid = [], np.stack([places["iid"][0] for places in by_pair])
    chances = iid.mean(axis=1).tolist()
    for name in list(by_pair[0])[1:]:
        passes = np.stack([places[name][0] for places in by_pair])
        means, ends = passes.mean(axis=1).tolist(), intervals.share_interval(passes - iid, 1 - iid)
        recovered = [(p - iid_p) / (1 - iid_p) if iid_p < 1 else None for p, iid_p in zip(means, chances, strict=True)]
        share = {"recovered": recovered, "ci95": None if ends is None else ends.tolist()}
        share |= {"hit_rate": float(np.mean([places[name][1] for places in by_pair]))}
        rows.append({"spread_over": name, "fork_rate": rate, "iid": chances, "stratified": means} | share)
    return rows


def stratified_line(row: dict) -> str:
    """A row of `recovered_shares` as a line."""
    ends = "[no interval: too little is missed]" if row["ci95"] is None else interval_text(row["ci95"], "")
    by_pair = " ".join("-" if value is None else f"{value:.3f}" for value in row["recovered"])
    return (
        f"FORK_RATE {row['fork_rate']:g}, d samples spread over {row['spread_over']}: recovered {by_pair} {ends} of "
        f"what i.i.d. samples miss; this place is the fork in {row['hit_rate']:.0%} of problems"
    )


# the decoder of arXiv 2605.17026


def first_token_passes(results: Results, record: dict, problems: ProblemSet, tree: TraceTree) -> Decoders:
    """pass@k of four decoders on a checkpoint, float64[n, K] at KS[1:], by number of first tokens.

    They are "iid"; "flattened", i.i.d. samples whose first token is uniform over the top ones; and samples spread over
    these, scored as k of a pool of POOL ("pooled") or dealt in turn ("dealt").
    """
    at_start, ks = torch.zeros(len(tree), dtype=torch.int64, device=tree.device), KS[1:]
    widest = min(FIRST_TOKENS, tree.model.vocab_size)
    p = stratified.stratify(tree, tree.forced[:, :0], at_start, widest).p_lo
    return {
        m: {
            "iid": results.record_pass_at_ks(record, ks).T,
            "flattened": passk.problem_pass_at_k(p[:, :m].mean(axis=1, keepdims=True), ks),
            "pooled": stratified.pooled_pass_at_k(p[:, :m], stratified.deal(POOL, m), ks),
            "dealt": stratified.dealt_pass_at_k(p[:, :m], ks),
        }
        for m in sorted({len(problems.task.mode_names), widest})
    }


def first_token_rows(rate: float, by_pair: Sequence[Decoders]) -> list[dict]:
    """The gain of spread samples over i.i.d. ones and the share of it that is flattening, over pairs, at every k.

    by_pair: of every pair, from `first_token_passes`. The share is null where the gain is below MIN_GAIN or may be 0.
    """
    rows = []
    for m, (i, k), scoring in itertools.product(by_pair[0], enumerate(KS[1:]), ("pooled", "dealt")):
        row: dict = {"fork_rate": rate, "first_tokens": m, "scoring": scoring, "k": k}
        passes = {name: np.stack([pair[m][name][:, i] for pair in by_pair]) for name in ("iid", "flattened", scoring)}
        iid, flattened, spread = passes.values()
        row |= {name: probability_over_pairs(values) for name, values in passes.items()}
        row |= {"gain": difference_over_pairs(spread, iid), "flattening": None}
        if row["gain"]["mean"] >= MIN_GAIN:
            ends = intervals.share_interval(flattened - iid, spread - iid)
            if ends is not None:
                share = float((flattened - iid).mean() / (spread - iid).mean())
                row["flattening"] = {"mean": share, "ci95": ends.tolist()}
        rows.append(row)
    return rows


def first_token_line(row: dict) -> str:
    """A row of `first_token_rows` as a line."""
    share, parts = row["flattening"], ""
    if share is not None:
        parts = f", of which flattening {share['mean']:.3f} {interval_text(share['ci95'], '')}"
    return (
        f"FORK_RATE {row['fork_rate']:g}, spread over the top {row['first_tokens']} first tokens, {row['scoring']}: "
        f"pass@{row['k']} {row[row['scoring']]['mean']:.3f}, gain over i.i.d. {signed(row['gain'])}{parts}"
    )
