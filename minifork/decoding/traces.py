"""What every engine explores, and what every engine answers.

The traces of a problem form a tree: a prefix is *live* while its DFA state is no sink, and its next tokens
have the probabilities that the model gives them under the decode policy. An engine says in which sinks
the traces of each problem end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minifork.decoding.policy import Policy
from minifork.gpt import GPT, Prompts, Rows

ROWS = 4096  # prefixes or rollouts decoded at once: the best size measured on two cores
EXACT = 1e-9  # p known to this width counts as exact: the model's own fp32 arithmetic hides more (about 1e-5)


@dataclass(frozen=True)
class Tree:
    """The traces of B problems: a model under a policy, cut by one DFA a problem.

    dfa: int64[B, S, V], the automata (`data_gen.verifier.DFA`); the last ``sinks`` states are sinks, the
    first of them accepts and the last takes traces that outgrow max_new tokens. forced: int64[B, F], tokens
    every trace begins with. ids: int64[B], the global number of each problem, part of the key of its random
    draws; 0, 1, 2, ... where not given. Raises ValueError naming the argument that does not fit.
    """

    model: GPT
    prompts: Prompts
    dfa: Tensor
    sinks: int
    max_new: int
    policy: Policy = Policy()
    forced: Tensor | None = None
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        count, states, vocab = self.dfa.shape
        if count != len(self.prompts):
            raise ValueError(f"dfa has {count} automata for {len(self.prompts)} prompts: give one each")
        if vocab != self.model.vocab_size:
            raise ValueError(f"dfa reads {vocab} tokens, the model has {self.model.vocab_size}")
        if not 1 <= self.sinks < states:
            raise ValueError(f"sinks is {self.sinks}: of {states} states the last 1 to {states - 1} can be sinks")
        if self.dfa.min() < 0 or self.dfa.max() >= states:
            raise ValueError(f"dfa has states outside 0 .. {states - 1}")
        room = self.model.context - self.prompts.length
        if not 1 <= self.max_new <= room + 1:
            raise ValueError(f"max_new is {self.max_new}: the model's context leaves room for 1 to {room + 1}")
        if self.forced is not None and (len(self.forced) != count or self.forced.shape[1] >= self.max_new):
            raise ValueError(f"forced is {tuple(self.forced.shape)}: give {count} rows of < {self.max_new} tokens")
        if self.ids is None:
            object.__setattr__(self, "ids", torch.arange(count, device=self.dfa.device))

    def __len__(self) -> int:
        return len(self.dfa)

    def __getitem__(self, some: slice | Tensor) -> "Tree":
        """The tree of some of the problems."""
        forced = None if self.forced is None else self.forced[some]
        return replace(self, prompts=self.prompts[some], dfa=self.dfa[some], forced=forced, ids=self.ids[some])

    def force(self, tokens: Tensor | None) -> "Tree":
        """The same tree with other forced tokens int64[B, F]."""
        return replace(self, forced=tokens)

    @property
    def forced_len(self) -> int:
        return 0 if self.forced is None else self.forced.shape[1]

    @property
    def first_sink(self) -> int:
        return self.dfa.shape[1] - self.sinks

    def after_forced(self) -> tuple[Rows, Tensor]:
        """One row a problem after its forced tokens, and the next logits [B, V]."""
        rows = Rows(self.prompts, torch.arange(len(self), device=self.dfa.device), self.max_new)
        logits = self.prompts.logits
        for token in () if self.forced is None else self.forced.T:
            logits = self.model.decode(token, rows)
        return rows, logits

    def no_ends(self, dtype: torch.dtype) -> Tensor:
        """[2, B, sinks] of zeros: for every sink the weight of the traces that end there, and weight x length."""
        return torch.zeros(2, len(self), self.sinks, dtype=dtype, device=self.dfa.device)

    def root(self, weight: float, ends: Tensor) -> tuple[Rows, Tensor, Tensor]:
        """The live prefixes of no more than the forced tokens: rows, states int64[R], next logits [R, V].

        Problems whose forced tokens already lead to a sink add ``weight`` to ends [2, B, sinks] instead.
        """
        rows, logits = self.after_forced()
        state, length = torch.zeros_like(rows.problem), torch.zeros_like(rows.problem)
        for token in () if self.forced is None else self.forced.T:
            length += state < self.first_sink
            state = self.dfa[rows.problem, state, token]
        live = state < self.first_sink
        if live.all():
            return rows, state, logits
        ended = rows.problem[~live], state[~live] - self.first_sink
        ends[0][ended] += weight
        ends[1][ended] += weight * length[~live]
        live = live.nonzero()[:, 0]
        return rows.take(live), state[live], logits[live]

    def require_finite(self, logits: Tensor, problem: Tensor) -> None:
        """Raise ValueError naming the first problem int64[R] whose logits [R, V] are not all finite."""
        finite = torch.isfinite(logits).all(dim=1)
        if not finite.all():
            raise ValueError(f"problem {int(self.ids[problem[~finite][0]])}: the model's logits are not finite")

    def sampled_from(self, logits: Tensor, problem: Tensor) -> Tensor:
        """The logits [R, V] of problems int64[R] under the policy, fp32[R, V].

        Raises ValueError naming the problem where the model's are not finite or the policy leaves no token, or none
        that is finite.
        """
        self.require_finite(logits, problem)
        logits = self.policy(logits)
        largest = logits.amax(dim=1)  # nan if there is any
        if not largest.isfinite().all():
            row = int((~largest.isfinite()).nonzero()[0])
            what = "removes every token" if largest[row] == -torch.inf else "gives logits that are not finite"
            raise ValueError(f"problem {int(self.ids[problem[row]])}: the policy {self.policy} {what}")
        return logits


@dataclass(frozen=True)
class Traces:
    """Sampled traces of B problems, n each: tokens int64[B, n, max_new] (-1 past the end), the log-probability
    of each token under the policy fp32[B, n, max_new] (0 past the end), the sink int64[B, n] each ended in."""

    tokens: Tensor
    logp: Tensor
    sink: Tensor


@dataclass(frozen=True)
class Result:
    """Where the traces of B problems end.

    engine: "exact", "split" or "rollout". ends: float64[B, sinks], what is known of the probability of each
    sink; for the samplers, the share of n rollouts. unknown: float64[B], probability not explored; ends and
    unknown sum to 1. n: rollouts a problem, None where nothing was sampled. evaluated: prefixes decoded.
    tokens: float64[B, sinks], ends x the mean length (tokens, forced ones included) of the traces that end there.
    """

    engine: str
    ends: np.ndarray
    unknown: np.ndarray
    n: int | None
    evaluated: int
    tokens: np.ndarray
    traces: Traces | None = None

    @property
    def p_lo(self) -> np.ndarray:
        """float64[B]: a lower bound of p, certified up to the model's fp32 arithmetic; the share if sampled."""
        return np.clip(self.ends[:, 0], 0.0, 1.0)

    @property
    def p_hi(self) -> np.ndarray:
        """float64[B]: the upper bound that belongs to `p_lo`."""
        return np.clip(self.ends[:, 0] + self.unknown, 0.0, 1.0)

    @property
    def exact(self) -> bool:
        """Whether every p is computed and known within EXACT."""
        return self.n is None and float(self.unknown.max(initial=0.0)) <= EXACT

    @property
    def accepted(self) -> np.ndarray:
        """int64[B]: accepted rollouts; raises ValueError where nothing was sampled."""
        if self.n is None:
            raise ValueError(f"engine {self.engine} samples no rollouts to count")
        return np.rint(self.ends[:, 0] * self.n).astype(np.int64)


