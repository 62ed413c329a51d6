"""Layers against a reader of prompts in plain Python: forks, right paths, automata, walks, and planted leaks.

Statistical tests use fixed seeds and |z| < 4.5, a false-alarm rate of 7e-6 for each statistic.
"""

import itertools
from collections import defaultdict
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_gen import audit, layers, streams, walks
from data_gen.accepted import accepted_traces
from data_gen.layers import Layers, Problems
from data_gen.task import PAD
from tests.helpers.stars import (  # fmt: skip
    PLAIN,
    Z,
    assert_graded,
    assert_refused,
    examples_of,
    hypothesis_settings,
    names_flagged,
    verdict,
    z_score,
)

MODES = "FWD,REV,RAT"
SMALL = Layers(14, 2, 2, 2)
few_examples = settings(hypothesis_settings, max_examples=30)


@st.composite
def tasks(draw) -> Layers:
    branches, depth = draw(st.sampled_from([(2, 1), (2, 2), (2, 3), (3, 1), (3, 2)]))
    forks = draw(st.integers(0, depth))
    right_paths = draw(st.integers(1, branches**forks))
    spare = draw(st.integers(0, 3))
    return Layers(Layers(99, branches, depth, 0).node_count + spare, branches, depth, forks, right_paths, MODES)


class Reader:
    """What a prompt says: the children and parents of every node, and by search all paths from start to goal."""

    def __init__(self, task: Layers, prompt: np.ndarray):
        tokens = prompt.tolist()
        assert len(tokens) == task.prompt_len and tokens[-1] == task.sep and max(tokens[:-1]) < task.nodes
        self.start, self.goal = tokens[-3:-1]
        self.edges = list(zip(tokens[:-3:2], tokens[1:-3:2], strict=True))
        self.children, self.parents = defaultdict(list), defaultdict(list)
        for parent, child in self.edges:
            self.children[parent].append(child)
            self.parents[child].append(parent)
        self.paths = [list(path) for path in self.search(self.start)]

    def search(self, node: int) -> list[list[int]]:
        if node == self.goal:
            return [[node]]
        return [[node, *path] for child in self.children[node] for path in self.search(child)]

    def shape(self, node: int) -> tuple:
        """Equal for two nodes below which the graph looks alike, whichever end is the goal."""
        return tuple(sorted(self.shape(child) for child in self.children[node]))

    def right_traces(self, task: Layers, mode: str) -> list[list[int]]:
        body = {"FWD": lambda p: p, "REV": lambda p: p[::-1], "RAT": lambda p: [*p[::-1], *p[1:]]}[mode]
        return [[task.mode_token(mode), *body(path), task.eos] for path in self.paths]


def read(task: Layers, graph: Reader, mode: str, answer) -> str:
    """An independent grader: what was due where the answer leaves every right trace?"""
    right = graph.right_traces(task, mode)
    if any(trace[: len(answer)] == answer for trace in right):
        return "accept" if answer in right else "live"
    place = len(answer) - 1
    fitting = [trace for trace in right if trace[:place] == answer[:place]]
    token, due, before = answer[-1], {trace[place] for trace in fitting}, answer[place - 1]
    if token >= task.nodes:
        return "early_stop" if token == task.eos else "malformed"
    if due == {task.eos}:
        return "too_long"
    if place == 1:
        return "malformed" if mode == "FWD" else "wrong_goal"
    forward = mode == "FWD" or mode == "RAT" and place > task.layers + 2
    return "wrong_branch" if forward and token in graph.children[before] else "invalid_edge"


@few_examples
@given(tasks(), st.integers(0, 2**32))
def test_prompts_traces_and_automata_describe_one_graph(task, seed):
    problems = task.sample(np.random.default_rng(seed), 2)
    dfa, reached = task.dfa(problems), set()
    traces = {name: task.traces(problems, np.full(2, index)) for index, name in enumerate(task.mode_names)}
    for i, prompt in enumerate(task.prompts(problems)):
        graph = Reader(task, prompt)
        assert len(set(graph.edges)) == task.edges and len(graph.paths) == task.right_paths
        assert all(len(parents) == 1 or node == graph.goal for node, parents in graph.parents.items())
        answers = {tuple(trace[i][trace[i] != PAD]) for trace in traces.values()}
        (way,) = {answer[1:-1] for answer in answers if answer[0] == task.mode_token("FWD")}
        for mode, trace in traces.items():
            answer = trace[i][trace[i] != PAD].tolist()
            assert verdict(dfa, i, answer) == "accept" and answer in graph.right_traces(task, mode)
            assert set(answer[1:-1]) == set(way)  # the same right path in every mode
            reached |= assert_graded(dfa, i, task.vocab_size, partial(read, task, graph, mode), [answer[0]])
    assert task.trace_len == 2 * task.layers + 5 and reached <= set(range(1, dfa.first_outcome))
    if task.right_paths == 1:
        assert reached == set(range(1, dfa.first_outcome))


