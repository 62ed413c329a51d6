"""The star task: d branches of l nodes leave one start; which one reaches the goal?

A problem is a graph printed as shuffled edges (two tokens each, no separators) and a query. A trace is
the answer. Its first token, the *mode*, says in which direction it is written:

    u v  u v ... u v   start goal SEP | MODE  node node ... node EOS
    '-- d*(l-1) edges -' '-- query ---' '------- generated --------'

The first problem of ``streams.problems(Star(nodes=8, branches=2, length=3), seed=0, "train", n=1)``:

    tokens  2 1  1 7  3 4  2 3   2 4 10 |  8 2 3 4 11      FWD trace, start .. goal
                                        |  9 4 3 2 11      REV trace, goal .. start
    reads   2 1 1 7 3 4 2 3 2 4 SEP | FWD 2 3 4 EOS        the right branch is 2 -> 3 -> 4
                                                           the decoy branch is 2 -> 1 -> 7

After ``FWD 2`` both 1 and 3 are locally valid and nothing printed nearby says which of them leads to 4:
that position is the *fork* (decision point). The REV trace never meets one: each node has one parent.
Traces in the other modes are SEARCH and BOTH (`data_gen.search`) and the rationales RAT and NAME (`data_gen.chain`).

Inside a ``Problems`` batch the graph has canonical numbers: node 0 is the root, node ``1 + j*(l-1) + i``
is the i-th node of branch j, edge e ends in node e + 1, and branch 0 is the right one. Labels and the
printed order are uniformly random, so the canonical numbers leave no mark on the tokens (the audit in
`data_gen.audit` checks that they do not).
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.random import Generator

from data_gen import verifier
from data_gen.chain import chain_kinds, chain_traces
from data_gen.graphs import OUTCOMES, Graphs
from data_gen.search import MOST_BRANCHES, SEARCHES, Search
from data_gen.task import PAD, Batch, hashed, mix
from data_gen.verifier import DFA
from data_gen.walks import random_paths

MODES = ("FWD", "REV", "SEARCH", "RAT", "NAME", "BOTH")
WALKED = MODES[:3]  # walks know no goal, so they have none of the others


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
class Stars(Graphs[S]):
    """A task whose problems are stars, of one size or several."""

    @abstractmethod
    def shapes(self, problems: S) -> list[tuple[str, "Star", np.ndarray]]:
        """The problems by the size of their star: a name for the size, the star, the rows bool[n]."""

    @abstractmethod
    def children(self, problems: S) -> np.ndarray:
        """The first node of every branch, int64[n, d]; column 0 is the right one."""

    def require_fields(self, modes: tuple[str, ...], size: str, **least: int) -> None:
        """Raise ValueError naming the field that does not fit.

        ``modes`` are the modes that the task has. Each field in ``least`` needs at least that value. ``size`` says in
        words what needs labels.
        """
        names = set(self.mode_names)
        valid_modes = {"FWD"} <= names <= set(modes) and len(names) == len(self.mode_names)
        self.require("modes", valid_modes, f"list FWD and different others of {', '.join(modes)}")
        self.require("branch_order", self.branch_order in ("shuffled", "published"), "choose shuffled or published")
        for key, smallest in least.items():
            self.require(key, getattr(self, key) >= smallest, f"give at least {smallest}")
        self.require(self.label_key, self.label_count > self.edges, f"{size} need at least {self.edges + 1}")

    def forked(self, problems: S) -> np.ndarray:
        return problems.forked

    def identity(self, problems: S) -> np.ndarray:
        """uint64[n]: a hash of the set of printed edges, equal for equal graphs however they are printed.

        Two problems on the same graph differ at most in the goal, so streams that share no identity share
        no problem and no graph with a fork. Problems keep their identity when `remove_fork` changes them.
        """
        original = replace(problems, forked=np.ones(len(problems), dtype=bool))
        parent, child, _, _ = self.read_graph(self.prompts(original))
        return hashed(np.sort(parent * (self.label_count + 4) + child, axis=1))

    def reprint(self, problems: S, rng: Generator) -> S:
        """The same edges in another random order. In published order the right branch still comes first."""
        return replace(problems, order=self.sample(rng, len(problems)).order)

    def remove_fork(self, problems: S, keep: np.ndarray) -> S:
        """Hang the decoys off a second root where bool[n] ``keep`` is False. The start then has one child.

        Raises ValueError naming the field of the labels when none is left for the second root.
        """
        needed = self.edges + 2
        has_spare = self.label_count >= needed or bool(keep.all())
        self.require(self.label_key, has_spare, f"graphs without a fork have a second root, give at least {needed}")
        return replace(problems, forked=keep)

    def fork_prefix(self, problems: S) -> np.ndarray:
        """int64[n, 2]: FWD and the start, the forced prefix that ends right before the fork."""
        return np.stack([np.full(len(problems), self.mode_token("FWD")), problems.labels[:, 0]], axis=1)

    def chain_errors(self, problems: S, kinds: list[str]) -> np.ndarray:
        """int64[n, T, V]: the outcome of every wrong token at every place of a trace of these kinds of tokens."""
        errors = np.repeat(self.wrong_tokens(kinds)[None], len(problems), axis=0)
        rows, branches = np.flatnonzero(problems.forked)[:, None], self.children(problems)[problems.forked]
        for place in np.flatnonzero(np.array(kinds) == "fork"):
            errors[rows, place, branches] = self.outcomes.index("wrong_branch")
        return errors


@dataclass(frozen=True)
class Star(Stars[Problems]):
    """The star task and its token layout. Raises ValueError when the graph does not fit the labels.

    nodes: number of node tokens N; branches: d; length: l, the nodes of a branch, start included;
    branch_order: "shuffled", or "published" for the leaky control, which prints the right branch first;
    modes: the forms of traces, comma-separated.
    """

    nodes: int
    branches: int
    length: int
    branch_order: str = "shuffled"
    modes: str = "FWD,REV"

    special = ("FWD", "REV", "SEP", "EOS", "SEARCH", "BACK", "RAT", "NAME", "BOTH")
    fwd = property(lambda self: self.token("FWD"))
    rev = property(lambda self: self.token("REV"))
    back = property(lambda self: self.token("BACK"))  # SEARCH and BOTH return to the start
    edges = property(lambda self: self.branches * (self.length - 1))
    graph_nodes = property(lambda self: self.edges + 1)  # nodes of the graph, start included

    def __post_init__(self) -> None:
        self.require_fields(MODES, f"{self.branches} branches of length {self.length}", branches=1, length=2)
        tracked = self.branches <= MOST_BRANCHES or not {*SEARCHES} & {*self.mode_names}
        self.require("branches", tracked, f"{' and '.join(SEARCHES)} keep track of {MOST_BRANCHES} at most")

    def shapes(self, problems: Problems) -> list[tuple[str, "Star", np.ndarray]]:
        return [("", self, np.ones(len(problems), dtype=bool))]

    @property
    def vocab_size(self) -> int:
        """The number of tokens: node labels, then special ones, up to the last that a mode needs."""
        last = "BACK" if "SEARCH" in self.mode_names else "EOS"
        return 1 + max(map(self.token, (last, *self.mode_names)))

    @property
    def trace_len(self) -> int:
        """Tokens of the longest trace: mode, nodes, EOS. SEARCH and BOTH may visit all branches, with BACK between."""
        all_branches = self.length * self.branches
        nodes = {"RAT": 2 * self.length - 1, "NAME": self.length + 1} | dict.fromkeys(SEARCHES, all_branches)
        return 2 + max(nodes.get(name, self.length) for name in self.mode_names)

    def search(self, mode_name: str) -> Search:
        """The traces of the mode SEARCH or BOTH."""
        tokens = self.mode_token(mode_name), self.back, self.eos
        return Search(self.nodes, self.branches, self.length, *tokens, shows_all=mode_name == "BOTH")

    def sample(self, rng: Generator, n: int) -> Problems:
        """n problems with a fork at the start: random labels, edges in random order."""
        labels = np.argsort(rng.random((n, self.nodes)), axis=1)[:, : self.graph_nodes + 1]
        order = np.argsort(rng.random((n, self.edges)), axis=1)
        if self.branch_order == "published":
            branch = order // (self.length - 1)
            order = np.take_along_axis(order, np.argsort(branch, axis=1, kind="stable"), axis=1)
        return Problems(labels, order, np.ones(n, dtype=bool))

    def give_cue(self, problems: S, cued: np.ndarray) -> S:
        """The problems, where bool[n] ``cued`` with the branch right whose first edge is printed first.

        Labels, printed positions and everything else keep their distribution. Only the choice of the right
        branch, uniform otherwise, becomes a function of the order of the first edges.
        """
        steps = self.length - 1
        branch, step = np.divmod(problems.order, steps)
        first = np.take_along_axis(branch, np.argmax(step == 0, axis=1)[:, None], axis=1)
        swapped = np.where(branch == first, 0, np.where(branch == 0, first, branch)) * steps + step
        return replace(problems, order=np.where(cued[:, None], swapped, problems.order))

    def edge_list(self, problems: Problems) -> np.ndarray:
        """The printed edges, int64[n, E, 2], as (parent, child) tokens."""
        order, second_root = problems.order, problems.labels.shape[1] - 1
        root = np.where(problems.forked[:, None] | (order < self.length - 1), 0, second_root)
        parent = np.where(order % (self.length - 1) > 0, order, root)
        return np.take_along_axis(problems.labels[:, None], np.stack([parent, order + 1], axis=2), axis=2)

    def path(self, problems: Problems) -> np.ndarray:
        """The right branch from start to goal, int64[n, l]."""
        return problems.labels[:, : self.length]

    def children(self, problems: Problems) -> np.ndarray:
        """The first node of every branch, int64[n, d]; column 0 is the right one."""
        return problems.labels[:, 1 : self.graph_nodes : self.length - 1]

    def prompts(self, problems: Problems) -> np.ndarray:
        """int64[n, prompt_len]: the edges, start, goal, SEP."""
        return self.print_prompts(self.edge_list(problems), self.path(problems)[:, [0, -1]])

    def mode_traces(self, problems: Problems, mode_name: str) -> np.ndarray:
        token = self.mode_token(mode_name)
        if mode_name not in SEARCHES:
            return chain_traces(mode_name, self.path(problems), token, self.eos)
        trace = self.search(mode_name).traces(problems.labels, problems.forked, self.search_order(problems))
        return np.column_stack([np.full(len(problems), token), trace])

    def search_order(self, problems: Problems) -> np.ndarray:
        """int64[n, d]: the canonical branches in the order in which a trace of SEARCH or BOTH visits them.

        It is a hash of the problem: uniform, and nothing printed tells it.
        """
        keys = mix(self.identity(problems)[:, None] ^ self.children(problems).astype(np.uint64))
        return np.argsort(keys, axis=1)

    def dfa(self, problems: Problems) -> DFA:
        """The DFA of each problem, over the states of every mode in turn.

        FWD, REV, RAT and NAME must name the nodes that are due, and stop there. SEARCH and BOTH may try branches in any
        order, each one once, and must go back from every dead end. A token that is no node where a node is due (or the
        reverse) is malformed, and so is another node where the start is due (wrong_goal where a trace begins with the
        goal).
        """
        states = [self._states(name) for name in self.mode_names]
        table = verifier.blank_tables(len(problems), 1 + sum(states), self.vocab_size, OUTCOMES)
        base = 1
        for name, count in zip(self.mode_names, states, strict=True):
            if name in SEARCHES:
                self.search(name).add_states(table, base, problems.labels, problems.forked, OUTCOMES)
            else:
                kinds, trace = chain_kinds(name, self.length), self.mode_traces(problems, name)
                verifier.add_chain(table, base, trace, self.chain_errors(problems, kinds), OUTCOMES)
            base += count
        return DFA(table, OUTCOMES)

    def _states(self, mode_name: str) -> int:
        """The number of live states that a mode takes in a problem's automaton."""
        return self.search(mode_name).states if mode_name in SEARCHES else len(chain_kinds(mode_name, self.length)) - 1

    def walks(self, problems: Problems, stop: float, informed: float, rng: Generator, count: int) -> np.ndarray:
        """``count`` queries with walks on every graph, int64[n, count, 3 + trace_len], PAD in gaps.

        Modes are drawn evenly. The free slot of the query, where the walk does not start, names a random node.
        """
        labels, shape = problems.labels, (len(problems), count)
        names = tuple(name for name in self.mode_names if name in WALKED)
        paths = random_paths(self.branches, self.length, shape, names, stop, rng)
        rows = np.arange(len(labels))[:, None]
        free = labels[rows, rng.integers(self.graph_nodes, size=shape)]
        nodes = np.full((*shape, self.trace_len - 2), PAD)
        walked = np.arange(self.length) <= paths.steps[..., None]
        nodes[..., : self.length] = np.where(walked, labels[rows[..., None], paths.nodes], PAD)
        if "SEARCH" in names:
            search = self.search("SEARCH").walks(labels, stop, rng, count)
            searched = (paths.mode_name == "SEARCH")[..., None]
            nodes[..., : search.shape[2]] = np.where(searched, search, nodes[..., : search.shape[2]])
        return self.walk_queries(paths.mode_name, nodes, free, informed, rng)
