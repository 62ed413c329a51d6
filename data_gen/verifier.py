"""Verifiers: one deterministic finite automaton (DFA) for every problem accepts the right traces.

State 0 is the start. ``next[i, state, token]`` is the state of problem i after a token. The last states are sinks, one
for each outcome of a trace. The first sink accepts. Each other sink is a way to fail. The last sink is for traces that
outgrow their length.

The DFA of a star problem with start 3, right branch 3 -> 7 -> 1 and decoy 3 -> 4 -> 2 (8 nodes):

    "FWD 3 7 1 EOS"   0 -FWD-> F0 -3-> F1 -7-> F2 -1-> F3 -EOS-> accept
    "REV 1 7 3 EOS"   0 -REV-> R0 -1-> R1 -7-> R2 -3-> R3 -EOS-> accept
    "FWD 3 4"         ... F1 -4-> wrong_branch          "FWD 3 EOS"   ... F1 -EOS-> early_stop
    "REV 2"           ... R0 -2-> wrong_goal            "FWD 3 5"     ... F1 -5-> invalid_edge
    "SEP"             0 -SEP-> malformed                "FWD 3 7 1 2" ... F3 -2-> too_long
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DFA:
    """A batch of automata: next uint8 or uint16[n, S, V]. The last states are the outcomes, in this order."""

    next: np.ndarray
    outcome_names: tuple[str, ...]

    @property
    def first_outcome(self) -> int:
        """The first sink: the state of accepted traces."""
        return self.next.shape[1] - len(self.outcome_names)

    def run(self, problem: int, tokens: np.ndarray) -> int:
        """The state of one problem's automaton after the tokens int[T]."""
        state = 0
        for token in tokens:
            state = int(self.next[problem, state, token])
        return state

    def shortest(self) -> np.ndarray:
        """int64[n, S]: the fewest tokens from each state to acceptance. More than S: there is no way."""
        states = self.next.shape[1]
        fewest = np.full(self.next.shape[:2], states + 1, dtype=np.int64)
        fewest[:, self.first_outcome] = 0
        for _ in range(states):
            through = np.take_along_axis(fewest[:, None], self.next.reshape(len(self.next), 1, -1), axis=2)
            closer = np.minimum(fewest, 1 + through.reshape(self.next.shape).min(axis=2))
            if (closer == fewest).all():
                break
            fewest = closer
        return fewest


def blank_tables(n: int, live: int, vocab: int, outcomes: tuple[str, ...]) -> np.ndarray:
    """Tables [n, live + outcomes, V] in which every token is malformed in every live state, and sinks stay."""
    states = live + len(outcomes)
    table = np.full((n, states, vocab), live + outcomes.index("malformed"), np.uint8 if states <= 256 else np.uint16)
    table[:, live:] = np.arange(live, states)[:, None]
    return table


def add_chain(table: np.ndarray, base: int, trace: np.ndarray, errors: np.ndarray, outcomes: tuple[str, ...]) -> None:
    """Accept one trace int[n, T] of each problem, as `add_traces` does. errors: int[n or 1, T, V]."""
    add_traces(table, base, trace[:, None], errors[:, None], outcomes)


def add_traces(table: np.ndarray, base: int, traces: np.ndarray, errors: np.ndarray, outcomes: tuple[str, ...]) -> None:
    """Accept K traces of each problem: write their states base, base + 1, ... base + K (T - 1) - 1 into the table.

    traces: int[n, K, T], mode first, EOS last. Traces that begin alike, or are equal, share states until they part.
    errors: int[n or 1, K or 1, T, V], the index of the outcome that a wrong token leads to, at every place but the
    first; the same for all traces that share the state there.
    """
    rows, live, last = np.arange(len(traces))[:, None], table.shape[1] - len(outcomes), traces.shape[2] - 1
    shared = np.logical_and.accumulate(traces[:, :, None] == traces[:, None], axis=3)
    state = base + shared.argmax(axis=2) * last + np.arange(last + 1)  # after each token
    state[..., last] = live
    table[rows, 0, traces[..., 0]] = state[..., 0]
    for place in range(1, last + 1):
        table[rows, state[..., place - 1]] = live + errors[:, :, place]
        table[rows, state[..., place - 1], traces[..., place]] = state[..., place]
