"""Measures one model on one set of problems: pass@k, outcomes of its traces, probabilities at the fork.

`measure` computes a *measurement*: all numbers of one model under the settings of eval. An *evaluation*
(`minifork.evaluate`) is the measurement of one checkpoint, kept with its run. To force a mode is to force one of the
task's ``first_tokens``. If traces do not write their mode, these are other tokens, such as openers.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from data_gen.task import PAD, Task
from minifork.decoding import policy, stratified
from minifork.decoding.automata import Tables
from minifork.decoding.exact import Limits, PrefixResult, exact, exact_by_prefix
from minifork.decoding.policy import Policy
from minifork.decoding.remainder import sample_remainder
from minifork.decoding.split import split
from minifork.decoding.traces import EXACT, Result, TraceTree
from minifork.gpt import GPT, PREFILL_BATCH
from minifork.gpu.backends import sample
from minifork.measuring import quantities
from minifork.measuring.cross_check import check_result, check_strata
from minifork.measuring.problems import ProblemSet, branch_shares, mean_over_integers
from minifork.settings import Eval

SEED = 0


@dataclass(frozen=True)
class Measurement:
    """A record of plain values, arrays by name (see `measure`), and the verdict of the cross-check, if any."""

    record: dict
    arrays: dict[str, np.ndarray]
    check: dict | None


class NotComputedError(ValueError):
    """An error: p itself is needed, but eval.budget is too small to compute it."""


def measure(
    model: GPT, problems: ProblemSet, settings: Eval, training: ProblemSet | None, checked: bool
) -> Measurement:
    """The measurement of a model on problems.

    training: problems whose trace passed the fork in fine-tuning, if any. checked: if True, another engine checks the
    result. The record joins what `measure_iid` or `measure_stratified`, `measure_fork` and `mode_statistics` give.
    Arrays, one row a problem:

        "free", one a mode    float64[n], p of free traces and of those with the mode forced; "_lo" and "_hi" added to
                              the name: the interval of p if it is not exact; certified unless all was sampled
        "strata"              float64[n, m], p_ij of a stratified decoder, instead of these
        "skill"               float64[n], p of free traces without the luck of the branch (see `skill_arrays`)
        "r"                   float64[n], the same given FWD: the probability of all but the choice of branch
        "fork", "fork_train"  float64[n, d], probabilities of the branches, here and on training problems
        "r_train"             float64[n], "r" on training problems
        "rest"                float64[n], probability of the rest of a trace after the right branch (graded by steps)
        "modes"               float64[n, modes], probabilities of the modes

    A task without a fork has neither "r", "fork", "fork_train" nor "rest". Raises NotComputedError, and ValueError for
    text that is no policy.
    """
    tree = trace_tree(model, problems, policy.parse_policy(settings.policy), settings.max_tokens)
    answers = enumerate_traces(settings, tree, problems)
    if settings.stratify == "none":
        samples = measure_iid(settings, tree, problems, answers, checked)
    else:
        samples = measure_stratified(settings, tree, problems, checked)
    fork, fork_arrays = measure_fork(settings, tree, problems, answers, training, samples.arrays.get("r"))
    modes = mode_probabilities(tree, problems)
    record = samples.record | fork | {"mode": quantities.mode_statistics(modes, [*problems.task.first_tokens])}
    return Measurement(record, samples.arrays | fork_arrays | {"modes": modes}, samples.check)


def enumerate_traces(settings: Eval, tree: TraceTree, problems: ProblemSet) -> dict[str, PrefixResult]:
    """The exact results of the prefixes that the settings need, and the logits after each, by the prefix's name.

    "free" is the empty prefix. It and the modes are enumerated if eval.engine is auto or exact. "fork" is the trace up
    to the fork, and "rest" adds the right branch, if every step is graded. These two are enumerated even if eval.engine
    is rollout or split. If eval.budget does not suffice, results are bounds.
    """
    prefixes = fork_prefixes(settings, problems)
    if settings.stratify == "none" and settings.engine in ("auto", "exact"):
        prefixes |= {name: mode_tree.forced for name, mode_tree in _trees_by_mode(tree, problems.task).items()}
    return exact_by_prefix(tree, prefixes, Limits(settings.budget, width=EXACT)) if prefixes else {}


def fork_prefixes(settings: Eval, problems: ProblemSet) -> dict[str, Tensor]:
    """The prefixes "fork" and "rest" int64[n, F] of `enumerate_traces`; none for a task without a fork."""
    if problems.fork is None:
        return {}
    fork, branches = problems.at_fork()
    return {"fork": fork} | ({"rest": torch.cat([fork, branches[:, :1]], dim=1)} if settings.grading == "steps" else {})


def measure_iid(
    settings: Eval, tree: TraceTree, problems: ProblemSet, answers: dict[str, PrefixResult], checked: bool
) -> Measurement:
    """pass@k of i.i.d. samples, free and with each mode forced.

    record: the keys of `quantities.pass_statistics` for free traces, "forced", "errors", and the means "skill" and "r".
    """
    ks, trees = powers_of_two(settings.max_k), _trees_by_mode(tree, problems.task)
    by_row = {name: _result(settings, mode_tree, answers.get(name)) for name, mode_tree in trees.items()}
    results = {name: _average_over_integers(problems, result) for name, result in by_row.items()}
    record = quantities.pass_statistics(results["free"], ks) | {"forced": {}}
    for mode in problems.task.first_tokens:
        wasted = quantities.wasted(results[mode], problems.shortest_trace(mode))
        record["forced"][mode] = quantities.pass_statistics(results[mode], ks) | {"wasted": wasted}
    record["errors"] = quantities.errors(results["free"], problems.outcome_names)
    arrays = {name: result.p for name, result in results.items()}
    for name, result in results.items():
        if not result.exact:
            arrays[f"{name}_lo"], arrays[f"{name}_hi"] = quantities.p_interval(result)
    skill = skill_arrays(settings, tree, problems, answers, arrays["free"])
    arrays |= skill
    record |= {name: float(skill[name].mean()) if name in skill else None for name in ("skill", "r")}
    # Rollouts in bf16 have p of their own, which no other engine can check.
    in_bf16 = settings.bf16 and by_row["free"].engine == "rollout" and tree.device.type == "cuda"
    check = check_result(settings, tree, by_row["free"]) if checked and not in_bf16 else None
    return Measurement(record, arrays, check)


def skill_arrays(
    settings: Eval, tree: TraceTree, problems: ProblemSet, answers: dict[str, PrefixResult], free: np.ndarray
) -> dict[str, np.ndarray]:
    """The *skill* of every problem under the policy: p of free traces as if a fork's branch were guessed evenly.

    Where nothing tells which of d branches is right, p holds luck. A trace in the mode that meets the fork is accepted
    with the probability r x P(right branch | a branch). r is the probability of all but the choice: of the prefix after
    the mode, of any branch token, and of the rest after the right one. The skill has r / d in its place. free:
    float64[n], p of free traces. Without a fork the skill is p, and there is no "r"; likewise if only answers are
    graded. Both are missing if eval.budget is too small to compute the rest.
    """
    if "rest" not in answers or not settings.forked:
        return {"skill": free}
    if not answers["rest"].result.exact:
        return {}
    r, luck = r_and_luck(tree, problems, answers)
    return {"skill": free - luck, "r": r}


def r_and_luck(
    tree: TraceTree, problems: ProblemSet, answers: dict[str, PrefixResult]
) -> tuple[np.ndarray, np.ndarray]:
    """r, and what p of free traces has more than if the branch were guessed evenly, float64[n] each.

    answers: with "fork" and an exact "rest".
    """
    _, branches = problems.at_fork()
    problem = torch.arange(len(tree), device=branches.device)
    p = torch.softmax(tree.policy_logits(answers["fork"].logits, problem).double(), dim=1)
    is_branch = branches != PAD
    any_branch = p.gather(1, branches.clamp(min=0)).mul(is_branch).sum(dim=1)
    mode, after_mode = answers["fork"].token_p[:, 0], answers["fork"].token_p[:, 1:].prod(dim=1)
    right = answers["rest"].token_p[:, -1]
    path = (after_mode.cpu() * torch.from_numpy(answers["rest"].result.p_lo)).to(p)
    luck = mode * path * (right - any_branch / is_branch.sum(dim=1))
    r, mean_luck = (mean_over_integers(problems, values.cpu().numpy()) for values in (path * any_branch, luck))
    return r, mean_luck


def _trees_by_mode(tree: TraceTree, task: Task) -> dict[str, TraceTree]:
    """The tree itself as "free", and with each mode forced."""
    return {"free": tree} | {mode: force_mode(tree, task, mode) for mode in task.first_tokens}


def _result(settings: Eval, tree: TraceTree, answer: PrefixResult | None) -> Result:
    """The computed result if there is one, with eval.rollouts samples of the rest for auto; else that of samples."""
    if answer is not None:
        return answer.result if settings.engine == "exact" else sample_remainder(tree, answer, settings.rollouts, SEED)
    if settings.engine == "rollout":
        return sample(tree, settings.rollouts, SEED, bf16=settings.bf16)
    return split(tree, settings.rollouts, SEED)


def _average_over_integers(problems: ProblemSet, result: Result) -> Result:
    """The result if every sample draws its prefix; raises NotComputedError if p was not computed."""
    if problems.integers == 1:
        return result
    if result.n is not None:
        raise NotComputedError("its p is an average over prefixes, for which eval.budget is too small; raise it")
    outcomes, unknown, tokens = (
        mean_over_integers(problems, a) for a in (result.outcomes, result.unknown, result.tokens)
    )
    return replace(result, outcomes=outcomes, unknown=unknown, tokens=tokens)


def measure_stratified(settings: Eval, tree: TraceTree, problems: ProblemSet, checked: bool) -> Measurement:
    """pass@k of samples spread over the top tokens at the position that eval.stratify names, within eval.budget.

    hit_rate: the share of problems whose position of highest entropy is the fork; null if the position is given or
    there is no fork. Raises ValueError for eval.stratify=fork on a task that declares no fork.
    """
    hit_rate = None
    if settings.stratify == "entropy":
        prefix, length = stratified.highest_entropy(tree)
        if problems.fork is not None:
            hit_rate = float(stratified.right_after(problems.fork, prefix, length).float().mean())
    else:
        prefix = problems.at_fork()[0] if settings.stratify == "fork" else tree.forced[:, :0]
        length = torch.full((len(tree),), prefix.shape[1], device=prefix.device)
    strata = stratified.stratify(tree, prefix, length, settings.strata, lambda stratum: exact(stratum, settings.budget))
    record = quantities.stratified_coverage(strata, powers_of_two(settings.max_k), settings.pool)
    record |= {"forced": None, "errors": None, "hit_rate": hit_rate}
    check = check_strata(settings, tree, strata, prefix, length) if checked else None
    return Measurement(record, {"strata": strata.p_lo}, check)


def measure_fork(
    settings: Eval,
    tree: TraceTree,
    problems: ProblemSet,
    answers: dict[str, PrefixResult],
    training: ProblemSet | None,
    r: np.ndarray | None,
) -> tuple[dict, dict[str, np.ndarray]]:
    """The "fork" and "fork_train" of a record, null if there are none, and the arrays behind them."""
    record: dict = {"fork_train": None, "fork": None}
    if problems.fork is None:
        return record, {}
    record["fork"], arrays = _at_forks(problems, answers, r)
    if training is not None:
        training_tree = trace_tree(tree.gpt, training, tree.policy, settings.max_tokens)
        prefixes = fork_prefixes(settings, training)
        at_training = exact_by_prefix(training_tree, prefixes, Limits(settings.budget, width=EXACT))
        if "rest" in at_training and at_training["rest"].result.exact:
            arrays["r_train"], _ = r_and_luck(training_tree, training, at_training)
        record["fork_train"], training_arrays = _at_forks(training, at_training, arrays.get("r_train"))
        arrays["fork_train"] = training_arrays["fork"]
    record["fork"]["train_p_right"] = record["fork_train"] and record["fork_train"]["p_right"]
    return record, arrays


def _at_forks(
    problems: ProblemSet, answers: dict[str, PrefixResult], r: np.ndarray | None
) -> tuple[dict, dict[str, np.ndarray]]:
    """`quantities.fork_statistics` with p_rest, and the arrays "fork" and, if it is exact, "rest" (see `measure`)."""
    arrays = {"fork": branch_shares(problems, answers["fork"].logits, problems.at_fork()[1])}
    record = quantities.fork_statistics(arrays["fork"], r)
    if "rest" in answers:
        rest = answers["rest"].result
        arrays |= {"rest": mean_over_integers(problems, rest.p_lo)} if rest.exact else {}
        record["p_rest"] = float(arrays["rest"].mean()) if rest.exact else None
    return record, arrays


@torch.no_grad()
def branch_probabilities(model: GPT, problems: ProblemSet) -> np.ndarray:
    """float64[n, d]: the model's probability of each branch at the fork under forced FWD, the right branch first.

    Renormalised over the branches; the model's own, without a policy.
    """
    fork, branches = problems.at_fork()
    sequences = torch.cat([problems.prompts, fork], dim=1)
    last = torch.arange(sequences.shape[1]) == sequences.shape[1] - 1
    logits = [model(batch, last.expand(batch.shape))[:, -1] for batch in sequences.split(PREFILL_BATCH)]
    return branch_shares(problems, torch.cat(logits), branches)


def mode_probabilities(tree: TraceTree, problems: ProblemSet) -> np.ndarray:
    """float64[n, modes]: the model's probability of each mode, renormalised over them."""
    tokens = [*problems.task.first_tokens.values()]
    return mean_over_integers(problems, torch.softmax(tree.prompts.logits[:, tokens].double(), dim=1).cpu().numpy())


@torch.no_grad()
def trace_tree(model: GPT, problems: ProblemSet, policy: Policy, max_tokens: int = 0) -> TraceTree:
    """The traces of a model on these problems. The prompts are encoded here, once for all engines.

    max_tokens: as eval.max_tokens. Raises ValueError if it leaves no room for any right trace.
    """
    if max_tokens and max_tokens < (shortest := int(problems.shortest[:, 0].min())):
        raise ValueError(f"eval.max_tokens is {max_tokens}: right traces have {shortest} tokens or more; give as many")
    return TraceTree(
        model,
        model.prefill(problems.prompts),
        Tables(problems.dfa, len(problems.outcome_names)),
        max_tokens or problems.task.trace_len,
        policy,
    )


def force_mode(tree: TraceTree, task: Task, mode_name: str) -> TraceTree:
    """The tree with the token of a mode forced."""
    return tree.force(torch.full((len(tree), 1), task.first_tokens[mode_name], device=tree.device))


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... up to ``largest``."""
    return [2**i for i in range(largest.bit_length())]
