"""The remainder of a budgeted enumeration: as exact says, as independent rollouts vary, whatever the batch.

Fixed seeds; with seeds drawn anew the tests of counts (level 1e-4 each) and z bounds (4.5) of this file raise a false
alarm with probability below 3e-3.
"""

from dataclasses import replace

import numpy as np
import pytest

import minifork.decoding.remainder as rest_engine
from minifork.decoding.exact import Limits, exact, exact_by_prefix
from minifork.decoding.policy import parse_policy
from minifork.decoding.remainder import remainder, sample_remainder
from minifork.decoding.split import split
from minifork.decoding.traces import accepted_share
from minifork.gpt import GPT
from minifork.measuring.quantities import sampling_error
from minifork.statistics import agreement
from tests.helpers.dag import dag_tree
from tests.helpers.engines import KS_LEVEL, Z, poisoned

N, LEFT = 300, 1e-3  # rollouts a problem; problems with less unknown are not tested


@pytest.fixture(scope="module")
def tree(make_model):
    return dag_tree(make_model, problems=120)[0]


@pytest.fixture(scope="module")
def p(tree):
    return exact(tree)


@pytest.fixture(scope="module")
def search(tree, p):
    """A quarter of the live prefixes."""
    return searched(tree, p, 0.25)


def searched(tree, p, share):
    return exact_by_prefix(tree, {"": tree.forced}, Limits(p.evaluated * share))[""]


def counts(result, bounds, outcome=0):
    """How many of N rollouts end in an outcome, and its explored and unknown part, where more than LEFT is unknown."""
    left = bounds.unknown > LEFT
    low, unknown = bounds.outcomes[left, outcome], bounds.unknown[left]
    share = accepted_share(result.outcomes[left, outcome], low, low + unknown)
    return np.rint(share * N).astype(np.int64), low, unknown


def fit(result, bounds, p) -> float:
    """The smallest p-value, over outcomes, that counts follow the probabilities of what the search left."""
    smallest, rng = 1.0, np.random.default_rng(4)
    for outcome in range(p.outcomes.shape[1]):
        tally, low, unknown = counts(result, bounds, outcome)
        q = accepted_share(p.outcomes[bounds.unknown > LEFT, outcome], low, low + unknown)
        smallest = min(smallest, agreement.uniform_p(agreement.randomised_pit(tally, N, q, rng)))
    return smallest


@pytest.mark.parametrize("decoder", ["temperature=1", "temperature=1.5,min_p=0.05"])
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_the_remainder_follows_exact(make_model, decoder, share):
    """Every outcome. Outcomes sum to 1, the bounds are those of the search, and no prefix is decoded twice."""
    tree, _ = dag_tree(make_model, problems=120, policy=parse_policy(decoder))
    p = exact(tree)
    search = searched(tree, p, share)
    result, bounds = sample_remainder(tree, search, N, 5), search.result
    assert fit(result, bounds, p) > KS_LEVEL and result.engine == "remainder" and not result.exact
    np.testing.assert_allclose(result.outcomes.sum(axis=1), 1, atol=1e-9)
    assert np.array_equal(result.p_lo, bounds.p_lo) and np.allclose(result.p_hi, bounds.p_hi, atol=1e-12)
    assert (result.p_lo <= result.p).all() and (result.p <= result.p_hi + 1e-12).all()
    assert bounds.evaluated <= p.evaluated * share + 1 and bounds.evaluated < result.evaluated <= p.evaluated
    waiting = np.zeros(120)
    for block in search.waiting:
        np.add.at(waiting, block.problem.numpy(), block.weight.numpy())
    np.testing.assert_allclose(waiting, bounds.unknown, atol=1e-12)


def test_the_remainder_and_split_are_the_same_in_distribution(tree, search):
    """Whole traces that are made from the remainder's counts, and those of split."""
    tally, low, unknown = counts(sample_remainder(tree, search, N, 1), search.result)
    rng, second = np.random.default_rng(3), split(tree, 200, 2).accepted[search.result.unknown > LEFT]
    whole = agreement.whole_counts(tally, N, low, unknown, 100, rng)
    assert agreement.uniform_p(agreement.two_sample_pit(whole, 100, second, 200, rng)) > KS_LEVEL