@few_examples
@given(tasks(), st.integers(0, 2**32))
def test_every_fork(task, seed):
    """Branches look alike, are the printed children, and are right if they reach the goal; no other node forks."""
    problems = task.sample(np.random.default_rng(seed), 4)
    points = task.decision_points(problems)
    assert len(points) == task.forks and task.forked(problems).tolist() == [task.forks > 0] * 4
    for i, prompt in enumerate(task.prompts(problems)):
        graph = Reader(task, prompt)
        for depth, (prefix, children, right) in enumerate(points):
            nodes = prefix[i, 1:].tolist()
            assert nodes[0] == graph.start and len(nodes) == depth + 1 and prefix[i, 0] == task.mode_token("FWD")
            assert all(child in graph.children[node] for node, child in itertools.pairwise(nodes))
            assert sorted(graph.children[nodes[-1]]) == sorted(children[i])
            assert right[i].tolist() == [bool(graph.search(child)) for child in children[i]] and right[i, 0]
            assert len({graph.shape(child) for child in children[i]}) == 1
        for path in graph.paths:
            degrees = [len(graph.children[node]) for node in path[:-1]]
            assert degrees == task.forks * [task.branches] + (task.layers + 1 - task.forks) * [1]
    declared = task.forks > 0 and task.right_paths == 1
    assert (task.fork_prefix(problems) is not None) == (task.children(problems) is not None) == declared


@pytest.mark.parametrize(("branches", "depth"), [(2, 4), (3, 2), (4, 3)])
def test_all_numbers_of_forks_have_equal_lengths(branches, depth):
    """The lengths of prompts and traces, the vocabulary and the nodes on trees are the same; so are the trees."""
    sizes = set()
    for forks in range(depth + 1):
        task = Layers(200, branches, depth, forks)
        problems = task.sample(np.random.default_rng(0), 5)
        lengths = {len(trace[trace != PAD]) for trace in task.traces(problems, np.arange(5) % 2)}
        assert len(lengths) == 1 and Layers(task.node_count, branches, depth, forks)
        sizes.add((task.edges, task.prompt_len, task.trace_len, task.vocab_size, task.node_count, *lengths))
        with pytest.raises(ValueError, match=f"nodes is {task.node_count - 1}: .* need at least {task.node_count}"):
            replace(task, nodes=task.node_count - 1)
    assert len(sizes) == 1


@pytest.mark.parametrize(
    ("task", "count"), [(Layers(165, 4, 3, 3, 64, MODES), 64), (Layers(56, 2, 4, 4, 11, MODES), 11)]
)
def test_all_right_paths_are_accepted_and_nothing_else(task, count):
    """The automaton's language against a search in the printed graph, in every mode."""
    problems = streams.problems(task, 0, "test", 3)
    listed = accepted_traces(task.dfa(problems), task.trace_len, 3 * count)
    for traces, prompt in zip(listed, task.prompts(problems), strict=True):
        graph = Reader(task, prompt)
        right = [tuple(trace) for mode in task.mode_names for trace in graph.right_traces(task, mode)]
        assert len(graph.paths) == count and len(right) == len({*right}) == 3 * count
        assert {tuple(trace[trace != PAD].tolist()) for trace in traces} == {*right}


def test_right_paths_are_chosen_evenly():
    """Every other path is the second right one equally often, and each right one that of the traces."""
    task = Layers(27, 2, 3, 3, 2)
    problems = streams.problems(task, 0, "train", 2000)
    second = np.bincount(problems.right[:, 1], minlength=8)
    assert second[0] == 0 and all(abs(z_score(count, 2000, 1 / 7)) < Z for count in second[1:])
    written, first = task.traces(problems, np.zeros(2000, dtype=int))[:, 1:-1], task.paths(problems)[:, 0]
    assert abs(z_score(int((written == first).all(axis=1).sum()), 2000, 0.5)) < Z


