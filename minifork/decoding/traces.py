"""The input of every engine, a `TraceTree`, and its output, a `Result`.

The traces of a problem form a tree. A prefix is *live* while its DFA state is not an outcome. Its next tokens have the
probabilities that the model gives them under the decode policy. An engine computes or estimates the probability of
each outcome.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from minifork.decoding.automata import Automata, Tables
from minifork.decoding.model import Model
from minifork.decoding.policy import Policy
from minifork.gpt import GPT, Prompts, Rows

EXACT = 1e-9  # bounds of p this close count as exact: the model's fp32 arithmetic is less accurate (about 1e-5)
NOT_GIVEN = torch.empty(0, dtype=torch.int64)  # default of the tensors that a TraceTree fills in itself


@dataclass(frozen=True)
class TraceTree:
    """The traces of B problems: a model under a policy, and one automaton a problem that ends them.

    forced: int64[B, F], tokens that every trace begins with, by default none. ids: int64[B], the global number of each
    problem, part of the key of its random draws, by default 0, 1, 2, ... Traces that outgrow max_new tokens end in the
    last outcome. Raises ValueError naming the argument that does not fit.
    """

    model: Model
    prompts: Prompts
    automata: Automata
    max_new: int
    policy: Policy = Policy()
    forced: Tensor = NOT_GIVEN
    ids: Tensor = NOT_GIVEN

    def __post_init__(self) -> None:
        count, vocab = len(self.automata), self.automata.vocab_size
        if self.forced is NOT_GIVEN:
            object.__setattr__(self, "forced", torch.empty(count, 0, dtype=torch.int64, device=self.device))
        if self.ids is NOT_GIVEN:
            object.__setattr__(self, "ids", torch.arange(count, device=self.device))
        prompts, tokens = len(self.prompts), self.model.vocab_size
        room = self.model.context - self.prompts.length + 1
        checks = {
            f"there are {count} automata for {prompts} prompts": count == prompts,
            f"the automata read {vocab} tokens, the model has {tokens}": vocab == tokens,
            f"max_new is {self.max_new}: the model's context has room for 1 to {room}": 0 < self.max_new <= room,
            f"forced has {self.forced_len} tokens: give fewer than {self.max_new}": self.forced_len < self.max_new,
        }
        for message, fits in checks.items():
            if not fits:
                raise ValueError(message)

    def __len__(self) -> int:
        return len(self.automata)

    def __getitem__(self, index: slice | Tensor) -> "TraceTree":
        """The tree of the problems that an index chooses."""
        forced, ids = self.forced[index], self.ids[index]
        return replace(self, prompts=self.prompts[index], automata=self.automata[index], forced=forced, ids=ids)

    def force(self, tokens: Tensor) -> "TraceTree":
        """The same tree with other forced tokens int64[B, F]."""
        return replace(self, forced=tokens)

    @property
    def forced_len(self) -> int:
        return self.forced.shape[1]

    @property
    def first_outcome(self) -> int:
        return self.automata.first_outcome

    @property
    def outcome_count(self) -> int:
        return self.automata.outcome_count

    @property
    def device(self) -> torch.device:
        return self.prompts.logits.device

    @property
    def rows_at_once(self) -> int:
        """How many prefixes or rollouts are to be decoded at once, at most."""
        return self.model.rows_at_once(self.prompts.length + self.max_new)

    @property
    def gpt(self) -> GPT:
        """The model; raises TypeError for one that is no GPT."""
        if not isinstance(self.model, GPT):
            raise TypeError(f"{type(self.model).__name__} is no GPT")
        return self.model

    @property
    def dfa(self) -> Tensor:
        """The tables int64[B, S, V] of the automata; raises TypeError for automata without tables."""
        if not isinstance(self.automata, Tables):
            raise TypeError(f"{type(self.automata).__name__} has no tables")
        return self.automata.next

    def after_forced(self) -> tuple[Rows, Tensor]:
        """One row a problem after its forced tokens, and the next logits [B, V]."""
        rows, _, logits = self.through_forced()
        return rows, logits

    def through_forced(self) -> tuple[Rows, list[Tensor], Tensor]:
        """`after_forced` with the logits [B, V] before every forced token in between."""
        rows = Rows(self.prompts, torch.arange(len(self), device=self.device), self.max_new)
        logits = [self.prompts.logits]
        for token in self.forced.T:
            logits.append(self.model.decode(token, rows))
        return rows, logits[:-1], logits[-1]

    def forced_states(self) -> tuple[Tensor, Tensor]:
        """The state int64[B] after the forced tokens, and the number of tokens int64[B] until a trace ends there."""
        problem = torch.arange(len(self), device=self.device)
        state, length = torch.zeros_like(problem), torch.zeros_like(problem)
        for token in self.forced.T:
            length += state < self.first_outcome
            state = self.automata.step(problem, state, token)
        return state, length

    def step(self, problem: Tensor, state: Tensor, token: Tensor, length: int) -> Tensor:
        """The states int64[R] after the ``length``-th token of a trace; at max_new live states become the last one."""
        state, first = self.automata.step(problem, state, token), self.first_outcome
        return state.where(state >= first, first + self.outcome_count - 1) if length == self.max_new else state

    def zero_totals(self, dtype: torch.dtype) -> Tensor:
        """Totals [2, B, outcomes] of zeros, to which an engine adds in place.

        totals[0] holds the weight of the traces that end in each outcome: their probability, or their number if traces
        are sampled. totals[1] holds their weight x length in tokens.
        """
        return torch.zeros(2, len(self), self.outcome_count, dtype=dtype, device=self.device)

    def start_rows(self, weight: float, totals: Tensor) -> tuple[Rows, Tensor, Tensor]:
        """`drop_ended` right after the forced tokens: rows, states int64[R], next logits [R, V]; adds to totals."""
        return self.drop_ended(*self.after_forced(), weight, totals)

    def drop_ended(self, rows: Rows, logits: Tensor, weight: float, totals: Tensor) -> tuple[Rows, Tensor, Tensor]:
        """The rows, states int64[R] and logits of problems that are live after their forced tokens.

        rows, logits: of all problems, as `after_forced`. If forced tokens lead to an outcome, this adds ``weight`` in
        place to totals [2, B, outcomes].
        """
        state, length = self.forced_states()
        ended, live = state >= self.first_outcome, (state < self.first_outcome).nonzero()[:, 0]
        place = rows.problem[ended], state[ended] - self.first_outcome
        totals[0][place] += weight
        totals[1][place] += weight * length[ended]
        return rows.take(live), state[live], logits[live]

    def require_finite(self, logits: Tensor, problem: Tensor) -> None:
        """Raise ValueError naming the first problem int64[R] whose logits [R, V] are not all finite."""
        finite = torch.isfinite(logits).all(dim=1)
        if not finite.all():
            raise ValueError(f"problem {int(self.ids[problem[~finite][0]])}: the model's logits are not finite")

    def policy_logits(self, logits: Tensor, problem: Tensor) -> Tensor:
        """The logits [R, V] of problems int64[R] under the policy, fp32[R, V].

        Raises ValueError naming the problem whose logits are not finite before the policy, or have no finite maximum
        after it.
        """
        self.require_finite(logits, problem)
        logits = self.policy(logits)
        broken = ~logits.amax(dim=1).isfinite()
        if broken.any():
            number = int(self.ids[problem[broken][0]])
            raise ValueError(f"problem {number}: the policy {self.policy} removes every token or gives infinite logits")
        return logits


@dataclass(frozen=True)
class Traces:
    """Sampled traces of B problems, n each.

    tokens: int64[B, n, max_new], -1 past the end; logp: fp32[B, n, max_new], the log-probability of each token under
    the policy, 0 past the end; outcome: int64[B, n].
    """

    tokens: Tensor
    logp: Tensor
    outcome: Tensor

    def __getitem__(self, index: tuple[slice, slice]) -> "Traces":
        """A view of some rollouts of some problems."""
        return Traces(self.tokens[index], self.logp[index], self.outcome[index])


@dataclass(frozen=True)
class Result:
    """The probability of every outcome of the traces of B problems.

    engine: "exact", "split", "rollout" or "remainder". outcomes: float64[B, outcomes], the probability of each outcome.
    From exact it is a lower bound, and the probability itself if unknown is 0. From split and rollout it is the
    outcome's share of n rollouts. From remainder it is what was explored plus unknown times the outcome's share of n
    rollouts of the rest. unknown: float64[B], probability not explored, 0 if all was sampled. n: rollouts a problem,
    None if nothing was sampled. evaluated: the number of decoded prefixes. tokens: float64[B, outcomes], outcomes times
    the mean length of their traces in tokens, forced ones included. explored: float64[B], the accepted probability that
    was explored before the rest was sampled; None from all engines but remainder.
    """

    engine: str
    outcomes: np.ndarray
    unknown: np.ndarray
    n: int | None
    evaluated: int
    tokens: np.ndarray
    traces: Traces | None = None
    explored: np.ndarray | None = None

    @property
    def p(self) -> np.ndarray:
        """float64[B]: p if it is exact, its lower bound if it is bounded, its unbiased estimate if it is sampled."""
        return np.clip(self.outcomes[:, 0], 0.0, 1.0)

    @property
    def p_lo(self) -> np.ndarray:
        """float64[B]: a lower bound on p, certified up to the model's fp32 arithmetic; the share if all was sampled."""
        return self.p if self.explored is None else np.clip(self.explored, 0.0, 1.0)

    @property
    def p_hi(self) -> np.ndarray:
        """float64[B]: the upper bound that belongs to `p_lo`."""
        return np.clip(self.p_lo + self.unknown, 0.0, 1.0)

    @property
    def certified(self) -> bool:
        """True if `p_lo` and `p_hi` are bounds, which split and rollout do not give."""
        return self.n is None or self.explored is not None

    @property
    def exact(self) -> bool:
        """True if every p is computed, with bounds at most EXACT apart."""
        return self.n is None and float(self.unknown.max(initial=0.0)) <= EXACT

    @property
    def accepted(self) -> np.ndarray:
        """int64[B]: accepted rollouts out of n; raises ValueError if nothing was sampled."""
        if self.n is None:
            raise ValueError(f"engine {self.engine} does not sample: its result counts no rollouts")
        share = self.p if self.explored is None else accepted_share(self.p, self.p_lo, self.p_hi)
        return np.rint(share * self.n).astype(np.int64)


