"""Exact as far as a budget reaches, then i.i.d. rollouts of the rest.

`exact` stops at its budget with live prefixes that wait. Their probability U is what is unknown of a problem, a is the
accepted probability that was explored, and p = a + U q. Rollouts that begin with a waiting prefix, drawn by its
probability, are accepted with probability q. If c of n are, a + U c/n is an unbiased estimate of p with the variance
U^2 q (1 - q) / n. That of n rollouts from the start is p (1 - p) / n. The bounds a and a + U stay certified. pass@k has
an unbiased estimate too (`minifork.statistics.passk.remainder_pass_at_k`).

The rollouts are counts that are split down the tree, as in `minifork.decoding.split`. So each live prefix is decoded
at most once, in the search or after it.
"""

from dataclasses import replace

import numpy as np
import torch

from minifork.decoding.exact import Limits, PrefixResult, exact_by_prefix
from minifork.decoding.split import Draws, require_rollouts, split_counts, split_down
from minifork.decoding.traces import EXACT, Prefixes, Result, TraceTree, chunks

AT_START = 2**16 - 1  # stands for the depth of the draw between waiting prefixes; no prefix is as long


@torch.no_grad()
def remainder(tree: TraceTree, max_prefixes: float, n: int, seed: int) -> Result:
    """The result of `exact` with max_prefixes decoded prefixes, and of n rollouts a problem of what it left.

    Which prefixes are left depends on all problems, as they share the budget. Apart from that, counts depend on the
    seed, the problem and the probabilities, as in `split`. If the budget suffices, it is the result of exact, and
    nothing is sampled. Raises ValueError as `exact` and `split` do.
    """
    require_rollouts(n)
    return sample_remainder(tree, exact_by_prefix(tree, {"": tree.forced}, Limits(max_prefixes, EXACT))[""], n, seed)


@torch.no_grad()
def sample_remainder(tree: TraceTree, searched: PrefixResult, n: int, seed: int) -> Result:
    """The result of `remainder`, given that of the search; tree: with any forced tokens."""
    bounds = searched.result
    if bounds.exact:
        return bounds
    totals, draws = tree.zero_totals(torch.int64), Draws(seed)
    evaluated = split_down(tree, _starts(tree, searched.waiting, n, draws), draws, totals)
    shares, tokens = totals.cpu().numpy() / n * bounds.unknown[:, None]
    return replace(
        bounds,
        engine="remainder",
        outcomes=bounds.outcomes + shares,
        n=n,
        evaluated=bounds.evaluated + evaluated,
        tokens=bounds.tokens + tokens,
        explored=bounds.outcomes[:, 0],
    )


def _starts(tree: TraceTree, waiting: list[Prefixes], n: int, draws: Draws) -> list[Prefixes]:
    """The waiting prefixes that some of a problem's n rollouts begin with, with the numbers of these rollouts."""
    waiting = _by_parent(waiting)
    weight = torch.cat([block.weight for block in waiting]).cpu().numpy()
    problem = torch.cat([block.problem for block in waiting]).cpu().numpy()
    count, order = np.zeros(len(weight), dtype=np.int64), problem.argsort(kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(problem[order])) + 1):  # the prefixes of one problem
        if weight[rows].any():
            number = tree.ids[problem[rows[:1]]].cpu().numpy()
            count[rows] = split_counts(weight[rows][None], np.array([n]), number, AT_START, draws)[0]
    starts, first = [], 0
    for block in waiting:
        passing = torch.from_numpy(count[first : first + len(block)]).to(block.state.device)
        start = replace(block, weight=passing)[passing > 0]
        starts += [start[chunk] for chunk in chunks(len(start), tree.rows_at_once)]
        first += len(block)
    return sorted(starts, key=lambda start: start.parent.length)  # so that those of one length are decoded together


def _by_parent(blocks: list[Prefixes]) -> list[Prefixes]:
    """The same prefixes with the children of the same rows in one block: a search leaves many small ones."""
    families: dict[int, list[Prefixes]] = {}
    for block in blocks:
        families.setdefault(id(block.parent), []).append(block)
    joined = []
    for family in families.values():
        parts = [[getattr(block, name) for block in family] for name in ("origin", "token", "state", "weight")]
        block = Prefixes(family[0].parent, *map(torch.cat, parts))
        joined.append(block[block.origin.argsort(stable=True)])
    return joined
