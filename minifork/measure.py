"""Measuring one model on one set of problems: the trees, the engines' answers, and a check of those answers."""

import itertools
import time
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from data_gen.task import PAD, Problems, Task
from data_gen.verifier import DFA
from minifork import agree, passk, records, strata
from minifork.backends import sample
from minifork.engines import solve
from minifork.exact import exact
from minifork.model import GPT
from minifork.policy import Policy
from minifork.schema import Config, Eval
from minifork.split import split
from minifork.tree import Result, Tree

SEED, CHECK_SEED = 0, 1  # the samples that check a result are not those that made it


@dataclass(frozen=True)
class ProblemSet:
    """Problems as tensors: prompts [n, P], automata [n, S, V] with their sinks' names, fork prefix [n, F],
    branches [n, d], right first.

    prefixes: how many rows, one after the other, are the same problem with another random integer before its trace
    (`sft.prefix`). A sample draws one of them, so a problem's probabilities are the means over its rows.
    """

    prompts: Tensor
    dfa: Tensor
    fork: Tensor
    branches: Tensor
    sinks: tuple[str, ...]
    prefixes: int = 1

    @cached_property
    def shortest(self) -> Tensor:
        """int64[n, S]: the fewest tokens from each state of the automata to acceptance."""
        return torch.from_numpy(DFA(self.dfa.cpu().numpy(), self.sinks).shortest())


@dataclass(frozen=True)
class Measured:
    """What was found: part of a record, arrays p by name, and the verdict of the check if there was one."""

    record: dict
    p: dict
    check: dict | None


def problem_set(task: Task, problems: Problems, device: str, grading: str = "steps", prefix: int = 0) -> ProblemSet:
    """The tensors of a batch of problems, graded by steps or by the answer alone; prefix as `sft.prefix`."""
    dfa = task.answer_dfa(problems) if grading == "answer" else task.dfa(problems)
    arrays = task.prompts(problems), dfa.next.astype(np.int64), task.fork_prefix(problems), task.children(problems)
    if prefix:
        prompts, *others = (np.repeat(a, prefix, axis=0) for a in arrays)
        arrays = np.insert(prompts, prompts.shape[1], np.arange(len(prompts)) % prefix, axis=1), *others
    tensors = (torch.from_numpy(np.ascontiguousarray(a)).to(device) for a in arrays)
    return ProblemSet(*tensors, dfa.sinks, max(1, prefix))


def over_prefixes(problems: ProblemSet, values: np.ndarray) -> np.ndarray:
    """The means [n / prefixes, ...] over the rows of every problem, from values of all rows [n, ...]."""
    return values.reshape(-1, problems.prefixes, *values.shape[1:]).mean(axis=1)


class NotComputedError(ValueError):
    """p is needed itself, but the budget was too small to compute it."""


def _drawn_prefix(problems: ProblemSet, result: Result) -> Result:
    """What is known of the problems when every sample draws its prefix; raises NotComputedError where p was sampled."""
    if problems.prefixes == 1:
        return result
    if result.n is not None:
        raise NotComputedError("its p is an average over prefixes, for which eval.budget is too small; raise it")
    ends, unknown, tokens = (over_prefixes(problems, a) for a in (result.ends, result.unknown, result.tokens))
    return replace(result, ends=ends, unknown=unknown, tokens=tokens)


@torch.no_grad()
def tree_of(model: GPT, task: Task, problems: ProblemSet, policy: Policy) -> Tree:
    """The traces of a model on these problems; prompts are encoded here, once for all engines."""
    return Tree(model, model.prefill(problems.prompts), problems.dfa, len(problems.sinks), task.trace_len, policy)


def force_mode(tree: Tree, task: Task, mode: str) -> Tree:
    """The tree with the mode token forced."""
    return tree.force(torch.full((len(tree), 1), task.mode_token(mode), device=tree.dfa.device))


@torch.no_grad()
def branch_probabilities(tree: Tree, problems: ProblemSet) -> np.ndarray:
    """float64[n, d]: the model's probability of each branch at the fork under forced FWD, right one first.

    Renormalised over the branches; the model's own, whatever the policy.
    """
    _, logits = tree.force(problems.fork).after_forced()
    branches = problems.branches
    at_branches = logits.double().gather(1, branches.clamp(min=0)).masked_fill(branches == PAD, -torch.inf)
    return over_prefixes(problems, torch.softmax(at_branches, dim=1).cpu().numpy())


def rest_probability(tree: Tree, problems: ProblemSet) -> np.ndarray:
    """float64[n]: the probability that a trace is accepted given the right branch at the fork, under forced FWD.

    What is left when the fork is taken out: walking, and in arithmetic adding up.
    """
    right = torch.cat([problems.fork, problems.branches[:, :1]], dim=1)
    return over_prefixes(problems, exact(tree.force(right)).p_lo)


def mode_probabilities(tree: Tree, task: Task, problems: ProblemSet) -> np.ndarray:
    """float64[n, modes]: the model's probability of each mode, renormalised over them."""
    tokens = [task.mode_token(mode) for mode in task.mode_names]
    return over_prefixes(problems, torch.softmax(tree.prompts.logits[:, tokens].double(), dim=1).cpu().numpy())


