"""n i.i.d. rollouts a problem at the price of its live prefixes: counts are split down the tree.

Of the rollouts that reach a prefix, the numbers that continue with each token are multinomial. Drawing these numbers at
every live prefix gives the counts of n independent rollouts, exactly in distribution. Each prefix is decoded once,
however many rollouts pass through it (batch autoregressive sampling, Barrett et al. 2021).
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from minifork.decoding.traces import Prefixes, Result, TraceTree, chunks, keep_live, sampled_result, step_every_token
from minifork.gpt import Rows

LARGEST_N = 10**9
WIDE = 1024  # tokens of a vocabulary above which few rollouts draw their next tokens one by one


@torch.no_grad()
def split(tree: TraceTree, n: int, seed: int) -> Result:
    """The result of n rollouts a problem, without running them one by one.

    Every (problem, depth) has its own random generator, which meets the prefixes of its depth in lexicographic order.
    So counts depend on the seed, the problem and the probabilities, not on how prefixes are batched (except that the
    last bits of probabilities can depend on the batch). Raises ValueError for n outside 1 .. 10^9. Raises ValueError
    naming the problem when logits are not finite or the policy removes every token.
    """
    require_rollouts(n)
    totals = tree.zero_totals(torch.int64)
    rows, state, logits = tree.start_rows(n, totals)
    draws = Draws(seed)
    first = _expand(tree, rows, state, logits, torch.full_like(state, n), draws, totals)
    return sampled_result("split", totals, n, split_down(tree, first, draws, totals))


def require_rollouts(n: int) -> None:
    """Raise ValueError for n outside 1 .. 10^9."""
    if not 1 <= n <= LARGEST_N:
        raise ValueError(f"n is {n}: split takes 1 to {LARGEST_N:,} rollouts a problem")


@dataclass
class Draws:
    """The random generators of one sample, by (problem, depth), which are made when they are first used."""

    seed: int
    generators: dict[tuple[int, int], np.random.Generator] = field(default_factory=dict)

    def at(self, problem: int, depth: int) -> np.random.Generator:
        """The generator of a problem at a depth below 2^16."""
        if (problem, depth) not in self.generators:
            bits = np.random.Philox(key=[self.seed, problem << 16 | depth])
            self.generators[problem, depth] = np.random.Generator(bits)
        return self.generators[problem, depth]


def split_down(tree: TraceTree, waiting: list[Prefixes], draws: Draws, totals: Tensor) -> int:
    """Split the counts of waiting prefixes down the tree; returns how many prefixes were decoded.

    Adds the counts of the outcomes that they reach in place to totals int64[2, B, outcomes].
    """
    stack = waiting[::-1]  # depth first, so that at every depth prefixes come in order
    evaluated = 0
    while stack:
        blocks = _next_blocks(stack, tree.rows_at_once)
        rows = [block.parent.take(block.origin) for block in blocks]
        joined = Rows.join(rows) if len(rows) > 1 else rows[0]
        token, state, count = (
            torch.cat([getattr(block, name) for block in blocks]) for name in ("token", "state", "weight")
        )
        logits = tree.model.decode(token, joined)
        stack += _expand(tree, joined, state, logits, count, draws, totals)[::-1]
        evaluated += len(token)
    return evaluated


def _next_blocks(stack: list[Prefixes], limit: int) -> list[Prefixes]:
    """The next block, and those after it that are as long, as far as all together have at most ``limit`` prefixes."""
    blocks = [stack.pop()]
    total, length = len(blocks[0]), blocks[0].parent.length
    while stack and stack[-1].parent.length == length and total + len(stack[-1]) <= limit:
        blocks.append(stack.pop())
        total += len(blocks[-1])
    return blocks


def _expand(
    tree: TraceTree, rows: Rows, state: Tensor, logits: Tensor, count: Tensor, draws: Draws, totals: Tensor
) -> list[Prefixes]:
    """The children of rows that some of their ``count`` int64[R] rollouts pass through, in blocks; adds to totals."""
    p = torch.softmax(tree.policy_logits(logits, rows.problem).double(), dim=-1).cpu().numpy()
    counts, ids = count.cpu().numpy(), tree.ids[rows.problem].cpu().numpy()
    if counts.sum() < p.shape[1] and p.shape[1] > WIDE:
        row, token, number = (
            torch.from_numpy(array).to(count.device) for array in draw_tokens(p, counts, ids, rows.length, draws)
        )
        after = tree.automata.step(rows.problem[row], state[row], token)
        block = keep_live(tree, Prefixes(rows, row, token, after, number), totals)
    else:
        children = torch.from_numpy(split_counts(p, counts, ids, rows.length, draws)).to(count.device)
        block = step_every_token(tree, rows, state, children, totals)
    return [block[chunk] for chunk in chunks(len(block), tree.rows_at_once)]


def draw_tokens(
    p: np.ndarray, count: np.ndarray, problem: np.ndarray, depth: int, draws: Draws
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The counts of `split_counts` that are not 0: their row, token and number, int64[E], by row and token.

    Each rollout draws its token by inverse CDF. Arguments are those of `split_counts`.
    """
    cumulative, tokens = p.cumsum(axis=1), []
    for row, number in enumerate(count):
        u = draws.at(int(problem[row]), depth).random(number) * cumulative[row, -1]
        last = cumulative[row].searchsorted(cumulative[row, -1])  # the last token of positive probability
        tokens.append(np.minimum(cumulative[row].searchsorted(u, side="right"), last))
    place, number = np.unique(
        np.repeat(np.arange(len(p)), count) * p.shape[1] + np.concatenate(tokens), return_counts=True
    )
    return *np.divmod(place, p.shape[1]), number


def split_counts(p: np.ndarray, count: np.ndarray, problem: np.ndarray, depth: int, draws: Draws) -> np.ndarray:
    """Multinomial counts int64[R, V] with probabilities p float64[R, V] of ``count`` int64[R] rollouts.

    problem: int64[R], the global number of the problem of each row; its rows are drawn one after the other.
    """
    p = p / p.sum(axis=1, keepdims=True)
    # numpy draws a binomial for each token given those before it, from what these leave, and the last token gets the
    # rest. With the largest token there the remaining probability never comes near 0, so nothing cancels.
    index, largest, last = np.arange(len(p)), p.argmax(axis=1), p.shape[1] - 1
    p[index, largest], p[:, last] = p[:, last].copy(), p[index, largest].copy()
    children = np.empty(p.shape, dtype=np.int64)
    starts = np.flatnonzero(np.diff(problem, prepend=-1))  # the first row of each problem
    for rows in np.split(index, starts)[1:]:
        children[rows] = draws.at(int(problem[rows[0]]), depth).multinomial(count[rows], p[rows])
    children[index, largest], children[:, last] = children[:, last].copy(), children[index, largest].copy()
    return children
