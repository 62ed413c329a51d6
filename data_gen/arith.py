"""The arithmetic task: d chains of l additions start from one premise; what is the value of the target?

Each relation says ``child = parent + const``, printed as ``parent child const``: with the child first, a causal model
could not look it up by its parent. In all modes but CODE a trace computes every value on the way. The first problem of
``streams.problems(Arith(8, 2, 2, modulus=7, modes="FWD,REV,RAT,NAME,CODE"), seed=0, "train", n=1)``, labels as letters:

    c b 2  b h 1  d e 1  c d 4   c 1 e SEP |  FWD c 1  d 4 5  e 1 6  EOS
                                           |  REV e  d 1 1  c 4 5  1 6 EOS
                                           |  RAT e d c 1  d 4 5  e 1 6  EOS
                                           |  NAME d c 1  d 4 5  e 1 6  EOS
                                           |  CODE e  d 1  c 4  1 6 EOS
    b = c + 2 ...    c is 1; e = ?         |  d = c + 4 = 5, e = d + 1 = 6

FWD opens with the premise and its value and then meets the fork: which of the two chains leads to the target?
REV substitutes from the target, adding up constants, and meets none. RAT (rationale) first names the way
back from the target, then goes forward: the names before its fork decide it. NAME first names the right chain by
its first node. That is a fork itself, so NAME should not help: it is a control. CODE is REV without running
totals: it looks constants up, and adds all numbers at once in the end. It fails where that sum is hard.

Numbers are tokens of their own, one each. With a modulus all arithmetic is modulo that prime; without one
values grow to premise + l * largest constant.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from data_gen import star, verifier
from data_gen.star import Star, Stars
from data_gen.task import PAD
from data_gen.verifier import DFA
from data_gen.walks import random_paths

MODES = ("FWD", "REV", "RAT", "NAME", "CODE")
WALKED = ("FWD", "REV", "CODE")  # walks know no target, so they have no rationale
OUTCOMES = (
    "accept", "malformed", "wrong_query", "look_up", "wrong_branch", "arithmetic", "early_stop", "too_long",
)  # fmt: skip
# The outcome of a wrong label and of a wrong number, by the kind of token that is due (see `data_gen.graphs.Graphs`).
ERRORS: dict[str, tuple[str, ...]] = {
    "mode": ("malformed", "malformed"),
    "query": ("wrong_query", "malformed"),
    "value": ("malformed", "wrong_query"),
    "fork": ("look_up", "malformed"),  # and wrong_branch for the other branches
    "node": ("look_up", "malformed"),
    "constant": ("malformed", "look_up"),
    "sum": ("malformed", "arithmetic"),
    "end": ("too_long", "too_long"),
}
LARGEST_MODULUS = 10**6
LARGEST_CONSTANT = 20  # also of premises without a modulus; the paper's range is 1 .. 20


@dataclass(frozen=True)
class Problems(star.Problems):
    """A batch of n arithmetic problems: the graph in the canonical numbers of `data_gen.star.Problems`,
    constant: int64[n, E] of every canonical edge; value: int64[n] of the premise."""

    constant: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Arith(Stars[Problems]):
    """The arithmetic task and its token layout. Raises ValueError naming the argument that does not fit.

    labels: number of label tokens; branches: d; length: l, the additions of a chain; modulus: a prime, or None
    for plain integers; branch_order: "shuffled", or "published" for the control that prints the right chain
    first (only the order of the branches changes; the published generator fixes that within chains too); modes: the
    forms of traces, comma-separated.
    """

    labels: int
    branches: int
    length: int
    modulus: int | None
    branch_order: str = "shuffled"
    modes: str = "FWD,REV"

    special = ("SEP", "EOS", *MODES)
    outcomes = OUTCOMES
    errors = ERRORS
    label_key = "labels"
    shortest_query = 7  # premise, value, target, SEP, mode, node, EOS

    classes = property(lambda self: (self.labels, self.numbers))
    edges = property(lambda self: self.branches * self.length)  # printed relations
    graph_len = property(lambda self: 3 * self.edges)  # parent, child and constant of each
    prompt_len = property(lambda self: self.graph_len + 4)  # the relations, premise, its value, target, SEP

    @property
    def vocab_size(self) -> int:
        """The number of tokens: labels, numbers, SEP, EOS, and modes up to RAT or the last that is in use."""
        return 1 + max(map(self.mode_token, ("RAT", *self.mode_names)))

    def __post_init__(self) -> None:
        self.require_fields(MODES, f"{self.branches} chains of {self.length} additions", branches=1, length=1)
        fits = self.modulus is None or self.modulus < LARGEST_MODULUS and _is_prime(self.modulus)
        self.require("modulus", fits, f"give a prime below {LARGEST_MODULUS}, or null for integers")

    @property
    def graph(self) -> Star:
        """The star that the relations form."""
        return Star(self.labels, self.branches, self.length + 1, self.branch_order)

    def shapes(self, problems: Problems) -> list[tuple[str, Star, np.ndarray]]:
        return self.graph.shapes(problems)

    @property
    def numbers(self) -> int:
        """The number of number tokens: 0 .. numbers - 1."""
        return LARGEST_CONSTANT * (self.length + 1) + 1 if self.modulus is None else self.modulus

    @property
    def guessing_floor(self) -> float:
        """The chance that a random number is the answer. Grading by the answer cannot tell such a guess."""
        return 1 / self.numbers

    @property
    def trace_len(self) -> int:
        extra = {"FWD": 4, "REV": 5, "RAT": 4 + self.length, "NAME": 5, "CODE": 5 - self.length}
        return 3 * self.length + max(extra[name] for name in self.mode_names)

    def number(self, value: np.ndarray) -> np.ndarray:
        """The tokens of values, reduced by the modulus if there is one."""
        return self.labels + (value if self.modulus is None else value % self.modulus)

    @property
    def words(self) -> dict[int, str]:
        """Labels are letters (x0, x1, ... past 26), numbers are numbers."""
        names = [chr(97 + i) if self.labels <= 26 else f"x{i}" for i in range(self.labels)]
        return dict(enumerate([*names, *map(str, range(self.numbers)), *self.special]))

    def sample(self, rng: Generator, n: int) -> Problems:
        """n problems with a fork at the premise: random labels and order, constants and premise."""
        graph = self.graph.sample(rng, n)
        largest = LARGEST_CONSTANT if self.modulus is None else min(LARGEST_CONSTANT, self.modulus - 1)
        constant = rng.integers(1, largest + 1, size=(n, self.edges))
        return Problems(graph.labels, graph.order, graph.forked, constant, self._premises(rng, n))

    def _premises(self, rng: Generator, shape: int | tuple[int, int]) -> np.ndarray:
        """Random values of premises."""
        low, high = (1, LARGEST_CONSTANT + 1) if self.modulus is None else (0, self.modulus)
        return rng.integers(low, high, size=shape)

    def give_cue(self, problems: Problems, cued: np.ndarray) -> Problems:
        return self.graph.give_cue(problems, cued)

    def children(self, problems: Problems) -> np.ndarray:
        """The first node of every chain, int64[n, d]; column 0 is the right one."""
        return self.graph.children(problems)

    def prompts(self, problems: Problems) -> np.ndarray:
        """int64[n, prompt_len]: the relations as parent, child, constant, then premise, its value, target, SEP."""
        right, constant = self.graph.path(problems), np.take_along_axis(problems.constant, problems.order, axis=1)
        relations = np.concatenate([self.graph.edge_list(problems), self.number(constant)[..., None]], axis=2)
        return self.print_prompts(relations, right[:, 0], self.number(problems.value), right[:, -1])

    def mode_traces(self, problems: Problems, mode_name: str) -> np.ndarray:
        return self._trace(problems, mode_name)[1]

    def _trace(self, problems: Problems, mode_name: str) -> tuple[list[str], np.ndarray]:
        """The kinds (see ERRORS) of the tokens of full traces in one mode, and the traces int64[n, T]."""
        path, constants = self.graph.path(problems), problems.constant[:, : self.length]
        values = problems.value[:, None] + np.cumsum(constants, axis=1)
        premise, answer = self.number(problems.value), self.number(values[:, -1])
        step = ["node", "constant", "sum"]
        if mode_name in ("REV", "CODE"):
            backward = constants[:, ::-1]
            totals = [np.cumsum(backward, axis=1)] if mode_name == "REV" else []
            kinds = ["query", *self.length * step[: 2 + len(totals)], "value", "sum"]
            body = [path[:, -1], self._steps(path[:, -2::-1], backward, *totals), premise, answer]
        else:  # FWD names the premise first, RAT the way back from the target, NAME the chain
            opening, names = {
                "FWD": (["query"], path[:, :1]),
                "RAT": (["query", *self.length * ["node"]], path[:, ::-1]),
                "NAME": (["fork", "query"], path[:, 1::-1]),
            }[mode_name]
            kinds = [*opening, "value", "fork", *step[1:], *(self.length - 1) * step]
            body = [names, premise, self._steps(path[:, 1:], constants, values)]
        mode, end = np.full(len(path), self.mode_token(mode_name)), np.full(len(path), self.eos)
        return ["mode", *kinds, "end"], np.column_stack([mode, *body, end])

    def _steps(self, nodes: np.ndarray, *numbers: np.ndarray) -> np.ndarray:
        """The steps of a trace as tokens int64[n, m l], each a node and its numbers, from m arrays int64[n, l]."""
        return np.stack([nodes, *map(self.number, numbers)], axis=2).reshape(-1, (1 + len(numbers)) * self.length)

    def fork_prefix(self, problems: Problems) -> np.ndarray:
        """int64[n, 3]: FWD, the premise and its value, the forced prefix that ends right before the fork."""
        return np.column_stack([super().fork_prefix(problems), self.number(problems.value)])

    def dfa(self, problems: Problems) -> DFA:
        """The DFA of each problem: in every mode one trace is right, and every step of it must be.

        The outcome of a wrong token depends on the token that was due. A node or constant that the relations do not
        give there is look_up, the other chain at the fork is wrong_branch, a wrong sum is arithmetic, and a premise,
        value or target other than the query's is wrong_query. A token of another kind is malformed.
        """
        traces = [self._trace(problems, name) for name in self.mode_names]
        live = 1 + sum(len(kinds) - 1 for kinds, _ in traces)
        table = verifier.blank_tables(len(problems), live, self.vocab_size, OUTCOMES)
        base = 1
        for kinds, trace in traces:
            verifier.add_chain(table, base, trace, self.chain_errors(problems, kinds), OUTCOMES)
            base += len(kinds) - 1
        return DFA(table, OUTCOMES)

    def answer_dfa(self, problems: Problems) -> DFA:
        """The DFA that accepts any trace whose last token before EOS is the target's value.

        It does not judge what comes before, so a guess is right with probability 1 / numbers.
        """
        rows, outcomes = np.arange(len(problems)), ("accept", "malformed", "wrong_answer", "too_long")
        # The live states are: start, another token last, the answer last.
        table = verifier.blank_tables(len(rows), 3, self.vocab_size, outcomes)
        answer = self.number(problems.value + problems.constant[:, : self.length].sum(axis=1))
        table[:, 0, [self.mode_token(name) for name in self.mode_names]] = 1
        for state, outcome in ((1, "wrong_answer"), (2, "accept")):
            table[:, state] = 1
            table[rows, state, answer] = 2
            table[:, state, self.eos] = 3 + outcomes.index(outcome)
        return DFA(table, outcomes)

    def walks(self, problems: Problems, stop: float, informed: float, rng: Generator, count: int) -> np.ndarray:
        """``count`` queries with walks on every graph, int64[n, count, 10 + 3 l], PAD in gaps.

        A FWD walk begins with its first node, as the premise, and a random value. It evaluates every node it
        comes to. In a share ``informed`` of FWD walks the query names where the walk ends. A REV walk adds constants
        up to the root, and a CODE walk names them without adding. If it gets there and the query gave the root's value,
        it ends with that value and the total.
        """
        shape, length, labels = (len(problems), count), self.length, problems.labels
        names = tuple(name for name in self.mode_names if name in WALKED)
        paths = random_paths(self.branches, length + 1, shape, names, stop, rng)
        value = self._premises(rng, shape)
        rows = np.arange(len(problems))[:, None]
        target = labels[rows, rng.integers(self.edges + 1, size=shape)]
        forward, first = paths.mode_name == "FWD", labels[rows, paths.nodes[..., 0]]
        if informed > 0:  # the target slot names where a FWD walk ends
            last = np.take_along_axis(paths.nodes, paths.steps[..., None], axis=2)[..., 0]
            target = np.where((rng.random(shape) < informed) & forward, labels[rows, last], target)
        depth, chain = rng.integers(length + 1, size=shape), rng.integers(self.branches, size=shape)
        premise = labels[rows, np.where(depth == 0, 0, chain * length + depth)]  # as often the root as in FWD

        walking = np.arange(1, length + 1) <= paths.steps[..., None]
        before, after = paths.nodes[..., :-1], paths.nodes[..., 1:]
        lower = np.where(forward[..., None], after, before)  # the edge's end that is further from the root
        lower = np.where(walking, lower, 1)
        constant = problems.constant[rows[..., None], lower - 1]
        total = np.cumsum(constant * walking, axis=2) + np.where(forward, value, 0)[..., None]
        triples = np.stack([labels[rows[..., None], after], self.number(constant), self.number(total)], axis=3)
        triples[..., 2] = np.where((paths.mode_name == "CODE")[..., None], PAD, triples[..., 2])
        triples = np.where(walking[..., None], triples, PAD).reshape(*shape, -1)

        number, eos = self.number(value), np.full(shape, self.eos)
        query = [np.where(forward, first, premise), number, np.where(forward, target, first), np.full(shape, self.sep)]
        at_root = ~forward & (paths.steps == paths.first) & (depth == 0)
        end = [np.where(at_root, number, PAD), np.where(at_root, self.number(value + total[..., -1]), PAD), eos]
        head = np.stack([*query, self.mode_tokens(paths.mode_name), first, np.where(forward, number, PAD)], axis=2)
        return np.concatenate([head, triples, np.stack(end, axis=2)], axis=2)


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % p for p in range(2, int(n**0.5) + 1))
