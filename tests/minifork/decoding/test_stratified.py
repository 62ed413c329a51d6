"""Stratified decoders: the product formula against enumeration, strata against the tree they cut."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minifork.decoding import policy, stratified
from minifork.decoding.exact import exact
from minifork.decoding.rollout import rollout
from minifork.statistics.passk import problem_pass_at_k, unbiased_pass_at_k
from tests.helpers.dag import dag_tree

EMPTY = torch.zeros(20, 0, dtype=torch.int64)
NOWHERE = torch.zeros(20, dtype=torch.int64)


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 0.5, 0.1, 1e-9, 0.999]), min_size=1, max_size=4), st.integers(1, 9))
def test_dealt_pass_at_k_deals_samples_in_turn(p, k):
    miss = 1.0
    for _, chance in zip(range(k), itertools.cycle(p), strict=False):
        miss *= 1 - chance
    assert stratified.dealt_pass_at_k(np.array([p]), [k])[0, 0] == pytest.approx(1 - miss, rel=1e-9, abs=1e-15)


CHANCES = st.floats(0, 1) | st.sampled_from([0.0, 1.0, 1e-300, 1 - 1e-16])


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.tuples(CHANCES, st.integers(0, 4)), min_size=1, max_size=3))
def test_pooled_pass_at_k_is_the_mean_over_subsets(strata):
    """For every k, over all subsets of k samples of the pool."""
    p, counts = zip(*strata, strict=True)
    misses = [1 - chance for chance, count in strata for _ in range(count)]
    ks = range(len(misses) + 1)
    expected = [1 - np.mean([math.prod(drawn) for drawn in itertools.combinations(misses, k)]) for k in ks]
    passed = stratified.pooled_pass_at_k(np.array([p]), counts, ks)[0]
    assert passed == pytest.approx(expected, abs=1e-14) and (passed >= 0).all() and (passed <= 1).all()


def test_pooled_pass_at_k_against_simulation():
    """8 strata, 64 samples: pools are drawn 20,000 times and scored by the i.i.d. estimator.

    z below 4.5 at each of 7 k, for two pools: a false alarm has probability 1e-4.
    """
    rng, ks, pools = np.random.default_rng(0), [1, 2, 4, 8, 16, 32, 64], 20_000
    p = np.array([0.5, 0.001, 0.05, 0.0, 0.02, 0.01, 0.3, 0.0])
    for counts in (np.full(8, 8), np.array([1, 2, 30, 7, 5, 17, 0, 2])):
        accepted = rng.binomial(counts, p, size=(pools, 8)).sum(axis=1)
        scores = np.stack([unbiased_pass_at_k(accepted, 64, k) for k in ks], axis=1)
        expected = stratified.pooled_pass_at_k(p[None], counts, ks)[0]
        spread = np.sqrt(expected * (1 - expected) / pools)  # at most
        assert (np.abs(scores.mean(axis=0) - expected) < 4.5 * spread).all()


def test_two_strata_of_which_one_is_right():
    """k = 2: .754 from a pool of 64, .750 i.i.d., 1 in turn."""
    p = np.array([[1.0, 0.0]])
    pooled = stratified.pooled_pass_at_k(p, stratified.deal(64, 2), [2]).item()
    assert pooled == pytest.approx(1 - math.comb(32, 2) / math.comb(64, 2), rel=1e-15) and round(pooled, 3) == 0.754
    assert problem_pass_at_k(p.mean(), 2) == 0.75 and stratified.dealt_pass_at_k(p, [2]) == 1


@pytest.mark.parametrize("p", [0.0, 1e-300, 1e-9, 0.3, 1 - 1e-16, 1.0])
def test_a_pool_of_equal_strata_is_iid(p):
    """Down to the smallest p, and within [0, 1]."""
    ks = np.arange(1, 65)
    passed = stratified.pooled_pass_at_k(np.full((1, 8), p), stratified.deal(64, 8), ks)
    np.testing.assert_allclose(passed[0], problem_pass_at_k(p, ks), rtol=1e-12)
    assert (passed >= 0).all() and (passed <= 1).all()


def test_a_whole_pool_is_dealt_in_turn():
    p = np.random.default_rng(0).random((5, 8)) ** 8
    pooled = stratified.pooled_pass_at_k(p, stratified.deal(30, 8), [30])
    np.testing.assert_allclose(pooled, stratified.dealt_pass_at_k(p, [30]), rtol=1e-12)


@pytest.mark.parametrize(
    ("counts", "ks", "error"),
    [([2, 2], [5], "ks is.*pool of 4"), ([2, 2], [-1], "ks is"), ([2], [1], "counts is"), ([5, -1], [1], "counts is")],
)
def test_bad_pools(counts, ks, error):
    with pytest.raises(ValueError, match=error):
        stratified.pooled_pass_at_k(np.full((1, 2), 0.5), counts, ks)


@pytest.fixture(scope="module")
def tree(make_model):
    return dag_tree(make_model)[0]


def first_tokens(tree, m, *engine):
    """Strata at the very first token."""
    return stratified.stratify(tree, EMPTY, NOWHERE, m, *engine)


def test_one_stratum_is_the_greedy_first_token(tree):
    result, first = first_tokens(tree, 1), tree.prompts.logits.argmax(dim=1, keepdim=True)
    assert np.array_equal(result.tokens, first.numpy())
    np.testing.assert_allclose(result.p_lo[:, 0], exact(tree.force(first)).p_lo, atol=1e-7)


@pytest.mark.parametrize("decoder", ["temperature=1", "temperature=2"])
def test_all_strata_make_up_the_tree(tree, decoder):
    """Weighted by the tokens' probabilities, the strata of the whole vocabulary give p without strata."""
    tree, vocab = replace(tree, policy=policy.parse_policy(decoder)), tree.model.vocab_size
    result = first_tokens(tree, vocab)
    weights = torch.softmax(tree.policy(tree.prompts.logits).double(), dim=1).gather(1, torch.tensor(result.tokens))
    np.testing.assert_allclose((weights.numpy() * result.p_lo).sum(axis=1), exact(tree).p_lo, atol=1e-6)
    assert (np.sort(result.tokens) == np.arange(vocab)).all() and (np.diff(weights.numpy()) <= 0).all()


