"""Exact enumeration on a layered graph with many valid paths: bounds, budgets, order, memory."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import minifork.decoding.exact as enumeration
from minifork.decoding.automata import Tables
from minifork.decoding.exact import exact, exact_by_prefix
from minifork.decoding.policy import parse_policy
from minifork.gpt import GPT
from tests.helpers.dag import OUTCOMES, by_hand, dag_tree


def contains(outer, inner) -> bool:
    """True if the bounds of one result lie outside those of a longer run, for p and so for pass@k."""
    return bool((outer.p_lo <= inner.p_lo + 1e-7).all() and (inner.p_hi <= outer.p_hi + 1e-7).all())


@pytest.mark.parametrize("decoder", ["temperature=1", "temperature=0.5,top_p=0.8", "top_k=2", "greedy"])
def test_exact_is_brute_force_on_many_paths(make_model, decoder):
    tree, prompt = dag_tree(make_model, problems=4, policy=parse_policy(decoder))
    result = exact(tree)
    assert result.exact and (result.unknown == 0).all()
    expected = [by_hand(tree, prompt[problem].tolist(), problem) for problem in range(4)]
    np.testing.assert_allclose(result.outcomes, expected, atol=2e-6)


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_blocks_do_not_matter(make_model, monkeypatch, rows):
    """Small blocks mix heavy and light prefixes of any length in another order; nothing else changes.

    The toy stresses what it should: paths branch, and rejoin in the automaton.
    """
    tree, _ = dag_tree(make_model, problems=6)
    expected = exact(tree)
    assert expected.evaluated > 6 * 30 and 0.01 < expected.p_lo.mean() < 0.9
    monkeypatch.setattr(GPT, "rows_at_once", lambda *_: rows)
    result = exact(tree)
    assert result.evaluated == expected.evaluated
    np.testing.assert_allclose(result.outcomes, expected.outcomes, atol=1e-6)


def test_p_does_not_depend_on_the_batch(make_model, threads):
    """A polarised model magnifies differences in the last bits: one by one, in any order, on two threads."""
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
    tree, _ = dag_tree(make_model, problems=4, layers=5, density=1.0)
    expected, waiting, push = exact(tree), [], enumeration.Frontier.push

    def counted(self, children):
        push(self, children)
        waiting[-1] = max(waiting[-1], sum(len(block) for _, block in self.blocks))

    monkeypatch.setattr(GPT, "rows_at_once", lambda *_: 8)
    monkeypatch.setattr(enumeration.Frontier, "push", counted)
    for limit in (0, 2**40):
        monkeypatch.setattr(enumeration, "FRONTIER_BYTES", limit)
        waiting.append(0)
        np.testing.assert_allclose(exact(tree).outcomes, expected.outcomes, atol=1e-6)
    assert waiting[0] <= 4 + 8 * 3 * 6 < waiting[1] / 1.5, waiting


def test_bounds_close_in_as_the_budget_grows(make_model):
    tree, _ = dag_tree(make_model, layers=5, density=1.0)
    final, before = exact(tree), None
    assert final.evaluated > 3000
    for budget in (1, 7.5, 20, 100, 500, 2000, 10**6):
        result = exact(tree, max_prefixes=budget)
        assert result.evaluated <= budget
        assert (result.p_lo >= 0).all() and (result.p_lo <= result.p_hi).all() and (result.p_hi <= 1).all()
        np.testing.assert_allclose(result.outcomes.sum(axis=1) + result.unknown, 1, atol=1e-9)
        assert contains(result, final)
        assert result.exact == (budget >= final.evaluated)
        if before is not None:
            assert contains(before, result) and result.unknown.sum() < before.unknown.sum()
        before = result


def test_a_budget_goes_where_the_mass_is(make_model, monkeypatch):
    """Heaviest first: with blocks of one prefix, no other order of as many prefixes leaves less mass unknown."""
    tree, _ = dag_tree(make_model, problems=3, layers=5, density=1.0, scale=0.6)
    breadth_first = exact(replace(tree, max_new=tree.max_new - 3))
    monkeypatch.setattr(GPT, "rows_at_once", lambda *_: 1)
    best = exact(tree, max_prefixes=breadth_first.evaluated)
    assert best.unknown.sum() < breadth_first.outcomes[:, -1].sum()


def test_width(make_model):
    """Stops as soon as every p is known well enough, and not before."""
    tree, _ = dag_tree(make_model, layers=6, density=1.0, scale=0.8)
    full = exact(tree)
    for width in (0.3, 1e-2, 1e-6):
        result = exact(tree, width=width)
        assert (result.p_hi - result.p_lo).max() <= width and contains(result, full)
    assert exact(tree, width=0.3).evaluated < full.evaluated / 2
    assert exact(tree, width=0.3, max_prefixes=3).unknown.max() > 0.3


def prefixes_of(tree, seed):
    """Nested prefixes, equal ones, some that differ between problems, some that end in an outcome at once."""
    rng = np.random.default_rng(seed)
    one = torch.zeros(len(tree), 1, dtype=torch.int64)
    random = torch.from_numpy(rng.integers(tree.dfa.shape[2], size=(len(tree), 3)))
    return {
        "free": one[:, :0], "one": one, "same": one.clone(), "other": one + 1, "ends": one + tree.dfa.shape[2] - 1,
        "three": torch.cat([one, random[:, :2]], dim=1), "two": torch.cat([one, random[:, :1]], dim=1),
        "random": random,
    }  # fmt: skip


@pytest.mark.parametrize("policy", ["temperature=1", "greedy", "top_p=0.6", "temperature=0.7,top_k=2"])
def test_one_enumeration_gives_what_forcing_every_prefix_gives(make_model, policy):
    """To 1e-12 of a model in fp64; in fp32 a row's last bits depend on the rows that it is decoded with."""
    tree, prompt = dag_tree(make_model, layers=5, scale=0.6, policy=parse_policy(policy))
    with torch.no_grad():
        tree = replace(tree, model=tree.model.double(), prompts=tree.model.double().prefill(prompt))
    prefixes = prefixes_of(tree, 0)
    for name, below in exact_by_prefix(tree, prefixes).items():
        forced = exact(tree.force(prefixes[name]))
        for array in ("outcomes", "tokens", "unknown"):
            expected = getattr(forced, array)
            np.testing.assert_allclose(getattr(below.result, array), expected, rtol=0, atol=1e-12, err_msg=name)
        assert torch.equal(below.logits, tree.force(prefixes[name]).after_forced()[1])
        alone = exact_by_prefix(tree, {name: prefixes[name]})[name]
        for i, token in enumerate(prefixes[name].T):
            before = tree.force(prefixes[name][:, :i])
            state, _ = before.forced_states()
            p = torch.softmax(tree.policy_logits(before.after_forced()[1], torch.arange(len(tree))).double(), dim=1)
            live = state < tree.first_outcome
            for token_p in (below.token_p, alone.token_p):
                torch.testing.assert_close(token_p[live, i], p.gather(1, token[:, None])[live, 0], rtol=0, atol=1e-12)


