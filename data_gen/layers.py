"""The layers task: a tree with several forks on the way to the goal, and one right path or more.

The start is the root of a tree: every node of ``layers`` layers has d children, and each of the d^layers *leaves* below
them leads to one more node, its end. The goal is the end of the right path. Prompts and traces look as in
`data_gen.star`. The first problem of ``streams.problems(Layers(16, 2, 2, forks=2), seed=0, "train", n=1)``:

    tokens  3 6  9 10  11 5  8 0  6 11  3 9  10 4  9 13  13 2  6 8   3 2 18 |  16 3 9 13 2 19    FWD
                                                                            |  17 2 13 9 3 19    REV
    reads   3 -> 6 or 9, 6 -> 11 or 8, 9 -> 10 or 13; 11 -> 5, 8 -> 0, 10 -> 4, 13 -> 2; from 3 to 2?

All branches of a fork have the same shape: nothing but the whole way to the goal tells them apart.

forks < layers: only the first ``forks`` nodes of the way stay forks. In the layers below, every node that can be
reached from the start keeps one child. Its other children hang off a root of their own, the node's *twin*. Prompts have
as many edges and traces as many tokens as with more forks.

right_paths > 1: the ends of that many of the d^forks paths, chosen at random, are one node: the goal. Every right path
is accepted, in every mode. A REV trace then has a choice too, but every node that it may choose is right.

In canonical numbers, leaves are 0, 1, ..., nodes are numbered layer by layer, then come the ends by leaf, then the
twins. Edge e ends in node e + 1. Leaf 0 is right.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from data_gen import verifier
from data_gen.chain import chain_kinds, chain_traces
from data_gen.graphs import OUTCOMES, Graphs
from data_gen.task import PAD, Batch, hashed, mix
from data_gen.verifier import DFA

MODES = ("FWD", "REV", "RAT")
WALKED = MODES[:2]  # walks know no goal, so they have no rationale


@dataclass(frozen=True)
class Problems(Batch):
    """A batch of n problems in canonical numbers (see the module's docstring).

    labels: int64[n, M], the token of every node; order: int64[n, E], edges as printed; forks: int64[n], the number of
    forks; right: int64[n, K], the leaves whose end is the goal, leaf 0 first and again in unused places.
    """

    labels: np.ndarray
    order: np.ndarray
    forks: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class Layers(Graphs[Problems]):
    """The layers task and its token layout. Raises ValueError naming the field that does not fit.

    nodes: number of node tokens; branches: d; layers: how many layers of the tree branch; forks: decision points on the
    way, at most layers, or None: every problem has its own number of forks and of right paths, drawn evenly;
    right_paths: how many paths reach the goal, at most d^forks; modes: the forms of traces, comma-separated.
    """

    nodes: int
    branches: int
    layers: int
    forks: int | None
    right_paths: int = 1
    modes: str = "FWD,REV"

    special = ("FWD", "REV", "SEP", "EOS", "RAT")
    unwalked = frozenset({"forks", "right_paths"})

    leaves = property(lambda self: self.branches**self.layers)
    edges = property(lambda self: self.first_node(self.layers + 1) - 1 + self.leaves)
    path_len = property(lambda self: self.layers + 2)  # nodes of a path, start and goal included
    trace_len = property(lambda self: 2 + self.path_len + (self.path_len - 1) * ("RAT" in self.mode_names))

    def __post_init__(self) -> None:
        names, forks, d = self.mode_names, self.layers if self.forks is None else self.forks, self.branches
        valid_modes = {"FWD"} <= {*names} <= {*MODES} and len({*names}) == len(names)
        self.require("modes", valid_modes, "list FWD and different others of REV, RAT")
        self.require("branches", d >= 2, "give at least 2")
        self.require("layers", self.layers >= 1, "give at least 1")
        self.require("forks", 0 <= forks <= self.layers, f"give 0 to layers={self.layers}, or null")
        allow = f"{d} branches at {forks} forks allow 1 to {d**forks}"
        self.require("right_paths", 1 <= self.right_paths <= d**forks, allow)
        needed = self.node_count
        self.require("nodes", self.nodes >= needed, f"{d} branches in {self.layers} layers need at least {needed}")

    @property
    def walk_task(self) -> "Layers":
        """The same tree with any number of forks and right paths, so that one base serves all."""
        return replace(self, forks=None, right_paths=1)

    def first_node(self, depth: int) -> int:
        """The first canonical node at a depth; that of the ends is layers + 1."""
        return (self.branches**depth - 1) // (self.branches - 1)

    @property
    def node_count(self) -> int:
        """The number of canonical nodes: the tree, the ends, and the twins of the number of forks that has most."""
        twins = max((self.layers - forks) * self.branches**forks for forks in range(self.layers + 1))
        return self.edges + 1 + twins

    def node_at(self, leaf: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """The canonical nodes at depths on the way from the start to the ends of leaves."""
        first = np.array([self.first_node(i) for i in range(self.path_len)])
        return first[depth] + leaf // self.branches ** np.maximum(self.layers - depth, 0)

    def twin_of(self, forks: np.ndarray, leaf: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """The canonical twins of these nodes (see `node_at`), PAD for nodes that have none."""
        d, below = self.branches, np.maximum(depth - forks, 0)  # layers below the last fork
        number = leaf // d ** np.maximum(self.layers - depth, 0)
        split = (depth >= forks) & (depth < self.layers) & (number % d**below == 0)
        return np.where(split, self.edges + 1 + below * d**forks + number // d**below, PAD)

    def canonical_edges(self, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
        """The canonical parents and children int64[n, E] of all edges."""
        d, forks = self.branches, problems.forks[:, None]
        depth = np.repeat(np.arange(1, self.path_len), [*(d**i for i in range(1, self.layers + 1)), self.leaves])
        child = np.arange(1, self.edges + 1)
        below = d ** np.maximum(self.layers - depth, 0)
        leaf = (child - self.node_at(0 * child, depth)) * below  # the first leaf below each child
        twin = self.twin_of(forks, leaf, depth - 1)
        other_child = (leaf // below % d > 0) & (depth <= self.layers)
        parent = np.where(other_child & (twin != PAD), twin, self.node_at(leaf, depth - 1))
        child, goal = np.tile(child, (len(forks), 1)), self.first_node(self.layers + 1)
        np.put_along_axis(child, goal - 1 + problems.right, goal, axis=1)
        return parent, child

    def sample(self, rng: Generator, n: int) -> Problems:
        """n problems: random labels, edges in random order, right paths at random."""
        labels = np.argsort(rng.random((n, self.nodes)), axis=1)[:, : self.node_count]
        order = np.argsort(rng.random((n, self.edges)), axis=1)
        forks, count, places = np.full(n, self.forks or 0), np.full(n, self.right_paths), self.right_paths
        if self.forks is None:
            forks, places = rng.integers(self.layers + 1, size=n), self.leaves
            count = 1 + (rng.random(n) * self.branches**forks).astype(np.int64)
        reached = np.arange(self.leaves) < self.branches ** forks[:, None]
        keys = np.where(reached, rng.random((n, self.leaves)), 2.0)
        keys[:, 0] = -1
        right = np.argsort(keys, axis=1)[:, :places] * self.branches ** (self.layers - forks[:, None])
        return Problems(labels, order, forks, np.where(np.arange(places) < count[:, None], right, 0))

    def edge_list(self, problems: Problems) -> np.ndarray:
        """The printed edges int64[n, E, 2], as (parent, child) tokens."""
        ends = np.stack(self.canonical_edges(problems), axis=2)
        printed = np.take_along_axis(ends, problems.order[..., None], axis=1)
        return np.take_along_axis(problems.labels[:, None], printed, axis=2)

    def prompts(self, problems: Problems) -> np.ndarray:
        """int64[n, prompt_len]: the edges, start, goal, SEP."""
        return self.print_prompts(self.edge_list(problems), self.paths(problems)[:, 0, [0, -1]])

    def identity(self, problems: Problems) -> np.ndarray:
        """uint64[n]: a hash of the set of printed edges."""
        return hashed(np.sort(self.edge_list(problems) @ [self.nodes, 1], axis=1))

    def reprint(self, problems: Problems, rng: Generator) -> Problems:
        """The same edges in another random order."""
        return replace(problems, order=rng.permuted(problems.order, axis=1))

    def paths(self, problems: Problems) -> np.ndarray:
        """The right paths from start to goal, int64[n, K, path_len]; the first one again in unused places."""
        nodes = self.node_at(problems.right[..., None], np.arange(self.path_len))
        nodes[..., -1] = self.first_node(self.layers + 1)
        return np.take_along_axis(problems.labels[:, None], nodes, axis=2)

    def right_traces(self, problems: Problems, mode_name: str) -> np.ndarray:
        """The trace of every right path in a mode, int64[n, K, T]."""
        return chain_traces(mode_name, self.paths(problems), self.mode_token(mode_name), self.eos)

    def mode_traces(self, problems: Problems, mode_name: str) -> np.ndarray:
        """int64[n, T]: the traces of one right path, the same in all modes, chosen by a hash of the problem."""
        count = 1 + (problems.right > 0).sum(axis=1).astype(np.uint64)
        place = (mix(self.identity(problems)) % count).astype(np.int64)
        return self.right_traces(problems, mode_name)[np.arange(len(problems)), place]

    def branches_at(self, problems: Problems, leaf: np.ndarray, depth: int) -> np.ndarray:
        """The tokens of the d children of the nodes at a depth above leaves int64[n, K], int64[n, K, d].

        They are those of the tree, also of nodes that are no fork.
        """
        first = self.node_at(leaf, np.array(depth)) - self.first_node(depth)
        nodes = self.first_node(depth + 1) + first[..., None] * self.branches + np.arange(self.branches)
        return np.take_along_axis(problems.labels[:, None], nodes, axis=2)

    def decision_points(self, problems: Problems) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The forks on the first right path. A branch is right if a right path goes through it."""
        path, zero, points = self.paths(problems)[:, 0], np.zeros((len(problems), 1), dtype=np.int64), []
        for depth in range(self.layers if self.forks is None else self.forks):
            prefix = np.column_stack([np.full(len(path), self.mode_token("FWD")), path[:, : depth + 1]])
            below = problems.right // self.branches ** (self.layers - depth - 1)  # the node above each right leaf
            right = (below[:, None] == np.arange(self.branches)[:, None]).any(axis=2)
            is_fork = problems.forks[:, None] > depth
            children = np.where(is_fork, self.branches_at(problems, zero, depth)[:, 0], PAD)
            points.append((prefix, children, right & is_fork))
        return points

    def forked(self, problems: Problems) -> np.ndarray:
        return problems.forks > 0

    def fork_prefix(self, problems: Problems) -> np.ndarray | None:
        """int64[n, 2]: FWD and the start. None if several paths are right or there is no fork."""
        return self.decision_points(problems)[0][0] if self.forks and self.right_paths == 1 else None

    def children(self, problems: Problems) -> np.ndarray | None:
        return self.decision_points(problems)[0][1] if self.forks and self.right_paths == 1 else None

    def dfa(self, problems: Problems) -> DFA:
        """The DFA of each problem: in every mode each right path is accepted. RAT must go forward as it came back."""
        traces = {name: self.right_traces(problems, name) for name in self.mode_names}
        sizes = {name: trace.shape[1] * (trace.shape[2] - 1) for name, trace in traces.items()}
        table = verifier.blank_tables(len(problems), 1 + sum(sizes.values()), self.vocab_size, OUTCOMES)
        base = 1
        for name, trace in traces.items():
            verifier.add_traces(table, base, trace, self._errors(problems, name), OUTCOMES)
            base += sizes[name]
        return DFA(table, OUTCOMES)

    def _errors(self, problems: Problems, mode_name: str) -> np.ndarray:
        """int64[n, K, T, V]: the outcome of every wrong token at every place of the right traces in a mode."""
        errors = np.tile(self.wrong_tokens(chain_kinds(mode_name, self.path_len)), (*problems.right.shape, 1, 1))
        forward = {"FWD": 2, "RAT": 1 + self.path_len}.get(mode_name)  # the place of the first node after the start
        for depth in range(self.layers if forward else 0):
            rows = np.flatnonzero(problems.forks > depth)
            tokens = self.branches_at(problems[rows], problems.right[rows], depth)
            place = rows[:, None, None], np.arange(tokens.shape[1])[:, None], (forward or 0) + depth, tokens
            errors[place] = OUTCOMES.index("wrong_branch")
        return errors

    def walks(self, problems: Problems, stop: float, informed: float, rng: Generator, count: int) -> np.ndarray:
        """``count`` queries with walks on every graph, int64[n, count, 3 + path_len + 2], PAD in gaps.

        Modes are drawn evenly, and so is the depth where a walk starts. The free slot of the query names a random node.
        """
        shape, ends = (len(problems), count), self.canonical_edges(problems)
        names = tuple(name for name in self.mode_names if name in WALKED)
        mode_name = np.array(names)[rng.integers(len(names), size=shape)]
        backward = (mode_name == "REV")[..., None]
        at, free = (self._random_nodes(problems, count, rng) for _ in range(2))
        source, target = (np.where(backward, a[:, None], b[:, None]) for a, b in (ends[::-1], ends))
        nodes = [at]
        for _ in range(self.path_len - 1):
            leaving = (source == nodes[-1][..., None]) & (rng.random(shape) >= stop)[..., None]
            edge = np.argmax(leaving * (1 + rng.random(leaving.shape)), axis=2)[..., None]
            after = np.take_along_axis(target, edge, axis=2)[..., 0]
            nodes.append(np.where(leaving.any(axis=2), after, PAD))
        walk, rows = np.stack(nodes, axis=2), np.arange(len(problems))[:, None]
        tokens = np.where(walk == PAD, PAD, problems.labels[rows[..., None], walk])
        return self.walk_queries(mode_name, tokens, problems.labels[rows, free], informed, rng)

    def _random_nodes(self, problems: Problems, count: int, rng: Generator) -> np.ndarray:
        """int64[n, count]: canonical nodes of the graphs at an even depth, as often a twin as the node itself."""
        shape, goal = (len(problems), count), self.first_node(self.layers + 1)
        leaf, depth = rng.integers(self.leaves, size=shape), rng.integers(self.path_len, size=shape)
        node, twin = self.node_at(leaf, depth), self.twin_of(problems.forks[:, None], leaf, depth)
        node = np.where((depth > self.layers) & (leaf[..., None] == problems.right[:, None]).any(axis=2), goal, node)
        return np.where((twin != PAD) & (rng.random(shape) < 0.5), twin, node)
