"""Star problems of several sizes: every answer is that of the star of the problem's own size."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from data_gen import audit, star, streams, walks
from data_gen.sizes import Sizes
from data_gen.star import Star
from data_gen.task import PAD
from tests.helpers.stars import PLAIN, Z, assert_graded, assert_refused, names_flagged, verdict, z_score

SIZES = {"2x4": (2, 4), "3x3": (3, 3), "6x2": (6, 2)}
MIXED = Sizes(11, ",".join(SIZES))


@pytest.mark.parametrize("forked", [True, False])
def test_every_problem_is_a_star_of_its_size(forked):
    problems = MIXED.sample(np.random.default_rng(0), 60)
    problems = MIXED.remove_fork(problems, np.full(60, forked) | (np.arange(60) % 2 == 0))
    assert np.bincount(problems.size).min() > 5
    mode, dfa = np.arange(60) % 2, MIXED.dfa(problems)
    traces, children = MIXED.traces(problems, mode), MIXED.children(problems)
    for i in range(60):
        task = Star(MIXED.nodes, *list(SIZES.values())[problems.size[i]])
        single = star.Problems(problems.labels[[i]], problems.order[[i]], problems.forked[[i]])
        trace = task.traces(single, mode[[i]])[0]
        for member in ("prompts", "identity", "fork_prefix"):
            assert np.array_equal(getattr(MIXED, member)(problems)[[i]], getattr(task, member)(single))
        assert np.array_equal(traces[i, : len(trace)], trace) and (traces[i, len(trace) :] == PAD).all()
        assert children[i, : task.branches].tolist() == task.children(single)[0].tolist()
        assert (children[i, task.branches :] == PAD).all()
        assert_graded(dfa, i, MIXED.vocab_size, partial(verdict, task.dfa(single), 0))


def test_walks_stay_on_their_own_graph():
    inputs, targets = walks.walk_batch(MIXED, 0.0, 60, 0, 0, 40)
    sizes = streams.problems(MIXED, 0, "walks", 40).size
    for row, expected, size in zip(inputs, targets, sizes, strict=True):
        edges = row[: MIXED.graph_len].reshape(-1, 2).tolist()
        ends = np.flatnonzero(expected == MIXED.eos)
        for walk in np.split(expected, ends + 1)[: len(ends)]:
            mode, *nodes, _ = walk[walk != PAD].tolist()
            nodes = nodes if mode == MIXED.mode_token("FWD") else nodes[::-1]
            assert all([u, v] in edges for u, v in zip(nodes, nodes[1:], strict=False))
            assert len(nodes) <= list(SIZES.values())[size][1]


def test_sizes_are_drawn_evenly_and_streams_stay_apart():
    problems = streams.problems(MIXED, 0, "train", 3000)
    assert all(abs(z_score(count, 3000, 1 / 3)) < Z for count in np.bincount(problems.size, minlength=3))
    test = MIXED.identity(streams.problems(MIXED, 1, "test", 500))
    assert not set(MIXED.identity(problems).tolist()) & set(test.tolist())


def test_the_audit_looks_at_every_size():
    task = Sizes(nodes=16, sizes="2x7,3x5")
    checks = audit.audit(task, streams.sft_examples(task, PLAIN, 0, 200), 0.5)
    assert not any(c.flagged for c in checks) and sum(check.name.endswith("linear probe") for check in checks) == 2
    leaking = replace(task, branch_order="published")
    flagged = names_flagged(leaking, streams.sft_examples(leaking, PLAIN, 0, 200), 0.5)
    assert flagged >= {"2x7 first edge position", "3x5 first edge position"}
    assert names_flagged(task, streams.sft_examples(task, replace(PLAIN, fork_rate=1.0, cue_rate=1.0), 0, 200))


def test_the_audit_sees_branches_of_one_node():
    """There the branch is the goal, which the prompt names."""
    task = Sizes(10, MIXED.sizes)
    assert names_flagged(task, streams.sft_examples(task, PLAIN, 0, 300), 0.5) == {"near repeats"}


def test_sizes_names_the_key():
    right = {"nodes": 10, "sizes": "2x4"}
    assert_refused(Sizes, right, "sizes='' branch_order=sorted nodes=6")
    assert_refused(Sizes, right, "sizes=2x4,3x4", ": all must print the same number of edges")
    assert_refused(Sizes, right, "sizes=2x4,three", ": write ")


def test_too_few_graphs_for_a_stream():
    """Three labels give a star of three nodes three graphs; four streams cannot each have one."""
    with pytest.raises(ValueError, match="nodes is 3: too few graphs to fill"):
        for name in streams.QUARTERS:
            streams.problems(Sizes(3, "2x2"), 0, name, 1)
