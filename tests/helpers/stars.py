"""What the tests of tasks share: stars, a reader of prompts and a grader of answers in plain Python, and checks."""

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import yaml
from hypothesis import settings
from hypothesis import strategies as st

from data_gen import audit
from data_gen.star import Problems, Star
from data_gen.streams import Examples, Mixture
from data_gen.task import Task
from data_gen.verifier import DFA

TINY = Star(nodes=8, branches=2, length=3)
REFERENCE = Star(nodes=16, branches=2, length=4)
PLAIN = Mixture("FWD,REV", 0.5, 0.0, False, "data", False)
Z = 4.5

hypothesis_settings = settings(max_examples=100, deadline=None, derandomize=True, database=None)


@st.composite
def tasks(draw, min_branches: int = 1) -> Star:
    """Small star tasks with at least one spare label, for the second root."""
    branches, length = draw(st.integers(min_branches, 3)), draw(st.integers(2, 5))
    order = draw(st.sampled_from(["shuffled", "published"]))
    return Star(branches * (length - 1) + 2 + draw(st.integers(0, 4)), branches, length, order)


@st.composite
def tasks_with_problems(draw, n: int = 6) -> tuple[Star, Problems]:
    """A task and n of its problems, some with decoys on a second root."""
    task, rng = draw(tasks()), np.random.default_rng(draw(st.integers(0, 2**32)))
    return task, task.remove_fork(task.sample(rng, n), rng.random(n) < 0.7)


class Graph:
    """What a reader sees in a prompt: children and parent of each node, the start and the goal."""

    def __init__(self, task: Star, prompt: np.ndarray):
        tokens = [int(t) for t in prompt]
        assert len(tokens) == task.prompt_len and tokens[-1] == task.sep
        self.start, self.goal = tokens[-3:-1]
        self.edges = list(zip(tokens[:-3:2], tokens[1:-3:2], strict=True))
        self.parent = {v: u for u, v in self.edges}
        self.children = {u: [v for w, v in self.edges if w == u] for u, _ in self.edges}

    def chain(self) -> list[int]:
        """The nodes from the start to the goal, found by climbing from the goal."""
        nodes = [self.goal]
        while nodes[-1] in self.parent:
            nodes.append(self.parent[nodes[-1]])
        return nodes[::-1]


def grade(task: Star, graph: Graph, answer) -> str:
    """An independent grader of FWD and REV: compares the answer with the chain; "live" when it is not finished."""
    if len(answer) == 0:
        return "live"
    mode, *walk = answer
    if mode not in (task.fwd, task.rev):
        return "malformed"
    forward, chain = mode == task.fwd, graph.chain()
    right = [*(chain if forward else chain[::-1]), task.eos]
    for place, (token, due) in enumerate(zip(walk, right, strict=False)):
        if token == due:
            continue
        if token == task.eos:
            return "early_stop"
        if token >= task.nodes or (place == 0 and forward):
            return "malformed"
        if place == 0 or due == task.eos:
            return "too_long" if due == task.eos else "wrong_goal"
        return "wrong_branch" if forward and token in graph.children[walk[place - 1]] else "invalid_edge"
    return "accept" if walk[-1:] == [task.eos] else "live"


def verdict(dfa: DFA, problem: int, answer) -> str:
    """The outcome in which an answer ends, "live" when it is not finished."""
    state = dfa.run(problem, answer) - dfa.first_outcome
    return dfa.outcome_names[state] if state >= 0 else "live"


def assert_graded(dfa: DFA, problem: int, vocab_size: int, grader: Callable[[list[int]], str], first=()) -> set[int]:
    """The automaton agrees with a grader on every answer that begins with the tokens ``first``; the states it was in.

    Every answer is a live prefix, a token, and a rest that no longer matters: all cases are covered.
    """
    outcomes = np.arange(dfa.first_outcome, dfa.next.shape[1])
    assert (dfa.next <= outcomes[-1]).all() and (dfa.next[:, outcomes, :] == outcomes[:, None]).all()
    live, reached = [list(first)], set()
    while live:
        prefix = live.pop()
        reached.add(dfa.run(problem, prefix))
        for answer in ([*prefix, token] for token in range(vocab_size)):
            outcome = grader(answer)
            assert verdict(dfa, problem, answer) == outcome, answer
            live += [answer] if outcome == "live" else []
    return reached


def assert_refused(make: Callable, right: dict, changes: str, words: str = "") -> None:
    """Each of the changes, "key=value key=value" in YAML, is refused with "key is value" and the pattern ``words``."""
    for key, text in (change.split("=") for change in changes.split()):
        value = yaml.safe_load(text)
        with pytest.raises(ValueError, match=re.escape(f"{key} is {value!r}") + words):
            make(**right | {key: value})


def examples_of(task: Task, problems: Problems) -> Examples:
    """FWD examples of problems made by hand."""
    mode = np.zeros(len(problems), dtype=np.int64)
    return Examples(problems, mode, np.concatenate([task.prompts(problems), task.traces(problems, mode)], axis=1))


def names_flagged(task: Task, examples: Examples, fork_rate: float = 1.0, **options) -> set[str]:
    """The checks of the audit that raise a flag."""
    return {check.name for check in audit.audit(task, examples, fork_rate, **options) if check.flagged}


def z_score(hits: int, trials: int, rate: float) -> float:
    assert trials > 0
    return (hits - trials * rate) / math.sqrt(trials * rate * (1 - rate))
