"""Count splitting: as exact says, as independent rollouts vary, and the same however prefixes are batched.

Fixed seeds; with seeds drawn anew the KS tests (level 1e-4 each) and z bounds (4.5) of this file raise a
false alarm with probability below 2e-3.
"""

import numpy as np
import pytest
import torch

import minifork.decoding.split as splitting
from minifork.decoding import policy
from minifork.decoding.exact import exact
from minifork.decoding.rollout import rollout
from minifork.decoding.split import split
from minifork.decoding.traces import Tree
from minifork.gpt import Rows
from minifork.statistics import agreement
from tests.helpers.dag import dag_tree

Z, KS_LEVEL = 4.5, 1e-4
DECODERS = ["temperature=1", "temperature=0.6", "top_p=0.7", "temperature=1.5,min_p=0.05", "greedy"]


def counts(result) -> np.ndarray:
    return np.rint(result.ends * result.n).astype(np.int64)


@pytest.mark.parametrize("decoder", DECODERS)
def test_split_follows_exact(make_model, decoder):
    """PIT of the counts in every sink, over 150 problems; and, for sums over problems, the normal bound."""
    tree, _ = dag_tree(make_model, problems=150, policy=policy.parse(decoder))
    p, n, rng = exact(tree).ends, 300, np.random.default_rng(0)
    drawn = counts(split(tree, n, seed=5))
    assert (drawn.sum(axis=1) == n).all()
    for sink in range(2):
        assert agreement.uniform_p(agreement.randomised_pit(drawn[:, sink], n, p[:, sink], rng)) > KS_LEVEL
        spread = np.sqrt((n * p * (1 - p)).sum(axis=0))[sink]
        assert abs((drawn - n * p).sum(axis=0)[sink]) <= Z * spread + 1e-6


@pytest.mark.parametrize("n", [1, 10, 2000])
def test_split_and_rollouts_are_the_same_in_distribution(make_model, n):
    tree, _ = dag_tree(make_model, problems=150)
    one, other = counts(split(tree, n, 1)), counts(rollout(tree, 50, 2))
    for sink in range(2):
        pit = agreement.two_sample_pit(one[:, sink], n, other[:, sink], 50, np.random.default_rng(3))
        assert agreement.uniform_p(pit) > KS_LEVEL


def test_a_billion_rollouts(make_model):
    """Every deviation is of the size of sqrt(n), some 1e-5 in p: fp64, and 64-bit counts that do not overflow."""
    tree, _ = dag_tree(make_model, problems=100)
    n, p = 10**9, exact(tree).ends
    result = split(tree, n, 0)
    assert (counts(result).sum(axis=1) == n).all() and result.evaluated == exact(tree).evaluated
    spread = np.sqrt(np.maximum(p * (1 - p), 1e-12) / n)
    # the probabilities behind the two differ in fp32's last bits between batch shapes
    assert (np.abs(result.ends - p) < Z * spread + 2e-6).all()
    assert np.abs(result.ends - p)[:, 0].mean() > 1e-6


def test_split_repeats_itself(make_model):
    tree, _ = dag_tree(make_model)
    first = counts(split(tree, 1000, 7))
    assert np.array_equal(first, counts(split(tree, 1000, 7)))
    assert (first != counts(split(tree, 1000, 8))).any(axis=1).mean() > 0.8


@pytest.mark.parametrize("rows", [1, 3, 50])
def test_split_does_not_depend_on_blocks(make_model, monkeypatch, rows):
    """Depth first, every depth still meets its prefixes in lexicographic order."""
    tree, _ = dag_tree(make_model, problems=12, density=1.0)
    expected = counts(split(tree, 500, 3))
    monkeypatch.setattr(splitting, "ROWS", rows)
    assert (counts(split(tree, 500, 3)) != expected).any(axis=1).sum() <= 1


def test_split_does_not_depend_on_the_other_problems(make_model):
    """A problem keeps its counts alone, among others and in another order (but for a rare flip in fp32)."""
    tree, _ = dag_tree(make_model, problems=30)
    expected = counts(split(tree, 500, 3))
    order = torch.from_numpy(np.random.default_rng(0).permutation(30))
    assert (counts(split(tree[order], 500, 3)) != expected[order.numpy()]).any(axis=1).sum() <= 1
    alone = np.concatenate([counts(split(tree[i : i + 1], 500, 3)) for i in range(30)])
    assert (alone != expected).any(axis=1).sum() <= 1


def test_split_is_cheap(make_model):
    """The price is that of the live prefixes, not of the rollouts."""
    tree, _ = dag_tree(make_model)
    assert split(tree, 10, 0).evaluated < split(tree, 10**6, 0).evaluated <= exact(tree).evaluated


