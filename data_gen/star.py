"""The star task: d branches of l nodes leave one start; which one reaches the goal?

A problem is a graph printed as shuffled edges (two tokens each, no separators) and a query; a trace is
the answer, and its first token, the *mode*, says in which direction it is written:

    u v  u v ... u v   start goal SEP | MODE  node node ... node EOS
    '-- d*(l-1) edges -' '-- query ---' '------- generated --------'

The first problem of ``streams.problems(Star(nodes=8, branches=2, length=3), seed=0, "train", n=1)``:

    tokens  2 1  1 7  3 4  2 3   2 4 10 |  8 2 3 4 11      FWD trace, start .. goal
                                        |  9 4 3 2 11      REV trace, goal .. start
    reads   2 1 1 7 3 4 2 3 2 4 SEP | FWD 2 3 4 EOS        the right branch is 2 -> 3 -> 4
                                                           the decoy branch is 2 -> 1 -> 7

After ``FWD 2`` both 1 and 3 are locally valid and nothing printed nearby says which of them leads to 4:
that position is the *fork* (decision point). The REV trace never meets one: each node has one parent.

Inside a ``Problems`` batch the graph has canonical numbers: node 0 is the root, node ``1 + j*(l-1) + i``
is the i-th node of branch j, edge e ends in node e + 1, and branch 0 is the right one. Labels and the
printed order are uniformly random, so the canonical numbers leave no mark on the tokens (the audit in
`data_gen.audit` checks that they do not).
"""

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from data_gen import verifier
from data_gen.search import MOST_BRANCHES, Search
from data_gen.task import PAD, Batch, MissingMemberError, Task, hashed, mix
from data_gen.verifier import DFA
from data_gen.walks import random_paths

MODES = ("FWD", "REV", "SEARCH")
OUTCOMES = ("accept", "malformed", "invalid_edge", "wrong_branch", "wrong_goal", "early_stop", "too_long")


@dataclass(frozen=True)
class Problems(Batch):
    """A batch of n star problems in canonical numbers (see the module's docstring).

    labels: int64[n, M], the token of each canonical node; the last column, used only where ``forked``
    is False, is the second root. order: int64[n, E], canonical edges as printed. forked: bool[n],
    False where the decoys hang off the second root, so that the start has one child.
    """

    labels: np.ndarray
    order: np.ndarray
    forked: np.ndarray


S = TypeVar("S", bound=Problems)


@dataclass(frozen=True)
class Stars(Task[S]):
    """A task whose problems are stars, of one size or several."""

    def shapes(self, problems: S) -> list[tuple[str, "Star", np.ndarray]]:
        """The problems by the size of their star: a name for the size, the star, the rows bool[n]."""
        raise MissingMemberError(self, "shapes(problems)")

    def forked(self, problems: S) -> np.ndarray:
        return problems.forked

    def require_words(self, valid: tuple[str, ...]) -> None:
        """Raise ValueError unless ``modes`` lists different ones of ``valid``, FWD among them, and the order is one."""
        names = self.mode_names
        if not set(names) <= set(valid) or len(set(names)) < len(names):
            raise ValueError(f"modes is {self.modes!r}: list different ones of {', '.join(valid)}")
        if "FWD" not in names:
            raise ValueError(f"modes is {self.modes!r}: FWD, which meets the fork, must be one of them")
        if self.branch_order not in ("shuffled", "published"):
            raise ValueError(f"branch_order is {self.branch_order!r}: choose shuffled or published")