def test_one_enumeration_decodes_no_prefix_twice(make_model, monkeypatch):
    """Every live prefix passes through the model once; one that is asked for but ends in an outcome does so too."""
    tree, _ = dag_tree(make_model, layers=5, scale=0.6)
    rows, decode = [], GPT.decode
    monkeypatch.setattr(GPT, "decode", lambda *args: rows.append(len(args[1])) or decode(*args))
    prefixes = {name: prefix for name, prefix in prefixes_of(tree, 0).items() if name != "random"}
    together, decoded = exact_by_prefix(tree, prefixes)["free"].result, sum(rows)
    states = [tree.force(prefixes[name]).forced_states()[0] for name in ("one", "other", "ends", "two", "three")]
    dead = sum(int((state >= tree.first_outcome).sum()) for state in states)
    assert decoded == together.evaluated == exact(tree).evaluated + dead and dead >= len(tree)


@pytest.mark.parametrize(
    "budget", [{"max_prefixes": 0}, {"max_prefixes": -3}, {"width": -1e-9}, {"width": math.nan}], ids=str
)
def test_bad_budgets(make_model, budget):
    with pytest.raises(ValueError, match=next(iter(budget))):
        exact(dag_tree(make_model)[0], **budget)


def test_trees_that_do_not_fit(make_model):
    """The argument that does not fit is named."""
    tree, _ = dag_tree(make_model, problems=3)
    cases = [
        ("the automata read 3 tokens, the model has 4", dict(automata=Tables(tree.dfa[:, :, :3], OUTCOMES))),
        ("there are 2 automata for 3 prompts", dict(automata=tree.automata[:2])),
        *((f"max_new is {value}", dict(max_new=value)) for value in (0, 9)),
        ("forced has 5 tokens", dict(forced=torch.zeros(3, 5, dtype=torch.int64))),
    ]
    for message, change in cases:
        with pytest.raises(ValueError, match=message):
            replace(tree, **change)


def test_tables_that_are_no_automata(make_model):
    dfa = dag_tree(make_model)[0].dfa
    for change in (1, -2):
        with pytest.raises(ValueError, match="dfa has states outside"):
            Tables(dfa + change, OUTCOMES)
    for value in (0, 99):
        with pytest.raises(ValueError, match=f"outcome_count is {value}"):
            Tables(dfa, value)


def test_a_policy_that_removes_every_token(make_model):
    tree, _ = dag_tree(make_model, policy=lambda logits: torch.full_like(logits, -math.inf))
    with pytest.raises(ValueError, match="problem 7: the policy .* removes every token"):
        exact(tree[7:9])
