"""Exact pass@k inputs: the model multiplied with each problem's DFA, live prefixes only.

A prefix is live while its DFA state is no sink. Every live prefix is evaluated once; the probability of
each next token goes to the sink it leads to, or to a longer live prefix. When no live prefix is left the
sinks hold, per problem, the probability that one sampled trace is accepted or fails in each way, up to
the model's fp32 arithmetic (about 1e-5 in p).
"""

import torch
from torch import Tensor

from minifork.model import GPT, Prompts, Rows


@torch.no_grad()
def exact(model: GPT, prompts: Prompts, dfa: Tensor, sinks: int, max_new: int, forced: Tensor | None = None) -> Tensor:
    """Probability of each sink for each problem, float64[B, sinks]; every row sums to 1.

    dfa: int64[B, S, V], the automata (`data_gen.verifier.DFA`), whose last ``sinks`` states are sinks,
    the last of them for traces that outgrow max_new tokens. forced: int64[B, F], tokens that every trace
    begins with. Raises ValueError on logits that are not finite, naming the problem.
    """
    count, states, _ = dfa.shape
    first_sink = states - sinks
    problem = torch.arange(count, device=dfa.device)
    state = torch.zeros_like(problem)
    mass = torch.ones(count, dtype=torch.float64, device=dfa.device)
    absorbed = torch.zeros(count, sinks, dtype=torch.float64, device=dfa.device)
    for token in () if forced is None else forced.T:
        state = dfa[problem, state, token]
    rows, logits = force(model, prompts, max_new, forced)

    while len(mass):
        require_finite(logits, problem)
        branch_mass = torch.softmax(logits.double(), dim=-1) * mass[:, None]
        after = dfa[problem, state]
        at_sink = (after >= first_sink).nonzero(as_tuple=True)
        absorbed.index_put_((problem[at_sink[0]], after[at_sink] - first_sink), branch_mass[at_sink], accumulate=True)
        parent, token = ((after < first_sink) & (branch_mass > 0)).nonzero(as_tuple=True)
        problem, state, mass = problem[parent], after[parent, token], branch_mass[parent, token]
        if rows.length == max_new - 1:
            absorbed[:, -1].index_add_(0, problem, mass)
            break
        rows.select(parent)
        logits = model.decode(token, rows) if len(token) else logits
    return absorbed


def require_finite(logits: Tensor, problem: Tensor) -> None:
    """Raise ValueError naming the first problem int64[R] whose logits [R, V] are not all finite."""
    finite = torch.isfinite(logits).all(dim=1)
    if not finite.all():
        raise ValueError(f"problem {int(problem[~finite][0])}: the model's logits are not finite")


def force(model: GPT, prompts: Prompts, max_new: int, forced: Tensor | None) -> tuple[Rows, Tensor]:
    """One row a problem after its forced tokens int64[B, F]: the rows and their next logits [B, V]."""
    rows = Rows(prompts, torch.arange(len(prompts), device=prompts.logits.device), max_new)
    logits = prompts.logits
    for token in () if forced is None else forced.T:
        logits = model.decode(token, rows)
    return rows, logits
