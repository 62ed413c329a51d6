"""Star problems and their verifier, checked against graphs rebuilt from the tokens by plain Python.

Statistical tests use fixed seeds and |z| < 4.5, a false-alarm rate of 7e-6 for each statistic.
"""

import itertools
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen import streams
from data_gen.arith import Arith
from data_gen.sizes import Sizes
from data_gen.star import Problems, Star
from tests.helpers import stars
from tests.helpers.engines import chi_square_z
from tests.helpers.stars import REFERENCE, TINY, Graph, Z, assert_graded, assert_refused, grade, hypothesis_settings


def test_star_docstring():
    problems = streams.problems(TINY, 0, "train", 1)
    assert TINY.prompts(problems).tolist() == [[2, 1, 1, 7, 3, 4, 2, 3, 2, 4, 10]]
    traces = [TINY.traces(problems, np.array([mode])).tolist() for mode in (0, 1)]
    assert traces == [[[8, 2, 3, 4, 11]], [[9, 4, 3, 2, 11]]]
    assert TINY.fork_prefix(problems).tolist() == [[8, 2]]
    assert TINY.children(problems).tolist() == [[3, 1]]
    assert TINY.decode(TINY.prompts(problems)[0]) == "2 1 1 7 3 4 2 3 2 4 SEP"


def test_verifier_docstring():
    problems = Problems(np.array([[3, 7, 1, 4, 2, 0]]), np.array([[0, 1, 2, 3]]), np.array([True]))
    dfa = TINY.dfa(problems)
    token = {word: token for token, word in TINY.words.items()}
    cases = "FWD 3 7 1 EOS accept,REV 1 7 3 EOS accept,FWD 3 4 wrong_branch,FWD 3 EOS early_stop,REV 2 wrong_goal"
    for *answer, end in map(str.split, f"{cases},FWD 3 5 invalid_edge,SEP malformed,FWD 3 7 1 2 too_long".split(",")):
        assert stars.verdict(dfa, 0, [token.get(word) or int(word) for word in answer]) == end


@hypothesis_settings
@given(stars.tasks_with_problems())
def test_prompts_traces_and_automata_describe_one_graph(task_with_problems):
    task, problems = task_with_problems
    forward, reverse = (task.traces(problems, np.full(6, mode)).tolist() for mode in (0, 1))
    dfa, children = task.dfa(problems), task.children(problems)
    for i, prompt in enumerate(task.prompts(problems)):
        graph = Graph(task, prompt)
        chain = graph.chain()
        assert len(set(graph.edges)) == len(graph.parent) == task.edges
        assert 0 <= min(prompt) and max(prompt[:-1]) < task.nodes
        assert chain[0] == graph.start and len(chain) == task.length and task.trace_len == task.length + 2
        assert forward[i] == [task.fwd, *chain, task.eos] and reverse[i] == [task.rev, *chain[::-1], task.eos]
        roots = {u for u in graph.children if u not in graph.parent}
        degrees = sorted(len(graph.children[root]) for root in roots)
        if problems.forked[i]:
            assert set(graph.children[graph.start]) == set(children[i].tolist()) and degrees == [task.branches]
        else:
            assert degrees == [1, task.branches - 1][: task.branches] and len(graph.children[graph.start]) == 1
        assert all(len(v) == 1 for u, v in graph.children.items() if u not in roots)
        reached = assert_graded(dfa, i, task.vocab_size, partial(grade, task, graph))
        assert reached == set(range(dfa.first_outcome))


def test_problems_are_uniform():
    """Label of the start, label of the goal, printed place of the first right edge: each cell as likely."""
    problems = streams.problems(REFERENCE, 3, "train", 6000)
    cells = [(problems.labels[:, node], 16) for node in (0, 3, 6)]
    for values, classes in [*cells, (np.argsort(problems.order, axis=1)[:, 0], 6)]:
        counts = np.bincount(values, minlength=classes)
        chi_square = ((counts - 6000 / classes) ** 2 / (6000 / classes)).sum()
        assert chi_square_z(chi_square, classes - 1) < Z


@hypothesis_settings
@given(stars.tasks(), st.integers(0, 2**32))
def test_published_order_prints_the_right_branch_first(task, seed):
    published = replace(task, branch_order="published")
    for prompt in published.prompts(published.sample(np.random.default_rng(seed), 5)):
        graph = Graph(published, prompt)
        assert set(graph.edges[: task.length - 1]) == set(itertools.pairwise(graph.chain()))


