"""RAT and NAME traces of star against a reader of graphs in plain Python (FWD and REV: test_star.py)."""

import os
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen import chain, streams
from data_gen.sizes import Sizes
from data_gen.star import Star
from data_gen.task import PAD
from minifork.measuring.problems import training_forks
from tests.helpers.stars import PLAIN, TINY, Graph, assert_graded, hypothesis_settings, names_flagged, tasks, verdict

MODES = "FWD,REV,RAT,NAME,BOTH"


def read_rationale(task: Star, graph: Graph, trace) -> str:
    """An independent reader: what was due where the trace first differs from the right one?"""
    way, named = graph.chain(), trace[0] == task.mode_token("NAME")
    first = [way[1]] if named else way[:0:-1]
    right = [trace[0], *first, *way, task.eos]
    if trace == right[: len(trace)]:
        return "accept" if len(trace) == len(right) else "live"
    place = len(os.path.commonprefix([trace, right]))
    token, due = trace[place], right[place]
    at_fork = place == len(first) + 2 or named and place == 1
    if token >= task.nodes:
        return "early_stop" if token == task.eos else "malformed"
    if due == task.eos:
        return "too_long"
    if at_fork:
        return "wrong_branch" if token in graph.children[graph.start] else "invalid_edge"
    if named:
        return "malformed" if place == 2 else "invalid_edge"
    return "wrong_goal" if place == 1 else "invalid_edge"


@hypothesis_settings
@given(tasks(), st.integers(0, 2**32), st.sampled_from(["RAT", "NAME"]))
def test_the_reader_agrees_everywhere(plain, seed, mode):
    task, rng = replace(plain, modes=f"FWD,{mode}"), np.random.default_rng(seed)
    problems = task.remove_fork(task.sample(rng, 3), rng.random(3) < 0.7)
    dfa, traces = task.dfa(problems), task.traces(problems, np.full(3, 1))
    for i, prompt in enumerate(task.prompts(problems)):
        trace, reader = traces[i][traces[i] != PAD].tolist(), partial(read_rationale, task, Graph(task, prompt))
        assert verdict(dfa, i, trace) == "accept" == reader(trace)
        assert_graded(dfa, i, task.vocab_size, reader, [task.mode_token(mode)])
    assert task.trace_len == {"RAT": 2 * task.length + 1, "NAME": task.length + 3}[mode]


def test_docstring():
    task = replace(TINY, modes=MODES)
    problems = streams.problems(task, 0, "train", 1)
    texts = ["FWD 2 3 4 EOS", "REV 4 3 2 EOS", "RAT 4 3 2 3 4 EOS", "NAME 3 2 3 4 EOS"]
    for index, text in enumerate(texts):
        trace = task.traces(problems, np.array([index]))[0]
        assert task.decode(trace[trace != PAD]) == text and text in chain.__doc__


@pytest.mark.parametrize(
    ("modes", "more"), [("FWD,REV", 4), ("FWD,SEARCH", 6), ("FWD,RAT", 7), ("FWD,NAME", 8), ("FWD,BOTH", 9), (MODES, 9)]
)
def test_vocabularies_grow_with_the_modes_in_use(modes, more):
    task = Star(16, 2, 4, modes=modes)
    assert task.vocab_size == 16 + more and [task.fwd, task.rev, task.sep, task.eos, task.back] == [16, 17, 18, 19, 21]


@pytest.mark.parametrize("mode", ["RAT", "NAME", "BOTH"])
def test_sets_in_one_mode_pass_the_audit_and_no_fork_of_fwd(mode):
    task, mixture = Star(16, 2, 4, modes=MODES), replace(PLAIN, modes=mode, fork_rate=1.0)
    assert not names_flagged(task, streams.sft_examples(task, mixture, 0, 300), mode_name=mode)
    assert training_forks(task, mixture, 0, 32, 32) is None


@pytest.mark.parametrize("task", [Star(16, 2, 4, modes=MODES), Sizes(11, "2x4,3x3", modes=MODES)], ids=str)
def test_walks_are_those_of_the_modes_that_know_no_goal(task):
    """The same draws as without the other modes, which change no label, edge or step."""
    problems = task.sample(np.random.default_rng(0), 20)
    plain, more = (
        t.walks(problems, 0.3, 0.5, np.random.default_rng(1), 6) for t in (replace(task, modes="FWD,REV"), task)
    )
    assert [row[row != PAD].tolist() for row in plain] == [row[row != PAD].tolist() for row in more]