def accepted_share(p: np.ndarray, p_lo: np.ndarray, p_hi: np.ndarray) -> np.ndarray:
    """The accepted share float64[B] of the rollouts by which engine remainder puts p between its bounds, float64[B]."""
    unknown = p_hi - p_lo
    return np.divide(p - p_lo, unknown, out=np.zeros_like(unknown), where=unknown > 0).clip(0.0, 1.0)


def sampled_result(engine: str, totals: Tensor, n: int, evaluated: int, traces: Traces | None = None) -> Result:
    """The result of n rollouts a problem, from their totals int64[2, B, outcomes] (see `TraceTree.zero_totals`)."""
    shares, tokens = totals.cpu().numpy() / n
    return Result(engine, shares, np.zeros(len(shares)), n, evaluated, tokens, traces)


@dataclass(frozen=True)
class Prefixes:
    """Live prefixes of one length that are decoded together: children of the rows of ``parent``.

    origin: int64[R], ascending, the row of each prefix's parent; token, state: int64[R], the last token and the state
    after it; weight: in exact the probability float64[R] of each prefix, in split the number int64[R] of rollouts that
    pass through it.
    """

    parent: Rows
    origin: Tensor
    token: Tensor
    state: Tensor
    weight: Tensor

    def __len__(self) -> int:
        return len(self.token)

    def __getitem__(self, index: Tensor | slice) -> "Prefixes":
        return Prefixes(self.parent, self.origin[index], self.token[index], self.state[index], self.weight[index])

    @property
    def problem(self) -> Tensor:
        return self.parent.problem[self.origin]

    def decode(self, model: Model) -> tuple[Rows, Tensor]:
        """The rows of these prefixes and their next logits [R, V]."""
        rows = self.parent.take(self.origin)
        return rows, model.decode(self.token, rows)


