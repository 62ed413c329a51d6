"""Every fork and every right path, against the model's own forward pass, the exact engine and samples."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minifork as mf
from data_gen import streams
from data_gen.layers import Layers
from data_gen.star import Star
from minifork import measure
from minifork.decoding.exact import exact
from minifork.decoding.policy import parse_policy
from minifork.decoding.rollout import rollout
from minifork.measuring import forks
from minifork.measuring.forks import branches_by_fork, distinct_paths, path_probabilities
from minifork.measuring.problems import problem_set
from minifork.settings import Shape
from tests.helpers.stars import hypothesis_settings

TASK = Layers(14, 2, 2, 2, right_paths=3, modes="FWD,REV,RAT")


def case(make_model, task, policy: str = "temperature=1", n: int = 12):
    model = make_model(3, Shape(2, 32, 2), task.vocab_size, task.prompt_len + task.trace_len, scale=0.2)
    batch = streams.test_problems(task, n)
    problems = problem_set(task, batch, "cpu")
    return model, batch, problems, measure.trace_tree(model, problems, parse_policy(policy))


@pytest.mark.parametrize("task", [replace(TASK, right_paths=1), TASK, Star(8, 3, 3), Star(8, 1, 3)], ids=str)
def test_branches_of_every_fork(make_model, task):
    """By a forward pass over prompt and prefix; the first fork of one right path is the one that records have."""
    model, batch, problems, tree = case(make_model, task)
    by_fork, points = branches_by_fork(tree, problems, batch), task.decision_points(batch)
    assert len(by_fork) == len(points)
    for p, (prefix, children, right) in zip(by_fork, points, strict=True):
        rows = np.flatnonzero(right.sum(axis=1) == 1)
        assert len(p) == len(rows) and right[rows, 0].all()
        with torch.no_grad():
            logits = model(torch.cat([problems.prompts, torch.from_numpy(prefix)], dim=1))[:, -1].double()
        expected = torch.softmax(logits.gather(1, torch.from_numpy(children)), dim=1).numpy()
        np.testing.assert_allclose(p, expected[rows], rtol=1e-4)
    if problems.fork is not None:
        np.testing.assert_allclose(by_fork[0], measure.branch_probabilities(model, problems), rtol=1e-4)


@pytest.mark.parametrize("policy", ["temperature=1", "temperature=0.7,top_p=0.9"])
@pytest.mark.parametrize("task", [TASK, replace(TASK, right_paths=1), Star(8, 2, 3)], ids=str)
def test_paths_sum_to_p(make_model, task, policy):
    """Free and with each mode forced; every problem has as many paths as the task says."""
    _, _, problems, tree = case(make_model, task, policy)
    for forced in (tree, *(measure.force_mode(tree, task, mode) for mode in task.mode_names)):
        paths = path_probabilities(forced, problems)
        np.testing.assert_allclose(paths.sum(axis=1), exact(forced).p_lo, rtol=1e-4, atol=1e-12)
        assert ((paths > 0).sum(axis=1) <= getattr(task, "right_paths", 1)).all()
    free = path_probabilities(tree, problems)
    assert policy != "temperature=1" or ((free > 0).sum(axis=1) == getattr(task, "right_paths", 1)).all()


def test_distinct_paths_among_samples():
    """Against counts of the different sets of nodes in accepted rollouts of a briefly trained base.

    |z| < 4.5 for each of 8 problems: false alarm 6e-5.
    """
    task, n, k = Layers(6, 2, 1, 1, right_paths=2), 8000, 40
    keys = {"walks.seq_len": 40, "walks.stop": 0.0, "model.layers": 2, "model.width": 32, "model.heads": 1}
    model = mf.pretrain(task, silent=True, steps=200, batch=16, **keys).model()
    problems = mf.problems(task, "test", 8)
    tree = measure.trace_tree(model, problems, parse_policy("temperature=1"))
    p, traces = path_probabilities(tree, problems), rollout(tree, n, seed=1, traces=True).traces
    counts = np.zeros((len(p), n // k))
    for i, (tokens, outcome) in enumerate(zip(traces.tokens.numpy(), traces.outcome.numpy(), strict=True)):
        nodes = [frozenset(trace[(trace >= 0) & (trace < task.nodes)].tolist()) for trace in tokens]
        groups = np.arange(n).reshape(-1, k)
        counts[i] = [len({nodes[row] for row in group if outcome[row] == 0}) for group in groups]
    deviation = counts.std(axis=1) / np.sqrt(n // k)
    expected = distinct_paths(p, k)
    assert (np.abs(counts.mean(axis=1) - expected) < 4.5 * deviation).all() and 0.1 < expected.mean() < 1.9


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(1, 4))
@settings(hypothesis_settings, max_examples=30)
def test_distinct_paths_by_enumeration(weights, k):
    """All sequences of k samples, each with its probability; the last weight is that of wrong traces."""
    shares = np.array([*weights, 2]) / (sum(weights) + 2)
    wrong = len(weights)
    sequences = itertools.product(range(wrong + 1), repeat=k)
    mean = sum(np.prod(shares[[*sequence]]) * len({*sequence} - {wrong}) for sequence in sequences)
    assert distinct_paths(np.append(shares[None, :-1], [[0.0]], axis=1), k)[0] == pytest.approx(mean)


def test_too_many_right_traces_are_named(make_model, monkeypatch):
    _, _, problems, tree = case(make_model, TASK, n=2)
    monkeypatch.setattr(forks, "MOST_TRACES", 8)
    with pytest.raises(ValueError, match="problem 0 has more than 8 right traces"):
        path_probabilities(tree, problems)
