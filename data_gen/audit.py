"""Leak audit: does any surface feature of an SFT set predict which branch is right at the fork?

A fork is a decision point only if nothing but the goal tells the branches apart. A generator that always prints
the right branch first turns the fork into a look-up, and coverage then shrinks or not for the wrong reason. The
audit reads the examples as a reader of the prompt would (tokens, no canonical numbers). It describes each branch by
surface features: where its edges are printed, and what its nodes are called. Then it asks whether the right branch
stands out. Where a trace meets several forks, each is tested. For a task that prints no graph the features of a branch
are its first token, and the first and the last place of that token in the prompt.

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
    repeats              graphs again in the same mode            0       0       1  ok
    near repeats         right ones of 1028 seen branches    0.4874     0.5    0.36  ok
"""

from dataclasses import dataclass, replace

import numpy as np

from data_gen.audit_rows import Check
from data_gen.separation import separation_checks
from data_gen.star import Star, Stars
from data_gen.streams import Examples
from data_gen.task import PAD, Batch, Task

FALSE_ALARM_RATE = 1e-3
# The smallest p, 1/(1 + DRAWS), must lie below FALSE_ALARM_RATE over the number of checks.
DRAWS = 20_000
# Assignments simulated at a time (a divisor of DRAWS): bounds memory and keeps the arrays in cache.
BLOCK = 250
# Ridge penalty a branch, on features of unit variance: mild, it only has to keep the Gram matrix invertible.
RIDGE = 0.01
# The names of the features of a branch: first place, its rank among the branches, last place, rank of the first token,
# first token.
STAR_FEATURES = ("first edge position", "first edge order", "goal edge position", "child label order", "child label")
TREE_FEATURES = ("first edge position", "first edge order", "last edge positions", "child label order", "child label")
PROMPT_FEATURES = ("first place", "order of first places", "last place", "token order", "token")


@dataclass(frozen=True)
class Branches:
    """The branches of the n problems that show a fork, in an order that does not depend on which is right.

    position: int64[n, d, L], the places of a branch in the print, from its first to its last; node: int64[n, d, M], the
    tokens of its nodes, the first one first; right: int64[n], the branch that is right; places, tokens: how many values
    positions and nodes can have; features: STAR_FEATURES, TREE_FEATURES or PROMPT_FEATURES; extra: float32[X, n, d, V],
    further tokens of its first edge, one-hot; last: how many of the positions are those of last edges.
    """

    position: np.ndarray
    node: np.ndarray
    right: np.ndarray
    places: int
    tokens: int
    features: tuple[str, ...]
    extra: np.ndarray | tuple[()] = ()
    last: int = 1


def audit(
    task: Task[Batch], examples: Examples, fork_rate: float, seed: int = 0, mode_name: str = "FWD"
) -> list[Check]:
    """All checks of an SFT set made with ``fork_rate`` as the share of one mode.

    seed: of the simulated null. A problem that occurs several times (as with allocation=problem) counts once in the
    checks of the branches. If a task declares no fork, only the streams are checked. Raises ValueError when the task
    has too few graphs to fill the valid and test streams.
    """
    forked, groups = read_stars(task, examples) if isinstance(task, Stars) else read_forks(task, examples)
    checks = []
    for name, branches in groups:
        tests = branch_checks(branches, seed, len(groups))
        checks += [replace(check, name=name + check.name) for check in tests]
    checks.append(fork_share(task, examples, forked, fork_rate, mode_name))
    checks += separation_checks(task, examples, seed, DRAWS * len(groups))
    return [replace(check, flagged=check.p * len(checks) < FALSE_ALARM_RATE) for check in checks]


def read_stars(task: Stars, examples: Examples) -> tuple[np.ndarray, list[tuple[str, Branches]]]:
    """bool[n], True if a prompt shows a fork, and the branches of these problems, grouped by size."""
    parent, _, _, query = task.read_graph(examples.tokens)
    forked = (parent == query[:, :1]).sum(axis=1) > 1
    shapes = task.shapes(examples.problems)
    groups = [(name, star, _distinct(task, examples, forked & rows)) for name, star, rows in shapes]
    return forked, [(name, read_branches(task, star, examples.tokens[rows])) for name, star, rows in groups]


def _distinct(task: Task[Batch], examples: Examples, rows: np.ndarray) -> np.ndarray:
    """int64[m]: the first row of every different prompt among bool[n] ``rows``. Repeats are no independent evidence."""
    chosen = np.flatnonzero(rows)
    return chosen[np.sort(np.unique(examples.tokens[rows, : task.prompt_len], axis=0, return_index=True)[1])]


def read_branches(task: Stars, star: Star, tokens: np.ndarray) -> Branches:
    """Follow every branch from the start to its leaf. tokens: int64[n, >= prompt_len], all with a fork."""
    parent, child, extra, query = task.read_graph(tokens)
    rows = np.arange(len(tokens))[:, None]
    # A stable sort puts the edges that leave the start first and keeps them in printed order.
    first = np.argsort(parent != query[:, :1], axis=1, kind="stable")[:, : star.branches]
    position, nodes = (np.concatenate(levels, axis=2) for levels in follow_edges(parent, child, child[rows, first]))
    right = np.argmax(nodes[..., -1] == query[:, 1:], axis=1)
    extra_one_hot = _one_hot(np.moveaxis(extra[rows, first], 2, 0), task.vocab_size)
    return Branches(position, nodes, right, star.edges, star.nodes, STAR_FEATURES, extra_one_hot)


