"""All traces of problems with their probabilities and the inner products of their gradients, without sampling.

A verifier ends a trace at its first wrong token. So every trace is a right trace, or the beginning of a right trace
with one wrong token. Tokens and traces share an index [n, R, T, V]: the token v after the first t tokens of a problem's
right trace r, and the trace that ends with it. Forced tokens are left out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from data_gen.task import PAD, Batch
from data_gen.walks import IGNORE
from minifork.gpt import GPT
from minifork.schema import Config
from minifork.training.reinforce import FREE, right_traces, training_pairs

MISSING = 1e-4  # probability that listed traces may lack, by the model's fp32 arithmetic


@dataclass(frozen=True)
class TraceSpace:
    """The traces of n problems.

    inputs int64[n, R, P + T'], mask bool[n, R, P + T'] for `minifork.gpt.GPT`: the right traces behind their prompts,
    and where the next T tokens are predicted. tokens: int64[n, R, T], PAD past the end. ends, right: bool[n, R, T, V],
    True where a trace ends, and where it is right. No trace is listed twice.
    """

    inputs: Tensor
    mask: Tensor
    tokens: Tensor
    ends: Tensor
    right: Tensor

    def __getitem__(self, rows: slice) -> "TraceSpace":
        """The traces of some problems."""
        return TraceSpace(self.inputs[rows], self.mask[rows], self.tokens[rows], self.ends[rows], self.right[rows])

    @property
    def length(self) -> Tensor:
        """The tokens of every trace, float64[n, R, T, V]."""
        return torch.arange(1.0, 1 + self.tokens.shape[2], dtype=torch.float64)[:, None].expand(self.ends.shape)

    def along(self, values: Tensor) -> Tensor:
        """The sum over the tokens of every trace, from values of tokens, float64[B, R, T, V]; B is n, or n is 1."""
        tokens = self.tokens.clamp(min=0).expand(len(values), -1, -1)
        before = values.gather(3, tokens[..., None])
        return before.cumsum(dim=2) - before + values

    def through(self, values: Tensor) -> Tensor:
        """The sum over the traces that pass through every token, from values of traces: the transpose of `along`."""
        tokens = torch.zeros_like(values, requires_grad=True)
        return torch.autograd.grad(self.along(tokens), tokens, values)[0]

    def token_logp(self, model: GPT) -> Tensor:
        """The log-probability of every token after those before it, float64[n, R, T, V], differentiable."""
        logits = model(self.inputs.flatten(0, 1), self.mask.flatten(0, 1))[:, -self.tokens.shape[2] :]
        return logits.double().log_softmax(dim=-1).view(self.ends.shape)

    def probabilities(self, logp: Tensor) -> Tensor:
        """The probability of every trace, float64[n, R, T, V], 0 where none ends, from logp of tokens.

        Raises ValueError if traces go on after a token from which nothing right can be reached.
        """
        p = self.along(logp).exp().where(self.ends, 0.0)
        if (p.detach().sum(dim=(1, 2, 3)) - 1).abs().max() > MISSING:
            raise ValueError("some traces go on after their first wrong token, so they cannot be listed; choose a task "
                             "whose verifier ends them there")  # fmt: skip
        return p

    def jacobian(self, model: GPT) -> Tensor:
        """The gradient of every token's log-probability, fp32[R T V, parameters], of one problem (n = 1)."""
        parameters, rows = [*model.parameters()], []
        for logp in self.token_logp(model).flatten():
            gradients = torch.autograd.grad(logp, parameters, retain_graph=True)
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
        return torch.stack(rows)

    def trace_gram(self, jacobian: Tensor) -> Tensor:
        """The inner products of the gradients of log pi of all traces, float64[R T V, R T V], of one problem."""
        gram = (jacobian @ jacobian.T).double()
        for _ in range(2):  # rows, then columns: from tokens to traces
            gram = self.along(gram.view(-1, *self.ends.shape[1:])).flatten(1).T
        return gram


def trace_space(config: Config, problems: Batch) -> TraceSpace:
    """The traces of problems in the mode rl.mode, on the CPU; raises ValueError as `right_traces` does."""
    task, forced_len = config.data, int(config.rl.mode != FREE)
    traces, prompts = torch.from_numpy(right_traces(config, problems)), torch.from_numpy(task.prompts(problems))
    inputs, targets = training_pairs(prompts, traces, task.eos, forced_len)
    dfa = task.dfa(problems)
    table, first_outcome = torch.from_numpy(dfa.next.astype("int64")), dfa.first_outcome
    problem, earlier = torch.arange(len(traces))[:, None], torch.ones(traces.shape[1], traces.shape[1]).tril(-1) > 0
    state, same_start = torch.zeros_like(traces[:, :, 0]), earlier.expand(len(traces), -1, -1)
    by_place: list[tuple[Tensor, Tensor]] = []
    for t, token in enumerate(traces.unbind(dim=2)):
        after = table[problem, state]  # [n, R, V]
        listed = (token != PAD) & ~same_start.any(dim=2)
        ended = (after >= first_outcome) | (t == traces.shape[2] - 1)
        by_place.append((listed[..., None] & ended, listed[..., None] & (after == first_outcome)))
        state = after.gather(2, token.clamp(min=0)[..., None])[..., 0]
        same_start = same_start & (token[:, :, None] == token[:, None, :])
    ends, right = (torch.stack(parts, dim=2) for parts in zip(*by_place[forced_len:], strict=True))
    shape = traces.shape[:2]
    mask = (targets != IGNORE).unflatten(0, shape)
    return TraceSpace(inputs.unflatten(0, shape), mask, traces[:, :, forced_len:], ends, right)
