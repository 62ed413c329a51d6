"""The arithmetic task: d chains of l additions start from one premise; what is the value of the target?

Each relation says ``child = parent + const``, printed as ``parent child const``: with the child first, a
causal model could not look it up by its parent. A trace computes every value on the way. The first problem
of ``streams.problems(Arith(8, 2, 2, modulus=7, modes="FWD,REV,RAT"), seed=0, "train", n=1)``, labels as letters:

    c b 2  b h 1  d e 1  c d 4   c 1 e SEP |  FWD c 1  d 4 5  e 1 6  EOS
                                           |  REV e  d 1 1  c 4 5  1 6 EOS
                                           |  RAT e d c 1  d 4 5  e 1 6  EOS
    b = c + 2 ...    c is 1; e = ?         |  d = c + 4 = 5, e = d + 1 = 6

FWD opens with the premise and its value and then meets the fork: which of the two chains leads to the target?
REV substitutes from the target, adding up constants, and meets none. RAT (rationale) first names the way
back from the target, then goes forward: its fork is decided by what it just said.

Numbers are tokens of their own, one each. With a modulus all arithmetic is modulo that prime; without one
values grow to premise + l * largest constant.
"""

from dataclasses import dataclass

import numpy as np

from data_gen import star, verifier
from data_gen.star import Star, Stars
from data_gen.task import PAD
from data_gen.verifier import DFA
from data_gen.walks import random_paths