def test_docstring():
    task = Layers(16, 2, 2, forks=2)
    problems = streams.problems(task, 0, "train", 1)
    rows = [task.prompts(problems)[0], *(task.traces(problems, np.array([mode]))[0] for mode in (0, 1))]
    shown = " ".join(layers.__doc__.split())
    texts = [" ".join(map(str, row)) for row in rows]
    assert f"{texts[0]} | {texts[1]} FWD | {texts[2]} REV" in shown


def test_streams_share_no_graph():
    """Also not between the graphs of all numbers of forks that walks have and those of one number."""
    graphs = {}
    for stream in streams.QUARTERS:
        task = SMALL.walk_task if stream == "walks" else SMALL
        prompts = task.prompts(streams.distinct_problems(task, 0, stream, 300))
        graphs[stream] = {frozenset(Reader(task, prompt).edges) for prompt in prompts}
    assert sum(map(len, graphs.values())) == len(set().union(*graphs.values())) == 4 * 300


def test_walks():
    """Valid edges only, stops at their rate, even modes and branches, on graphs with any number of forks."""
    task, stop, hits, forks = Layers(27, 2, 3, 2, right_paths=3), 0.2, defaultdict(list), set()
    assert task.walk_task == Layers(27, 2, 3, 3).walk_task
    task = task.walk_task
    for step in range(3):
        inputs, targets = walks.walk_batch(task, stop, 120, seed=2, step=step, n=200)
        for row, learned in zip(inputs, targets, strict=True):
            graph = Reader(task, np.array([*row[: task.graph_len], 0, 0, task.sep]))
            roots = [node for node in graph.children if not graph.parents[node]]
            forks.add(len(roots))
            ends = np.flatnonzero(row == task.eos) + 1
            assert (learned[: task.graph_len] == walks.IGNORE).all()
            for first, end in itertools.pairwise([task.graph_len, *ends]):
                *slots, sep, mode = row[first : first + 4].tolist()
                walk = row[first + 4 : end - 1].tolist()
                forward = mode == task.mode_token("FWD")
                assert (
                    sep == task.sep and walk[0] == slots[not forward] and {*slots} <= {*graph.children, *graph.parents}
                )
                follow = graph.children if forward else graph.parents
                assert all(after in follow[before] for before, after in itertools.pairwise(walk))
                hits["forward"].append(forward)
                hits["stop"] += [False] * (len(walk) - 1) + [True] * bool(follow[walk[-1]])
                if forward and len(walk) > 1 and len(follow[walk[0]]) == 2:
                    hits["first"].append(follow[walk[0]].index(walk[1]) == 0)
    assert forks == {
        1,
        4,
        5,
    }  # roots with 3, 0, and with 1 or 2 forks: the start, and a twin for each node that was one
    for name, rate in {"forward": 0.5, "stop": stop, "first": 0.5}.items():
        assert abs(z_score(sum(hits[name]), len(hits[name]), rate)) < Z, name


def test_informed_walks_name_their_end():
    task = SMALL.walk_task
    problems = task.sample(np.random.default_rng(0), 50)
    for query in task.walks(problems, 0.2, 1.0, np.random.default_rng(1), 4).reshape(200, -1):
        walk = query[4:][query[4:] != PAD][:-1]
        assert query[int(query[3] == task.mode_token("FWD"))] == walk[-1]


# the audit


@pytest.fixture
def fewer_draws(monkeypatch):
    """The audit with a tenth of the draws. Its false alarms are at most 1e-2 a call."""
    monkeypatch.setattr(audit, "DRAWS", 2000)
    monkeypatch.setattr(audit, "FALSE_ALARM_RATE", 1e-2)


@pytest.mark.parametrize(
    ("forks", "right_paths", "rate"), [(0, 1, 1.0), (1, 1, 0.5), (2, 1, 1.0), (2, 3, 1.0), (None, 1, 1.0)]
)
def test_clean_sets_pass_the_audit(forks, right_paths, rate, fewer_draws):
    task = replace(SMALL, forks=forks, right_paths=right_paths)
    examples = streams.sft_examples(task, replace(PLAIN, fork_rate=rate), 0, 200)
    assert names_flagged(task, examples, rate) == set()


def swap_at(task: Layers, problems: Problems, depth: int, rows: np.ndarray) -> Problems:
    """The problems, where bool[n] ``rows`` with both branches of the fork at a depth swapped. They print the same."""
    nodes = np.arange(problems.labels.shape[1])
    for below in range(depth + 1, task.layers + 2):
        first, half = task.first_node(below), 2 ** (min(below, task.layers) - depth - 1)
        nodes[first : first + 2 * half] = np.roll(nodes[first : first + 2 * half], half)
    edges = nodes[1 : task.edges + 1] - 1
    labels, order = problems.labels[:, nodes], edges[problems.order]
    columns = rows[:, None]
    return replace(problems, labels=np.where(columns, labels, problems.labels),
                   order=np.where(columns, order, problems.order))  # fmt: skip


