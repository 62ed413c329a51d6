"""The modes of `data_gen.star` with one right trace a problem: FWD, REV, and two rationales, RAT and NAME.

On the problem in `data_gen.star`'s docstring (right branch 2 -> 3 -> 4, decoy 2 -> 1 -> 7) the right traces are

    FWD 2 3 4 EOS
    REV 4 3 2 EOS
    RAT 4 3 2 3 4 EOS     names the way: back from the goal to the start, then forward
    NAME 3 2 3 4 EOS      names the right branch by its first node, then goes forward

The way back decides RAT's fork. To name the branch is a fork itself, so NAME should not help. It is a control.
"""

from dataclasses import dataclass

import numpy as np

from data_gen import verifier

# The outcome of a wrong node, by the kind of node that is due. Another branch at a fork is wrong_branch.
ERRORS = {"start": "malformed", "goal": "wrong_goal", "step": "invalid_edge", "fork": "invalid_edge"}


@dataclass(frozen=True)
class Chain:
    """FWD, REV, RAT or NAME on stars of d branches of l nodes, with node labels below ``nodes``.

    labels: int64[n, > d (l - 1)], the token of every canonical node; forked: bool[n], as in `data_gen.star.Problems`.
    """

    mode_name: str
    nodes: int
    branches: int
    length: int
    mode_token: int
    eos: int

    def traces(self, labels: np.ndarray) -> np.ndarray:
        """Traces after the mode token, int64[n, T]."""
        right = labels[:, : self.length]
        back = right[:, ::-1]
        nodes = {"FWD": [right], "REV": [back], "RAT": [back, right[:, 1:]], "NAME": [right[:, 1], right]}
        return np.column_stack([*nodes[self.mode_name], np.full(len(labels), self.eos)])

    @property
    def kinds(self) -> list[str]:
        """The kinds (see ERRORS) of the nodes of a trace."""
        rest = (self.length - 2) * ["step"]
        forward, back = ["start", "fork", *rest], ["goal", *rest, "step"]
        return {"FWD": forward, "REV": back, "RAT": back + forward[1:], "NAME": ["fork", *forward]}[self.mode_name]

    @property
    def states(self) -> int:
        """The number of live states that the mode takes in a problem's automaton."""
        return 1 + len(self.kinds)

    def add_states(
        self, table: np.ndarray, base: int, labels: np.ndarray, forked: np.ndarray, outcomes: tuple[str, ...]
    ) -> None:
        """Write the states base, base + 1, ... into the table [n, S, V] of `data_gen.verifier`."""
        wrong_node = ["malformed", *(ERRORS[kind] for kind in self.kinds), "too_long"]
        names = [(outcome, "malformed", "early_stop", "malformed") for outcome in wrong_node]
        widths = [self.nodes, self.eos - self.nodes, 1, table.shape[2] - self.eos - 1]
        errors = np.repeat(verifier.chain_errors(names, widths, outcomes), len(labels), axis=0)
        rows = np.flatnonzero(forked)[:, None]
        children = labels[rows, np.arange(self.branches) * (self.length - 1) + 1]
        for place in np.flatnonzero(np.array(self.kinds) == "fork") + 1:
            errors[rows, place, children] = outcomes.index("wrong_branch")
        trace = np.column_stack([np.full(len(labels), self.mode_token), self.traces(labels)])
        verifier.add_chain(table, base, trace, errors, outcomes)
