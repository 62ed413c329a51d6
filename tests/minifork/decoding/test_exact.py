"""Exact enumeration on a layered graph with many valid paths: bounds, budgets, order, memory."""

import math
import time

import numpy as np
import pytest
import torch

import minifork.decoding.exact as enumeration
import minifork.decoding.traces as trees
from minifork.decoding import policy
from minifork.decoding.exact import exact
from minifork.decoding.traces import Tree
from minifork.statistics import passk
from tests.helpers.dag import dag_by_hand, dag_tree

KS = [1, 2, 16, 1024]


def contains(outer, inner, slack: float = 1e-7) -> bool:
    """Whether the bounds of one result lie outside those of a longer run, for p and for pass@k."""
    p = (outer.p_lo <= inner.p_lo + slack).all() and (inner.p_hi <= outer.p_hi + slack).all()
    low, high = (passk.pass_at_k(outer.p_lo, KS), passk.pass_at_k(outer.p_hi, KS))
    return bool(p and (low <= passk.pass_at_k(inner.p_lo, KS) + slack * max(KS)).all()
                and (passk.pass_at_k(inner.p_hi, KS) <= high + slack * max(KS)).all())  # fmt: skip


@pytest.mark.parametrize("decoder", ["temperature=1", "temperature=0.5,top_p=0.8", "top_k=2", "greedy"])
def test_exact_is_brute_force_on_many_paths(make_model, decoder):
    tree, prompt = dag_tree(make_model, problems=4, policy=policy.parse(decoder))
    result = exact(tree)
    assert result.exact and (result.unknown == 0).all()
    for problem in range(4):
        expected = dag_by_hand(tree, prompt[problem].tolist(), problem)
        np.testing.assert_allclose(result.ends[problem], expected, atol=2e-6)


def test_several_paths_are_accepted(make_model):
    """The toy does stress what it should: paths branch, and rejoin in the automaton."""
    tree, _ = dag_tree(make_model)
    result = exact(tree)
    assert result.evaluated > 20 * 30 and 0.01 < result.p_lo.mean() < 0.9


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_blocks_do_not_matter(make_model, monkeypatch, rows):
    """Small blocks mix heavy and light prefixes of any length in another order; nothing else changes."""
    tree, _ = dag_tree(make_model, problems=6)
    expected = exact(tree)
    monkeypatch.setattr(enumeration, "ROWS", rows)
    result = exact(tree)
    assert result.evaluated == expected.evaluated
    np.testing.assert_allclose(result.ends, expected.ends, atol=1e-6)


def test_p_does_not_depend_on_the_batch(make_model, threads):
    """Of a polarised model, whose p magnify differences in the last bits: alone, in any order, on two threads."""
    tree, _ = dag_tree(make_model, problems=23, scale=1.0)
    together = exact(tree).p_lo
    for size in (1, 3, 5, 16):
        parts = [exact(tree[first : first + size]).p_lo for first in range(0, 23, size)]
        np.testing.assert_allclose(np.concatenate(parts), together, atol=1e-6)
    order = torch.from_numpy(np.random.default_rng(0).permutation(23))
    np.testing.assert_allclose(exact(tree[order]).p_lo, together[order.numpy()], atol=1e-6)
    threads(2)
    np.testing.assert_allclose(exact(tree).p_lo, together, atol=1e-6)


def test_little_memory_loses_nothing(make_model, monkeypatch):
    """Above the memory bound the longest prefixes come first: fewer blocks wait, the answer is the same."""
    tree, _ = dag_tree(make_model, problems=4, layers=6, density=1.0)
    expected, waiting = exact(tree), {}
    monkeypatch.setattr(enumeration, "ROWS", 8)
    for limit in (2**40, 0):
        monkeypatch.setattr(enumeration, "FRONTIER_BYTES", limit)
        most = [0]
        push = enumeration.Frontier.push

        def counted(self, children, push=push, most=most):
            push(self, children)
            most[0] = max(most[0], sum(len(block) for block in self.blocks))

        monkeypatch.setattr(enumeration.Frontier, "push", counted)
        np.testing.assert_allclose(exact(tree).ends, expected.ends, atol=1e-6)
        monkeypatch.setattr(enumeration.Frontier, "push", push)
        waiting[limit] = most[0]
    assert waiting[0] <= 4 + 8 * 3 * 7 < waiting[2**40] / 3


def test_bounds_close_in_as_the_budget_grows(make_model):
    tree, _ = dag_tree(make_model, layers=5, density=1.0)
    final, before = exact(tree), None
    assert final.evaluated > 3000
    for budget in (1, 7, 20, 100, 500, 2000, 10**6):
        result = exact(tree, max_prefixes=budget)
        assert result.evaluated <= budget
        assert (result.p_lo >= 0).all() and (result.p_lo <= result.p_hi).all() and (result.p_hi <= 1).all()
        np.testing.assert_allclose(result.ends.sum(axis=1) + result.unknown, 1, atol=1e-9)
        assert contains(result, final)
        assert result.exact == (budget >= final.evaluated)
        if before is not None:
            assert contains(before, result) and result.unknown.sum() < before.unknown.sum()
        before = result