def test_given_strata_are_taken_as_they_are(tree):
    """In their order, by any engine; the model's own ranking gives the same p to the same tokens."""
    ranked = first_tokens(tree, 3)
    tokens, p = ranked.tokens[:, ::-1].copy(), ranked.p_lo[:, ::-1]
    result = first_tokens(tree, torch.from_numpy(tokens), lambda tree: exact(tree, width=0.1))
    assert np.array_equal(result.tokens, tokens)
    assert (result.p_lo <= p + 1e-7).all() and (p <= result.p_hi + 1e-7).all()


def test_prefixes_of_several_lengths(tree):
    """Each problem is stratified after its own prefix, as if it were alone."""
    prefix = torch.from_numpy(np.random.default_rng(0).integers(3, size=(20, 3)))
    length = torch.from_numpy(np.random.default_rng(1).integers(4, size=20))
    together = stratified.stratify(tree, prefix, length, 2)
    for i in range(20):
        single = stratified.stratify(tree[i : i + 1], prefix[i : i + 1], length[i : i + 1], 2)
        assert np.array_equal(single.tokens[0], together.tokens[i])
        np.testing.assert_allclose(single.p_lo[0], together.p_lo[i], atol=1e-6)
        forced = torch.cat([prefix[i, : length[i]], torch.tensor(together.tokens[i, :1])])[None]
        np.testing.assert_allclose(exact(tree[i : i + 1].force(forced)).p_lo[0], together.p_lo[i, 0], atol=1e-6)


def test_strata_against_sampling(tree):
    """The exact pass@6 of a decoder that spreads over 3 tokens, against playing that decoder 2,000 times.

    z below 4.5: a false alarm has probability 7e-6.
    """
    result, games = first_tokens(tree, 3), 2000
    accepted = np.zeros((20, games), dtype=bool)
    for j in range(3):
        sampled = rollout(tree.force(torch.tensor(result.tokens[:, j : j + 1])), 2 * games, seed=j, traces=True)
        accepted |= (sampled.traces.outcome == 0).reshape(20, games, 2).any(dim=2).numpy()
    expected = stratified.dealt_pass_at_k(result.p_lo, [6])[:, 0]
    spread = np.sqrt((expected * (1 - expected) / games).sum()) / 20
    assert abs(accepted.mean() - expected.mean()) < 4.5 * spread


@torch.no_grad()
def test_highest_entropy(make_model):
    """The position with the largest next-token entropy on the greedy trace, by the training path."""
    tree, prompt = dag_tree(make_model, density=1.0)
    trace, position = stratified.highest_entropy(tree)
    assert trace.shape == (20, tree.max_new - 1) and len(position.unique()) > 1
    for i in range(20):
        tokens, state, entropies = prompt[i].tolist(), 0, []
        for token in trace[i]:
            logp = torch.log_softmax(tree.model(torch.tensor([tokens]))[0, -1].double(), dim=0)
            if state < tree.first_outcome:
                entropies.append(-(logp.exp() * logp).sum().item())
                assert token == logp.argmax()
            state = int(tree.dfa[i, state, token])
            tokens.append(int(token))
        assert entropies[position[i]] == pytest.approx(max(entropies), abs=1e-5)


@pytest.mark.parametrize("m", [0, -1, 5])
def test_bad_strata(tree, m):
    with pytest.raises(ValueError, match=f"m is {m}.*1 to 4"):
        first_tokens(tree, m)


@pytest.mark.parametrize("token", [-1, 4])
def test_bad_tokens(tree, token):
    with pytest.raises(ValueError, match="tokens outside"):
        first_tokens(tree, torch.full((20, 2), token))
