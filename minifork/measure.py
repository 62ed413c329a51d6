"""Measuring one model on one set of problems: the engines' answers, a check of them, and what happens at the fork."""

import itertools
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data_gen.task import PAD, Task
from minifork.decoding import policy, stratified
from minifork.decoding.exact import Below, Limits, exact, exact_below
from minifork.decoding.policy import Policy
from minifork.decoding.split import split
from minifork.decoding.stratified import Strata
from minifork.decoding.traces import EXACT, Result, TraceTree
from minifork.gpt import GPT, SEQUENCES
from minifork.gpu.backends import sample
from minifork.measuring import quantities
from minifork.measuring.problems import ProblemSet, over_prefixes
from minifork.settings import Eval
from minifork.statistics import agreement, intervals

SEED, CHECK_SEED = 0, 1  # the samples that check a result are not those that made it


@dataclass(frozen=True)
class Measurement:
    """What was measured: a record of plain values, arrays by name (see `measure`), the verdict of a check if any."""

    record: dict
    arrays: dict[str, np.ndarray]
    check: dict | None


class NotComputedError(ValueError):
    """p is needed itself, but the budget was too small to compute it."""


def measure(
    model: GPT, problems: ProblemSet, settings: Eval, training: ProblemSet | None, checked: bool
) -> Measurement:
    """pass@k of a model and what it is made of.

    training: problems whose trace passed the fork in fine-tuning, if any; checked: whether another engine checks the
    result. Arrays: p float64[n] as "free" and by forced mode, with "_lo" and "_hi" added its interval where it is not
    exact; "strata", p_ij float64[n, m]; "fork" and "fork_train", probabilities of the branches float64[n, d] on these
    and on training problems; "modes", those of the modes float64[n, modes]; "rest", the probability float64[n] of the
    rest of a trace given the right branch (graded by steps); on a task without a fork neither of the three. Raises
    NotComputedError, and ValueError for a policy that is none.
    """
    decoder = policy.parse_policy(settings.policy)
    tree = trace_tree(model, problems, decoder)
    below = compute(settings, tree, problems)
    if settings.stratify == "none":
        measured = measure_iid(settings, tree, problems, below, checked)
    else:
        measured = measure_stratified(settings, tree, problems, checked)
    record, arrays = measured.record | {"fork_train": None, "fork": None}, {}
    if problems.fork is not None:
        arrays["fork"] = _among_branches(problems, below["fork"].logits)
        if training is not None:
            arrays["fork_train"] = branch_probabilities(model, training)
        record |= {name: quantities.fork_statistics(p) for name, p in arrays.items()}
        record["fork"]["train_p_right"] = record["fork_train"] and record["fork_train"]["p_right"]
    if "rest" in below:
        rest = below["rest"].result
        arrays |= {"rest": over_prefixes(problems, rest.p_lo)} if rest.exact else {}
        record["fork"]["p_rest"] = float(arrays["rest"].mean()) if rest.exact else None
    arrays["modes"] = mode_probabilities(tree, problems)
    record["mode"] = quantities.mode_statistics(arrays["modes"], problems.task.mode_names)
    return Measurement(record, measured.arrays | arrays, measured.check)


def compute(settings: Eval, tree: TraceTree, problems: ProblemSet) -> dict[str, Below]:
    """What one enumeration says of the traces that begin with nothing ("free"), with each mode, with the tokens before
    the "fork", and with the right branch ("rest"), as far as an evaluation needs it and has the budget.

    Free traces and those in a mode are needed where p is computed, the rest where every step is graded.
    """
    prefixes = {}
    if settings.stratify == "none" and settings.engine in ("auto", "exact"):
        prefixes = {"free": tree.forced}
        prefixes |= {mode: force_mode(tree, problems.task, mode).forced for mode in problems.task.mode_names}
    if problems.fork is not None:
        fork, branches = problems.at_fork()
        prefixes["fork"] = fork
        if settings.grading == "steps":
            prefixes["rest"] = torch.cat([fork, branches[:, :1]], dim=1)
    return exact_below(tree, prefixes, Limits(settings.budget, width=EXACT)) if prefixes else {}


def _drawn_prefix(problems: ProblemSet, result: Result) -> Result:
    """What is known of the problems when every sample draws its prefix; raises NotComputedError where p was sampled."""
    if problems.prefixes == 1:
        return result
    if result.n is not None:
        raise NotComputedError("its p is an average over prefixes, for which eval.budget is too small; raise it")
    outcomes, unknown, tokens = (over_prefixes(problems, a) for a in (result.outcomes, result.unknown, result.tokens))
    return replace(result, outcomes=outcomes, unknown=unknown, tokens=tokens)


