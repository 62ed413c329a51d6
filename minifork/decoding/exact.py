"""Exact pass@k inputs: the model multiplied with each problem's DFA, live prefixes only.

Every live prefix is evaluated once; the probability of each next token goes to the sink it leads to, or to
a longer live prefix. When no live prefix is left, the sinks hold the probability that one sampled trace is
accepted or fails in each way, up to the model's fp32 arithmetic (about 1e-5 in p). Stopped earlier, the
probability still on live prefixes is the width of a certified interval around each p.
"""

import math
import time

import torch

from minifork.decoding.traces import ROWS, Block, Result, Tree, absorb, chunks

FRONTIER_BYTES = 2**30  # keys and values kept for waiting prefixes, above which depth comes before mass


@torch.no_grad()
def exact(tree: Tree, max_prefixes: float = math.inf, max_seconds: float = math.inf, width: float = 0.0) -> Result:
    """Bounds on the probability of each sink, equal once the live language is exhausted.

    Expands live prefixes, the heaviest of all problems first, until none is left, every p is known within
    ``width``, or a budget is spent: max_prefixes decoded, or max_seconds (checked before each block of
    prefixes). While too many wait, the longest come first, which bounds memory and loses nothing. Raises
    ValueError for a budget of zero or less, for a negative width and, naming the problem, on logits that are
    not finite or from which the policy removes every token.
    """
    for name, value in (("max_prefixes", max_prefixes), ("max_seconds", max_seconds)):
        if not value > 0:
            raise ValueError(f"{name} is {value}: a budget must be above 0")
    if not width >= 0:
        raise ValueError(f"width is {width}: it must not be negative")
    started, ends = time.monotonic(), tree.no_ends(torch.float64)
    rows, state, logits = tree.root(1.0, ends)
    mass = torch.ones(len(rows), dtype=torch.float64, device=tree.dfa.device)
    frontier, evaluated = Frontier(), 0
    while len(rows):
        p = torch.softmax(tree.sampled_from(logits, rows.problem).double(), dim=-1)
        frontier.push(absorb(tree, rows, state, p * mass[:, None], ends))
        spent = evaluated >= max_prefixes or time.monotonic() - started >= max_seconds
        if not frontier.blocks or spent or float(frontier.mass(tree).max()) <= width:
            break
        block = frontier.pop(max_prefixes - evaluated)
        rows, logits = block.decode(tree.model)
        state, mass = block.state, block.weight
        evaluated += len(block)
    shares, tokens = ends.cpu().numpy()
    return Result("exact", shares, frontier.mass(tree).cpu().numpy(), None, evaluated, tokens)


class Frontier:
    """Live prefixes waiting to be expanded, in blocks of prefixes of one length and similar mass."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []

    def push(self, children: Block) -> None:
        """Add the children of one expansion, cut into blocks by mass."""
        self.blocks += _by_mass(children, list(chunks(len(children), ROWS)))

    def pop(self, most: float) -> Block:
        """Take the heaviest block (the one of longest prefixes while too much waits), at most ``most`` prefixes."""
        parents = {id(block.parent): block.parent.nbytes for block in self.blocks}
        crowded = sum(parents.values()) > FRONTIER_BYTES
        best = max(
            range(len(self.blocks)),
            key=lambda i: (self.blocks[i].parent.length if crowded else 0, float(self.blocks[i].weight.sum())),
        )
        block = self.blocks.pop(best)
        if len(block) <= most:
            return block
        heaviest, rest = _by_mass(block, [slice(int(most)), slice(int(most), None)])
        self.blocks.append(rest)
        return heaviest

    def mass(self, tree: Tree) -> torch.Tensor:
        """What waits, float64[B]."""
        total = torch.zeros(len(tree), dtype=torch.float64, device=tree.dfa.device)
        for block in self.blocks:
            total.index_add_(0, block.problem, block.weight)
        return total


def _by_mass(block: Block, parts: list[slice]) -> list[Block]:
    """Parts of a block taken in order of falling mass; inside a part prefixes keep the block's order."""
    order = block.weight.argsort(descending=True, stable=True)
    return [block[order[part].sort().values] for part in parts]
