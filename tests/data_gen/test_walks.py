"""Pretraining walks, checked against graphs rebuilt from the tokens by plain Python.

Statistical tests use fixed seeds and |z| < 4.5, a false-alarm rate of 7e-6 for each statistic.
"""

import itertools
from collections import defaultdict

import numpy as np
import pytest

from data_gen import streams, walks
from data_gen.star import Star
from tests.helpers.stars import REFERENCE, TINY, Graph, Z, z_score


def test_walks_docstring():
    inputs, targets = walks.walk_batch(TINY, stop=0.3, seq_len=24, seed=0, step=1, n=1)
    assert inputs.tolist() == [[7, 0, 7, 1, 1, 6, 0, 5, 6, 1, 10, 9, 1, 7, 11, 7, 1, 10, 8, 7, 0, 5, 11, 7]]
    learned = "REV 1 7 EOS FWD 7 0 5 EOS"
    assert TINY.decode(targets[targets != walks.IGNORE]) == learned
    assert np.flatnonzero(targets[0] != walks.IGNORE).tolist() == [10, 11, 12, 13, 17, 18, 19, 20, 21]


def parse(task: Star, inputs: np.ndarray, targets: np.ndarray, count: int) -> tuple[Graph, list]:
    """The graph of one sequence and its first ``count`` queries as (origin, other, forward, walk)."""
    tokens = inputs.tolist()
    graph = Graph(task, np.array([*tokens[: task.graph_len], tokens[0], tokens[0], task.sep]))
    learned, queries = np.zeros(len(tokens), dtype=bool), []
    ends = np.flatnonzero(inputs == task.eos) + 1
    for start, end in itertools.pairwise([task.graph_len, *ends, len(tokens)]):
        learned[start + 3 : end] = True
        if len(queries) < count:
            *slots, sep, mode = tokens[start : start + 4]
            assert sep == task.sep and mode in (task.fwd, task.rev) and end in ends
            origin, other = slots if mode == task.fwd else slots[::-1]
            queries.append((origin, other, mode == task.fwd, tokens[start + 4 : end - 1]))
    assert (targets[:-1] == np.where(learned, inputs, walks.IGNORE)[1:]).all()
    return graph, queries


@pytest.mark.parametrize(("task", "stop"), [(REFERENCE, 0.3), (Star(14, 3, 3), 0.1)])
def test_walks(task, stop):
    """Mode, stops, branches and the free slot of walks, each against its rate; only valid edges are walked."""
    length, hits = 2 * task.edges + 3 * (3 + task.trace_len), defaultdict(list)
    rates = {"mode": 0.5, "stop": stop, "rank": 1 / task.branches}
    rates |= dict.fromkeys(["origin", "other", "end"], 1 / task.graph_nodes)
    batches = [walks.walk_batch(task, stop, length, seed=2, step=step, n=256) for step in range(4)]
    assert batches[0][0].shape == batches[0][1].shape == (256, length)
    for row in itertools.chain(*(zip(*batch, strict=True) for batch in batches)):
        graph, queries = parse(task, *row, 3)
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
    inside, deeper = [], []
    for row in zip(*walks.walk_batch(REFERENCE, 0.3, 60, seed=4, step=0, n=1500), strict=True):
        graph, queries = parse(REFERENCE, *row, 3)
        for origin, other, forward, walk in queries:
            if forward and len(graph.children.get(origin, [])) == 2 and len(walk) > 1:
                branch = [walk[1]]
                while branch[-1] in graph.children:
                    branch += graph.children[branch[-1]]
                inside.append(other in branch)
                deeper.append(other in branch and other not in walk)
    assert len(inside) > 200 and abs(z_score(sum(inside), len(inside), 3 / 7)) < Z
    # After the first step of a walk, a branch of 3 has 2 - s nodes left after s further steps.
    assert abs(z_score(sum(deeper), len(deeper), (2 - (0.7 + 0.7**2)) / 7)) < Z


def test_walk_batches_are_pure_and_come_from_the_walks_stream():
    inputs, targets = walks.walk_batch(TINY, 0.3, 40, seed=1, step=5, n=8)
    different = [walks.walk_batch(TINY, 0.3, 40, seed, step, 8)[0].tobytes() for seed, step in ((1, 6), (2, 5))]
    assert inputs.tobytes() not in different
    repeated = walks.walk_batch(TINY, 0.3, 40, seed=1, step=5, n=8)
    assert (repeated[0] == inputs).all() and (repeated[1] == targets).all()
    assert (targets == walks.IGNORE).any() and inputs.min() >= 0
    graphs = streams.problems(TINY, 1, "walks", 8, step=5)
    assert (inputs[:, : TINY.graph_len] == TINY.edge_list(graphs).reshape(8, -1)).all()
