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
MIXED = Sizes(10, ",".join(SIZES))


@pytest.mark.parametrize("forked", [True, False])
def test_every_problem_is_a_star_of_its_size(forked):
    mixed = MIXED if forked else Sizes(11, ",".join(SIZES))
    problems = mixed.sample(np.random.default_rng(0), 60)
    if not forked:
        problems = mixed.remove_fork(problems, np.arange(60) % 2 == 0)
    assert np.bincount(problems.size).min() > 5
    mode = np.arange(60) % 2
    prompts, traces, dfa = mixed.prompts(problems), mixed.traces(problems, mode), mixed.dfa(problems)
    children, identity, prefix = mixed.children(problems), mixed.identity(problems), mixed.fork_prefix(problems)
    for i in range(60):
        task = Star(mixed.nodes, *list(SIZES.values())[problems.size[i]])
        alone = star.Problems(problems.labels[[i]], problems.order[[i]], problems.forked[[i]])
        trace = task.traces(alone, mode[[i]])[0]
        assert np.array_equal(prompts[i], task.prompts(alone)[0]) and identity[i] == task.identity(alone)[0]
        assert traces[i, : len(trace)].tolist() == trace.tolist() and (traces[i, len(trace) :] == PAD).all()
        assert children[i, : task.branches].tolist() == task.children(alone)[0].tolist()
        assert (children[i, task.branches :] == PAD).all() and np.array_equal(prefix[i], task.fork_prefix(alone)[0])
        assert_graded(dfa, i, mixed.vocab_size, partial(verdict, task.dfa(alone), 0))
        assert verdict(dfa, i, trace) == "accept"


def test_walks_stay_on_their_own_graph():
    inputs, targets = walks.walk_batch(MIXED, 0.0, 60, 0, 0, 40)
    sizes = streams.problems(MIXED, 0, "walks", 40).size
    for row, wanted, size in zip(inputs, targets, sizes, strict=True):
        edges = row[: MIXED.graph_len].reshape(-1, 2).tolist()
        learned = wanted[wanted != PAD].tolist()
        while MIXED.eos in learned:
            end = learned.index(MIXED.eos)
            (mode, *nodes), learned = learned[:end], learned[end + 1 :]
            steps = list(zip(nodes, nodes[1:], strict=False))
            forward = mode == MIXED.mode_token("FWD")
            assert all(([u, v] if forward else [v, u]) in edges for u, v in steps)
            assert len(nodes) <= list(SIZES.values())[size][1]


def test_sizes_are_drawn_evenly_and_streams_stay_apart():
    problems = streams.problems(MIXED, 0, "train", 3000)
    assert all(abs(z_score(count, 3000, 1 / 3)) < Z for count in np.bincount(problems.size, minlength=3))
    test = MIXED.identity(streams.problems(MIXED, 1, "test", 500))
    assert not set(MIXED.identity(problems).tolist()) & set(test.tolist())


def test_the_audit_looks_at_every_size():
    task = Sizes(nodes=16, sizes="2x7,3x5,4x4")
    checks = audit.audit(task, streams.sft_examples(task, PLAIN, 0, 600), 0.5)
    assert not any(c.flagged for c in checks) and sum(check.name.endswith("linear probe") for check in checks) == 3
    leaking = replace(task, branch_order="published")
    flagged = names_flagged(leaking, streams.sft_examples(leaking, PLAIN, 0, 600), 0.5)
    assert flagged >= {f"{size} first edge position" for size in ("2x7", "3x5", "4x4")}
    assert names_flagged(task, streams.sft_examples(task, replace(PLAIN, fork_rate=1.0, cue_rate=1.0), 0, 600))


def test_the_audit_sees_branches_of_one_node():
    """There the branch is the goal, which the prompt names."""
    assert names_flagged(MIXED, streams.sft_examples(MIXED, PLAIN, 0, 600), 0.5) == {"near repeats"}


def test_mixed_names_the_key():
    right = {"nodes": 10, "sizes": "2x4"}
    assert_refused(Sizes, right, "sizes='' branch_order=sorted")
    assert_refused(Sizes, right, "sizes=2x4,3x4", ": all must print as many edges, but 2x4 prints 6, 3x4 prints 9")
    assert_refused(Sizes, right, "sizes=2x4,three", ": write sizes as")
    assert_refused(Sizes, right, "nodes=6")


def test_too_few_graphs_for_a_stream():
    """Three labels give a star of three nodes three graphs; four streams cannot each have one."""
    with pytest.raises(ValueError, match="nodes is 3: too few graphs to fill"):
        for name in streams.STREAMS:
            streams.problems(Sizes(3, "2x2"), 0, name, 1)
