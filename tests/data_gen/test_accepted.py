"""The accepted traces of an automaton, against the right traces of tasks and a search over all tokens."""

from itertools import product

import numpy as np
import pytest

from data_gen import streams
from data_gen.accepted import accepted_traces
from data_gen.star import Star
from data_gen.task import PAD


def test_traces_of_a_star():
    """One trace for each of FWD and REV; a SEARCH of d branches has one for every ordered choice of decoys."""
    task = Star(10, 3, 3, modes="FWD,REV,SEARCH")
    problems = streams.problems(task, 0, "test", 20)
    listed = accepted_traces(task.dfa(problems), task.trace_len, 16)
    assert listed.shape == (20, 2 + 1 + 2 + 2, task.trace_len)
    for mode in range(3):
        written = task.traces(problems, np.full(20, mode))
        assert (listed == written[:, None]).all(axis=2).any(axis=1).all()
    with pytest.raises(ValueError, match="problem 0 has more than 6 right traces"):
        accepted_traces(task.dfa(problems), task.trace_len, 6)


def test_against_all_strings():
    task = Star(3, 2, 2, modes="FWD,REV")
    problems = streams.problems(task, 0, "test", 3)
    dfa, longest = task.dfa(problems), task.trace_len
    for limit in (longest, longest - 1):
        listed = accepted_traces(dfa, limit, 8)
        for i in range(3):
            strings = [s for n in range(1, limit + 1) for s in product(range(task.vocab_size), repeat=n)]
            right = {
                s
                for s in strings
                if dfa.run(i, np.array(s)) == dfa.first_outcome and dfa.run(i, np.array(s[:-1])) != dfa.first_outcome
            }
            assert {tuple(t[t != PAD]) for t in listed[i] if t[0] != PAD} == right