def add_totals(totals: Tensor, problem: Tensor, outcome: Tensor | int, weight: Tensor, length: int) -> None:
    """Add in place the weight [R] of traces of ``length`` tokens, which end in an outcome int64[R], to totals.

    totals: [2, B, outcomes], weight and weight x length (`TraceTree.zero_totals`).
    """
    place = problem * totals.shape[2] + outcome
    totals[0].view(-1).index_add_(0, place, weight)
    totals[1].view(-1).index_add_(0, place, weight * length)


def step_every_token(tree: TraceTree, rows: Rows, state: Tensor, weight: Tensor, totals: Tensor) -> Prefixes:
    """The live children of rows, as `keep_live`.

    state: int64[R], the state of each row; weight: [R, V], the weight that passes through each next token.
    """
    return keep_live(tree, Prefixes(rows, *tree.automata.successors(rows.problem, state, weight)), totals)


def keep_live(tree: TraceTree, children: Prefixes, totals: Tensor) -> Prefixes:
    """The live ones of children. Adds in place the weight of those that reached an outcome to totals.

    Children at the length limit go to the last outcome. totals: [2, B, outcomes] (`TraceTree.zero_totals`).
    """
    length = children.parent.length + 1
    is_live = children.state < tree.first_outcome
    ended, live = children[~is_live], children[is_live]
    add_totals(totals, ended.problem, ended.state - tree.first_outcome, ended.weight, length)
    if length < tree.max_new:
        return live
    add_totals(totals, live.problem, tree.outcome_count - 1, live.weight, length)
    return live[:0]


def chunks(n: int, size: int) -> Iterator[slice]:
    """range(n) in as few slices of at most ``size`` as possible, of nearly equal length."""
    count = -(-n // size)
    for i in range(count):
        yield slice(i * n // count, (i + 1) * n // count)