@torch.no_grad()
def trace_tree(model: GPT, problems: ProblemSet, policy: Policy) -> TraceTree:
    """The traces of a model on these problems; prompts are encoded here, once for all engines."""
    return TraceTree(
        model, model.prefill(problems.prompts), problems.dfa, len(problems.outcomes), problems.task.trace_len, policy
    )


def force_mode(tree: TraceTree, task: Task, mode: str) -> TraceTree:
    """The tree with the mode token forced."""
    return tree.force(torch.full((len(tree), 1), task.mode_token(mode), device=tree.dfa.device))


@torch.no_grad()
def branch_probabilities(model: GPT, problems: ProblemSet) -> np.ndarray:
    """float64[n, d]: the model's probability of each branch at the fork under forced FWD, right one first.

    Renormalised over the branches; the model's own, without a policy.
    """
    sequences = torch.cat([problems.prompts, problems.at_fork()[0]], dim=1)
    last = torch.arange(sequences.shape[1]) == sequences.shape[1] - 1
    parts = [model(part, last.expand(part.shape))[:, -1] for part in sequences.split(SEQUENCES)]
    return _among_branches(problems, torch.cat(parts))


def _among_branches(problems: ProblemSet, logits: Tensor) -> np.ndarray:
    """The probabilities float64[n, d] of the branches, from the model's logits [n, V] at the fork."""
    _, branches = problems.at_fork()
    at_branches = logits.double().gather(1, branches.clamp(min=0)).masked_fill(branches == PAD, -torch.inf)
    return over_prefixes(problems, torch.softmax(at_branches, dim=1).cpu().numpy())


def mode_probabilities(tree: TraceTree, problems: ProblemSet) -> np.ndarray:
    """float64[n, modes]: the model's probability of each mode, renormalised over them."""
    tokens = [problems.task.mode_token(mode) for mode in problems.task.mode_names]
    return over_prefixes(problems, torch.softmax(tree.prompts.logits[:, tokens].double(), dim=1).cpu().numpy())


def shortest_trace(problems: ProblemSet, mode: str) -> np.ndarray:
    """int64[n]: the tokens of the shortest trace of each problem that is right in this mode."""
    state = problems.dfa[:, 0, problems.task.mode_token(mode)].cpu()
    return 1 + problems.shortest.gather(1, state[:, None])[:: problems.prefixes, 0].numpy()


def measure_iid(
    settings: Eval, tree: TraceTree, problems: ProblemSet, below: dict[str, Below], checked: bool
) -> Measurement:
    """i.i.d. samples, free and with each mode forced: computed where that was asked for and done, else sampled."""
    task, ks = problems.task, powers_of_two(settings.max_k)
    trees = {"free": tree} | {mode: force_mode(tree, task, mode) for mode in task.mode_names}
    solved = {name: below[name].result if name in below else _sampled(settings, t) for name, t in trees.items()}
    if settings.engine == "auto":
        solved = {name: r if r.exact else _sampled(settings, trees[name]) for name, r in solved.items()}
    results = {mode: _drawn_prefix(problems, result) for mode, result in solved.items()}
    record = quantities.coverage(results["free"], ks)
    record["forced"] = {
        mode: quantities.coverage(results[mode], ks)
        | {"wasted": quantities.wasted(results[mode], shortest_trace(problems, mode))}
        for mode in task.mode_names
    }
    record["errors"] = quantities.errors(results["free"], problems.outcomes)
    p = {mode: result.p_lo for mode, result in results.items()}
    for mode, result in results.items():
        if not result.exact:
            p[f"{mode}_lo"], p[f"{mode}_hi"] = p_interval(result)
    # Rollouts in bf16 have p of their own, which no other engine can check.
    rounded = settings.bf16 and results["free"].engine == "rollout" and tree.dfa.is_cuda
    return Measurement(record, p, cross_check(settings, tree, solved["free"]) if checked and not rounded else None)


def _sampled(settings: Eval, tree: TraceTree) -> Result:
    """Where eval.rollouts traces a problem end, run one by one where that is asked for, else by splitting counts."""
    if settings.engine == "rollout":
        return sample(tree, settings.rollouts, SEED, bf16=settings.bf16)
    return split(tree, settings.rollouts, SEED)


