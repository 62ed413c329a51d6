"""What every engine explores, and what every engine answers.

The traces of a problem form a tree: a prefix is *live* while its DFA state is no outcome. Its next tokens
have the probabilities that the model gives them under the decode policy. An engine says in which outcomes
the traces of each problem end.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minifork.decoding.policy import Policy
from minifork.gpt import GPT, Prompts, Rows

ROWS = 2048  # prefixes or rollouts decoded at once: the best size measured on two cores
EXACT = 1e-9  # p known to this width counts as exact: the model's own fp32 arithmetic hides more (about 1e-5)
NOT_GIVEN = torch.empty(0, dtype=torch.int64)  # stands for what a TraceTree fills in itself


@dataclass(frozen=True)
class TraceTree:
    """The traces of B problems: a model under a policy, cut by one DFA a problem.

    dfa: int64[B, S, V], the automata (`data_gen.verifier.DFA`). Their last ``outcomes`` states are the ways to end: the
    first accepts, the last takes traces that outgrow max_new tokens. forced: int64[B, F], tokens
    every trace begins with; none where not given. ids: int64[B], the global number of each problem, part of
    the key of its random draws; 0, 1, 2, ... where not given. Raises ValueError naming the argument that does
    not fit.
    """

    model: GPT
    prompts: Prompts
    dfa: Tensor
    outcomes: int
    max_new: int
    policy: Policy = Policy()
    forced: Tensor = NOT_GIVEN
    ids: Tensor = NOT_GIVEN

    def __post_init__(self) -> None:
        count, device = len(self.dfa), self.dfa.device
        defaults = {"forced": self.dfa.new_empty(count, 0), "ids": torch.arange(count, device=device)}
        for name, tensor in defaults.items():
            if getattr(self, name) is NOT_GIVEN:
                object.__setattr__(self, name, tensor)
        places = {"model": self.model.head.weight, "prompts": self.prompts.k, "forced": self.forced, "ids": self.ids}
        for name, tensor in places.items():
            if tensor.device != device:
                raise ValueError(f"{name} is on {tensor.device}, dfa on {device}: put both on one device")
        self._require_shapes()

    def _require_shapes(self) -> None:
        """Raise ValueError naming the argument whose shape or range does not fit the others."""
        if self.dfa.ndim != 3:
            raise ValueError(f"dfa is {tuple(self.dfa.shape)}: give the next states as [problems, states, tokens]")
        (count, states, vocab), model = self.dfa.shape, self.model
        room = model.context - self.prompts.length + 1
        forced, ids = self.forced.shape, self.ids.shape
        checks = [
            (count == len(self.prompts), f"dfa has {count} automata for {len(self.prompts)} prompts: give one each"),
            (vocab == model.vocab_size, f"dfa reads {vocab} tokens, the model has {model.vocab_size}"),
            (1 <= self.outcomes < states,
             f"outcomes is {self.outcomes}: of {states} states 1 to {states - 1} can be"),
            (self.dfa.min() >= 0 and self.dfa.max() < states, f"dfa has states outside 0 .. {states - 1}"),
            (1 <= self.max_new <= room, f"max_new is {self.max_new}: the model's context leaves room for 1 to {room}"),
            (len(forced) == 2 and forced[0] == count and forced[1] < self.max_new,
             f"forced is {tuple(forced)}: give {count} rows of < {self.max_new} tokens"),
            (ids == (count,), f"ids is {tuple(ids)}: give one number for each of {count} problems"),
        ]  # fmt: skip
        for fits, message in checks:
            if not fits:
                raise ValueError(message)

    def __len__(self) -> int:
        return len(self.dfa)

    def __getitem__(self, index: slice | Tensor) -> "TraceTree":
        """The tree of the problems that an index chooses."""
        forced, ids = self.forced[index], self.ids[index]
        return replace(self, prompts=self.prompts[index], dfa=self.dfa[index], forced=forced, ids=ids)

    def force(self, tokens: Tensor) -> "TraceTree":
        """The same tree with other forced tokens int64[B, F]."""
        return replace(self, forced=tokens)

    @property
    def forced_len(self) -> int:
        return self.forced.shape[1]

    @property
    def first_outcome(self) -> int:
        return self.dfa.shape[1] - self.outcomes

    def after_forced(self) -> tuple[Rows, Tensor]:
        """One row a problem after its forced tokens, and the next logits [B, V]."""
        rows = Rows(self.prompts, torch.arange(len(self), device=self.dfa.device), self.max_new)
        logits = self.prompts.logits
        for token in self.forced.T:
            logits = self.model.decode(token, rows)
        return rows, logits

    def forced_states(self) -> tuple[Tensor, Tensor]:
        """The state int64[B] after the forced tokens, and how many of these int64[B] a trace takes before it ends."""
        problem = torch.arange(len(self), device=self.dfa.device)
        state, length = torch.zeros_like(problem), torch.zeros_like(problem)
        for token in self.forced.T:
            length += state < self.first_outcome
            state = self.dfa[problem, state, token]
        return state, length

    def step(self, problem: Tensor, state: Tensor, token: Tensor, length: int) -> Tensor:
        """The states int64[R] after one more token, the ``length``-th of its trace; at max_new no state is live."""
        state = self.dfa[problem, state, token]
        return state.where(state >= self.first_outcome, self.dfa.shape[1] - 1) if length == self.max_new else state

    def zero_totals(self, dtype: torch.dtype) -> Tensor:
        """[2, B, outcomes] of zeros: for every outcome the weight of the traces that end there, and weight x length."""
        return torch.zeros(2, len(self), self.outcomes, dtype=dtype, device=self.dfa.device)

    def root(self, weight: float, totals: Tensor) -> tuple[Rows, Tensor, Tensor]:
        """The live prefixes of no more than the forced tokens: rows, states int64[R], next logits [R, V].

        Problems whose forced tokens already lead to an outcome add ``weight`` to totals [2, B, outcomes] instead.
        """
        rows, logits = self.after_forced()
        state, length = self.forced_states()
        live = state < self.first_outcome
        if live.all():
            return rows, state, logits
        ended = rows.problem[~live], state[~live] - self.first_outcome
        totals[0][ended] += weight
        totals[1][ended] += weight * length[~live]
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
    of each token under the policy fp32[B, n, max_new] (0 past the end), the outcome int64[B, n] each ended in."""

    tokens: Tensor
    logp: Tensor
    outcome: Tensor

    def __getitem__(self, index: tuple[slice, slice]) -> "Traces":
        """A view of some rollouts of some problems."""
        return Traces(self.tokens[index], self.logp[index], self.outcome[index])


