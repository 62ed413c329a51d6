"""First use of a task: what lacks or contradicts itself is refused, by class, member and an example problem."""

from dataclasses import replace

import numpy as np
import pytest

from data_gen import checks, streams
from data_gen.arith import Arith
from data_gen.sizes import Sizes
from data_gen.star import Star
from data_gen.task import PAD, Task
from examples.new_task import Maze

TRACES, DFA_OF, CHILDREN, PROMPTS, SAMPLE = Maze.traces, Maze.dfa, Maze.children, Maze.prompts, Maze.sample


def dfa_of_the_print(self, problems):
    """It depends on the number of the door that is printed first."""
    swapped = problems.order[:, :1] != SAMPLE(self, np.random.default_rng(0), 8).order[: len(problems), :1]
    return DFA_OF(self, replace(problems, path=np.where(swapped, problems.path[:, ::-1], problems.path)))


def endless_traces(self, problems, mode):
    traces = TRACES(self, problems, mode)
    return np.where(traces == self.eos, 0, traces)


WRONG = [
    ("identity", Task.identity, r"identity\(problems\) changes when reprint"),
    ("identity", lambda self, p: p.order[:, 0], r"identity\(problems\) is int64\[8\]"),
    ("dfa", lambda self, p: DFA_OF(self, replace(p, path=p.path[:, ::-1])), "does not accept the trace in mode FWD"),
    ("traces", lambda self, p, mode: np.insert(TRACES(self, p, mode), 6, PAD, axis=1), r"\[8, 7\], not int64\[8, 6\]"),
    ("traces", endless_traces, "in mode FWD does not end with eos"),
    ("dfa", dfa_of_the_print, "mode FWD changes when reprint"),
    ("mode_token", lambda self, mode: self.sep, r"does not begin with mode_token\(mode_name\)"),
    ("vocab_size", property(lambda self: self.cells + 3), "in mode REV gives tokens outside"),
    ("vocab_size", property(lambda self: self.cells), "prompts.* tokens outside the vocabul"),
    ("prompt_len", property(lambda self: 16), r"prompts\(problems\) gives int64\[8, 15\], not int64\[8, 16\]"),
    ("prompts", lambda self, p: PROMPTS(self, p).astype(float), r"prompts\(problems\) gives float64"),
    ("sample", lambda self, rng, n: SAMPLE(self, np.random.default_rng(), n), "other problems for the same rng"),
    ("children", lambda self, p: CHILDREN(self, p)[:, ::-1], "begins with fork_prefix.* column 0 of children"),
    ("children", lambda self, p: CHILDREN(self, p)[:, [0, 0]], "dfa.* still accept after a wrong one of children"),
    ("children", Task.children, r"of fork_prefix\(problems\) and children\(problems\) it gives only one"),
    ("walks", lambda self, *_: np.full((8, 1, 9), 99), "walks.* gives tokens outside"),
]


@pytest.mark.parametrize(("member", "wrong", "words"), WRONG)
def test_a_wrong_task_is_refused(member, wrong, words):
    task = type("Wrong", (Maze,), {member: wrong})(side=4, steps=3)
    with pytest.raises(ValueError, match=rf"(?s)^Wrong.*{words}.*an example problem: .*\d"):
        streams.problems(task, 0, "train", 1)


@pytest.mark.parametrize("member", ["sample", "vocab_size", "dfa"])
def test_a_task_that_lacks_a_member_cannot_be_made(member):
    with pytest.raises(TypeError, match=f"Wrong.*abstract.*{member}"):
        type("Wrong", (Maze,), {member: getattr(Task, member)})(side=4, steps=3)


STARS = [Star(16, 5, 3, modes="REV,SEARCH,FWD"), Star(6, 1, 4, "published"), Sizes(10, "2x4,3x3,6x2")]
STARS += [Star(16, 2, 4, modes="FWD,RAT,BOTH,NAME")]


@pytest.mark.parametrize("task", [Maze(4, 3), *STARS, Arith(12, 2, 3, None, modes="FWD,REV,RAT")], ids=str)
def test_right_tasks_pass_once(task):
    """Checked when the first problems are drawn and not again."""
    checks.check_task.cache_clear()
    for step in range(2):
        streams.problems(task, 0, "train", 1, step)
    assert (checks.check_task.cache_info().misses, checks.check_task.cache_info().hits) == (1, 1)
