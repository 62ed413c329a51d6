"""Tasks whose prompts print a graph edge by edge, and the tokens, traces and walks that they have in common.

The vocabulary begins with the node labels. Tokens of other classes, such as numbers, may follow. The special tokens are
last: the modes, SEP, EOS and so on.
"""

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from data_gen.task import PAD, P, Task

SPECIAL: tuple[str, ...] = ("FWD", "REV", "SEP", "EOS")
OUTCOMES: tuple[str, ...] = (
    "accept", "malformed", "invalid_edge", "wrong_branch", "wrong_goal", "early_stop", "too_long",
)  # fmt: skip
# The outcome of a wrong node, by the kind of token that is due. Another branch at a fork is wrong_branch.
ERRORS: dict[str, tuple[str, ...]] = {
    "mode": ("malformed",),
    "start": ("malformed",),
    "goal": ("wrong_goal",),
    "step": ("invalid_edge",),
    "fork": ("invalid_edge",),
    "end": ("too_long",),
}


@dataclass(frozen=True)
class Graphs(Task[P]):
    """A task whose prompts print a graph. By default nodes are the only labels, and a query names start and goal.

    special: the names of the special tokens, in their order; outcomes: of its automata; errors: the outcome of
    a wrong token of each class, by the kind of token that is due.
    """

    special = SPECIAL
    outcomes = OUTCOMES
    errors = ERRORS
    label_key = "nodes"
    shortest_query = 6  # start, goal, SEP, mode, node, EOS

    classes = property(lambda self: (self.label_count,))  # the number of tokens of each class before the special ones
    sep = property(lambda self: self.token("SEP"))  # ends a prompt
    eos = property(lambda self: self.token("EOS"))
    graph_len = property(lambda self: 2 * self.edges)  # parent and child of each
    prompt_len = property(lambda self: self.graph_len + 3)  # the edges, start, goal, SEP
    vocab_size = property(lambda self: 1 + max(self.eos, *map(self.mode_token, self.mode_names)))
    words = property(lambda self: dict(enumerate(self.special, start=sum(self.classes))))

    @property
    @abstractmethod
    def edges(self) -> int:
        """The number of printed edges."""

    @abstractmethod
    def mode_traces(self, problems: P, mode_name: str) -> np.ndarray:
        """The traces in one mode, int64[n, <= trace_len], PAD past EOS."""

    def token(self, word: str) -> int:
        """The token with this name, one of ``special``."""
        return sum(self.classes) + self.special.index(word)

    def mode_token(self, mode_name: str) -> int:
        return self.token(mode_name)

    def mode_tokens(self, mode_name: np.ndarray) -> np.ndarray:
        """The tokens of an array of names of modes."""
        names = self.mode_names
        return np.select([mode_name == name for name in names], [self.mode_token(name) for name in names])

    def read_graph(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The printed graphs, as `Task.read_graph`. The goal is the last token before SEP."""
        edges = tokens[:, : self.graph_len].reshape(len(tokens), self.edges, self.graph_len // self.edges)
        return edges[:, :, 0], edges[:, :, 1], edges[:, :, 2:], tokens[:, [self.graph_len, self.prompt_len - 2]]

    def print_prompts(self, edges: np.ndarray, *query: np.ndarray) -> np.ndarray:
        """int64[n, prompt_len]: printed edges int64[n, E, 2 or more], the columns of the query, SEP."""
        return np.column_stack([edges.reshape(-1, self.graph_len), *query, np.full(len(edges), self.sep)])

    def traces(self, problems: P, mode_index: np.ndarray) -> np.ndarray:
        out = np.full((len(problems), self.trace_len), PAD)
        for index in np.unique(mode_index):
            rows = mode_index == index
            trace = self.mode_traces(problems[rows], self.mode_names[index])
            out[rows, : trace.shape[1]] = trace
        return out

    def wrong_tokens(self, kinds: list[str]) -> np.ndarray:
        """int64[T, V]: the outcome of a wrong token where a token of each of the kinds is due (see ``errors``).

        EOS stops early, and every other special token is malformed.
        """
        index = np.array([[self.outcomes.index(name) for name in self.errors[kind]] for kind in kinds])
        out = np.full((len(kinds), self.vocab_size), self.outcomes.index("malformed"))
        out[:, : sum(self.classes)] = np.repeat(index, self.classes, axis=1)
        out[:, self.eos] = self.outcomes.index("early_stop")
        return out

    def walk_queries(
        self, mode_name: np.ndarray, nodes: np.ndarray, free: np.ndarray, informed: float, rng: Generator
    ) -> np.ndarray:
        """Queries with walks, int64[n, count, 5 + M]: two slots, SEP, mode, nodes, EOS, PAD in gaps.

        mode_name: [n, count], REV starts from the second slot, all others from the first; nodes: int64[n, count, M],
        the tokens of each walk, PAD past its end; free: int64[n, count], the label that the other slot names. In a
        share ``informed`` of queries it names where the walk ends instead, if it ends at a node.
        """
        shape = mode_name.shape
        if informed > 0:
            end = (nodes != PAD).sum(axis=2, keepdims=True) - 1
            last = np.take_along_axis(nodes, end, axis=2)[..., 0]
            free = np.where((rng.random(shape) < informed) & (last < self.label_count), last, free)
        slots = np.stack([nodes[..., 0], free], axis=2)
        slots = np.where((mode_name == "REV")[..., None], slots[..., ::-1], slots)
        head = np.stack([np.full(shape, self.sep), self.mode_tokens(mode_name)], axis=2)
        return np.concatenate([slots, head, nodes, np.full((*shape, 1), self.eos)], axis=2)
