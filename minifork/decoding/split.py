"""n i.i.d. rollouts a problem at the price of its live prefixes: counts are split down the tree.

Of the rollouts that reach a prefix, the numbers that continue with each token are multinomial. Drawing these numbers at
every live prefix gives the counts of n independent rollouts, exactly in distribution. Each prefix is decoded once,
however many rollouts pass through it (batch autoregressive sampling, Barrett et al. 2021).
"""

import numpy as np
import torch

from minifork.decoding.traces import ROWS, Prefixes, Result, TraceTree, chunks, sampled_result, step_every_token

LARGEST_N = 10**9


@torch.no_grad()
def split(tree: TraceTree, n: int, seed: int) -> Result:
    """The result of n rollouts a problem, without running them one by one.

    Every (problem, depth) has its own random generator, which meets the prefixes of its depth in lexicographic order.
    So counts depend on the seed, the problem and the probabilities, not on how prefixes are batched (except that the
    last bits of probabilities can depend on the batch). Raises ValueError for n outside 1 .. 10^9. Raises ValueError
    naming the problem when logits are not finite or the policy removes every token.
    """
    if not 1 <= n <= LARGEST_N:
        raise ValueError(f"n is {n}: split takes 1 to {LARGEST_N:,} rollouts a problem")
    totals = tree.zero_totals(torch.int64)
    rows, state, logits = tree.start_rows(n, totals)
    count = torch.full_like(state, n)
    generators: dict[tuple[int, int], np.random.Generator] = {}
    waiting: list[Prefixes] = []  # depth first, so that at every depth prefixes come in order
    evaluated = 0
    while len(rows):
        p = torch.softmax(tree.policy_logits(logits, rows.problem).double(), dim=-1).cpu().numpy()
        problem = tree.ids[rows.problem].cpu().numpy()
        children = _split(p, count.cpu().numpy(), problem, rows.length, seed, generators)
        block = step_every_token(tree, rows, state, torch.from_numpy(children).to(count.device), totals)
        waiting += [block[chunk] for chunk in chunks(len(block), ROWS)][::-1]
        if not waiting:
            break
        block = waiting.pop()
        rows, logits = block.decode(tree.model)
        state, count = block.state, block.weight
        evaluated += len(block)
    return sampled_result("split", totals, n, evaluated)


def _split(
    p: np.ndarray, count: np.ndarray, problem: np.ndarray, depth: int, seed: int, generators: dict
) -> np.ndarray:
    """Multinomial counts int64[R, V] with probabilities p float64[R, V] of ``count`` int64[R] rollouts."""
    p = p / p.sum(axis=1, keepdims=True)
    # numpy draws a binomial for each token given those before it, from what these leave, and the last token gets the
    # rest. With the largest token there the remaining probability never comes near 0, so nothing cancels.
    index, largest, last = np.arange(len(p)), p.argmax(axis=1), p.shape[1] - 1
    p[index, largest], p[:, last] = p[:, last].copy(), p[index, largest].copy()
    children = np.empty(p.shape, dtype=np.int64)
    for rows in np.split(index, np.flatnonzero(np.diff(problem)) + 1):  # the rows of one problem
        key = int(problem[rows[0]]), depth
        if key not in generators:
            generators[key] = np.random.Generator(np.random.Philox(key=[seed, key[0] << 16 | depth]))
        children[rows] = generators[key].multinomial(count[rows], p[rows])
    children[index, largest], children[:, last] = children[:, last].copy(), children[index, largest].copy()
    return children
