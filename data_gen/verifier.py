"""Verifiers: acceptance of a trace as one deterministic finite automaton (DFA) a problem.

State 0 is the start. ``next[i, state, token]`` is the state of problem i after a token. The last states are
sinks: one accepts, and one dead sink stands for each way to fail, so that errors are read off the sink.

The DFA of a star problem with start 3, right branch 3 -> 7 -> 1 and decoy 3 -> 4 -> 2 (8 nodes):

    "FWD 3 7 1 EOS"   0 -FWD-> F0 -3-> F1 -7-> F2 -1-> F3 -EOS-> accept
    "REV 1 7 3 EOS"   0 -REV-> R0 -1-> R1 -7-> R2 -3-> R3 -EOS-> accept
    "FWD 3 4"         ... F1 -4-> wrong_branch          "FWD 3 EOS"   ... F1 -EOS-> early_stop
    "REV 2"           ... R0 -2-> wrong_goal            "FWD 3 5"     ... F1 -5-> invalid_edge
    "SEP"             0 -SEP-> malformed                "FWD 3 7 1 2" ... F3 -2-> too_long
"""

from dataclasses import dataclass

import numpy as np

from data_gen import star
from data_gen.star import Problems, Star

ERRORS = ("malformed", "invalid_edge", "wrong_branch", "wrong_goal", "early_stop", "too_long")
SINKS = ("accept", *ERRORS)


@dataclass(frozen=True)
class DFA:
    """A batch of automata: next uint8 or uint16[n, S, V]; states S - len(SINKS) .. S - 1 are the SINKS, in order."""

    next: np.ndarray

    @property
    def first_sink(self) -> int:
        return self.next.shape[1] - len(SINKS)

    def __getitem__(self, rows) -> "DFA":
        return DFA(self.next[rows])

    def run(self, problem: int, tokens: np.ndarray) -> int:
        """The state of one problem after the tokens int[T]."""
        state = 0
        for token in tokens:
            state = int(self.next[problem, state, token])
        return state


def star_dfa(task: Star, problems: Problems) -> DFA:
    """The DFA of each problem: uint8[n, S, V] (uint16 past 256 states) with S = 1 + 2 (l + 1) + 7.

    Both modes must walk the whole right branch, FWD from start to goal, REV from goal to start, and
    stop there. A token that is no node where a node is due (or the reverse) is malformed, and so is a
    FWD trace that does not begin at the start.
    """
    n, length = len(problems), task.length
    right = star.path(task, problems)
    first_sink = 1 + 2 * (length + 1)
    sink = {name: first_sink + i for i, name in enumerate(SINKS)}
    states = first_sink + len(SINKS)
    dtype = np.uint8 if states <= 256 else np.uint16
    table = np.full((n, states, task.vocab_size), sink["malformed"], dtype=dtype)
    rows = np.arange(n)

    for mode, base in (("FWD", 1), ("REV", 2 + length)):
        nodes = right if mode == "FWD" else right[:, ::-1]
        table[:, 0, task.mode_token(mode)] = base
        table[:, base : base + length + 1, task.eos] = sink["early_stop"]
        table[:, base, : task.nodes] = sink["malformed" if mode == "FWD" else "wrong_goal"]
        table[:, base + 1 : base + length, : task.nodes] = sink["invalid_edge"]
        table[:, base + length, : task.nodes] = sink["too_long"]
        if mode == "FWD":
            table[rows[:, None], base + 1, star.children(task, problems)] = np.where(
                problems.forked, sink["wrong_branch"], sink["invalid_edge"]
            )[:, None]
        for step in range(length):
            table[rows, base + step, nodes[:, step]] = base + step + 1
        table[:, base + length, task.eos] = sink["accept"]

    for state in sink.values():
        table[:, state, :] = state
    return DFA(table)