def read_forks(task: Task[Batch], examples: Examples) -> tuple[np.ndarray, list[tuple[str, Branches]]]:
    """The same as `read_stars` for a task that prints no star: every fork, grouped by the number of branches.

    Problems in which a fork has several right branches are left out of it. Branches are sorted by token.
    """
    forked, groups, end = task.forked(examples.problems), [], task.prompt_len
    points = task.decision_points(examples.problems)
    for number, (_, children, right) in enumerate(points, start=1):
        counts, name = (children != PAD).sum(axis=1), f"fork {number}, " if len(points) > 1 else ""
        decisive = forked & (right.sum(axis=1) == 1)
        for count in np.unique(counts[decisive]):
            rows = _distinct(task, examples, decisive & (counts == count))
            prompts, nodes = examples.tokens[rows, :end], np.sort(children[rows, :count], axis=1)
            answer = np.argmax(nodes == children[rows, :1], axis=1)
            groups.append((f"{name}{count} branches, ", _read_branches_from(task, prompts, nodes, answer)))
    return forked, groups


def _read_branches_from(task: Task[Batch], prompts: np.ndarray, nodes: np.ndarray, right: np.ndarray) -> Branches:
    """The branches that begin with the nodes int64[n, d], from the graph if prompts print one, else from the tokens."""
    try:
        parent, child, _, _ = task.read_graph(prompts)
    except ValueError:
        shown, end = prompts[:, None] == nodes[..., None], prompts.shape[1]
        places = np.stack([shown.argmax(axis=2), end - 1 - shown[..., ::-1].argmax(axis=2)], axis=2)
        places[~shown.any(axis=2)] = end
        return Branches(places, nodes[..., None], right, end + 1, task.vocab_size, PROMPT_FEATURES)
    positions, tokens = follow_edges(parent, child, nodes)
    features = np.concatenate(positions, axis=2), np.concatenate(tokens, axis=2), right
    last = positions[-1].shape[2]
    return Branches(*features, parent.shape[1] + 1, task.vocab_size, TREE_FEATURES, last=last)


