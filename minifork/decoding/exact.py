"""Exact pass@k inputs: the model multiplied with each problem's DFA, live prefixes only.

Every live prefix is evaluated once; the probability of each next token goes to the outcome it leads to, or to
a longer live prefix. When no live prefix is left, the outcomes hold the probability that one sampled trace is
accepted or fails in each way, up to the model's fp32 arithmetic (about 1e-5 in p). Stopped earlier, the
probability still on live prefixes is the width of a certified interval around each p.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minifork.decoding.traces import ROWS, Block, Result, TraceTree, absorb, chunks
from minifork.gpt import Rows

FRONTIER_BYTES = 2**30  # keys and values kept for waiting prefixes, above which depth comes before mass


@dataclass(frozen=True)
class Limits:
    """When to stop expanding the prefixes below one node: after so many of them, after so many seconds (checked
    before each block of prefixes), or once every p is known within ``width``.

    Raises ValueError for a budget of zero or less and for a negative width.
    """

    max_prefixes: float = math.inf
    max_seconds: float = math.inf
    width: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("max_prefixes", self.max_prefixes), ("max_seconds", self.max_seconds)):
            if not value > 0:
                raise ValueError(f"{name} is {value}: a budget must be above 0")
        if not self.width >= 0:
            raise ValueError(f"width is {self.width}: it must not be negative")


@dataclass(frozen=True)
class Below:
    """What follows a prefix: where its traces end, and the model's own next logits float[B, V] there."""

    result: Result
    logits: Tensor


@torch.no_grad()
def exact(tree: TraceTree, max_prefixes: float = math.inf, max_seconds: float = math.inf, width: float = 0.0) -> Result:
    """Bounds on the probability of each outcome, equal once the live language is exhausted.

    Expands live prefixes, the heaviest of all problems first, until none is left or `Limits` are reached. While too
    many wait, the longest come first, which bounds memory and loses nothing. Raises ValueError as `Limits` does and,
    naming the problem, on logits that are not finite or from which the policy removes every token.
    """
    return exact_below(tree, {"": tree.forced}, Limits(max_prefixes, max_seconds, width))[""].result


@torch.no_grad()
def exact_below(tree: TraceTree, prefixes: Mapping[str, Tensor], limits: Limits = Limits()) -> dict[str, Below]:
    """For prefixes int64[B, F] by name what `exact` says of tree.force(prefix), with no live prefix decoded twice.

    Prefixes that begin alike share their work. A prefix is entered even where the policy removes it. The limits hold
    for each prefix, and for each step on the way to a longer one, so that heavy prefixes starve no rare ones. Raises
    ValueError as `exact` does.
    """
    for prefix in prefixes.values():
        tree.force(prefix)  # refuses what does not fit
    state = tree.dfa.new_zeros(len(tree))
    rows = Rows(tree.prompts, torch.arange(len(tree), device=state.device), tree.max_new)
    start = _Node(rows, tree.prompts.logits, state, state)
    answers: dict[str, Below] = {}
    shortest = min(prefix.shape[1] for prefix in prefixes.values())
    parts = 1 + sum(prefix.shape[1] - shortest for prefix in prefixes.values())
    limits = Limits(limits.max_prefixes, limits.max_seconds, limits.width / parts)
    _explore(tree, start, dict(prefixes), limits, answers, counted=False)
    return answers


@dataclass(frozen=True)
class _Node:
    """One prefix of every problem: rows, the model's next logits [B, V], states int64[B], lengths int64[B] (shorter
    than the rows where an outcome was reached before)."""

    rows: Rows
    logits: Tensor
    state: Tensor
    length: Tensor

    def after(self, tree: TraceTree, token: Tensor) -> "_Node":
        """The node one token int64[B] on."""
        rows = self.rows.take(self.rows.problem)
        length = self.length + (self.state < tree.first_outcome)
        return _Node(rows, tree.model.decode(token, rows), tree.dfa[rows.problem, self.state, token], length)


@dataclass
class _Sums:
    """Of B problems: totals float64[2, B, outcomes] (`TraceTree.zero_totals`), unexplored mass float64[B], and work."""

    totals: Tensor
    unknown: Tensor
    evaluated: int = 0

    def add(self, other: "_Sums", weight: Tensor) -> None:
        """Count what follows a token of probability float64[B]."""
        self.totals += weight[:, None] * other.totals
        self.unknown += weight * other.unknown
        self.evaluated += other.evaluated