def measure_stratified(settings: Eval, tree: TraceTree, problems: ProblemSet, checked: bool) -> Measurement:
    """Samples spread over the top tokens at the position that eval.stratify names, computed within eval.budget.

    hit_rate: the share of problems whose position of highest entropy is the fork; null where it is given or there is
    none. Raises ValueError for eval.stratify=fork on a task that declares none.
    """
    if problems.prefixes > 1:
        raise ValueError("sft.prefix: its p is averaged over prefixes; eval.stratify spreads over tokens instead")
    prefix, hit_rate = tree.dfa.new_zeros(len(tree), 0), None
    if settings.stratify == "fork":
        prefix, _ = problems.at_fork()
    length = torch.full((len(tree),), prefix.shape[1], device=prefix.device)
    if settings.stratify == "entropy":
        prefix, length = stratified.highest_entropy(tree)
        if problems.fork is not None:
            hit_rate = float(stratified.right_after(problems.fork, prefix, length).float().mean())
    result = stratified.stratify(tree, prefix, length, settings.strata, lambda t: exact(t, settings.budget))
    record = quantities.stratified_coverage(result, powers_of_two(settings.max_k))
    record |= {"forced": None, "errors": None, "hit_rate": hit_rate}
    verdict = _check_strata(settings, tree, result, prefix, length) if checked else None
    return Measurement(record, {"strata": result.p_lo}, verdict)


def _check_strata(settings: Eval, tree: TraceTree, result: Strata, prefix: Tensor, length: Tensor) -> dict:
    """As `cross_check`, of the p_ij of strata."""
    first, n = slice(0, settings.check_problems), settings.check_rollouts
    started, seeds = time.monotonic(), itertools.count(CHECK_SEED)  # one each, or strata would share their draws
    other = stratified.stratify(
        tree[first], prefix[first], length[first], settings.strata, lambda t: sample(t, n, next(seeds))
    )
    counts = np.rint(other.p_lo * n).astype(int).ravel()
    low, high = result.p_lo[first].ravel(), result.p_hi[first].ravel()
    p_value = _agree_with_bounds(counts, n, low, high, np.array_equal(low, high))
    return _verdict("exact", "rollout", p_value, len(counts), n, started)


def p_interval(result: Result) -> np.ndarray:
    """float64[2, B]: where p is not known exactly, its certified bounds, or the Jeffreys 95 % interval if sampled."""
    if result.n is None:
        return np.stack([result.p_lo, result.p_hi])
    return intervals.beta_interval(result.accepted, result.n)


def cross_check(settings: Eval, tree: TraceTree, result: Result) -> dict:
    """Test a result against samples of another engine on the first problems.

    Computed p: counts of rollouts follow them (randomised PIT). Sampled p: both samples have the same p
    (conditional randomised PIT), rollouts being checked by split and split by rollouts. Bounds: no
    problem's rollouts lie outside them.
    """
    count, n, started = settings.check_problems, settings.check_rollouts, time.monotonic()
    sampler = split if result.engine == "rollout" else sample
    other = sampler(tree[:count], n, CHECK_SEED)
    count = len(other.accepted)  # there may be fewer problems
    if result.n is None:
        low, high = result.p_lo[:count], result.p_hi[:count]
        p_value = _agree_with_bounds(other.accepted, n, low, high, result.exact)
    else:
        rng, first = np.random.default_rng(0), result.accepted[:count]
        p_value = agreement.uniform_p(agreement.two_sample_pit(other.accepted, n, first, result.n, rng))
    return _verdict(result.engine, other.engine, p_value, count, n, started)


def _agree_with_bounds(counts: np.ndarray, n: int, low: np.ndarray, high: np.ndarray, exact: bool) -> float:
    """The p-value of counts out of n given computed p, where these are exact, or given their bounds."""
    if exact:
        return agreement.uniform_p(agreement.randomised_pit(counts, n, low, np.random.default_rng(0)))
    return agreement.outside_p(counts, n, low, high)


def _verdict(engine: str, by: str, p_value: float, problems: int, n: int, started: float) -> dict:
    seconds = time.monotonic() - started
    return {"engine": engine, "by": by, "p_value": p_value, "problems": problems, "n": n, "seconds": seconds}


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... up to ``largest``."""
    return [2**i for i in range(largest.bit_length())]