def follow_edges(parent: np.ndarray, child: np.ndarray, nodes: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The places of the edges of every branch, and the tokens of its nodes, int64[n, d, m] at every depth, ascending.

    parent, child: int64[n, E], the printed edges; nodes: int64[n, d], the first node of each branch. Where a branch has
    fewer edges than others, place E and token PAD stand for the missing ones.
    """
    edges = parent.shape[1]
    positions, tokens = [np.argmax(child[:, None] == nodes[..., None], axis=2)[..., None]], [nodes[..., None]]
    ends = np.column_stack([child, np.full(len(child), PAD)])[:, None]
    for _ in range(edges):
        leaving = (parent[:, None, None] == tokens[-1][..., None]).any(axis=2)
        width = leaving.sum(axis=2).max(initial=0)
        if width == 0:
            break
        positions.append(np.sort(np.where(leaving, np.arange(edges), edges), axis=2)[..., :width])
        tokens.append(np.sort(np.take_along_axis(ends, positions[-1], axis=2), axis=2))
    return positions, tokens


def _rank(values: np.ndarray) -> np.ndarray:
    """The rank of each entry of [n, d, ...] among the d of its problem, 0 the smallest."""
    return np.argsort(np.argsort(values, axis=1), axis=1)


def _one_hot(codes: np.ndarray, classes: int) -> np.ndarray:
    return (codes[..., None] == np.arange(classes)).astype(np.float32)


def categories(branches: Branches) -> dict[tuple[str, str], np.ndarray]:
    """The features tested one by one: (name, what it measures) -> one-hot float32[n, d, classes]."""
    first, last, child = branches.position[:, :, 0], branches.position[:, :, -branches.last :], branches.node[:, :, 0]
    places, count = branches.places, first.shape[1]
    values = [
        _one_hot(first, places),
        _one_hot(_rank(first), count),
        _one_hot(last, places).max(axis=2),
        _one_hot(_rank(child), count),
        _one_hot(child, branches.tokens),
    ]
    place = f"chi2 of its place {'in the prompt' if branches.features == PROMPT_FEATURES else 'among the edges'}"
    rank, token = "chi2 of its rank among branches", "chi2 of the token itself"
    labels = zip(branches.features, (place, rank, place, rank, token), strict=True)
    extra = {(f"first edge says {i}", token): one_hot for i, one_hot in enumerate(branches.extra)}
    return extra | dict(zip(labels, values, strict=True))


def probe_features(branches: Branches) -> np.ndarray:
    """The features of a branch for the linear probe, float32[n, d, F], centred in the problem, of unit variance.

    They are the places where it is printed, the ranks of these places and of its labels among the branches at the same
    depth, and the token of its first node. Nothing is compared with the goal: finding the branch that
    ends in the goal is the task itself, not a leak.
    """
    numbers = [branches.position, _rank(branches.position), _rank(branches.node)]
    features = np.concatenate([*numbers, _one_hot(branches.node[:, :, 0], branches.tokens)], axis=2)
    features = features - features.mean(axis=1, keepdims=True)
    scale = features.std(axis=(0, 1), keepdims=True)
    return (features / np.where(scale > 0, scale, 1)).astype(np.float32)


def _chosen_sum(features: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The features [n, d, F] of the right branches summed over problems, float32[R, F], for right uint[R, n]."""
    return sum((right == j).astype(np.float32) @ features[:, j] for j in range(features.shape[1]))


def chi_square(one_hot: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """The distance of the classes of the right branches from chance, for each of R assignments; float[R].

    one_hot: float32[n, d, classes]; observed: float32[R, classes], how many right branches are of each class. The sum
    over classes of (observed - expected)^2 / variance, with the moments of the null given the d candidates of each
    problem.
    """
    share = one_hot.mean(axis=1)
    variance = (share * (1 - share)).sum(axis=0)
    squares = (observed - share.sum(axis=0)) ** 2
    return (squares / np.where(variance > 0, variance, np.inf)).sum(axis=1)


def held_out_accuracy(features: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Two-fold cross-validated accuracy of the linear probe for each of R assignments; float[R].

    features: float32[n, d, F] as from `probe_features`; right: uint[R, n]. Ridge regression of "is right" on
    the features of a branch; the branch with the highest score is the guess. The fit is linear in the
    targets, so one matrix serves all assignments.
    """
    hits = np.zeros(len(right))
    for fold in (0, 1):
        fit, test = slice(fold, None, 2), slice(1 - fold, None, 2)
        flat = features[fit].reshape(-1, features.shape[2])
        gram = flat.T @ flat + (1 + RIDGE * len(flat)) * np.eye(flat.shape[1], dtype=np.float32)
        weights = _chosen_sum(features[fit], right[:, fit]) @ np.linalg.inv(gram)
        scores = [weights @ features[test, j].T for j in range(features.shape[1])]
        best = np.maximum.reduce(scores)
        hits += sum(((right[:, test] == j) & (scores[j] == best)).sum(axis=1) for j in range(len(scores)))
    return hits / right.shape[1]


def branch_checks(branches: Branches, seed: int, times: int = 1) -> list[Check]:
    """The checks of all features: does this one tell the right branch from the others?

    times: how many calls one audit makes. More checks need a smaller possible p, so this draws DRAWS * times times.
    ``chance`` is the mean of the simulated null: about the number of classes for chi2, 1/d for accuracy.
    """
    tests = categories(branches)
    labels = [*tests, ("linear probe", "accuracy on held-out problems")]
    n, count = branches.node.shape[:2]
    if n == 0:
        return [Check(name, "no fork") for name, _ in labels]
    features = probe_features(branches)
    joined = np.concatenate([*tests.values()], axis=2)  # counted in one go, which is faster
    ends = np.cumsum([one_hot.shape[2] for one_hot in tests.values()])[:-1]
    rng = np.random.default_rng(seed)
    total, exceed = np.zeros(len(labels)), np.zeros(len(labels))
    draws, index = DRAWS * times, np.min_scalar_type(count - 1)  # a small type is faster
    for _ in range(draws // BLOCK):
        assignments = rng.integers(count, size=(BLOCK, n), dtype=index)
        # The observed assignment goes through the same arithmetic as the drawn ones, so that ties are ties.
        right = np.concatenate([branches.right[None].astype(index), assignments])
        counts = np.split(_chosen_sum(joined, right), ends, axis=1)
        squares = [chi_square(*pair) for pair in zip(tests.values(), counts, strict=True)]
        observed, *simulated = np.stack([*squares, held_out_accuracy(features, right)], axis=1)
        total += np.sum(simulated, axis=0)
        exceed += np.sum(simulated >= observed, axis=0)
    rows = zip(labels, observed, total / draws, (1 + exceed) / (1 + draws), strict=True)
    return [Check(*label, float(value), float(chance), float(p)) for label, value, chance, p in rows]


def fork_share(
    task: Task[Batch], examples: Examples, forked: np.ndarray, fork_rate: float, mode_name: str = "FWD"
) -> Check:
    """The check that the share of traces in this mode on forked graphs is ``fork_rate``, as near as n traces allow.

    Shares are exact by construction, so this is no test of chance: p is 1 or 0.
    """
    children, tokens = task.children(examples.problems), examples.tokens
    if children is None or children.shape[1] == 1:
        return Check("fork share", "no fork declared" if children is None else "no fork")
    passes = forked & (examples.mode_index == task.mode_names.index(mode_name))
    share = float(passes.mean())
    # Less than a trace of rounding (the last problem of a problem-level set may not get all modes).
    exact = abs(share - fork_rate) < 1 / len(tokens)
    return Check("fork share", "traces that pass the fork", share, fork_rate, float(exact))