MODES = ("FWD", "REV", "RAT")
WALKED = ("FWD", "REV")  # random walks know no target, so they have no rationale
OUTCOMES = (
    "accept", "malformed", "wrong_query", "look_up", "wrong_branch", "arithmetic", "early_stop", "too_long",
)  # fmt: skip
LARGEST_MODULUS = 10**6
LARGEST = 20  # constant, and premise without a modulus: the paper's range is 1 .. 20


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
    first (only the order of the branches changes, as in the published generator); modes: the forms of traces,
    comma-separated.
    """

    label_key = "labels"
    shortest_query = 7  # tokens of the shortest query with its walk: premise, value, target, SEP, mode, node, EOS

    labels: int
    branches: int
    length: int
    modulus: int | None
    branch_order: str = "shuffled"
    modes: str = "FWD,REV"

    def __post_init__(self) -> None:
        if self.branches < 1:
            raise ValueError(f"branches is {self.branches}: a premise needs at least 1 chain")
        if self.length < 1:
            raise ValueError(f"length is {self.length}: a chain needs at least 1 addition")
        needed = self.branches * self.length + 1
        if self.labels < needed:
            raise ValueError(
                f"labels is {self.labels}: {self.branches} chains of {self.length} need {needed} labels "
                f"(with {self.labels} the longest chain is {max(0, (self.labels - 1) // self.branches)})"
            )
        if self.modulus is not None and self.modulus > LARGEST_MODULUS:
            raise ValueError(f"modulus is {self.modulus}: each number is a token, give a prime up to 999983")
        if self.modulus is not None and not _is_prime(self.modulus):
            near = next(p for p in range(max(2, self.modulus), 2 * max(2, self.modulus) + 1) if _is_prime(p))
            raise ValueError(f"modulus is {self.modulus}: give a prime such as {near}, or null for integers")
        self.require_words(MODES)

    @property
    def graph(self) -> Star:
        """The star that the relations form."""
        return Star(self.labels, self.branches, self.length + 1, self.branch_order)

    def shapes(self, problems: Problems) -> list[tuple[str, Star, np.ndarray]]:
        return self.graph.shapes(problems)

    @property
    def largest_constant(self) -> int:
        return LARGEST if self.modulus is None else min(LARGEST, self.modulus - 1)

    @property
    def numbers(self) -> int:
        """How many number tokens there are: 0 .. numbers - 1."""
        return LARGEST * (self.length + 1) + 1 if self.modulus is None else self.modulus

    @property
    def guessing_floor(self) -> float:
        """The chance that a random number is the answer, which grading by the answer cannot tell from knowing."""
        return 1 / self.numbers

    @property
    def sep(self) -> int:
        return self.labels + self.numbers

    @property
    def eos(self) -> int:
        return self.sep + 1

    @property
    def vocab_size(self) -> int:
        return self.eos + 1 + len(MODES)

    @property
    def graph_len(self) -> int:
        return 3 * self.graph.edges

    @property
    def prompt_len(self) -> int:
        return self.graph_len + 4

    @property
    def trace_len(self) -> int:
        return max(self._length(name) for name in self.mode_names)

    def _length(self, mode: str) -> int:
        """Tokens of a full trace, mode and EOS included."""
        return {"FWD": 4, "REV": 5, "RAT": 4 + self.length}[mode] + 3 * self.length

    def mode_token(self, mode: str) -> int:
        return self.eos + 1 + MODES.index(mode)

    def number(self, value: np.ndarray) -> np.ndarray:
        """The tokens of values, reduced by the modulus if there is one."""
        return self.labels + (value if self.modulus is None else value % self.modulus)

    @property
    def words(self) -> dict[int, str]:
        """Labels are letters (x0, x1, ... past 26), numbers are numbers."""
        names = [chr(97 + i) if self.labels <= 26 else f"x{i}" for i in range(self.labels)]
        return dict(enumerate([*names, *map(str, range(self.numbers)), "SEP", "EOS", *MODES]))

    def sample(self, rng: np.random.Generator, n: int) -> Problems:
        """n problems with a fork at the premise: random labels and order, constants and premise."""
        graph = self.graph.sample(rng, n)
        constant = rng.integers(1, self.largest_constant + 1, size=(n, self.graph.edges))
        return Problems(graph.labels, graph.order, graph.forked, constant, self._premises(rng, n))

    def _premises(self, rng: np.random.Generator, shape: int | tuple[int, int]) -> np.ndarray:
        """Random values of premises."""
        low, high = (1, LARGEST + 1) if self.modulus is None else (0, self.modulus)
        return rng.integers(low, high, size=shape)

    def reprint(self, problems: Problems, rng: np.random.Generator) -> Problems:
        return self.graph.reprint(problems, rng)

    def give_cue(self, problems: Problems, cued: np.ndarray) -> Problems:
        return self.graph.give_cue(problems, cued)

    def remove_fork(self, problems: Problems, forked: np.ndarray) -> Problems:
        return self.graph.remove_fork(problems, forked, self.label_key)

    def identity(self, problems: Problems) -> np.ndarray:
        """As `Star.identity`: equal for equal graphs, whatever their numbers."""
        return self.graph.identity(problems)

    def children(self, problems: Problems) -> np.ndarray:
        """The first node of every chain, int64[n, d]; column 0 is the right one."""
        return self.graph.children(problems)

    def relations(self, problems: Problems) -> np.ndarray:
        """The printed relations, int64[n, E, 3], as (parent, child, const) tokens."""
        constant = np.take_along_axis(problems.constant, problems.order, axis=1)
        return np.concatenate([self.graph.edge_list(problems), self.number(constant)[..., None]], axis=2)

    def prompts(self, problems: Problems) -> np.ndarray:
        """int64[n, prompt_len]: the relations, premise, its value, target, SEP."""
        n, right = len(problems), self.graph.path(problems)
        query = [right[:, 0], self.number(problems.value), right[:, -1], np.full(n, self.sep)]
        return np.concatenate([self.relations(problems).reshape(n, -1), np.stack(query, axis=1)], axis=1)

    def read_graph(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Parents and children int64[n, E] as printed, constants [n, E, 1], (premise, target) [n, 2]."""
        edges = tokens[:, : self.graph_len].reshape(len(tokens), self.graph.edges, 3)
        query = tokens[:, [self.graph_len, self.graph_len + 2]]
        return edges[:, :, 0], edges[:, :, 1], edges[:, :, 2:], query

    def traces(self, problems: Problems, mode: np.ndarray) -> np.ndarray:
        """int64[n, trace_len], PAD past EOS: the trace of each problem in the mode int64[n] (see ``mode_names``)."""
        out = np.full((len(problems), self.trace_len), PAD, dtype=np.int64)
        for index, name in enumerate(self.mode_names):
            some = mode == index
            out[some, : self._length(name)] = self._trace(problems[some], name)
        return out

    def _trace(self, problems: Problems, mode: str) -> np.ndarray:
        """Traces of one mode, int64[n, T]."""
        n, path = len(problems), self.graph.path(problems)
        constant = problems.constant[:, : self.length]
        value = problems.value[:, None] + np.cumsum(constant, axis=1)
        head, tail = np.full((n, 1), self.mode_token(mode)), np.full((n, 1), self.eos)
        if mode == "REV":
            added = np.cumsum(constant[:, ::-1], axis=1)
            steps = np.stack([path[:, -2::-1], self.number(constant[:, ::-1]), self.number(added)], axis=2)
            end = [self.number(problems.value)[:, None], self.number(value[:, -1:])]
            return np.concatenate([head, path[:, -1:], steps.reshape(n, 3 * self.length), *end, tail], axis=1)
        steps = np.stack([path[:, 1:], self.number(constant), self.number(value)], axis=2)
        opening = [path[:, :1]] if mode == "FWD" else [path[:, ::-1]]
        premise = self.number(problems.value)[:, None]
        return np.concatenate([head, *opening, premise, steps.reshape(n, 3 * self.length), tail], axis=1)

    def fork_prefix(self, problems: Problems) -> np.ndarray:
        """int64[n, 3]: FWD, the premise and its value, the forced prefix that ends right before the fork."""
        mode = np.full(len(problems), self.mode_token("FWD"))
        return np.stack([mode, self.graph.path(problems)[:, 0], self.number(problems.value)], axis=1)

    def dfa(self, problems: Problems) -> DFA:
        """The DFA of each problem: in every mode one trace is right, and every step of it must be.

        A wrong token is told apart by what was due: a node or constant that the relations do not give there
        (look_up), the other chain at the fork (wrong_branch), a wrong sum (arithmetic), premise, value or
        target not as asked (wrong_query); a token of another kind is malformed.
        """
        lengths = [self._length(name) - 1 for name in self.mode_names]
        table = verifier.blank(len(problems), 1 + sum(lengths), self.vocab_size, OUTCOMES)
        base = 1
        for name, length in zip(self.mode_names, lengths, strict=True):
            verifier.add_chain(table, base, self._trace(problems, name), self._errors(problems, name), OUTCOMES)
            base += length
        return DFA(table, OUTCOMES)

    def _errors(self, problems: Problems, mode: str) -> np.ndarray:
        """int64[n, T, V]: the outcome of every wrong token at every place of a trace."""
        step = ("node", "constant", "sum")
        kinds = {
            "FWD": ("mode", "query", "value", *self.length * step, "end"),
            "REV": ("mode", "query", *self.length * step, "value", "sum", "end"),
            "RAT": ("mode", "query", *self.length * ("node",), "value", *self.length * step, "end"),
        }[mode]
        wrong_label = {"query": "wrong_query", "node": "look_up", "end": "too_long"}
        wrong_number = {"value": "wrong_query", "constant": "look_up", "sum": "arithmetic", "end": "too_long"}
        errors = np.full((len(problems), len(kinds), self.vocab_size), OUTCOMES.index("malformed"))
        errors[:, 1:, self.eos] = OUTCOMES.index("early_stop")
        for place, kind in enumerate(kinds):
            errors[:, place, : self.labels] = OUTCOMES.index(wrong_label.get(kind, "malformed"))
            errors[:, place, self.labels : self.sep] = OUTCOMES.index(wrong_number.get(kind, "malformed"))
        if mode != "REV":
            fork = kinds.index("constant") - 1
            wrong = np.where(problems.forked, OUTCOMES.index("wrong_branch"), OUTCOMES.index("look_up"))
            errors[np.arange(len(problems))[:, None], fork, self.children(problems)] = wrong[:, None]
        return errors

    def answer_dfa(self, problems: Problems) -> DFA:
        """The DFA that accepts any trace whose last token before EOS is the target's value.

        What comes before is not judged, so a guess is right with probability 1 / numbers.
        """
        n, rows = len(problems), np.arange(len(problems))
        outcomes = ("accept", "malformed", "wrong_answer", "too_long")
        table = verifier.blank(n, 3, self.vocab_size, outcomes)  # start, another token last, the answer last
        answer = self.number(problems.value + problems.constant[:, : self.length].sum(axis=1))
        for name in self.mode_names:
            table[:, 0, self.mode_token(name)] = 1
        for state in (1, 2):
            table[:, state] = 1
            table[rows, state, answer] = 2
        table[:, 1, self.eos] = 3 + outcomes.index("wrong_answer")
        table[:, 2, self.eos] = 3 + outcomes.index("accept")
        return DFA(table, outcomes)

    def walks(
        self, problems: Problems, stop: float, informed: float, rng: np.random.Generator, count: int
    ) -> np.ndarray:
        """``count`` queries with walks on every graph, int64[n, count, 10 + 3 l], PAD in gaps.

        A FWD walk opens with its first node, as the premise, and a random value; it evaluates every node it
        comes to, and of these walks a share ``informed`` names where it ends. A REV walk adds constants up to the
        root; if it gets there and the query gave the root's value, it says that and the total.
        """
        shape, length, labels = (len(problems), count), self.length, problems.labels
        names = tuple(name for name in self.mode_names if name in WALKED)
        paths = random_paths(self.branches, length + 1, shape, names, stop, rng)
        value = self._premises(rng, shape)
        rows = np.arange(len(problems))[:, None]
        other = labels[rows, rng.integers(self.graph.graph_nodes, size=shape)]
        forward, start = paths.mode == "FWD", labels[rows, paths.nodes[..., 0]]
        if informed > 0:  # the target slot names where a FWD walk ends
            last = np.take_along_axis(paths.nodes, paths.steps[..., None], axis=2)[..., 0]
            other = np.where((rng.random(shape) < informed) & forward, labels[rows, last], other)
        depth, chain = rng.integers(length + 1, size=shape), rng.integers(self.branches, size=shape)
        asked = labels[rows, np.where(depth == 0, 0, chain * length + depth)]  # as often the root as in FWD

        walking = np.arange(1, length + 1) <= paths.steps[..., None]
        here, after = paths.nodes[..., :-1], paths.nodes[..., 1:]
        lower = np.where(walking, np.where(forward[..., None], after, here), 1)  # the edge's end, further from the root
        constant = problems.constant[rows[..., None], lower - 1]
        total = np.cumsum(constant * walking, axis=2) + np.where(forward, value, 0)[..., None]
        triples = np.stack([labels[rows[..., None], after], self.number(constant), self.number(total)], axis=3)
        triples = np.where(walking[..., None], triples, PAD).reshape(*shape, -1)

        spoken, eos = self.number(value), np.full(shape, self.eos)
        query = [np.where(forward, start, asked), spoken, np.where(forward, other, start), np.full(shape, self.sep)]
        mode = np.where(forward, self.mode_token("FWD"), self.mode_token("REV"))
        home = ~forward & (paths.steps == paths.first) & (depth == 0)
        end = [np.where(home, spoken, PAD), np.where(home, self.number(value + total[..., -1]), PAD), eos]
        head = np.stack([*query, mode, start, np.where(forward, spoken, PAD)], axis=2)
        return np.concatenate([head, triples, np.stack(end, axis=2)], axis=2)


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % p for p in range(2, int(n**0.5) + 1))
