"""Pretraining walks, checked against graphs rebuilt from the tokens by plain Python.

Statistical tests use fixed seeds and |z| < 4.5, a false-alarm rate of 7e-6 for each statistic.
"""

import itertools
from collections import defaultdict

import numpy as np
import pytest

from data_gen import streams, walks
from data_gen.star import Star
from tests.helpers.stars import REFERENCE, TINY, Graph, Z, assert_refused, z_score


def test_walks_docstring():
    inputs, targets = walks.walk_batch(TINY, stop=0.3, seq_len=24, seed=0, step=1, n=1)
    assert inputs.tolist() == [[7, 0, 7, 1, 1, 6, 0, 5, 6, 1, 10, 9, 1, 7, 11, 7, 1, 10, 8, 7, 0, 5, 11, 7]]
    learned = "REV 1 7 EOS FWD 7 0 5 EOS"
    assert TINY.decode(targets[targets != walks.IGNORE]) == learned
    assert np.flatnonzero(targets[0] != walks.IGNORE).tolist() == [10, 11, 12, 13, 17, 18, 19, 20, 21]


def parse(task: Star, inputs: np.ndarray, targets: np.ndarray, count: int) -> tuple[Graph, list]:
    """The graph of one sequence and its first ``count`` queries as (origin, other, forward, walk)."""
    tokens = inputs.tolist()
    graph = Graph(task, np.array([*tokens[: 2 * task.edges], tokens[0], tokens[0], task.sep]))
    answer, at, queries = [False] * len(tokens), 2 * task.edges, []
    while at < len(tokens):
        query = tokens[at : at + 3]
        body = tokens[at + 3 : tokens.index(task.eos, at) + 1] if task.eos in tokens[at:] else tokens[at + 3 :]
        answer[at + 3 : at + 3 + len(body)] = [True] * len(body)
        at += len(query) + len(body)
        if len(queries) < count:
            assert query[2] == task.sep and body[0] in (task.fwd, task.rev) and body[-1] == task.eos
            forward = body[0] == task.fwd
            origin, other = query[:2] if forward else query[1::-1]
            queries.append((origin, other, forward, body[1:-1]))
    learned = [t for t, is_answer in zip(tokens, answer, strict=True) if is_answer]
    assert targets[targets != walks.IGNORE].tolist()[: len(learned)] == learned
    at = np.flatnonzero(targets[:-1] != walks.IGNORE)
    assert (targets[at] == inputs[at + 1]).all()
    return graph, queries


@pytest.mark.parametrize(("task", "stop"), [(REFERENCE, 0.3), (Star(14, 3, 3), 0.1)])
def test_walks(task, stop):
    """Mode, stops, branches and the free slot of walks, each against its rate; only valid edges are walked."""
    whole = 3
    length = 2 * task.edges + whole * (3 + task.trace_len)
    parsed = []
    for step in range(4):
        batch = walks.walk_batch(task, stop, length, seed=2, step=step, n=256)
        assert batch[0].shape == batch[1].shape == (256, length)
        parsed += [parse(task, *row, whole) for row in zip(*batch, strict=True)]

    hits = defaultdict(list)
    rates = {"mode": 0.5, "stop": stop, "rank": 1 / task.branches}
    rates |= dict.fromkeys(["origin", "other", "end"], 1 / task.graph_nodes)
    for graph, queries in parsed:
        nodes = sorted({node for edge in graph.edges for node in edge})
        for origin, other, forward, walk in queries:
            assert walk[0] == origin and origin in nodes and other in nodes
            steps = list(itertools.pairwise(walk))
            assert all((edge if forward else edge[::-1]) in graph.edges for edge in steps)
            hits["mode"].append(forward)
            hits["stop"] += [False] * len(steps) + [True] * (walk[-1] in (graph.children if forward else graph.parent))
            if forward and len(graph.children.get(origin, [])) > 1 and steps:
                # By printed order, whether the first edge was taken.
                hits["rank"].append(graph.children[origin].index(walk[1]) == 0)
            hits["origin"].append(origin == nodes[0])
            hits["other"].append(other == nodes[0])
            hits["end"].append(other == walk[-1])
    for name, rate in rates.items():
        assert abs(z_score(sum(hits[name]), len(hits[name]), rate)) < Z


def test_the_goal_slot_knows_nothing_of_the_walk():
    """FWD walks that leave the root: the other slot names a node of the walked branch as often as chance."""
    task, inside, trials, deeper = REFERENCE, 0, 0, 0
    batch = walks.walk_batch(task, 0.3, 60, seed=4, step=0, n=1500)
    for row in zip(*batch, strict=True):
        graph, queries = parse(task, *row, 3)
        for origin, other, forward, walk in queries:
            if forward and len(graph.children.get(origin, [])) == 2 and len(walk) > 1:
                branch = [walk[1]]
                while branch[-1] in graph.children:
                    branch += graph.children[branch[-1]]
                trials, inside = trials + 1, inside + (other in branch)
                deeper += other in branch and other not in walk
    assert trials > 200 and abs(z_score(inside, trials, 3 / 7)) < Z
    # After the first step of a walk, a branch of 3 has 2 - s nodes left after s further steps.
    left = 2 - (0.7 + 0.7**2)
    assert abs(z_score(deeper, trials, left / 7)) < Z


def test_walk_batches_are_pure_and_come_from_the_walks_stream():
    inputs, targets = walks.walk_batch(TINY, 0.3, 40, seed=1, step=5, n=8)
    others = [walks.walk_batch(TINY, 0.3, 40, seed, step, 8)[0].tobytes() for seed, step in ((1, 6), (2, 5))]
    assert inputs.tobytes() not in others
    again = walks.walk_batch(TINY, 0.3, 40, seed=1, step=5, n=8)
    assert (again[0] == inputs).all() and (again[1] == targets).all()
    assert (targets == walks.IGNORE).any() and inputs.min() >= 0
    graphs = streams.problems(TINY, 1, "walks", 8, step=5)
    assert (inputs[:, : TINY.graph_len] == TINY.edge_list(graphs).reshape(8, -1)).all()


def test_walks_name_the_key():
    right = {"task": REFERENCE, "stop": 0.3, "seq_len": 48, "seed": 0, "step": 0, "n": 1}
    assert_refused(walks.walk_batch, right, "stop=1.0 stop=-0.1 seq_len=20")