def test_the_mean_is_unbiased_and_its_error_as_stated(tree):
    """Over 100 seeds; the standard deviation within four of its own standard errors."""
    tree = tree[:8]
    p, seeds = exact(tree), 100
    search = searched(tree, p, 0.25)
    results = [sample_remainder(tree, search, 40, seed) for seed in range(seeds)]
    q, means = accepted_share(p.p, results[0].p_lo, results[0].p_hi), np.array([one.p.mean() for one in results])
    error, plain = sampling_error(results[0], q, 1), sampling_error(split(tree, 40, 0), p.p, 1)
    assert abs(means.mean() - p.p.mean()) < Z * error / np.sqrt(seeds)
    assert abs(means.std() / error - 1) < 4 / np.sqrt(2 * seeds) and error < 0.8 * plain


def test_what_waits_below_a_longer_prefix(make_model):
    """It waits below the shorter prefix too, with the probability of the step between."""
    tree, _ = dag_tree(make_model, problems=100)
    prefixes = {"free": tree.forced, "one": tree.dfa.new_zeros(100, 1)}
    search = exact_by_prefix(tree, prefixes, Limits(150))["free"]
    assert len({block.parent.length for block in search.waiting}) > 1
    assert fit(sample_remainder(tree, search, N, 6), search.result, exact(tree)) > KS_LEVEL


def test_counts_do_not_depend_on_the_batch(tree, search, monkeypatch):
    """But for a rare flip in fp32. They depend on the seed."""
    expected = counts(sample_remainder(tree, search, N, 3), search.result)[0]
    assert (counts(sample_remainder(tree, search, N, 4), search.result)[0] != expected).mean() > 0.5
    for rows in (3, 50):
        monkeypatch.setattr(GPT, "rows_at_once", lambda *_, rows=rows: rows)
        assert (counts(sample_remainder(tree, search, N, 3), search.result)[0] != expected).sum() <= 1


def test_nothing_is_sampled_when_the_budget_suffices(tree, p):
    result = remainder(tree, 10**6, 10, 0)
    assert result.engine == "exact" and result.n is None and np.array_equal(result.outcomes, p.outcomes)


def test_a_few_prefixes_of_very_many(make_model):
    """2^20 right paths: few prefixes are decoded, and split agrees (normal bound)."""
    tree, _ = dag_tree(make_model, problems=2, layers=20, width=2, density=1.0, scale=0.1)
    result, second = remainder(tree, 500, 200, 0), split(tree, 200, 1)
    assert result.evaluated < 2**20 / 50 and (result.p_lo < result.p_hi).all()
    np.testing.assert_allclose(result.outcomes.sum(axis=1), 1, atol=1e-9)
    p = (result.outcomes + second.outcomes) / 2
    assert (np.abs(result.outcomes - second.outcomes) < Z * np.sqrt(2 * (p * (1 - p) + 0.01) / 200)).all()


@pytest.mark.parametrize("n", [0, 10**9 + 1])
def test_bad_numbers_of_rollouts(tree, n):
    with pytest.raises(ValueError, match=f"n is {n}"):
        remainder(tree, 10, n, 0)


def test_bad_budgets_and_logits(tree):
    with pytest.raises(ValueError, match="max_prefixes"):
        remainder(tree, 0, 10, 0)
    with pytest.raises(ValueError, match="problem 17"):
        remainder(poisoned(tree, 17), 10, 10, 0)


# Broken engines


def test_ignored_weights_are_caught(make_model):
    """With a model whose prefixes differ in probability."""
    tree, _ = dag_tree(make_model, problems=120, density=1.0, scale=0.8)
    p = exact(tree)
    search = searched(tree, p, 0.05)
    even = [replace(block, weight=(block.weight > 0).double()) for block in search.waiting]
    assert fit(sample_remainder(tree, replace(search, waiting=even), N, 5), search.result, p) < 1e-6


def test_one_draw_over_all_problems_is_caught(tree, p, search, monkeypatch):
    """All rollouts of all problems are dealt to the waiting prefixes of all problems at once."""

    def pooled(tree, waiting, n, draws):
        weight = np.concatenate([block.weight.numpy() for block in waiting])
        tally = np.random.default_rng(0).multinomial(n * len(tree), weight / weight.sum())
        parts = np.split(tally, np.cumsum([len(block) for block in waiting])[:-1])
        return [replace(block, weight=block.state.new_tensor(part)) for block, part in zip(waiting, parts, strict=True)]

    monkeypatch.setattr(rest_engine, "_starts", pooled)
    assert fit(sample_remainder(tree, search, N, 5), search.result, p) < 1e-6


def test_a_remainder_that_is_not_scaled_is_caught(tree, p, search):
    """Shares are added to the explored part as if all of the probability were unknown."""
    unscaled = replace(search, result=replace(search.result, unknown=np.ones(len(tree))))
    assert fit(sample_remainder(tree, unscaled, N, 5), search.result, p) < 1e-6