@dataclass(frozen=True)
class Printed(Stars[S]):
    """How stars of any size become tokens: node labels 0 .. nodes - 1, then FWD, REV, SEP, EOS, SEARCH and BACK."""

    nodes: int

    label_key = "nodes"
    shortest_query = 6  # start, goal, SEP, mode, node, EOS
    fwd = property(lambda self: self.nodes)
    rev = property(lambda self: self.nodes + 1)
    sep = property(lambda self: self.nodes + 2)
    eos = property(lambda self: self.nodes + 3)
    search = property(lambda self: self.nodes + 4)
    back = property(lambda self: self.nodes + 5)

    @property
    def edges(self) -> int:
        """How many edges a prompt prints."""
        raise MissingMemberError(self, "edges")

    @property
    def vocab_size(self) -> int:
        return self.nodes + (6 if "SEARCH" in self.mode_names else 4)

    @property
    def graph_len(self) -> int:
        return 2 * self.edges

    @property
    def prompt_len(self) -> int:
        return self.graph_len + 3

    def mode_token(self, mode: str) -> int:
        return {"FWD": self.fwd, "REV": self.rev, "SEARCH": self.search}[mode]

    @property
    def words(self) -> dict[int, str]:
        return {self.nodes + i: word for i, word in enumerate(("FWD", "REV", "SEP", "EOS", "SEARCH", "BACK"))}

    def read_graph(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """As `Task.read_graph`; an edge says nothing else."""
        edges = tokens[:, : self.graph_len].reshape(len(tokens), self.edges, 2)
        return edges[:, :, 0], edges[:, :, 1], edges[:, :, 2:], tokens[:, self.graph_len : self.graph_len + 2]


@dataclass(frozen=True)
class Star(Printed[Problems]):
    """The star task and its token layout. Raises ValueError when the graph does not fit the labels.

    nodes: number of node tokens N; branches: d; length: l, the nodes of a branch, start included;
    branch_order: "shuffled", or "published" for the leaky control, which prints the right branch first;
    modes: the forms of traces, comma-separated.
    """

    branches: int
    length: int
    branch_order: str = "shuffled"
    modes: str = "FWD,REV"

    def __post_init__(self) -> None:
        self.require_words(MODES)
        if "SEARCH" in self.mode_names and self.branches > MOST_BRANCHES:
            raise ValueError(f"branches is {self.branches}: SEARCH keeps track of {MOST_BRANCHES} at most")
        if self.branches < 1:
            raise ValueError(f"branches is {self.branches}: a start needs at least 1 branch")
        if self.length < 2:
            raise ValueError(f"length is {self.length}: a branch needs at least 2 nodes")
        if self.nodes < self.graph_nodes:
            raise ValueError(
                f"nodes is {self.nodes}: {self.branches} branches of length {self.length} need "
                f"at least {self.graph_nodes} (branches*(length-1)+1)"
            )

    def shapes(self, problems: Problems) -> list[tuple[str, "Star", np.ndarray]]:
        return [("", self, np.ones(len(problems), dtype=bool))]

    @property
    def edges(self) -> int:
        return self.branches * (self.length - 1)

    @property
    def graph_nodes(self) -> int:
        return self.edges + 1

    @property
    def trace_len(self) -> int:
        """Tokens of the longest trace: mode, l nodes, EOS; a SEARCH may visit all branches, with BACK between."""
        longest = self.length + 2
        return longest + (self.branches - 1) * self.length if "SEARCH" in self.mode_names else longest

    @property
    def searching(self) -> Search:
        """The traces of the mode SEARCH."""
        return Search(self.nodes, self.branches, self.length, self.search, self.back, self.eos)

    def sample(self, rng: np.random.Generator, n: int) -> Problems:
        """n problems with a fork at the start: random labels, edges in random order."""
        labels = np.argsort(rng.random((n, self.nodes)), axis=1)[:, : self.graph_nodes + 1]
        order = np.argsort(rng.random((n, self.edges)), axis=1)
        if self.branch_order == "published":
            branch = order // (self.length - 1)
            order = np.take_along_axis(order, np.argsort(branch, axis=1, kind="stable"), axis=1)
        return Problems(labels, order, np.ones(n, dtype=bool))

    def reprint(self, problems: S, rng: np.random.Generator) -> S:
        """The same edges in another random order."""
        return replace(problems, order=rng.permuted(problems.order, axis=1))

    def give_cue(self, problems: S, cued: np.ndarray) -> S:
        """Where bool[n] ``cued``, let the branch whose first edge is printed first be the right one.

        Labels, printed positions and everything else keep their distribution: only the choice of the right
        branch, uniform otherwise, becomes a function of the order of the first edges.
        """
        steps = self.length - 1
        position = np.argsort(problems.order, axis=1)
        first = np.argmin(position[:, ::steps], axis=1)[:, None]
        branch, step = np.divmod(problems.order, steps)
        swapped = np.where(branch == first, 0, np.where(branch == 0, first, branch)) * steps + step
        return replace(problems, order=np.where(cued[:, None], swapped, problems.order))

    def remove_fork(self, problems: S, forked: np.ndarray, key: str = "nodes") -> S:
        """Where bool[n] ``forked`` is False, hang the decoys off a second root: start has one child.

        Raises ValueError naming the field of the labels when none is left for the second root.
        """
        if not forked.all() and self.nodes < self.graph_nodes + 1:
            raise ValueError(
                f"{key} is {self.nodes}: graphs without a fork need a second root, at least "
                f"{self.graph_nodes + 1} labels"
            )
        return replace(problems, forked=forked)

    def edge_list(self, problems: Problems) -> np.ndarray:
        """The printed edges, int64[n, E, 2], as (parent, child) tokens."""
        n, order = len(problems), problems.order
        inner = order % (self.length - 1) > 0
        second_root = ~problems.forked[:, None] & (order >= self.length - 1)
        parent = np.where(inner, order, np.where(second_root, problems.labels.shape[1] - 1, 0))
        rows = np.arange(n)[:, None]
        return np.stack([problems.labels[rows, parent], problems.labels[rows, order + 1]], axis=2)

    def path(self, problems: Problems) -> np.ndarray:
        """The right branch from start to goal, int64[n, l]."""
        return problems.labels[:, : self.length]

    def children(self, problems: Problems) -> np.ndarray:
        """The first node of every branch, int64[n, d]; column 0 is the right one."""
        return problems.labels[:, 1 : self.graph_nodes : self.length - 1]

    def prompts(self, problems: Problems) -> np.ndarray:
        """int64[n, prompt_len]: the edges, start, goal, SEP."""
        n, right = len(problems), self.path(problems)
        query = np.stack([right[:, 0], right[:, -1], np.full(n, self.sep)], axis=1)
        return np.concatenate([self.edge_list(problems).reshape(n, -1), query], axis=1)

    def traces(self, problems: Problems, mode: np.ndarray) -> np.ndarray:
        """int64[n, trace_len], PAD past EOS: the trace of each problem in the mode int64[n] (see ``mode_names``)."""
        n, right = len(problems), self.path(problems)
        out = np.full((n, self.trace_len), PAD, dtype=np.int64)
        for index, name in enumerate(self.mode_names):
            some = mode == index
            out[some, 0] = self.mode_token(name)
            if name == "SEARCH":
                part = problems[some]
                walk = self.searching.traces(part.labels, part.forked, self.search_order(part))
                out[some, 1 : 1 + walk.shape[1]] = walk
            else:
                out[some, 1 : self.length + 1] = right[some] if name == "FWD" else right[some, ::-1]
                out[some, self.length + 1] = self.eos
        return out

    def search_order(self, problems: Problems) -> np.ndarray:
        """int64[n, d]: the canonical branches in the order a SEARCH trace visits them.

        A hash of the problem: uniform, and nothing printed tells it.
        """
        keys = mix(self.identity(problems)[:, None] ^ self.children(problems).astype(np.uint64))
        return np.argsort(keys, axis=1)

    def fork_prefix(self, problems: Problems) -> np.ndarray:
        """int64[n, 2]: FWD and the start, the forced prefix that ends right before the fork."""
        start = self.path(problems)[:, :1]
        return np.concatenate([np.full_like(start, self.fwd), start], axis=1)

    def identity(self, problems: Problems) -> np.ndarray:
        """uint64[n]: a hash of the set of printed edges, equal for equal graphs however they are printed.

        Two problems on the same graph differ at most in the goal, so streams that share no identity share
        no problem and no graph with a fork. A problem keeps the identity it was drawn with when its decoys are hung off
        a second root.
        """
        drawn = replace(problems, forked=np.ones(len(problems), dtype=bool))
        edges = self.edge_list(drawn)
        return hashed(np.sort(edges[:, :, 0] * (self.nodes + 4) + edges[:, :, 1], axis=1))

    def dfa(self, problems: Problems) -> DFA:
        """The DFA of each problem, over the states of every mode in turn.

        FWD must walk the whole right branch from start to goal, REV from goal to start, and stop there.
        SEARCH may try branches in any order, each one once, and must go back from every dead end. A token
        that is no node where a node is due (or the reverse) is malformed, and so is a trace that does not
        begin at the start (at the goal, for REV: wrong_goal).
        """
        sizes = [self.searching.states if name == "SEARCH" else self.length + 1 for name in self.mode_names]
        table = verifier.blank(len(problems), 1 + sum(sizes), self.vocab_size, OUTCOMES)
        base = 1
        for name, size in zip(self.mode_names, sizes, strict=True):
            if name == "SEARCH":
                self.searching.add_states(table, base, problems.labels, problems.forked, OUTCOMES)
            else:
                index = np.full(len(problems), self.mode_names.index(name))
                trace = self.traces(problems, index)[:, : self.length + 2]
                verifier.add_chain(table, base, trace, self._chain_errors(problems, name), OUTCOMES)
            base += size
        return DFA(table, OUTCOMES)

    def _chain_errors(self, problems: Problems, mode: str) -> np.ndarray:
        """int64[n, l + 2, V]: the outcome of every wrong token at every place of a FWD or REV trace."""
        n, length = len(problems), self.length
        errors = np.full((n, length + 2, self.vocab_size), OUTCOMES.index("malformed"))
        errors[:, 1:, self.eos] = OUTCOMES.index("early_stop")
        errors[:, 1, : self.nodes] = OUTCOMES.index("malformed" if mode == "FWD" else "wrong_goal")
        errors[:, 2:-1, : self.nodes] = OUTCOMES.index("invalid_edge")
        errors[:, -1, : self.nodes] = OUTCOMES.index("too_long")
        if mode == "FWD":
            wrong = np.where(problems.forked, OUTCOMES.index("wrong_branch"), OUTCOMES.index("invalid_edge"))
            errors[np.arange(n)[:, None], 2, self.children(problems)] = wrong[:, None]
        return errors

    def walks(
        self, problems: Problems, stop: float, informed: float, rng: np.random.Generator, count: int
    ) -> np.ndarray:
        """``count`` queries with walks on every graph, int64[n, count, 3 + trace_len], PAD in gaps.

        Modes are drawn evenly. The slot of the query that the walk does not start from names a random node.
        """
        labels, length = problems.labels, self.length
        shape = (len(labels), count)
        paths = random_paths(self.branches, length, shape, self.mode_names, stop, rng)
        rows = np.arange(len(labels))[:, None]
        other = labels[rows, rng.integers(self.graph_nodes, size=shape)]
        nodes = np.full((*shape, self.trace_len - 2), PAD)
        nodes[..., :length] = np.where(
            np.arange(length) <= paths.steps[..., None], labels[rows[..., None], paths.nodes], PAD
        )
        if "SEARCH" in self.mode_names:
            searching = (paths.mode == "SEARCH")[..., None]
            nodes = np.where(searching, self.searching.walks(labels, stop, rng, count), nodes)
        origin = nodes[..., 0]
        if informed > 0:  # the other slot names where the walk ends
            last = np.take_along_axis(nodes, (nodes != PAD).cumsum(axis=2).argmax(axis=2)[..., None], axis=2)[..., 0]
            other = np.where((rng.random(shape) < informed) & (last < self.nodes), last, other)
        starts = paths.mode != "REV"
        head = [np.where(starts, origin, other), np.where(starts, other, origin), np.full(shape, self.sep)]
        tokens = np.select([paths.mode == mode for mode in MODES], [self.mode_token(mode) for mode in MODES])
        eos = np.full((*shape, 1), self.eos)
        return np.concatenate([np.stack([*head, tokens], axis=2), nodes, eos], axis=2)
