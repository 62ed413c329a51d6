"""Stratified decoding: samples spread evenly over the top tokens at one position, then i.i.d. after it.

The samples of such a decoder are not i.i.d., so the usual pass@k does not apply. Let k_j of the k samples take branch
token j. Let p_ij be the probability that a trace for problem i is accepted if it begins with the forced prefix and
token j. Then

    pass@k = mean_i 1 - prod_j (1 - p_ij)^{k_j}

The paper (arXiv 2605.17026) spreads over the top 8 *first* tokens; the first token is often not the fork.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from minifork.decoding.exact import exact
from minifork.decoding.policy import greedy
from minifork.decoding.traces import Result, TraceTree


@dataclass(frozen=True)
class Strata:
    """The m strata of B problems: tokens int64[B, m] and bounds on p_ij float64[B, m]."""

    tokens: np.ndarray
    p_lo: np.ndarray
    p_hi: np.ndarray


def stratify(
    tree: TraceTree, prefix: Tensor, length: Tensor, m: int | Tensor, engine: Callable[[TraceTree], Result] = exact
) -> Strata:
    """The p_ij of a decoder that takes each of the model's m top tokens after a forced prefix.

    prefix: int64[B, T], of which the first ``length`` int64[B] tokens are forced. m: the number of top tokens, by the
    model's own probabilities, or the tokens int64[B, m] themselves, such as the branches of a task. The tokens after
    them are sampled under the tree's policy. engine: called for one stratum after the other. Raises ValueError for m
    outside 1 .. V and for a prefix that leaves no room for two more tokens, and passes on the errors of the engine.
    """
    vocab, count = tree.model.vocab_size, m.shape[1] if isinstance(m, Tensor) else m
    if not 1 <= count <= vocab:
        raise ValueError(f"m is {count}: a vocabulary of {vocab} tokens has 1 to {vocab} strata")
    if isinstance(m, Tensor) and (m.min() < 0 or m.max() >= vocab):
        raise ValueError(f"m holds tokens outside 0 .. {vocab - 1}: every problem needs as many strata")
    tokens = tree.dfa.new_zeros(len(tree), count)
    p_lo, p_hi = np.zeros((2, len(tree), count))
    for forced in length.unique().tolist():
        index = (length == forced).nonzero()[:, 0]
        subtree, before = tree[index], prefix[index, :forced]
        tokens[index] = m[index] if isinstance(m, Tensor) else _top(subtree.force(before), m)
        for j in range(count):
            result = engine(subtree.force(torch.cat([before, tokens[index, j : j + 1]], dim=1)))
            p_lo[index.cpu().numpy(), j], p_hi[index.cpu().numpy(), j] = result.p_lo, result.p_hi
    return Strata(tokens.cpu().numpy(), p_lo, p_hi)


def dealt_pass_at_k(p: np.ndarray, ks: ArrayLike) -> np.ndarray:
    """1 - prod_j (1 - p_ij)^{k_j}, float64[B, K], from p float64[B, m] and ks int[K].

    The k samples are dealt to the strata in turn, the first strata first: k_j = k // m, one more for the
    first k mod m.
    """
    ks, m = np.asarray(ks)[:, None], p.shape[1]
    k = ks // m + (np.arange(m) < ks % m)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_miss = k * np.log1p(-np.clip(p, 0.0, 1.0))[:, None, :]
    return -np.expm1(np.where(k > 0, log_miss, 0.0).sum(axis=2))


@torch.no_grad()
def highest_entropy(tree: TraceTree) -> tuple[Tensor, Tensor]:
    """The greedy trace int64[B, T] and the position int64[B] on it where the model is least certain.

    The entropy is that of the model's next token, without the policy. Of equal positions the first is taken. The last
    position that max_new allows is excluded, because nothing can follow its token.
    """
    rows, logits = tree.force(tree.forced[:, :0]).after_forced()
    state = torch.zeros_like(rows.problem)
    best, position = torch.full_like(logits[:, 0], -1.0), torch.zeros_like(state)
    trace = []
    for step in range(tree.max_new - 1):
        tree.require_finite(logits, rows.problem)
        logp = torch.log_softmax(logits.float(), dim=-1)
        entropy = -(logp.exp() * logp).sum(dim=-1)
        higher = (state < tree.first_outcome) & (entropy > best)
        best, position = torch.where(higher, entropy, best), torch.where(higher, step, position)
        trace.append(greedy(logits).argmax(dim=-1))
        state = tree.dfa[rows.problem, state, trace[-1]]
        logits = tree.model.decode(trace[-1], rows)
    return torch.stack(trace, dim=1), position


def right_after(prefix: Tensor, trace: Tensor, position: Tensor) -> Tensor:
    """bool[B]: True if a position int64[B] on a trace int64[B, T] comes right after a prefix int64[B, F]."""
    return (position == prefix.shape[1]) & (trace[:, : prefix.shape[1]] == prefix).all(dim=1)


@torch.no_grad()
def _top(tree: TraceTree, m: int) -> Tensor:
    """int64[B, m]: the most probable tokens after the forced ones, in order; equal ones by id."""
    rows, logits = tree.after_forced()
    tree.require_finite(logits, rows.problem)
    return logits.sort(dim=-1, descending=True, stable=True).indices[:, :m]
