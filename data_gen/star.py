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

from dataclasses import dataclass

import numpy as np

MODES = ("FWD", "REV")


@dataclass(frozen=True)
class Star:
    """The star task and its token layout. Raises ValueError when the graph does not fit the labels.

    nodes: number of node tokens N; branches: d; length: l, the nodes of a branch, start included;
    branch_order: "shuffled", or "published" for the leaky control, which prints the right branch first.
    """

    nodes: int
    branches: int
    length: int
    branch_order: str = "shuffled"

    def __post_init__(self) -> None:
        if self.branches < 1:
            raise ValueError(f"data.branches is {self.branches}: a start needs at least 1 branch")
        if self.length < 2:
            raise ValueError(f"data.length is {self.length}: a branch needs at least 2 nodes")
        if self.nodes < self.graph_nodes:
            raise ValueError(
                f"data.nodes is {self.nodes}: {self.branches} branches of length {self.length} need "
                f"at least {self.graph_nodes} (branches*(length-1)+1)"
            )
        if self.branch_order not in ("shuffled", "published"):
            raise ValueError(f"data.branch_order is {self.branch_order!r}: choose shuffled or published")

    @property
    def edges(self) -> int:
        return self.branches * (self.length - 1)

    @property
    def graph_nodes(self) -> int:
        return self.edges + 1

    @property
    def fwd(self) -> int:
        return self.nodes

    @property
    def rev(self) -> int:
        return self.nodes + 1

    @property
    def sep(self) -> int:
        return self.nodes + 2

    @property
    def eos(self) -> int:
        return self.nodes + 3

    @property
    def vocab_size(self) -> int:
        return self.nodes + 4

    @property
    def prompt_len(self) -> int:
        return 2 * self.edges + 3

    @property
    def trace_len(self) -> int:
        """Tokens of a full trace: mode, l nodes, EOS."""
        return self.length + 2

    def mode_token(self, mode: str) -> int:
        return {"FWD": self.fwd, "REV": self.rev}[mode]

    def decode(self, tokens: np.ndarray) -> str:
        """Token ids int[T] as a readable line."""
        special = {self.fwd: "FWD", self.rev: "REV", self.sep: "SEP", self.eos: "EOS"}
        return " ".join(special.get(int(t), str(int(t))) for t in tokens)


@dataclass(frozen=True)
class Problems:
    """A batch of n star problems in canonical numbers (see the module's docstring).

    labels: int64[n, M], the token of each canonical node; the last column, used only where ``forked``
    is False, is the second root. order: int64[n, E], canonical edges as printed. forked: bool[n],
    False where the decoys hang off the second root, so that the start has one child.
    """

    labels: np.ndarray
    order: np.ndarray
    forked: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows) -> "Problems":
        return Problems(self.labels[rows], self.order[rows], self.forked[rows])


def sample(task: Star, rng: np.random.Generator, n: int) -> Problems:
    """n problems with a fork at the start: random labels, edges in random order."""
    labels = np.argsort(rng.random((n, task.nodes)), axis=1)[:, : task.graph_nodes + 1]
    order = np.argsort(rng.random((n, task.edges)), axis=1)
    if task.branch_order == "published":
        branch = order // (task.length - 1)
        order = np.take_along_axis(order, np.argsort(branch, axis=1, kind="stable"), axis=1)
    return Problems(labels, order, np.ones(n, dtype=bool))


def give_cue(task: Star, problems: Problems, cued: np.ndarray) -> Problems:
    """Where bool[n] ``cued``, let the branch whose first edge is printed first be the right one.

    Labels, printed positions and everything else keep their distribution: only the choice of the right
    branch, uniform otherwise, becomes a function of the order of the first edges.
    """
    steps = task.length - 1
    position = np.argsort(problems.order, axis=1)
    first = np.argmin(position[:, ::steps], axis=1)[:, None]
    branch, step = np.divmod(problems.order, steps)
    swapped = np.where(branch == first, 0, np.where(branch == 0, first, branch)) * steps + step
    return Problems(problems.labels, np.where(cued[:, None], swapped, problems.order), problems.forked)


def hang_off(task: Star, problems: Problems, forked: np.ndarray) -> Problems:
    """Where bool[n] ``forked`` is False, hang the decoys off a second root: start has one child.

    Raises ValueError when no label is left for the second root.
    """
    if not forked.all() and task.nodes < task.graph_nodes + 1:
        raise ValueError(
            f"data.nodes is {task.nodes}: sft.fork_in_graph needs a second root, at least {task.graph_nodes + 1}"
        )
    return Problems(problems.labels, problems.order, forked)


def edge_list(task: Star, problems: Problems) -> np.ndarray:
    """The printed edges, int64[n, E, 2], as (parent, child) tokens."""
    n, order = len(problems), problems.order
    inner = order % (task.length - 1) > 0
    second_root = ~problems.forked[:, None] & (order >= task.length - 1)
    parent = np.where(inner, order, np.where(second_root, problems.labels.shape[1] - 1, 0))
    rows = np.arange(n)[:, None]
    return np.stack([problems.labels[rows, parent], problems.labels[rows, order + 1]], axis=2)


def path(task: Star, problems: Problems) -> np.ndarray:
    """The right branch from start to goal, int64[n, l]."""
    return problems.labels[:, : task.length]


def children(task: Star, problems: Problems) -> np.ndarray:
    """The first node of every branch, int64[n, d]; column 0 is the right one."""
    return problems.labels[:, 1 : task.graph_nodes : task.length - 1]


def prompts(task: Star, problems: Problems) -> np.ndarray:
    """int64[n, prompt_len]: the edges, start, goal, SEP."""
    n, right = len(problems), path(task, problems)
    query = np.stack([right[:, 0], right[:, -1], np.full(n, task.sep)], axis=1)
    return np.concatenate([edge_list(task, problems).reshape(n, -1), query], axis=1)


def traces(task: Star, problems: Problems, forward: np.ndarray) -> np.ndarray:
    """int64[n, trace_len]: the FWD trace where bool[n] ``forward``, else the REV trace."""
    right = path(task, problems)
    mode = np.where(forward, task.fwd, task.rev)[:, None]
    nodes = np.where(forward[:, None], right, right[:, ::-1])
    return np.concatenate([mode, nodes, np.full((len(problems), 1), task.eos)], axis=1)


def fork_prefix(task: Star, problems: Problems) -> np.ndarray:
    """int64[n, 2]: FWD and the start, the forced prefix that ends right before the fork."""
    start = path(task, problems)[:, :1]
    return np.concatenate([np.full_like(start, task.fwd), start], axis=1)


def identity(task: Star, problems: Problems) -> np.ndarray:
    """uint64[n]: a hash of the set of printed edges, equal for equal graphs however they are printed.

    Two problems on the same graph differ at most in the goal, so streams that share no identity share
    no problem and no graph. A problem keeps the identity it was drawn with when its decoys are hung off
    a second root.
    """
    drawn = Problems(problems.labels, problems.order, np.ones(len(problems), dtype=bool))
    edges = edge_list(task, drawn).astype(np.uint64)
    codes = np.sort(edges[:, :, 0] * np.uint64(task.vocab_size) + edges[:, :, 1], axis=1)
    state = np.zeros(len(problems), dtype=np.uint64)
    for column in codes.T:
        state = _mix(state ^ column)
    return state


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): a bijection of uint64 that scatters every bit."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
