"""n i.i.d. rollouts a problem at the price of its live prefixes: counts are split down the tree.

Of the rollouts that reach a prefix, the numbers that go on with each token are multinomial. Drawing them
at every live prefix gives the counts of n independent rollouts exactly in distribution, and each prefix is
evaluated once however many rollouts pass through it (batch autoregressive sampling, Barrett et al. 2021).
"""

import numpy as np
import torch

from minifork.decoding.traces import ROWS, Block, Result, TraceTree, absorb, chunks, sampled_result

LARGEST_N = 10**9


@torch.no_grad()
def split(tree: TraceTree, n: int, seed: int) -> Result:
    """Where n rollouts a problem end, without running them one by one.

    Every (problem, depth) has a random generator of its own, which meets the prefixes of its depth in
    lexicographic order: counts depend on (seed, problem) and the probabilities only, not on how prefixes
    are batched (but for probabilities that differ in their last bits between batch shapes). Raises ValueError
    for n outside 1 .. 10^9 and, naming the problem, on logits that are not finite or from which the policy
    removes every token.
    """
    if not 1 <= n <= LARGEST_N:
        raise ValueError(f"n is {n}: split takes 1 to {LARGEST_N:,} rollouts a problem")
    totals = tree.zero_totals(torch.int64)
    rows, state, logits = tree.root(n, totals)
    count = torch.full_like(state, n)
    generators: dict[tuple[int, int], np.random.Generator] = {}
    waiting: list[Block] = []  # depth first, so that at every depth prefixes come in order
    evaluated = 0
    while len(rows):
        p = torch.softmax(tree.sampled_from(logits, rows.problem).double(), dim=-1).cpu().numpy()
        problem = tree.ids[rows.problem].cpu().numpy()
        children = _split(p, count.cpu().numpy(), problem, rows.length, seed, generators)
        block = absorb(tree, rows, state, torch.from_numpy(children).to(count.device), totals)
        waiting += [block[part] for part in chunks(len(block), ROWS)][::-1]
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
    """Multinomial counts int64[R, V] of the rollouts int64[R] that pass through rows of p float64[R, V]."""
    p = p / p.sum(axis=1, keepdims=True)
    # The sampler draws a binomial for each token given those before and gives the rest to the last one;
    # with the largest there, what is left to share never comes near 0 and nothing cancels.
    every, largest, last = np.arange(len(p)), p.argmax(axis=1), p.shape[1] - 1
    p[every, largest], p[:, last] = p[:, last].copy(), p[every, largest].copy()
    children = np.empty(p.shape, dtype=np.int64)
    for rows in np.split(every, np.flatnonzero(np.diff(problem)) + 1):  # the rows of one problem
        key = int(problem[rows[0]]), depth
        if key not in generators:
            generators[key] = np.random.Generator(np.random.Philox(key=[seed, key[0] << 16 | depth]))
        children[rows] = generators[key].multinomial(count[rows], p[rows])
    children[every, largest], children[:, last] = children[:, last].copy(), children[every, largest].copy()
    return children