def test_a_budget_goes_where_the_mass_is(make_model, monkeypatch):
    """Heaviest first: with blocks of one prefix, no other order of as many prefixes leaves less mass unknown."""
    tree, _ = dag_tree(make_model, problems=3, layers=5, density=1.0, scale=0.6)
    breadth_first = tree.max_new - 3
    with torch.no_grad():
        short = exact(Tree(tree.model, tree.prompts, tree.dfa, tree.sinks, breadth_first))
    monkeypatch.setattr(enumeration, "ROWS", 1)
    best = exact(tree, max_prefixes=short.evaluated)
    assert best.unknown.sum() < short.ends[:, -1].sum()


def test_width(make_model):
    """Stops as soon as every p is known well enough, and not before."""
    tree, _ = dag_tree(make_model, layers=6, density=1.0, scale=0.8)
    full = exact(tree)
    for width in (0.3, 1e-2, 1e-6):
        result = exact(tree, width=width)
        assert (result.p_hi - result.p_lo).max() <= width and contains(result, full)
    assert exact(tree, width=0.3).evaluated < full.evaluated / 2
    assert exact(tree, width=0.3, max_prefixes=3).unknown.max() > 0.3


def test_seconds(make_model):
    """A budget of time stops the run between two blocks; what it found is a bound on what more time finds."""
    tree, _ = dag_tree(make_model, problems=50, layers=9, density=1.0)
    started = time.monotonic()
    result = exact(tree, max_seconds=0.2)
    assert time.monotonic() - started < 10 and not result.exact and result.evaluated > 0
    longer = exact(tree, max_seconds=1.5)
    assert contains(result, longer, slack=1e-6) and longer.evaluated > result.evaluated


def test_bounds_after_a_million_paths(make_model):
    """2^20 paths a problem and a budget of 20,000 prefixes: certified, honest, and never inverted."""
    tree, _ = dag_tree(make_model, problems=2, layers=20, width=2, density=1.0, scale=0.4)
    result = exact(tree, max_prefixes=20_000)
    assert not result.exact and result.evaluated <= 20_000
    longer = exact(tree, max_prefixes=60_000)
    assert contains(result, longer, slack=1e-6) and longer.unknown.sum() < result.unknown.sum()


@pytest.mark.parametrize(
    ("argument", "value"),
    [("max_prefixes", 0), ("max_prefixes", -3), ("max_seconds", 0), ("max_seconds", -1.0), ("width", -1e-9),
     ("max_seconds", math.nan), ("width", math.nan)],
)  # fmt: skip
def test_bad_budgets(make_model, argument, value):
    with pytest.raises(ValueError, match=argument):
        exact(dag_tree(make_model)[0], **{argument: value})


@torch.no_grad()
def test_trees_that_do_not_fit(make_model):
    tree, _ = dag_tree(make_model, problems=3)
    model, prompts, dfa = tree.model, tree.prompts, tree.dfa
    cases = [
        ("dfa reads 3 tokens, the model has 4", dict(dfa=dfa[:, :, :3])),
        ("dfa has 2 automata for 3 prompts", dict(dfa=dfa[:2])),
        ("dfa has states outside", dict(dfa=dfa + 1)),
        ("dfa has states outside", dict(dfa=dfa - 2)),
        ("sinks is 0", dict(sinks=0)),
        ("sinks is 99", dict(sinks=99)),
        ("max_new is 0", dict(max_new=0)),
        ("max_new is 9", dict(max_new=9)),
        ("forced", dict(forced=torch.zeros(2, 1, dtype=torch.int64))),
        ("forced", dict(forced=torch.zeros(3, 5, dtype=torch.int64))),
    ]
    for message, change in cases:
        arguments = dict(model=model, prompts=prompts, dfa=dfa, sinks=3, max_new=tree.max_new) | change
        with pytest.raises(ValueError, match=message):
            Tree(**arguments)


def test_a_policy_that_removes_every_token(make_model):
    nothing = lambda logits: torch.full_like(logits, -math.inf)  # noqa: E731
    tree, _ = dag_tree(make_model, policy=nothing)
    with pytest.raises(ValueError, match="problem 0: the policy .* removes every token"):
        exact(tree)
    with pytest.raises(ValueError, match="problem 7"):
        exact(tree[7:9])


def test_chunks():
    for n, size in [(0, 4), (1, 4), (8, 4), (9, 4), (10**6 + 1, 4096)]:
        parts = list(trees.chunks(n, size))
        assert sum(part.stop - part.start for part in parts) == n
        assert all(part.stop - part.start <= size for part in parts) and len(parts) == -(-n // size)