def _explore(
    tree: TraceTree, node: _Node, prefixes: dict[str, Tensor], limits: Limits, answers: dict[str, Below], counted: bool
) -> _Sums:
    """Enter every prefix below a node; returns sums over what follows it, if that is ``counted`` or asked for."""
    depth = node.rows.length
    asked = [name for name, prefix in prefixes.items() if prefix.shape[1] == depth]
    counted = counted or bool(asked)
    totals = tree.zero_totals(torch.float64)
    sums = _Sums(totals, totals.new_zeros(len(tree)))
    p = _next_token(tree, node, totals) if counted else None
    for token, longer in _by_next_token(prefixes, depth):
        below = _explore(tree, node.after(tree, token), longer, limits, answers, counted)
        if p is not None:
            sums.add(below, p.gather(1, token[:, None])[:, 0])
            p.scatter_(1, token[:, None], 0.0)
            sums.evaluated += len(tree)
    if p is not None:
        live = (node.state < tree.first_outcome).nonzero()[:, 0]
        rows = node.rows if len(live) == len(tree) else node.rows.take(live)
        frontier = Frontier(tree)
        frontier.push(absorb(tree, rows, node.state[live], p[live], totals))
        sums.evaluated += _expand(tree, frontier, limits, totals)
        sums.unknown += frontier.mass()
    for name in asked:
        shares, tokens = sums.totals.cpu().numpy()
        result = Result("exact", shares, sums.unknown.cpu().numpy(), None, sums.evaluated, tokens)
        answers[name] = Below(result, node.logits)
    return sums


def _next_token(tree: TraceTree, node: _Node, totals: Tensor) -> Tensor:
    """The probabilities float64[B, V] of the next token under the policy. Prefixes that have ended go to totals."""
    live = node.state < tree.first_outcome
    if live.all():
        return torch.softmax(tree.sampled_from(node.logits, node.rows.problem).double(), dim=-1)
    ended = (~live).nonzero()[:, 0]
    outcome = node.state[ended] - tree.first_outcome
    totals[0][ended, outcome], totals[1][ended, outcome] = 1.0, node.length[ended].double()
    p = torch.zeros_like(node.logits, dtype=torch.float64)
    logits = tree.sampled_from(node.logits[live], node.rows.problem[live])
    return p.masked_scatter(live[:, None], torch.softmax(logits.double(), dim=-1))


def _by_next_token(prefixes: dict[str, Tensor], depth: int) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """The next tokens int64[B] of the prefixes that are longer than a depth, each with those that go on with it."""
    longer = {name: prefix for name, prefix in prefixes.items() if prefix.shape[1] > depth}
    while longer:
        token = next(iter(longer.values()))[:, depth]
        same = {name: prefix for name, prefix in longer.items() if torch.equal(prefix[:, depth], token)}
        longer = {name: prefix for name, prefix in longer.items() if name not in same}
        yield token, same


def _expand(tree: TraceTree, frontier: "Frontier", limits: Limits, totals: Tensor) -> int:
    """Decode waiting prefixes until none is left or the limits are reached; returns how many were decoded."""
    started, evaluated = time.monotonic(), 0
    while frontier.blocks and evaluated < limits.max_prefixes and time.monotonic() - started < limits.max_seconds:
        if limits.width > 0 and float(frontier.waiting.max()) <= limits.width:
            break
        block = frontier.pop(limits.max_prefixes - evaluated)
        rows, logits = block.decode(tree.model)
        p = torch.softmax(tree.sampled_from(logits, rows.problem).double(), dim=-1)
        frontier.push(absorb(tree, rows, block.state, p * block.weight[:, None], totals))
        evaluated += len(block)
    return evaluated


class Frontier:
    """Live prefixes waiting to be expanded, in blocks of prefixes of one length and similar mass.

    blocks: each with its mass, so that a GPU is asked once; waiting: the mass of all float64[B], up to rounding.
    """

    def __init__(self, tree: TraceTree) -> None:
        self.blocks: list[tuple[float, Block]] = []
        self.waiting = torch.zeros(len(tree), dtype=torch.float64, device=tree.dfa.device)

    def push(self, children: Block) -> None:
        """Add the children of one expansion, cut into blocks by mass."""
        self._add(_by_mass(children, list(chunks(len(children), ROWS))))

    def pop(self, most: float) -> Block:
        """Take the heaviest block (the one of longest prefixes while too much waits), at most ``most`` prefixes."""
        parents = {id(block.parent): block.parent.nbytes for _, block in self.blocks}
        crowded = sum(parents.values()) > FRONTIER_BYTES
        best = max(
            range(len(self.blocks)),
            key=lambda i: (self.blocks[i][1].parent.length if crowded else 0, self.blocks[i][0]),
        )
        _, block = self.blocks.pop(best)
        self.waiting.index_add_(0, block.problem, block.weight, alpha=-1)
        if len(block) <= most:
            return block
        heaviest, rest = _by_mass(block, [slice(int(most)), slice(int(most), None)])
        self._add([rest])
        return heaviest

    def mass(self) -> Tensor:
        """What waits float64[B], summed anew: exactly 0 where nothing does."""
        total = torch.zeros_like(self.waiting)
        for _, block in self.blocks:
            total.index_add_(0, block.problem, block.weight)
        return total

    def _add(self, blocks: list[Block]) -> None:
        for block in blocks:
            self.waiting.index_add_(0, block.problem, block.weight)
        if blocks:
            self.blocks += zip(torch.stack([block.weight.sum() for block in blocks]).tolist(), blocks, strict=True)


def _by_mass(block: Block, parts: list[slice]) -> list[Block]:
    """Parts of a block taken in order of falling mass; inside a part prefixes keep the block's order."""
    order = block.weight.argsort(descending=True, stable=True)
    return [block[order[part].sort().values] for part in parts]
