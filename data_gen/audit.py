"""Leak audit: does any surface feature of an SFT set predict which branch is right at the fork?

Forks only teach what they are meant to teach if nothing but the goal itself tells the branches apart. A
generator that, say, always prints the right branch first turns the fork into a look-up, and coverage then
shrinks or not for the wrong reason. The audit reads the examples as a reader of the prompt would (tokens in,
no canonical numbers), describes each branch by surface features (where its edges are printed, what its
nodes are called), and asks whether the right branch stands out.

Null hypothesis: given the printed graph, each of the d branches is the right one with probability 1/d,
independently over problems. It can be simulated exactly, by redrawing which branch is right, so every p
value below is that of a Monte Carlo permutation test, valid at any sample size. A check is flagged when
``p * number of checks < 1e-3`` (Bonferroni): an audit of clean data raises a false alarm with probability
at most 1e-3. The leaky control, 1,000 examples of ``Star(16, 2, 4, branch_order="published")`` at fork_rate .5:

    check                measures                             value  chance       p
    first edge position  chi2 of its place among the edges     2000    5.99   5e-05  LEAK
    first edge order     chi2 of its rank among branches       2000    1.98   5e-05  LEAK
    goal edge position   chi2 of its place among the edges     2000    5.99   5e-05  LEAK
    child label order    chi2 of its rank among branches      0.032    2.02    0.93  ok
    child label          chi2 of the token itself             17.75      16    0.34  ok
    linear probe         accuracy on held-out problems            1     0.5   5e-05  LEAK
    fork share           traces that pass the fork              0.5     0.5       1  ok
    stream               problems outside the train stream        0       0       1  ok
    overlap              graphs shared with valid or test         0       0       1  ok
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from data_gen import streams
from data_gen.streams import Examples
from data_gen.task import Problems, Task

FALSE_ALARM_RATE = 1e-3
# The smallest p, 1/(1 + DRAWS), must lie below FALSE_ALARM_RATE over the number of checks.
DRAWS = 20_000
# Problems of the valid and of the test stream searched for graphs of the audited set.
HELD_OUT = 1_000
# Assignments simulated at a time (a divisor of DRAWS): bounds memory and keeps the arrays in cache.
BLOCK = 250
# Ridge penalty a branch, on features of unit variance: mild, it only has to keep the Gram matrix invertible.
RIDGE = 0.01


@dataclass(frozen=True)
class Check:
    """One row of the audit: what was measured, what chance gives, and the p value of the difference.

    Where a check does not apply, because no problem shows a fork, value and chance are nan and p is 1.
    """

    name: str
    measures: str
    value: float
    chance: float
    p: float
    flagged: bool = False


@dataclass(frozen=True)
class Branches:
    """The branches of the n problems that show a fork, in the order their first edges are printed.

    position: int64[n, d, l-1], the printed place of every edge of a branch, from the start down; node:
    int64[n, d, l-1], the tokens these edges end in; extra: int64[n, d, X], what else the first edge says; right:
    int64[n], the branch that ends in the goal.
    """

    position: np.ndarray
    node: np.ndarray
    extra: np.ndarray
    right: np.ndarray


def audit(task: Task, examples: Examples, fork_rate: float, seed: int = 0, mode: str = "FWD") -> list[Check]:
    """All checks of an SFT set made with ``fork_rate`` as the share of ``mode``; ``seed`` drives the simulated null.

    A problem that occurs several times (as with allocation=problem) counts once in the checks of the
    branches. Raises ValueError when a prompt is no star with one branch that ends in the goal, or when the
    task has too few graphs to fill the valid and test streams.
    """
    checks, shapes = [], task.shapes(examples.problems)
    for name, part, rows in shapes:
        tokens = examples.tokens[rows]
        branches = read_branches(part, _distinct_prompts(part, tokens[shows_fork(part, tokens)]))
        checks += [replace(check, name=name + check.name) for check in branch_checks(part, branches, seed, len(shapes))]
    forked = shows_fork(task, examples.tokens)
    checks += [
        fork_share(task, examples.problems, examples.tokens, forked, fork_rate, mode),
        *stream_checks(task, examples),
    ]
    return [replace(check, flagged=check.p * len(checks) < FALSE_ALARM_RATE) for check in checks]


def table(checks: list[Check]) -> str:
    """The checks as an aligned table, one line each (see the module's docstring)."""
    lines = [f"{'check':<19}  {'measures':<34} {'value':>7} {'chance':>7} {'p':>7}"]
    for c in checks:
        verdict = "LEAK" if c.flagged else "ok"
        lines.append(f"{c.name:<19}  {c.measures:<34} {c.value:7.4g} {c.chance:7.3g} {c.p:7.2g}  {verdict}")
    return "\n".join(lines)


def _distinct_prompts(task: Task, tokens: np.ndarray) -> np.ndarray:
    """The rows with a new prompt, in their order: repeats are no independent evidence."""
    _, first = np.unique(tokens[:, : task.prompt_len], axis=0, return_index=True)
    return tokens[np.sort(first)]


def shows_fork(task: Task, tokens: np.ndarray) -> np.ndarray:
    """bool[n]: whether the start of each prompt has more than one child."""
    parent, _, _, query = task.read_graph(tokens)
    return (parent == query[:, :1]).sum(axis=1) > 1


def read_branches(task: Task, tokens: np.ndarray) -> Branches:
    """Follow every branch from the start to its leaf. tokens: int64[n, >= prompt_len], all with a fork.

    Raises ValueError where the start has not d children, or not exactly one branch ends in the goal.
    """
    parent, child, extra, query = task.read_graph(tokens)
    start, goal = query[:, :1], query[:, 1:]
    rows = np.arange(len(tokens))[:, None]
    # A stable sort puts the edges that leave the start first and keeps them in printed order.
    at = np.argsort(parent != start, axis=1, kind="stable")[:, : task.graph.branches]
    position, node, first_extra = [at], [child[rows, at]], extra[rows, at]
    for _ in range(task.graph.length - 2):
        at = np.argmax(parent[:, None, :] == node[-1][:, :, None], axis=2)
        position.append(at)
        node.append(child[rows, at])
    ends_in_goal = node[-1] == goal
    broken = ((parent == start).sum(axis=1) != task.graph.branches) | (ends_in_goal.sum(axis=1) != 1)
    if broken.any():
        example = task.decode(tokens[np.argmax(broken)])
        raise ValueError(f"not a star with {task.graph.branches} branches of which one ends in the goal: {example}")
    right = np.argmax(ends_in_goal, axis=1)
    return Branches(np.stack(position, axis=2), np.stack(node, axis=2), first_extra, right)


def _rank(values: np.ndarray) -> np.ndarray:
    """The rank of each entry of [n, d, ...] among the d of its problem, 0 the smallest."""
    return np.argsort(np.argsort(values, axis=1), axis=1)


def _one_hot(codes: np.ndarray, classes: int) -> np.ndarray:
    return (codes[..., None] == np.arange(classes)).astype(np.float32)


def categories(task: Task, branches: Branches) -> dict[tuple[str, str], np.ndarray]:
    """The features tested one by one: (name, what it measures) -> one-hot float32[n, d, classes]."""
    first, last, child = branches.position[:, :, 0], branches.position[:, :, -1], branches.node[:, :, 0]
    place, rank = "chi2 of its place among the edges", "chi2 of its rank among branches"
    said = {
        (f"first edge says {i}", "chi2 of the token itself"): _one_hot(branches.extra[:, :, i], task.vocab_size)
        for i in range(branches.extra.shape[2])
    }
    return said | {
        ("first edge position", place): _one_hot(first, task.graph.edges),
        ("first edge order", rank): _one_hot(_rank(first), task.graph.branches),
        ("goal edge position", place): _one_hot(last, task.graph.edges),
        ("child label order", rank): _one_hot(_rank(child), task.graph.branches),
        ("child label", "chi2 of the token itself"): _one_hot(child, task.graph.nodes),
    }


def probe_features(task: Task, branches: Branches) -> np.ndarray:
    """What the linear probe sees of a branch, float32[n, d, F], centred in the problem, of unit variance.

    Printed places of its edges, their ranks and the ranks of its labels among the branches at the same
    depth, and the token of its first node. Nothing is compared with the goal: finding the branch that
    ends in the goal is the task itself, not a leak.
    """
    numbers = [branches.position, _rank(branches.position), _rank(branches.node)]
    features = np.concatenate([*numbers, _one_hot(branches.node[:, :, 0], task.graph.nodes)], axis=2)
    features = features - features.mean(axis=1, keepdims=True)
    scale = features.std(axis=(0, 1), keepdims=True)
    return (features / np.where(scale > 0, scale, 1)).astype(np.float32)


def _chosen_sum(features: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The features [n, d, F] of the right branches summed over problems, float32[R, F], for right uint[R, n]."""
    return sum((right == j).astype(np.float32) @ features[:, j] for j in range(features.shape[1]))


def chi_square(one_hot: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How far the classes of the right branches are from chance, for each of R assignments; float[R].

    one_hot: float32[n, d, classes]; right: uint[R, n]. The sum over classes of (observed - expected)^2 /
    variance, with the moments of the null given the d candidates of each problem.
    """
    share = one_hot.mean(axis=1)
    variance = (share * (1 - share)).sum(axis=0)
    squares = (_chosen_sum(one_hot, right) - share.sum(axis=0)) ** 2
    return (squares / np.where(variance > 0, variance, np.inf)).sum(axis=1)


def held_out_accuracy(features: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two-fold cross-validated accuracy of the linear probe for each of R assignments; float[R].

    features: float32[n, d, F] as from `probe_features`; right: uint[R, n]. Ridge regression of "is right" on
    the features of a branch; the branch with the highest score is the guess. The fit is linear in the
    targets, so all assignments share one hat matrix and none is fitted on its own.
    """
    hits = np.zeros(len(right))
    for fold in (0, 1):
        fit, held = slice(fold, None, 2), slice(1 - fold, None, 2)
        flat = features[fit].reshape(-1, features.shape[2])
        gram = flat.T @ flat + (1 + RIDGE * len(flat)) * np.eye(flat.shape[1], dtype=np.float32)
        weights = _chosen_sum(features[fit], right[:, fit]) @ np.linalg.inv(gram)
        scores = [weights @ features[held, j].T for j in range(features.shape[1])]
        best = np.maximum.reduce(scores)
        hits += sum(((right[:, held] == j) & (scores[j] == best)).sum(axis=1) for j in range(len(scores)))
    return hits / right.shape[1]


def branch_checks(task: Task, branches: Branches, seed: int, times: int = 1) -> list[Check]:
    """Every check that asks: does this feature tell the right branch from the others?

    times: how often as many checks are made, each of which then needs as many times DRAWS.

    ``chance`` is the mean of the simulated null: about the number of classes for chi2, 1/d for accuracy.
    """
    tests = categories(task, branches)
    labels = [*tests, ("linear probe", "accuracy on held-out problems")]
    n = len(branches.right)
    if n == 0:
        return [Check(name, "no fork", math.nan, math.nan, 1.0) for name, _ in labels]
    features = probe_features(task, branches)
    rng = np.random.default_rng(seed)
    total, exceed = np.zeros(len(labels)), np.zeros(len(labels))
    draws, index = DRAWS * times, np.min_scalar_type(task.graph.branches - 1)  # a small type is faster
    for _ in range(draws // BLOCK):
        drawn = rng.integers(task.graph.branches, size=(BLOCK, n), dtype=index)
        # The observed assignment goes through the same arithmetic as the drawn ones, so that ties are ties.
        right = np.concatenate([branches.right[None].astype(index), drawn])
        squares = [chi_square(one_hot, right) for one_hot in tests.values()]
        observed, *simulated = np.stack([*squares, held_out_accuracy(features, right)], axis=1)
        total += np.sum(simulated, axis=0)
        exceed += np.sum(simulated >= observed, axis=0)
    rows = zip(labels, observed, total / draws, (1 + exceed) / (1 + draws), strict=True)
    return [Check(*label, float(value), float(chance), float(p)) for label, value, chance, p in rows]


def fork_share(
    task: Task, problems: Problems, tokens: np.ndarray, forked: np.ndarray, fork_rate: float, mode: str = "FWD"
) -> Check:
    """Whether the share of ``mode`` traces on forked graphs is ``fork_rate``, as near as n traces allow.

    Shares are exact by construction, so this is no test of chance: p is 1 or 0.
    """
    if task.children(problems).shape[1] == 1:
        return Check("fork share", "no fork", math.nan, math.nan, 1.0)
    passes = forked & (tokens[:, task.prompt_len] == task.mode_token(mode))
    share = float(passes.mean())
    # Less than a trace of rounding (the last problem of a problem-level set may not get all modes).
    exact = abs(share - fork_rate) < 1 / len(tokens)
    return Check("fork share", "traces that pass the fork", share, fork_rate, float(exact))


def stream_checks(task: Task, examples: Examples) -> list[Check]:
    """Whether the problems keep to the train stream and share no graph with held-out ones; p is 1 or 0."""
    outside = int((streams.stream_of(task, examples.problems) != streams.STREAMS["train"]).sum())
    held_out = [streams.problems(task, 0, name, HELD_OUT) for name in ("valid", "test")]
    held_out = np.concatenate([task.identity(graphs) for graphs in held_out])
    shared = len(np.intersect1d(task.identity(examples.problems), held_out))
    return [
        Check("stream", "problems outside the train stream", outside, 0.0, float(outside == 0)),
        Check("overlap", "graphs shared with valid or test", shared, 0.0, float(shared == 0)),
    ]