@dataclass(frozen=True)
class Block:
    """Live prefixes of one length that are decoded together: children of the rows of ``parent``.

    origin: int64[R], ascending, the row of each prefix's parent; token, state: int64[R]; weight: the
    probability float64[R] or the number of rollouts int64[R] that pass through the prefix.
    """

    parent: Rows
    origin: Tensor
    token: Tensor
    state: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.token)

    def __getitem__(self, some: Tensor | slice) -> "Block":
        return Block(self.parent, self.origin[some], self.token[some], self.state[some], self.weight[some])

    @property
    def problem(self) -> Tensor:
        return self.parent.problem[self.origin]

    def decode(self, model: GPT) -> tuple[Rows, Tensor]:
        """The rows of these prefixes and their next logits [R, V]."""
        rows = self.parent.take(self.origin)
        return rows, model.decode(self.token, rows)


def absorb(tree: Tree, rows: Rows, state: Tensor, weight: Tensor, ends: Tensor) -> Block:
    """Send the weight of each next token to the sink it reaches, in ends [2, B, sinks]; the live children remain.

    state: int64[R], the state of each row; weight: [R, V], what passes through each next token. What is still
    live at the length limit goes to the last sink.
    """
    length = rows.length + 1
    after = tree.dfa[rows.problem, state]
    ended = after >= tree.first_sink
    row, token = (ended & (weight > 0)).nonzero(as_tuple=True)
    place = rows.problem[row] * tree.sinks + after[row, token] - tree.first_sink
    ends[0].view(-1).index_add_(0, place, weight[row, token])
    ends[1].view(-1).index_add_(0, place, weight[row, token] * length)
    row, token = (~ended & (weight > 0)).nonzero(as_tuple=True)
    children = Block(rows, row, token, after[row, token], weight[row, token])
    if length == tree.max_new:
        ends[0, :, -1].index_add_(0, children.problem, children.weight)
        ends[1, :, -1].index_add_(0, children.problem, children.weight * length)
        return children[:0]
    return children


def chunks(n: int, size: int) -> Iterator[slice]:
    """range(n) in as few slices of at most ``size`` as possible, of nearly equal length."""
    parts = -(-n // size)
    for i in range(parts):
        yield slice(i * n // parts, (i + 1) * n // parts)
