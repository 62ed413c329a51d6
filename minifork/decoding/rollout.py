"""Plain i.i.d. rollouts: prompts encoded once, KV cache, counter-based draws.

Each draw depends only on (seed, problem, rollout, step). So results do not depend on how rollouts are batched, and any
single rollout can be repeated.
"""

import torch
from torch import Tensor

from minifork.decoding.philox import uniform
from minifork.decoding.traces import Result, Traces, TraceTree, add_totals, sampled_result

SAMPLE = 0  # the purpose of sampling draws, a word of their counter


def draw_token(logits: Tensor, u: Tensor) -> Tensor:
    """Tokens int64[R] from logits [R, V] and uniforms fp32[R] in [0, 1), by inverse CDF of fp32 weights.

    The first token whose cumulative unnormalised probability exceeds u times their sum. If rounding leaves none, the
    last token of positive probability.
    """
    logits = logits.float()
    weights = torch.exp(logits - logits.amax(dim=-1, keepdim=True))
    cumulative = weights.cumsum(dim=-1)
    beyond = cumulative > u[:, None] * cumulative[:, -1:]
    last_positive = weights.shape[-1] - 1 - (weights > 0).flip(-1).int().argmax(dim=-1)
    return torch.where(beyond.any(dim=-1), beyond.int().argmax(dim=-1), last_positive)


@torch.no_grad()
def rollout(tree: TraceTree, n: int, seed: int, traces: bool = False) -> Result:
    """The result of n rollouts a problem; with ``traces``, also their tokens.

    Raises ValueError for n < 1. Raises ValueError naming the problem when logits are not finite or the policy removes
    every token.
    """
    if n < 1:
        raise ValueError(f"n is {n}: sample at least 1 rollout a problem")
    totals, evaluated = tree.zero_totals(torch.int64), 0
    sampled = _forced_traces(tree, n) if traces else None
    rows_at_once = tree.rows_at_once
    problems_at_once, rollouts_at_once = max(1, rows_at_once // n), min(n, rows_at_once)
    for start in range(0, len(tree), problems_at_once):
        problems = slice(start, start + problems_at_once)
        for first in range(0, n, rollouts_at_once):
            numbers = slice(first, min(first + rollouts_at_once, n))
            batch_traces = None if sampled is None else sampled[problems, numbers]
            evaluated += _roll(tree[problems], seed, numbers, totals[:, problems], batch_traces)
    return sampled_result("rollout", totals, n, evaluated, sampled)


def _roll(tree: TraceTree, seed: int, numbers: slice, totals: Tensor, traces: Traces | None) -> int:
    """Run the rollouts of these numbers of every problem; returns the number of decoded tokens.

    Adds their outcomes in place to totals [2, B, outcomes] (`TraceTree.zero_totals`). Writes their tokens to traces.
    """
    n, evaluated = numbers.stop - numbers.start, 0
    rows, state, logits = tree.start_rows(n, totals)
    rollout_id = torch.arange(n, device=totals.device).repeat(len(rows))
    first = torch.arange(len(rows), device=totals.device).repeat_interleave(n)
    rows, state, logits = rows.take(first, shared=True), state[first], logits[first]
    while len(rows):
        problem, length = rows.problem, rows.length + 1
        logits = tree.policy_logits(logits, problem)
        token = draw_token(logits, uniform(seed, numbers.start + rollout_id, rows.length, tree.ids[problem], SAMPLE))
        state = tree.step(problem, state, token, length)
        live, outcome = state < tree.first_outcome, state - tree.first_outcome
        add_totals(totals, problem[~live], outcome[~live], torch.ones_like(outcome[~live]), length)
        if traces is not None:
            traces.tokens[problem, rollout_id, rows.length] = token
            logp = torch.log_softmax(logits, dim=-1).gather(1, token[:, None])[:, 0]
            traces.logp[problem, rollout_id, rows.length] = logp
            traces.outcome[problem, rollout_id] = outcome.clamp(min=-1)
        if not live.all():
            index = live.nonzero()[:, 0]
            rows, rollout_id, token, state = rows.take(index), rollout_id[index], token[index], state[index]
        if len(rows):
            logits = tree.model.decode(token, rows)
            evaluated += len(rows)
    return evaluated


def _forced_traces(tree: TraceTree, n: int) -> Traces:
    """n traces a problem of the forced tokens alone, with their outcome, -1 if they are live."""
    state, length = tree.forced_states()
    tokens = torch.full((len(tree), n, tree.max_new), -1, device=tree.device)
    is_forced = torch.arange(tree.forced_len, device=tokens.device) < length[:, None]
    tokens[:, :, : tree.forced_len] = tree.forced.where(is_forced, -1)[:, None]
    outcome = (state - tree.first_outcome).clamp(min=-1)[:, None].repeat(1, n)
    return Traces(tokens, torch.zeros(tokens.shape, device=tokens.device), outcome)
