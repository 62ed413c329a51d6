"""Stratified decoding: samples spread evenly over the top tokens at one position, then i.i.d. after it.

The samples of such a decoder are not i.i.d., so the usual pass@k does not apply. Let k_j of the k samples take branch
token j. Let p_ij be the probability that a trace for problem i is accepted if it begins with the forced prefix and
token j. Then

    pass@k = mean_i 1 - prod_j (1 - p_ij)^{k_j}

This is so if the k samples are dealt to the strata in turn (`dealt_pass_at_k`). If they are drawn without replacement
from a pool of n samples, n_j of them from stratum j, then

    pass@k = mean_i 1 - [coefficient of x^k in prod_j sum_s C(n_j, s) (1 - p_ij)^s x^s] / C(n, k)

(`pooled_pass_at_k`). It is the expectation of the i.i.d. estimator 1 - C(n - c, k) / C(n, k), where c of the n samples
are accepted.

The paper (arXiv 2605.17026) takes the top 8 *first* tokens in turn until it has 64 samples, shuffles them, continues
at T = 1 with top_p .95 and scores them with the i.i.d. estimator. That is eval.stratify=first eval.strata=8
eval.pool=64 eval.max_k=64 eval.policy=top_p=0.95. Its variant takes exactly 8 samples, one of each:
eval.strata=8 eval.pool=8 eval.max_k=8. The first token is often not the fork.
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
    tokens = torch.zeros(len(tree), count, dtype=torch.int64, device=tree.device)
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

    The k samples are dealt to the strata in turn (`deal`).
    """
    ks, m = np.asarray(ks)[:, None], p.shape[1]
    return -np.expm1(_log_miss(p[:, None, :], deal(ks, m)).sum(axis=2))


def pooled_pass_at_k(p: np.ndarray, counts: ArrayLike, ks: ArrayLike) -> np.ndarray:
    """pass@k of k samples drawn without replacement from a pool, float64[B, K], in expectation over the pool.

    p: float64[B, m], counts: int[m], samples of each stratum in the pool, ks: int[K]. One stratum after the other is
    added to the pool. Of t samples a hypergeometric number i is of the new stratum, so every value is a mixture of
    values in [0, 1]. Raises ValueError for a k above the number of samples in the pool, and for counts of other strata.
    """
    counts, ks = np.asarray(counts), np.asarray(ks)
    if counts.shape != p.shape[1:] or (counts < 0).any():
        raise ValueError(f"counts is {counts.tolist()}: give the number of samples of each of {p.shape[1]} strata")
    largest, pool = ks.max(), counts.sum()
    if largest > pool or ks.min() < 0:
        raise ValueError(f"ks is {ks.tolist()}: a pool of {pool} samples gives k = 0 .. {pool}")
    passed = np.zeros((len(p), largest + 1))  # by t: some of t samples from the strata so far is accepted
    for j, count in enumerate(counts):
        weights, mixture = _hypergeometric(count, counts[:j].sum(), largest), np.zeros_like(passed)
        for i in range(min(count, largest) + 1):
            log_miss = _log_miss(p[:, j : j + 1], i)
            mixture[:, i:] += weights[i:, i] * (np.exp(log_miss) * passed[:, : largest + 1 - i] - np.expm1(log_miss))
        passed = mixture
    return np.minimum(passed[:, ks], 1.0)


def deal(n: int | np.ndarray, m: int) -> np.ndarray:
    """int[..., m]: the samples of each of m strata if n samples, a number or int[..., 1], are dealt to them in turn.

    The first strata come first: each has n // m, the first n mod m one more.
    """
    return n // m + (np.arange(m) < n % m)


def _hypergeometric(count: int, rest: int, largest: int) -> np.ndarray:
    """float64[largest + 1, count + 1]: the probability that i of t samples are among ``count`` of count + rest.

    Computed by adding one sample at a time. Rows t above count + rest are 0.
    """
    weights, i = np.zeros((largest + 1, count + 1)), np.arange(count + 1)
    weights[0, 0] = 1.0
    for t in range(min(largest, count + rest)):
        weights[t + 1] = weights[t] * (rest - t + i)
        weights[t + 1, 1:] += weights[t, :-1] * (count - i[:-1])
        weights[t + 1] /= count + rest - t
    return weights


def _log_miss(p: np.ndarray, k: ArrayLike) -> np.ndarray:
    """k log(1 - p), the log probability that none of k samples is accepted; 0 for k = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(k, k * np.log1p(-np.clip(p, 0.0, 1.0)), 0.0)


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
        state = tree.automata.step(rows.problem, state, trace[-1])
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