@dataclass(frozen=True)
class Result:
    """Where the traces of B problems end.

    engine: "exact", "split" or "rollout". outcomes: float64[B, outcomes], what is known of the probability of each
    outcome; for the samplers, the share of n rollouts. unknown: float64[B], probability not explored; outcomes and
    unknown sum to 1. n: rollouts a problem, None where nothing was sampled. evaluated: prefixes decoded.
    tokens: float64[B, outcomes], outcomes x the mean length in tokens (forced ones included) of the traces there.
    """

    engine: str
    outcomes: np.ndarray
    unknown: np.ndarray
    n: int | None
    evaluated: int
    tokens: np.ndarray
    traces: Traces | None = None

    @property
    def p_lo(self) -> np.ndarray:
        """float64[B]: a lower bound of p, certified up to the model's fp32 arithmetic; the share if sampled."""
        return np.clip(self.outcomes[:, 0], 0.0, 1.0)

    @property
    def p_hi(self) -> np.ndarray:
        """float64[B]: the upper bound that belongs to `p_lo`."""
        return np.clip(self.outcomes[:, 0] + self.unknown, 0.0, 1.0)

    @property
    def exact(self) -> bool:
        """Whether every p is computed and known within EXACT."""
        return self.n is None and float(self.unknown.max(initial=0.0)) <= EXACT

    @property
    def accepted(self) -> np.ndarray:
        """int64[B]: accepted rollouts; raises ValueError where nothing was sampled."""
        if self.n is None:
            raise ValueError(f"engine {self.engine} samples no rollouts to count")
        return np.rint(self.outcomes[:, 0] * self.n).astype(np.int64)


def sampled_result(engine: str, totals: Tensor, n: int, evaluated: int, traces: Traces | None = None) -> Result:
    """The result of n rollouts a problem, counted in totals int64[2, B, outcomes] (see `TraceTree.zero_totals`)."""
    shares, tokens = totals.cpu().numpy() / n
    return Result(engine, shares, np.zeros(len(shares)), n, evaluated, tokens, traces)


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

    def __getitem__(self, index: Tensor | slice) -> "Block":
        return Block(self.parent, self.origin[index], self.token[index], self.state[index], self.weight[index])

    @property
    def problem(self) -> Tensor:
        return self.parent.problem[self.origin]

    def decode(self, model: GPT) -> tuple[Rows, Tensor]:
        """The rows of these prefixes and their next logits [R, V]."""
        rows = self.parent.take(self.origin)
        return rows, model.decode(self.token, rows)


def add_totals(totals: Tensor, problem: Tensor, outcome: Tensor | int, weight: Tensor, length: int) -> None:
    """Add the weight [R] of traces of ``length`` tokens that end in an outcome int64[R] to totals [2, B, outcomes]."""
    place = problem * totals.shape[2] + outcome
    totals[0].view(-1).index_add_(0, place, weight)
    totals[1].view(-1).index_add_(0, place, weight * length)


def absorb(tree: TraceTree, rows: Rows, state: Tensor, weight: Tensor, totals: Tensor) -> Block:
    """Send each next token's weight to the outcome it reaches, in totals [2, B, outcomes]; live children remain.

    state: int64[R], the state of each row; weight: [R, V], what passes through each next token. What is still
    live at the length limit goes to the last outcome.
    """
    length = rows.length + 1
    after = tree.dfa[rows.problem, state]
    ended = after >= tree.first_outcome
    row, token = (ended & (weight > 0)).nonzero(as_tuple=True)
    add_totals(totals, rows.problem[row], after[row, token] - tree.first_outcome, weight[row, token], length)
    row, token = (~ended & (weight > 0)).nonzero(as_tuple=True)
    children = Block(rows, row, token, after[row, token], weight[row, token])
    if length == tree.max_new:
        add_totals(totals, children.problem, tree.outcomes - 1, children.weight, length)
        return children[:0]
    return children


def chunks(n: int, size: int) -> Iterator[slice]:
    """range(n) in as few slices of at most ``size`` as possible, of nearly equal length."""
    parts = -(-n // size)
    for i in range(parts):
        yield slice(i * n // parts, (i + 1) * n // parts)
