"""Plain i.i.d. rollouts: prompts encoded once, KV cache, counter-based draws.

Each draw depends only on (seed, problem, rollout, step), so results do not depend on how rollouts are
batched, and any single one can be drawn again.
"""

import torch
from torch import Tensor

from minifork.exact import require_finite
from minifork.model import GPT, Prompts, Rows
from minifork.philox import uniform

SAMPLE = 0  # the purpose word of a sampling draw
ROWS = 4096  # rollouts in flight: the best size measured on two cores


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
def rollout(
    model: GPT,
    prompts: Prompts,
    dfa: Tensor,
    sinks: int,
    max_new: int,
    n: int,
    seed: int,
    first_problem: int = 0,
) -> Tensor:
    """Sample n rollouts a problem and count where they end: int64[B, sinks], rows sum to n.

    dfa, sinks, max_new as in `minifork.exact.exact`. first_problem: the global id of problem 0, part of
    the key of every draw. Raises ValueError for n < 1 and, naming the problem, on logits that are not finite.
    """
    if n < 1:
        raise ValueError(f"n is {n}: sample at least 1 rollout a problem")
    counts = torch.zeros(len(prompts), sinks, dtype=torch.int64, device=dfa.device)
    problems_at_once, rollouts_at_once = max(1, ROWS // n), min(n, ROWS)
    for start in range(0, len(prompts), problems_at_once):
        some = slice(start, min(start + problems_at_once, len(prompts)))
        for first in range(0, n, rollouts_at_once):
            ids = torch.arange(first, min(first + rollouts_at_once, n), device=dfa.device)
            _roll(model, prompts[some], dfa[some], max_new, seed, ids, first_problem + start, counts[some])
    return counts


def _roll(
    model: GPT, prompts: Prompts, dfa: Tensor, max_new: int, seed: int, ids: Tensor, first_problem: int, counts: Tensor
) -> None:
    """Run the rollouts ``ids`` of every problem to their sinks and add them to counts."""
    first_sink = dfa.shape[1] - counts.shape[1]
    problem = torch.arange(len(prompts), device=dfa.device).repeat_interleave(len(ids))
    rollout_id = ids.repeat(len(prompts))
    state = torch.zeros_like(problem)
    rows = Rows(prompts, problem, max_new)
    logits = prompts.logits[problem]
    for step in range(max_new):
        require_finite(logits, first_problem + problem)
        token = draw(logits, uniform(seed, rollout_id, step, first_problem + problem, SAMPLE))
        state = dfa[problem, state, token]
        done = state >= first_sink
        ended = problem[done] * counts.shape[1] + state[done] - first_sink
        counts += torch.bincount(ended, minlength=counts.numel()).view_as(counts)
        live = (~done).nonzero()[:, 0]
        if not len(live):
            return
        problem, rollout_id, state = problem[live], rollout_id[live], state[live]
        if step < max_new - 1:
            rows.select(live)
            logits = model.decode(token[live], rows)
    counts[:, -1] += torch.bincount(problem, minlength=len(prompts))
