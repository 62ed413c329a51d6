"""Exact pass@k inputs: the model multiplied with each problem's DFA, live prefixes only.

Every live prefix is decoded once. The probability of each next token goes to the outcome it leads to, or to a longer
live prefix. When no live prefix is left, the outcomes hold the probability that one sampled trace is accepted or fails
in each way, up to the model's fp32 arithmetic (about 1e-5 in p). If the budget runs out before, the probability of the
remaining live prefixes is the width of a certified interval around each p. `minifork.decoding.remainder` samples them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minifork.decoding.traces import Prefixes, Result, TraceTree, chunks, step_every_token
from minifork.gpt import Rows

SORTED_BLOCKS = 64  # of one expansion; its least probable prefixes, if there are more, wait in one block
FRONTIER_BYTES = 2**30  # keys and values of one search's waiting prefixes, above which the longest come first


@dataclass(frozen=True)
class Limits:
    """The limits of a search below a prefix: it stops after ``max_prefixes`` decoded ones, or once the bounds of every
    p are at most ``width`` apart. Raises ValueError for a budget of zero or less and for a negative width."""

    max_prefixes: float = math.inf
    width: float = 0.0

    def __post_init__(self) -> None:
        if not (self.max_prefixes > 0 and self.width >= 0):
            raise ValueError(f"{self}: max_prefixes must be above 0 and width at least 0")


@dataclass(frozen=True)
class PrefixResult:
    """The result of the traces that begin with a prefix, and the model's own next logits float[B, V] after it.

    token_p: float64[B, F], the probability of each token of the prefix after those before it, under the policy; past
    the end of a trace it means nothing. waiting: the live prefixes that were not decoded, each with its probability
    after the prefix. Those of a problem sum to the result's unknown.
    """

    result: Result
    logits: Tensor
    token_p: Tensor
    waiting: list[Prefixes]


@torch.no_grad()
def exact(tree: TraceTree, max_prefixes: float = math.inf, width: float = 0.0) -> Result:
    """Bounds on the probability of each outcome, which are equal once no live prefix is left.

    Decodes live prefixes, the most probable of all problems first, until none is left or `Limits` are reached. While
    the keys and values of waiting prefixes exceed FRONTIER_BYTES, the longest come first, which bounds memory. Raises
    ValueError as `Limits` does. Raises ValueError naming the problem when logits are not finite or the policy removes
    every token.
    """
    return exact_by_prefix(tree, {"": tree.forced}, Limits(max_prefixes, width))[""].result


@torch.no_grad()
def exact_by_prefix(
    tree: TraceTree, prefixes: Mapping[str, Tensor], limits: Limits = Limits()
) -> dict[str, PrefixResult]:
    """The result of `exact` on tree.force(prefix) for prefixes int64[B, F] by name, and the logits after each.

    A longer prefix is explored inside the shorter one that it begins with. A prefix is entered even if the policy
    removes it. The limits hold for each prefix, and for each token by which one is longer than another. So
    probable prefixes leave a budget to improbable ones. Raises ValueError as `exact` does.
    """
    lengths = [prefix.shape[1] for prefix in prefixes.values()]
    # Each token by which a prefix is longer than the shortest may add a search. Their bounds add up, so each gets an
    # equal part of the width. Five prefixes of 0, 1, 1, 2 and 3 tokens make at most 8 searches.
    searches = 1 + sum(lengths) - len(lengths) * min(lengths)
    limits = Limits(limits.max_prefixes, limits.width / searches)
    answers: dict[str, PrefixResult] = {}
    for name, prefix in sorted(prefixes.items(), key=lambda item: item[1].shape[1]):
        if name not in answers:
            below, depth = tree.force(prefix), prefix.shape[1]
            longer = {key: tokens for key, tokens in prefixes.items() if torch.equal(tokens[:, :depth], prefix)}
            rows, before, logits = below.through_forced()
            _explore(below, rows, logits, token_probabilities(below, below.forced, before), longer, limits, answers)
    return answers


def token_probabilities(tree: TraceTree, tokens: Tensor, before: list[Tensor]) -> Tensor:
    """The probability float64[B, T] of every token int64[B, T], from the T logits [B, V] before each."""
    problem = torch.arange(len(tree), device=tree.device)
    token_p = torch.zeros(tokens.shape, dtype=torch.float64, device=tree.device)
    for i, logits in enumerate(before):
        token_p[:, i] = _probabilities(tree, logits, problem).gather(1, tokens[:, i : i + 1])[:, 0]
    return token_p


@dataclass
class _Sums:
    """Sums over the traces of B problems: totals float64[2, B, outcomes] (`TraceTree.zero_totals`), unexplored
    probability float64[B], the prefixes that have it, the number of decoded prefixes."""

    totals: Tensor
    unknown: Tensor
    waiting: list[Prefixes] = field(default_factory=list)
    evaluated: int = 0

    def add(self, below: "_Sums", probability: Tensor) -> None:
        """Add the sums below one next token of every problem, which has this probability float64[B]."""
        self.totals += probability[:, None] * below.totals
        self.unknown += probability * below.unknown
        self.waiting += [replace(block, weight=block.weight * probability[block.problem]) for block in below.waiting]
        self.evaluated += len(probability) + below.evaluated


def _explore(
    tree: TraceTree,
    rows: Rows,
    logits: Tensor,
    token_p: Tensor,
    prefixes: dict[str, Tensor],
    limits: Limits,
    answers: dict[str, PrefixResult],
) -> _Sums:
    """Write the answer of every prefix that begins with the tree's forced tokens; returns the sums of these tokens.

    rows, logits: after the forced tokens (`TraceTree.after_forced`), whose probabilities are token_p. Of the prefixes
    free and FWD, p(free) = P(FWD) p(FWD) + the rest. So FWD is explored once, gives its own answer, and is then added
    to free with its probability.
    """
    totals = tree.zero_totals(torch.float64)
    sums = _Sums(totals, unknown=totals.new_zeros(len(tree)))
    live, state, live_logits = tree.drop_ended(rows, logits, 1.0, totals)
    p = torch.zeros_like(logits, dtype=torch.float64)  # of the next token, 0 for problems whose traces have ended
    p[live.problem] = _probabilities(tree, live_logits, live.problem)
    next_p = p.clone()
    for token, longer in _by_next_token(prefixes, tree.forced_len):
        child = rows.copy()
        child_logits = tree.model.decode(token, child)  # and append the token to child
        longer_tree = tree.force(torch.cat([tree.forced, token[:, None]], dim=1))
        longer_p = torch.cat([token_p, next_p.gather(1, token[:, None])], dim=1)
        below = _explore(longer_tree, child, child_logits, longer_p, longer, limits, answers)
        sums.add(below, p.gather(1, token[:, None])[:, 0])
        p.scatter_(1, token[:, None], 0.0)  # the search below leaves this token out
    frontier = Frontier(tree, limits)
    frontier.push(step_every_token(tree, live, state, p[live.problem], totals))
    sums.evaluated += _search(tree, frontier, limits, totals)
    sums.unknown += frontier.mass()
    sums.waiting += [block for _, block in frontier.blocks]
    outcomes, tokens = totals.cpu().numpy()
    result = Result("exact", outcomes, sums.unknown.cpu().numpy(), None, sums.evaluated, tokens)
    for name, prefix in prefixes.items():
        if prefix.shape[1] == tree.forced_len:
            answers[name] = PrefixResult(result, logits, token_p, sums.waiting)
    return sums


def _probabilities(tree: TraceTree, logits: Tensor, problem: Tensor) -> Tensor:
    """The probabilities float64[R, V] of the next token under the policy."""
    return torch.softmax(tree.policy_logits(logits, problem).double(), dim=-1)


def _by_next_token(prefixes: dict[str, Tensor], depth: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """The different next tokens int64[B] of prefixes longer than ``depth``, each with the prefixes that go on so."""
    longer = {name: prefix for name, prefix in prefixes.items() if prefix.shape[1] > depth}
    while longer:
        token = next(iter(longer.values()))[:, depth]
        group = {name: prefix for name, prefix in longer.items() if torch.equal(prefix[:, depth], token)}
        longer = {name: prefix for name, prefix in longer.items() if name not in group}
        yield token, group


def _search(tree: TraceTree, frontier: "Frontier", limits: Limits, totals: Tensor) -> int:
    """Decode waiting prefixes until none is left or the limits are reached; returns how many were decoded.

    Adds the probability of the outcomes that they reach in place to totals [2, B, outcomes].
    """
    evaluated = 0
    while frontier.blocks and evaluated + 1 <= limits.max_prefixes:  # a budget may have a fraction
        if limits.width > 0 and float(frontier.waiting.max()) <= limits.width:
            break
        block = frontier.pop(limits.max_prefixes - evaluated)
        rows, logits = block.decode(tree.model)
        p = _probabilities(tree, logits, rows.problem) * block.weight[:, None]
        frontier.push(step_every_token(tree, rows, block.state, p, totals))
        evaluated += len(block)
    return evaluated


class Frontier:
    """Live prefixes that wait to be decoded, in blocks of prefixes of one length and similar probability.

    block_rows: how many prefixes are decoded at once, the tree's rows_at_once or about a sixteenth of a small budget; a
    block as large as the budget would hold improbable prefixes with the probable ones. blocks: each with the
    probability, summed over problems, of its block_rows most probable prefixes; waiting: the probability float64[B] of
    all, up to rounding.
    """

    def __init__(self, tree: TraceTree, limits: Limits) -> None:
        self.block_rows = int(min(tree.rows_at_once, limits.max_prefixes / 16 + 1))
        self.blocks: list[tuple[float, Prefixes]] = []
        self.waiting = torch.zeros(len(tree), dtype=torch.float64, device=tree.device)

    def push(self, children: Prefixes) -> None:
        """Add the children of one expansion in blocks of at most block_rows, the most probable ones first."""
        count, limit = len(children), SORTED_BLOCKS * self.block_rows
        ranks = list(chunks(min(count, limit), self.block_rows))
        self._add(_by_mass(children, ranks + [slice(limit, None)] * (count > limit)))

    def pop(self, count: float) -> Prefixes:
        """Take the most probable block (while too much waits, the longest one), at most ``count`` of its prefixes.

        Of a block with more than block_rows prefixes, the most probable ones are taken.
        """
        count = min(count, self.block_rows)
        parents = {id(block.parent): block.parent.nbytes for _, block in self.blocks}
        crowded = sum(parents.values()) > FRONTIER_BYTES
        order = [(block.parent.length if crowded else 0, mass) for mass, block in self.blocks]
        _, block = self.blocks.pop(order.index(max(order)))
        self.waiting.index_add_(0, block.problem, block.weight, alpha=-1)
        if len(block) <= count:
            return block
        heaviest, rest = _by_mass(block, [slice(int(count)), slice(int(count), None)])
        self._add([rest])
        return heaviest

    def mass(self) -> Tensor:
        """The probability float64[B] that waits, summed anew: exactly 0 if nothing waits."""
        total = torch.zeros_like(self.waiting)
        for _, block in self.blocks:
            total.index_add_(0, block.problem, block.weight)
        return total

    def _add(self, blocks: list[Prefixes]) -> None:
        for block in blocks:
            self.waiting.index_add_(0, block.problem, block.weight)
            heaviest = block.weight if len(block) <= self.block_rows else block.weight.topk(self.block_rows).values
            self.blocks.append((float(heaviest.sum()), block))


def _by_mass(prefixes: Prefixes, ranks: list[slice]) -> list[Prefixes]:
    """Blocks of prefixes by their ranks in probability, the largest first. Inside a block prefixes keep their order."""
    order = prefixes.weight.argsort(descending=True, stable=True)
    return [prefixes[order[block].sort().values] for block in ranks]