def test_first_tokens_are_multinomial():
    """Token counts of one prefix: zero stays zero, the total is n, means and covariances are multinomial."""
    p = np.array([0.0, 0.5, 0.125, 0.25, 0.0, 0.125])
    n, m, generators = 40, 20_000, {}
    each = splitting._split(np.tile(p, (m, 1)), np.full(m, n), np.zeros(m, dtype=np.int64), 0, 9, generators)
    assert (each.sum(axis=1) == n).all() and (each[:, p == 0] == 0).all()
    possible = p > 0
    deviation = (each.mean(axis=0) - n * p)[possible] / np.sqrt(n * p * (1 - p) / m)[possible]
    assert (np.abs(deviation) < Z).all()
    expected = n * (np.diag(p) - np.outer(p, p))
    assert np.abs(np.cov(each.T, bias=True) - expected).max() < 0.4  # four standard errors of a variance of 10


def test_tiny_probabilities_are_drawn():
    """1e-8 of a billion rollouts is ten, not zero: nothing cancels, whichever token is the largest."""
    for largest in range(3):
        p = np.full(3, 1e-8)
        p[largest] = 1 - 2e-8
        each = splitting._split(np.tile(p, (500, 1)), np.full(500, 10**9), np.zeros(500, dtype=np.int64), 0, 1, {})
        rare = np.delete(each, largest, axis=1)
        assert abs(rare.mean() - 10) < Z * np.sqrt(10 / 1000) and abs(rare.var() - 10) < 2.5


def test_largest_token_last_swaps_back():
    """Every token keeps its own count, also where the largest one stands last or first, row by row."""
    p = np.eye(4)[[3, 0, 2]]
    each = splitting._split(p, np.array([5, 6, 7]), np.array([0, 1, 1]), 2, 0, {})
    assert each.tolist() == [[0, 0, 0, 5], [6, 0, 0, 0], [0, 0, 7, 0]]


@pytest.mark.parametrize("n", [0, -1, 10**9 + 1])
def test_split_refuses(make_model, n):
    with pytest.raises(ValueError, match=f"n is {n}"):
        split(dag_tree(make_model)[0], n, 0)


def test_nan_is_refused(make_model):
    tree, _ = dag_tree(make_model)
    logits = tree.prompts.logits.clone()
    logits[4, 1] = float("nan")
    broken = type(tree.prompts)(logits, tree.prompts.k, tree.prompts.v)
    with pytest.raises(ValueError, match="problem 4"):
        split(Tree(tree.model, broken, tree.dfa, tree.sinks, tree.max_new), 10, 0)


# Broken samplers must be caught


def test_a_broadcast_first_token_is_caught(make_model, monkeypatch):
    """All rollouts of a problem share the first token, here by giving all counts at the root to one child."""
    tree, _ = dag_tree(make_model, problems=150)
    p, real = exact(tree).ends[:, 0], splitting._split

    def broadcast(p, count, problem, depth, seed, generators):
        if depth:
            return real(p, count, problem, depth, seed, generators)
        return real(p, np.ones_like(count), problem, depth, seed, generators) * count[:, None]

    monkeypatch.setattr(splitting, "_split", broadcast)
    drawn = counts(split(tree, 300, 5))[:, 0]
    assert agreement.uniform_p(agreement.randomised_pit(drawn, 300, p, np.random.default_rng(0))) < 1e-6


def test_bf16_softmax_is_caught(make_model, monkeypatch):
    """bf16 moves p by about 0.3 %: invisible to ten thousand rollouts, plain to a hundred million."""
    tree, _ = dag_tree(make_model, problems=150)
    p, real = exact(tree).ends[:, 0], Tree.sampled_from

    def rounded(self, logits, problem):
        return torch.log_softmax(real(self, logits, problem).bfloat16(), dim=-1).float()

    def chi_square(n: int) -> float:
        drawn = counts(split(tree, n, 5))[:, 0]
        return float(((drawn - n * p) ** 2 / (n * p * (1 - p) + 1e-9)).mean())

    # under the null the mean of 150 squared z is 1 +- .12; fp32 noise of 1e-7 adds nothing visible
    assert chi_square(10**8) < 1.5
    monkeypatch.setattr(Tree, "sampled_from", rounded)
    assert chi_square(10**4) < 1.5 and chi_square(10**8) > 5


def test_an_off_by_one_cache_is_caught(make_model, monkeypatch):
    """A cache that writes each new token over the one before it, and so forgets all but the last."""
    tree, _ = dag_tree(make_model, problems=150, scale=1.0)  # a model that looks back at its last tokens
    p, attend = exact(tree).ends[:, 0], Rows.attend

    def late(self, layer, q, k, v):
        shift = 1 if self.length else 0
        self.length -= shift
        out = attend(self, layer, q, k, v)
        self.length += shift
        return out

    monkeypatch.setattr(Rows, "attend", late)
    drawn = counts(split(tree, 10**4, 5))[:, 0]
    assert agreement.uniform_p(agreement.randomised_pit(drawn, 10**4, p, np.random.default_rng(0))) < 1e-6
