"""SEARCH and BOTH traces of star against a reader of graphs in plain Python.

Statistical tests have fixed seeds and |z| < 4.5 (false alarms 7e-6 each).
"""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from data_gen import search, streams
from data_gen.star import Star
from data_gen.streams import Mixture
from data_gen.task import PAD
from tests.helpers.stars import PLAIN, TINY, Graph, Z, assert_graded, assert_refused, verdict, z_score

SEARCHED = Star(12, 3, 4, modes="FWD,REV,SEARCH")
SHOWN = Star(10, 3, 3, modes="FWD,BOTH")


def read_search(task: Star, graph: Graph, trace) -> str:
    """An independent reader of SEARCH traces: where one ends, "live" if it does not."""
    at, visited = None, []
    for token in trace[1:]:
        leaf = at is not None and at not in graph.children
        if token == task.eos:
            return "accept" if at == graph.goal else "wrong_branch" if leaf else "early_stop"
        if at == graph.goal:
            return "too_long" if token < task.nodes or token == task.back else "malformed"
        if at is None and token == graph.start or leaf and token == task.back:
            at = graph.start
        elif at is None or token >= task.nodes:
            return "malformed"
        elif token not in graph.children.get(at, []):
            return "invalid_edge"
        elif token in visited:
            return "wrong_branch"
        else:
            visited.append(token)
            at = token
    return "live"


def read_both(task: Star, graph: Graph, trace) -> str:
    """An independent reader of BOTH traces: like that of SEARCH, but every branch is due, and BACK marks the wrong."""
    at, visited = None, []
    for token in trace[1:]:
        leaf, goal = at is not None and at not in graph.children, at == graph.goal
        shown = all(node in visited for node in graph.children[graph.start])
        nexts = graph.children.get(graph.start if goal or at is None else at, [])
        if token == task.eos:
            ended = shown and (goal or at == graph.start)
            return "accept" if ended else "wrong_branch" if leaf and not goal else "early_stop"
        if at is None and token == graph.start or leaf and not goal and token == task.back:
            at = graph.start
        elif goal and token == task.back:
            return "wrong_branch"
        elif shown and (goal or at == graph.start) and (token < task.nodes or token == task.back):
            return "too_long"
        elif at is None or token >= task.nodes:
            return "malformed"
        elif leaf and not goal or token in nexts and token in visited:
            return "wrong_branch"
        elif token not in nexts:
            return "invalid_edge"
        else:
            visited.append(token)
            at = token
    return "live"


@pytest.mark.parametrize("forked", [True, False])
def test_both_shows_all_branches_and_the_reader_agrees_everywhere(forked):
    problems = SHOWN.remove_fork(streams.problems(SHOWN, 0, "test", 200), np.full(200, forked))
    dfa, prompts, traces = SHOWN.dfa(problems), SHOWN.prompts(problems), SHOWN.traces(problems, np.full(200, 1))
    places = []  # of the right branch
    for i, trace in enumerate(traces):
        trace, reader = trace[trace != PAD].tolist(), partial(read_both, SHOWN, Graph(SHOWN, prompts[i]))
        assert verdict(dfa, i, trace) == "accept" == reader(trace) and len(trace) == (11 if forked else 5)
        assert trace.count(SHOWN.back) == 2 * forked
        places.append(trace.index(problems.labels[i, 1]))
        if i < 5:
            assert_graded(dfa, i, SHOWN.vocab_size, reader, [SHOWN.mode_token("BOTH")])
    if forked:
        assert all(abs(z_score(places.count(place), 200, 1 / 3)) < Z for place in (2, 5, 8))


def test_docstring():
    task = replace(TINY, modes="FWD,SEARCH,BOTH")
    problems = streams.problems(task, 0, "train", 1)
    dfa, token = task.dfa(problems), {word: token for token, word in task.words.items()}
    texts = "SEARCH 2 3 4 EOS,SEARCH 2 1 7 BACK 3 4 EOS,BOTH 2 3 4 1 7 BACK EOS,BOTH 2 1 7 BACK 3 4 EOS"
    for text in texts.split(","):
        assert text in search.__doc__
        assert verdict(dfa, 0, [token.get(word) or int(word) for word in text.split()]) == "accept"


