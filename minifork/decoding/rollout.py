"""Plain i.i.d. rollouts: prompts encoded once, KV cache, counter-based draws.

Each draw depends only on (seed, problem, rollout, step), so results do not depend on how rollouts are
batched, and any single one can be drawn again.
"""

import numpy as np
import torch
from torch import Tensor

from minifork.decoding.philox import uniform
from minifork.decoding.traces import ROWS, Result, Traces, Tree

SAMPLE = 0  # the purpose word of a sampling draw


def draw(logits: Tensor, u: Tensor) -> Tensor:
    """Tokens int64[R] from logits [R, V] and uniforms fp32[R] in [0, 1), by inverse CDF of fp32 weights.

    The first token whose cumulative unnormalised probability exceeds u times their sum; if rounding
    leaves none, the last token of positive probability.
    """
    logits = logits.float()
    weights = torch.exp(logits - logits.amax(dim=-1, keepdim=True))
    cumulative = weights.cumsum(dim=-1)
    beyond = cumulative > u[:, None] * cumulative[:, -1:]
    last_positive = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(dim=-1)
    return torch.where(beyond.any(dim=-1), beyond.int().argmax(dim=-1), last_positive)


@torch.no_grad()
def rollout(tree: Tree, n: int, seed: int, traces: bool = False) -> Result:
    """Where n rollouts a problem end; with ``traces``, also what they were.

    Raises ValueError for n < 1 and, naming the problem, on logits that are not finite or from which the
    policy removes every token.
    """
    if n < 1:
        raise ValueError(f"n is {n}: sample at least 1 rollout a problem")
    ends = tree.no_ends(torch.int64)
    kept = _no_traces(tree, n) if traces else None
    problems_at_once, rollouts_at_once = max(1, ROWS // n), min(n, ROWS)
    evaluated = 0
    for start in range(0, len(tree), problems_at_once):
        some = slice(start, min(start + problems_at_once, len(tree)))
        for first in range(0, n, rollouts_at_once):
            ids = slice(first, min(first + rollouts_at_once, n))
            part = kept and Traces(kept.tokens[some, ids], kept.logp[some, ids], kept.sink[some, ids])
            evaluated += _roll(tree[some], seed, ids, ends[:, some], part)
    ends, tokens = ends.cpu().numpy() / n
    return Result("rollout", ends, np.zeros(len(tree)), n, evaluated, tokens, kept)


def _roll(tree: Tree, seed: int, ids: slice, ends: Tensor, traces: Traces | None) -> int:
    """Run the rollouts ``ids`` of every problem and add where they end to ends [2, B, sinks]; returns the
    tokens decoded."""
    n = ids.stop - ids.start
    rows, state, logits = tree.root(n, ends)
    if traces:
        _keep_forced(tree, traces)
    problem, rollout_id = rows.problem.repeat_interleave(n), torch.arange(n, device=ends.device).repeat(len(rows))
    first = torch.arange(len(rows), device=ends.device).repeat_interleave(n)
    rows, state, logits = rows.take(first), state[first], logits[first]
    evaluated = 0
    while len(rows):
        sampled = tree.sampled_from(logits, problem)
        u = uniform(seed, ids.start + rollout_id, rows.length, tree.ids[problem], SAMPLE)
        token = draw(sampled, u)
        state = tree.dfa[problem, state, token]
        if rows.length == tree.max_new - 1:
            state = torch.where(state < tree.first_sink, tree.dfa.shape[1] - 1, state)
        done = state >= tree.first_sink
        sink = state[done] - tree.first_sink
        ended = torch.bincount(problem[done] * tree.sinks + sink, minlength=ends[0].numel()).view_as(ends[0])
        ends += torch.stack([ended, ended * (rows.length + 1)])
        if traces:
            traces.tokens[problem, rollout_id, rows.length] = token
            logp = torch.log_softmax(sampled, dim=-1).gather(1, token[:, None])[:, 0]
            traces.logp[problem, rollout_id, rows.length] = logp
            traces.sink[problem[done], rollout_id[done]] = sink
        if done.any():
            live = (~done).nonzero()[:, 0]
            problem, rollout_id, token, state = problem[live], rollout_id[live], token[live], state[live]
            rows = rows.take(live)
        if len(rows):
            logits = tree.model.decode(token, rows)
            evaluated += len(rows)
    return evaluated


def _no_traces(tree: Tree, n: int) -> Traces:
    shape, device = (len(tree), n, tree.max_new), tree.dfa.device
    tokens = torch.full(shape, -1, dtype=torch.int64, device=device)
    return Traces(tokens, torch.zeros(shape, device=device), torch.full_like(tokens[..., 0], -1))


def _keep_forced(tree: Tree, traces: Traces) -> None:
    """Write the forced tokens, and the sink of the traces that these alone end."""
    problem = torch.arange(len(tree), device=tree.dfa.device)
    state = torch.zeros_like(problem)
    for step, token in enumerate(() if tree.forced is None else tree.forced.T):
        live = state < tree.first_sink
        traces.tokens[live, :, step] = token[live, None]
        state = tree.dfa[problem, state, token]
    ended = state >= tree.first_sink
    traces.sink[ended] = (state[ended] - tree.first_sink)[:, None]