@pytest.mark.parametrize("depth", [0, 1])
def test_a_leak_at_one_fork_is_flagged_there(depth, fewer_draws):
    """By the labels of its branches, by the place of their edges, and by the place of the goal's edge."""
    problems = streams.training_problems(SMALL, 5, 150)
    nodes = SMALL.first_node(depth + 1) + np.arange(2)
    place = np.argsort(problems.order, axis=1)
    goal_edge = SMALL.first_node(SMALL.layers + 1) - 1
    first, second = problems.labels[:, nodes].T
    cases = {"child label order": first > second, "first edge order": place[:, nodes[0] - 1] > place[:, nodes[1] - 1]}
    printed = {frozenset(Reader(SMALL, prompt).edges) for prompt in SMALL.prompts(problems)}
    for name, rows in cases.items():
        leaky = swap_at(SMALL, problems, depth, rows)
        assert {frozenset(Reader(SMALL, prompt).edges) for prompt in SMALL.prompts(leaky)} == printed
        flagged = names_flagged(SMALL, examples_of(SMALL, leaky))
        assert f"fork {depth + 1}, 2 branches, {name}" in flagged
        assert {flag.split(",")[0] for flag in flagged} == {f"fork {depth + 1}"}
    order = problems.order.copy()
    rows = np.arange(len(order))
    order[rows, np.argmax(order == goal_edge, axis=1)], order[:, 5] = order[:, 5], goal_edge
    flagged = names_flagged(SMALL, examples_of(SMALL, replace(problems, order=order)))
    assert {f"fork {number}, 2 branches, last edge positions" for number in (1, 2)} <= flagged


class Lopsided(Layers):
    """Its wrong branch at the second fork lacks an edge, which hangs elsewhere: degrees give the branch away."""

    def canonical_edges(self, problems):
        parent, child = super().canonical_edges(problems)
        wrong = self.node_at(np.array(1), np.array(self.layers))  # the second branch of the second fork
        return np.where(parent == wrong, self.edges + 1, parent), child


def test_an_unequal_shape_is_flagged(fewer_draws):
    task = Lopsided(14, 2, 2, 2)
    problems = streams.training_problems(task, 0, 150)
    assert "fork 2, 2 branches, linear probe" in names_flagged(task, examples_of(task, problems))


def test_forks_are_read_from_tokens():
    """The positions that the audit reads are those of the edges of each branch."""
    problems = streams.training_problems(SMALL, 0, 5)
    _, groups = audit.read_forks(SMALL, examples_of(SMALL, problems))
    assert [name for name, _ in groups] == [f"fork {number}, 2 branches, " for number in (1, 2)]
    for depth, (_, branches) in enumerate(groups):
        for i, prompt in enumerate(SMALL.prompts(problems)):
            graph = Reader(SMALL, prompt)
            for j in range(2):
                nodes = [{branches.node[i, j, 0]}]
                while any(graph.children[node] for node in nodes[-1]):
                    nodes.append({child for node in nodes[-1] for child in graph.children[node]})
                inside = {node for level in nodes for node in level}
                places = [place for place, (_, child) in enumerate(graph.edges) if child in inside]
                assert sorted(branches.position[i, j]) == places and set(branches.node[i, j]) == inside
                assert branches.last == len(nodes[-1]) == 2 ** (1 - depth)
            assert graph.goal in branches.node[i, branches.right[i]]


def test_bad_fields_are_named():
    right = {"nodes": 32, "branches": 2, "layers": 3, "forks": 2, "right_paths": 2, "modes": "FWD,REV"}
    Layers(**right)
    assert_refused(Layers, right, "branches=1 layers=0 forks=4 forks=-1 right_paths=0 modes=REV modes=FWD,FWD")
    assert_refused(Layers, right, "right_paths=5", ": 2 branches at 2 forks allow 1 to 4")
    assert_refused(Layers, right, "nodes=26", ": 2 branches in 3 layers need at least 27")
    with pytest.raises(ValueError, match="forks is 4: give 0 to layers=3, or null"):
        Layers(**right | {"forks": 4, "right_paths": 16})
