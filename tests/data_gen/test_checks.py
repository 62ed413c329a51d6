"""First use of a task: what lacks or contradicts itself is refused, by class, member and an example problem."""

from dataclasses import replace

import numpy as np
import pytest

from data_gen import checks, streams
from data_gen.arith import Arith
from data_gen.sizes import Sizes
from data_gen.star import Star
from data_gen.task import PAD, Task
from data_gen.verifier import DFA
from examples.new_task import OUTCOMES, Maze

TRACES, DFA_OF, CHILDREN = Maze.traces, Maze.dfa, Maze.children


def printed_odd(problems):
    """Which problems happen to be printed so that their first door has an odd number."""
    return problems.order[:, 0] % 2 == 1


def traces_of_the_print(self, problems, mode):
    path = np.where(printed_odd(problems)[:, None], problems.path, problems.path[:, ::-1])
    return TRACES(self, replace(problems, path=path), mode)


def endless_traces(self, problems, mode):
    traces = TRACES(self, problems, mode)
    return np.where(traces == self.eos, 0, traces)


def dfa_of_the_print(self, problems):
    """SEP where the mode is due is one mistake or another."""
    table = DFA_OF(self, problems).next.copy()
    table[printed_odd(problems), 0, self.sep] = DFA_OF(self, problems).first_outcome + OUTCOMES.index("no_door")
    return DFA(table, OUTCOMES)


WRONG = [
    ("identity", Task.identity, r"identity\(problems\) changes when reprint"),
    ("identity", lambda self, p: p.order[:, 0], r"identity\(problems\) is int64\(8,\)"),
    ("dfa", lambda self, p: DFA_OF(self, replace(p, path=p.path[:, ::-1])), "does not accept the trace in mode FWD"),
    ("traces", lambda self, p, mode: np.insert(TRACES(self, p, mode), 6, PAD, axis=1), r"\(8, 7\), but trace_len is 6"),
    ("traces", endless_traces, "in mode FWD does not end with eos"),
    ("traces", traces_of_the_print, "mode FWD changes when reprint"),
    ("mode_token", lambda self, mode: self.sep, r"does not begin with mode_token\(mode\)"),
    ("vocab_size", property(lambda self: self.cells + 3), "mode REV gives tokens outside the voc"),
    ("vocab_size", property(lambda self: self.cells), "prompts.* tokens outside the vocabul"),
    ("prompt_len", property(lambda self: 16), r"prompts\(problems\) has the shape \(8, 15\)"),
    ("dfa", dfa_of_the_print, r"dfa\(problems\) changes when reprint"),
    (
        "dfa",
        lambda self, p: DFA(np.insert(DFA_OF(self, p).next, 0, 0, axis=2), OUTCOMES),
        r"not \[n, states, vocab_size\]",
    ),
    ("children", lambda self, p: CHILDREN(self, p)[:, ::-1], "begins with fork_prefix.* column 0 of children"),
    ("children", lambda self, p: CHILDREN(self, p)[:, [0, 0]], "dfa.* still accept after a wrong one of children"),
    ("children", Task.children, r"of fork_prefix\(problems\) and children\(problems\) it gives only one"),
    ("fork_prefix", Task.fork_prefix, "it gives only one"),
    ("walks", lambda self, *_: np.full((8, 1, 9), 99), "walks.* gives tokens outside"),
    ("dfa", Task.dfa, r" lacks dfa\(problems\)"),
    ("prompts", Task.prompts, r" lacks prompts\(problems\)"),
    ("eos", Task.eos, " lacks eos"),
]


@pytest.mark.parametrize(("member", "wrong", "words"), WRONG)
def test_a_wrong_task_is_refused(member, wrong, words):
    task = type("Wrong", (Maze,), {member: wrong})(side=4, steps=3)
    with pytest.raises(ValueError, match=rf"(?s)^Wrong.*{words}.*an example problem: .*\d") as error:
        streams.problems(task, 0, "train", 1)
    assert str(error.value).count("Wrong") == 1


@pytest.mark.parametrize("member", ["sample", "vocab_size"])
def test_what_lacks_before_a_problem_is_drawn(member):
    with pytest.raises(ValueError, match=f"Wrong lacks {member}"):
        streams.problems(type("Wrong", (Maze,), {member: getattr(Task, member)})(side=4, steps=3), 0, "train", 1)


STARS = [Star(16, 5, 3, modes="REV,SEARCH,FWD"), Star(6, 1, 4, "published"), Sizes(10, "2x4,3x3,6x2")]


@pytest.mark.parametrize("task", [Maze(4, 3), *STARS, Arith(12, 2, 3, None, modes="FWD,REV,RAT")], ids=str)
def test_right_tasks_pass_once(task):
    """Checked when the first problems are drawn and not again."""
    checks.check_task.cache_clear()
    for step in range(2):
        streams.problems(task, 0, "train", 1, step)
    assert (checks.check_task.cache_info().misses, checks.check_task.cache_info().hits) == (1, 1)


def test_automata_may_number_their_states_as_they_like():
    """Live states in another order, and one more that is never reached, are the same automaton."""
    task = Maze(4, 3)
    one = task.dfa(task.sample(np.random.default_rng(0), 3))
    order = np.concatenate([[0], np.random.default_rng(1).permutation(np.arange(1, one.first_outcome))])
    number = np.concatenate([np.argsort(order), np.arange(one.first_outcome, one.next.shape[1]) + 1])
    extra = np.full((3, 1, task.vocab_size), one.first_outcome + 1)
    live, outcomes = number[one.next[:, order]], number[one.next[:, one.first_outcome :]]
    two = DFA(np.concatenate([live, extra, outcomes], axis=1), one.outcomes)
    assert all(checks._equivalent(one, two, row) for row in range(3))
    two.next[1, number[3], 0] = two.first_outcome
    assert [checks._equivalent(one, two, row) for row in range(3)] == [True, False, True]