def shortest_trace(task: Task, problems: ProblemSet, mode: str) -> np.ndarray:
    """int64[n]: the tokens of the shortest trace of each problem that is right in this mode."""
    begun = problems.dfa[:, 0, task.mode_token(mode)].cpu()
    return 1 + problems.shortest.gather(1, begun[:, None])[:: problems.prefixes, 0].numpy()


def iid(config: Config, tree: Tree, problems: ProblemSet, weights: np.ndarray, checked: bool) -> Measured:
    """i.i.d. samples, free and with each mode forced, by the engine that eval.engine names."""
    settings, ks = config.eval, powers_of_two(config.eval.max_k)
    trees = {None: tree} | {mode: force_mode(tree, config.data, mode) for mode in config.data.mode_names}
    solved = {
        mode: solve(settings.engine, t, settings.budget, settings.rollouts, SEED, settings.bf16)
        for mode, t in trees.items()
    }
    found = {mode: _drawn_prefix(problems, result) for mode, result in solved.items()}
    record = records.coverage(found[None], ks, weights)
    record["forced"] = {
        mode: records.coverage(found[mode], ks, weights)
        | {"wasted": records.wasted(found[mode], shortest_trace(config.data, problems, mode))}
        for mode in config.data.mode_names
    }
    record["errors"] = records.errors(found[None], problems.sinks)
    p = {mode or "free": result.p_lo for mode, result in found.items()}
    for mode, result in found.items():
        if not result.exact:
            p[f"{mode or 'free'}_lo"], p[f"{mode or 'free'}_hi"] = p_interval(result)
    rounded = (
        settings.bf16 and found[None].engine == "rollout" and tree.dfa.is_cuda
    )  # its p differ from those of the other engines
    return Measured(record, p, check(settings, tree, solved[None]) if checked and not rounded else None)


def stratified(config: Config, tree: Tree, problems: ProblemSet, weights: np.ndarray, checked: bool) -> Measured:
    """Samples spread over the top tokens at the position that eval.stratify names, computed within eval.budget.

    hit_rate: the share of problems whose position of highest entropy is the fork; null where it is given.
    """
    settings, fork = config.eval, problems.fork
    if problems.prefixes > 1:
        raise ValueError("sft.prefix: its p is averaged over prefixes; eval.stratify spreads over tokens instead")
    prefix, hit_rate = fork, None
    length = torch.full((len(tree),), fork.shape[1] if settings.stratify == "fork" else 0, device=fork.device)
    if settings.stratify == "entropy":
        prefix, length = strata.highest_entropy(tree)
        hit_rate = float(strata.right_after(fork, prefix, length).float().mean())
    result = strata.stratify(tree, prefix, length, settings.strata, lambda t: exact(t, settings.budget))
    record = records.stratified(result, powers_of_two(settings.max_k), weights)
    record |= {"forced": None, "errors": None, "hit_rate": hit_rate}
    verdict = None
    if checked:
        some, n = slice(0, settings.check_problems), settings.check_rollouts
        started, seeds = time.monotonic(), itertools.count(CHECK_SEED)  # one each, or strata would share their draws
        other = strata.stratify(
            tree[some], prefix[some], length[some], settings.strata, lambda t: sample(t, n, next(seeds))
        )
        counts = np.rint(other.p_lo * n).astype(int).ravel()
        low, high = result.p_lo[some].ravel(), result.p_hi[some].ravel()
        if np.array_equal(low, high):
            p_value = agree.uniform_p(agree.randomised_pit(counts, n, low, np.random.default_rng(0)))
        else:
            p_value = agree.outside_p(counts, n, low, high)
        verdict = _verdict("exact", "rollout", p_value, len(counts), n, started)
    return Measured(record, {"strata": result.p_lo}, verdict)


def p_interval(result: Result) -> np.ndarray:
    """float64[2, B]: where p is not known exactly, its certified bounds, or the Jeffreys 95 % interval if sampled."""
    if result.n is None:
        return np.stack([result.p_lo, result.p_hi])
    return passk.beta_interval(result.accepted, result.n)


def check(settings: Eval, tree: Tree, result: Result) -> dict:
    """Test a result against samples of another engine on the first problems.

    Computed p: counts of rollouts follow them (randomised PIT). Sampled p: both samples have the same p
    (conditional randomised PIT), rollouts being checked by split and split by rollouts. Bounds: no
    problem's rollouts lie outside them.
    """
    count, n = settings.check_problems, settings.check_rollouts
    sampler = split if result.engine == "rollout" else sample
    started = time.monotonic()
    other = sampler(tree[:count], n, CHECK_SEED)
    rng = np.random.default_rng(0)
    if result.exact:
        p_value = agree.uniform_p(agree.randomised_pit(other.accepted, n, result.p_lo[:count], rng))
    elif result.n is None:
        p_value = agree.outside_p(other.accepted, n, result.p_lo[:count], result.p_hi[:count])
    else:
        p_value = agree.uniform_p(agree.two_sample_pit(other.accepted, n, result.accepted[:count], result.n, rng))
    return _verdict(result.engine, other.engine, p_value, count, n, started)


def _verdict(engine: str, by: str, p_value: float, problems: int, n: int, started: float) -> dict:
    seconds = time.monotonic() - started
    return {"engine": engine, "by": by, "p_value": p_value, "problems": problems, "n": n, "seconds": seconds}


def powers_of_two(largest: int) -> list[int]:
    """1, 2, 4, ... up to ``largest``."""
    return [2**i for i in range(largest.bit_length())]