@pytest.mark.parametrize("forked", [True, False])
def test_search_traces_are_accepted_and_the_reader_agrees_everywhere(forked):
    problems = SEARCHED.remove_fork(streams.problems(SEARCHED, 0, "test", 200), np.full(200, forked))
    dfa, prompts = SEARCHED.dfa(problems), SEARCHED.prompts(problems)
    traces = SEARCHED.traces(problems, np.full(200, 2))
    lengths = (traces != PAD).sum(axis=1)
    assert set(lengths) == ({6, 10, 14} if forked else {6})
    for i, trace in enumerate(traces):
        reader = partial(read_search, SEARCHED, Graph(SEARCHED, prompts[i]))
        assert verdict(dfa, i, trace[: lengths[i]]) == "accept" == reader(trace[: lengths[i]])
        if i < 10:
            assert_graded(dfa, i, SEARCHED.vocab_size, reader, [SEARCHED.mode_token("SEARCH")])
    if forked:  # the right branch comes first, second or third equally often
        assert all(abs(z_score((lengths == length).sum(), 200, 1 / 3)) < Z for length in (6, 10, 14))


def test_search_is_not_told_by_the_prompt():
    """The branch visited first is printed first, has the smaller label, and is right, no more often than by chance."""
    task = Star(12, 2, 4, modes="FWD,REV,SEARCH")
    problems = streams.problems(task, 0, "train", 2000)
    first, position = task.search_order(problems)[:, 0], np.argsort(problems.order, axis=1)[:, ::3]
    for guess in (np.argmin(position, axis=1), np.argmin(task.children(problems), axis=1), np.zeros(2000)):
        assert abs(z_score((first == guess).sum(), 2000, 0.5)) < Z


def test_search_walks_and_their_pass_at_1():
    """An ideal base that walks as the corpus does is right as often as the closed form says."""
    task, n, stop = Star(12, 2, 3, modes="FWD,REV,SEARCH"), 20_000, 0.2
    problems = streams.problems(task, 0, "test", n)
    dfa, walks = (
        task.dfa(problems),
        task.search("SEARCH").walks(problems.labels, stop, np.random.default_rng(0), 1)[:, 0],
    )
    traces = ([task.mode_token("SEARCH"), *walk[walk != PAD], task.eos] for walk in walks)
    right = sum(verdict(dfa, i, trace) == "accept" for i, trace in enumerate(traces))
    branch = (1 - stop) ** 2 / 2  # a whole branch, and then a stop or the way back
    assert abs(z_score(right, n, (branch + 2 * branch**2) / 2)) < Z


def test_search_names_the_key():
    for mode in search.SEARCHES:
        assert_refused(Star, {"nodes": 20, "length": 3, "modes": f"FWD,{mode}"}, "branches=6", ": SEARCH and BOTH")
    assert_refused(Mixture, vars(PLAIN) | {"modes": "RAT"}, "fork_rate=0.5", ": there is no other mode")


@pytest.mark.parametrize("n", [30, 31])
def test_three_modes_for_every_problem(n):
    """Problem-level: each problem in all three modes; data-level: one mode each, in equal shares."""
    mixture = Mixture("FWD,REV,SEARCH", 1 / 3, 0.0, False, "problem", False)
    examples = streams.sft_examples(SEARCHED, mixture, 0, n)
    rows, prompts = np.arange(n), examples.tokens[:, : SEARCHED.prompt_len]
    assert (examples.mode_index == rows % 3).all() and (prompts == prompts[rows - rows % 3]).all()
    data = streams.sft_examples(SEARCHED, replace(PLAIN, modes="FWD,SEARCH,REV", fork_rate=0.4), 0, 300)
    assert np.bincount(data.mode_index).tolist() == [120, 90, 90]
    with pytest.raises(ValueError, match="fork_rate=0.333"):
        replace(mixture, fork_rate=0.5)