@hypothesis_settings
@given(stars.tasks(min_branches=2), st.integers(0, 2**32))
def test_give_cue(task, seed):
    """The labels, the edges, and the depths of the edges at every printed place stay."""
    rng = np.random.default_rng(seed)
    problems, cued = replace(task, branch_order="shuffled").sample(rng, 8), rng.random(8) < 0.5
    after = task.give_cue(problems, cued)
    for prompt in task.prompts(after)[cued]:
        graph = Graph(task, prompt)
        assert graph.children[graph.start][0] == graph.chain()[1]
    assert (after.order[~cued] == problems.order[~cued]).all() and (after.labels == problems.labels).all()
    assert (task.identity(after) == task.identity(problems)).all()
    assert (after.order % (task.length - 1) == problems.order % (task.length - 1)).all()


def test_the_cue_keeps_the_places_of_the_first_edges():
    """The place of the earlier first edge: P(place) = (5 - place) / 15 with and without the cue."""
    problems = streams.problems(REFERENCE, 9, "train", 4000)
    for cued in (False, True):
        order = REFERENCE.give_cue(problems, np.full(4000, cued)).order
        place = np.argmax(order % 3 == 0, axis=1)
        assert all(abs(stars.z_score((place == p).sum(), 4000, (5 - p) / 15)) < Z for p in range(5))


@hypothesis_settings
@given(stars.tasks_with_problems())
def test_identity_ignores_the_printed_order(task_with_problems):
    task, problems = task_with_problems
    identity = task.identity(problems)
    original = task.remove_fork(problems, np.ones(len(problems), dtype=bool))
    for changed in (task.reprint(problems, np.random.default_rng(0)), original):
        assert (task.identity(changed) == identity).all()
    graphs = {frozenset(Graph(task, prompt).edges) for prompt in task.prompts(original)}
    assert len(set(identity.tolist())) == len(graphs)


@pytest.mark.parametrize("task", [REFERENCE, Sizes(16, "2x4,3x3"), Arith(12, 2, 3, 11)])
def test_reprints_keep_the_order_of_branches(task):
    """In published order the right branch comes first. Edges within a branch are shuffled in both orders."""
    problems = task.sample(np.random.default_rng(0), 2000)
    for order in ("shuffled", "published"):
        reprinted = task.printed(order).reprint(problems, np.random.default_rng(1))
        assert (np.sort(reprinted.order, axis=1) == np.arange(task.edges)).all()
        for _, star, rows in task.shapes(problems):
            branch, step = np.divmod(reprinted.order[rows], star.length - 1)
            right = (branch[:, 0] == 0).sum()
            if order == "published":
                assert (np.diff(branch, axis=1) >= 0).all()
            else:
                assert abs(stars.z_score(right, len(branch), 1 / star.branches)) < Z
            assert abs(stars.z_score((step[:, 0] == 0).sum(), len(step), 1 / (star.length - 1))) < Z


def test_star_names_the_key():
    right = {"nodes": 16, "branches": 2, "length": 4}
    assert_refused(Star, right, "branches=0 length=1 nodes=6 branch_order=sorted")
    task = Star(7, 2, 4)
    problems = task.sample(np.random.default_rng(0), 2)
    assert len(task.remove_fork(problems, np.array([True, True]))) == 2
    with pytest.raises(ValueError, match="nodes.*second root"):
        task.remove_fork(problems, np.array([True, False]))


@hypothesis_settings
@given(stars.tasks_with_problems())
def test_shortest_counts_the_tokens_to_acceptance(task_with_problems):
    """Along a right trace they count down to 0; from every state they are 1 + the least of its successors."""
    task, problems = task_with_problems
    dfa = task.dfa(problems)
    fewest, live = dfa.shortest(), dfa.first_outcome
    for i, trace in enumerate(task.traces(problems, np.arange(len(problems)) % 2)):
        states = [dfa.run(i, trace[:length]) for length in range(len(trace) + 1)]
        assert fewest[i, states].tolist() == list(range(len(trace), -1, -1))
        assert (fewest[i, :live] == 1 + fewest[i, dfa.next[i, :live]].min(axis=1)).all()
        assert (fewest[i, live + 1 :] > dfa.next.shape[1]).all()
