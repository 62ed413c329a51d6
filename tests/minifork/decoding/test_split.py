"""Count splitting: as exact says, as independent rollouts vary, and the same however prefixes are batched.

Fixed seeds; with seeds drawn anew the tests of counts (level 1e-4 each) and z bounds (4.5) of this file raise a
false alarm with probability below 2e-3.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import minifork.decoding.split as splitting
from minifork.decoding.exact import exact
from minifork.decoding.policy import parse_policy
from minifork.decoding.rollout import rollout
from minifork.decoding.split import split
from minifork.decoding.traces import TraceTree
from minifork.gpt import GPT, Rows
from minifork.statistics import agreement
from tests.helpers.dag import dag_tree
from tests.helpers.engines import KS_LEVEL, Z, agrees, counts, fit

DECODERS = ["temperature=1", "temperature=0.6", "top_p=0.7", "temperature=1.5,min_p=0.05", "greedy"]


@pytest.fixture(scope="module")
def tree(make_model):
    return dag_tree(make_model, problems=150)[0]


@pytest.fixture(scope="module")
def p(tree):
    return exact(tree).outcomes


@pytest.mark.parametrize("decoder", DECODERS)
def test_split_follows_exact(make_model, decoder):
    """PIT of the counts in every outcome, over 150 problems; and, for sums over problems, the normal bound."""
    tree, _ = dag_tree(make_model, problems=150, policy=parse_policy(decoder))
    assert agrees(counts(split(tree, 300, seed=5)), exact(tree).outcomes)


@pytest.mark.parametrize("n", [1, 10, 2000])
def test_split_and_rollouts_are_the_same_in_distribution(tree, n):
    first, second = counts(split(tree, n, 1)), counts(rollout(tree, 50, 2))
    for outcome in range(2):
        pit = agreement.two_sample_pit(first[:, outcome], n, second[:, outcome], 50, np.random.default_rng(3))
        assert agreement.uniform_p(pit) > KS_LEVEL


def test_a_billion_rollouts(tree, p):
    """Every deviation is of the size of sqrt(n), some 1e-5 in p: fp64, and 64-bit counts that do not overflow."""
    n = 10**9
    result = split(tree, n, 0)
    assert (counts(result).sum(axis=1) == n).all() and result.evaluated == exact(tree).evaluated
    spread = np.sqrt(np.maximum(p * (1 - p), 1e-12) / n)
    # the probabilities behind the two differ in fp32's last bits between batch shapes
    assert (np.abs(result.outcomes - p) < Z * spread + 2e-6).all()
    assert np.abs(result.outcomes - p)[:, 0].mean() > 1e-6


def test_split_repeats_itself(tree):
    first = counts(split(tree, 1000, 7))
    assert np.array_equal(first, counts(split(tree, 1000, 7)))
    assert (first != counts(split(tree, 1000, 8))).any(axis=1).mean() > 0.8


def test_split_does_not_depend_on_the_batch(make_model, monkeypatch):
    """A problem keeps its counts alone, in another order, and in small blocks (but for a rare flip in fp32)."""
    tree, _ = dag_tree(make_model, problems=12, density=1.0)
    expected, order = counts(split(tree, 500, 3)), torch.from_numpy(np.random.default_rng(0).permutation(12))
    assert (counts(split(tree[order], 500, 3)) != expected[order.numpy()]).any(axis=1).sum() <= 1
    single = np.concatenate([counts(split(tree[i : i + 1], 500, 3)) for i in range(12)])
    assert (single != expected).any(axis=1).sum() <= 1
    for rows in (1, 3, 50):  # depth first, every depth still meets its prefixes in lexicographic order
        monkeypatch.setattr(GPT, "rows_at_once", lambda *_, rows=rows: rows)
        assert (counts(split(tree, 500, 3)) != expected).any(axis=1).sum() <= 1


def drawn_children(p: np.ndarray, n: int, m: int, one_by_one: bool = False) -> np.ndarray:
    """The counts of m prefixes that split n rollouts each between tokens of probability p."""
    arguments = np.tile(p, (m, 1)), np.full(m, n), np.zeros(m, dtype=np.int64), 0, splitting.Draws(9)
    if not one_by_one:
        return splitting.split_counts(*arguments)
    row, token, number = splitting.draw_tokens(*arguments)
    assert (number > 0).all() and (np.diff(row * len(p) + token) > 0).all()
    children = np.zeros((m, len(p)), dtype=np.int64)
    children[row, token] = number
    return children


@pytest.mark.parametrize("one_by_one", [False, True])
def test_first_tokens_are_multinomial(one_by_one):
    """Token counts of one prefix: zero stays zero, the total is n, means and covariances are multinomial."""
    p, n, m = np.array([0.0, 0.5, 0.125, 0.25, 0.0, 0.125, 0.0]), 40, 20_000
    children = drawn_children(p, n, m, one_by_one)
    assert (children.sum(axis=1) == n).all() and (children[:, p == 0] == 0).all()
    assert (np.abs(children.mean(axis=0) - n * p) <= Z * np.sqrt(n * p * (1 - p) / m)).all()
    expected = n * (np.diag(p) - np.outer(p, p))
    assert np.abs(np.cov(children.T, bias=True) - expected).max() < 0.4  # four standard errors of a variance of 10


def test_rounding_draws_no_impossible_token(monkeypatch):
    """A uniform that rounds to the whole sum draws the last token of positive probability."""
    monkeypatch.setattr(splitting.Draws, "at", lambda *_: SimpleNamespace(random=np.ones))
    children = drawn_children(np.array([0.5, 0.5, 0.0]), 3, 2, one_by_one=True)
    assert children.tolist() == [[0, 3, 0]] * 2


@pytest.mark.parametrize("largest", range(3))
def test_tiny_probabilities_are_drawn(largest):
    """1e-8 of a billion rollouts is ten, not zero: nothing cancels, whichever token is the largest."""
    p = np.full(3, 1e-8)
    p[largest] = 1 - 2e-8
    rare = np.delete(drawn_children(p, 10**9, 500), largest, axis=1)
    assert abs(rare.mean() - 10) < Z * np.sqrt(10 / 1000) and abs(rare.var() - 10) < 2.5


def test_largest_token_last_swaps_back():
    """Every token keeps its own count, also where the largest one stands last or first, row by row."""
    p = np.eye(4)[[3, 0, 2]]
    children = splitting.split_counts(p, np.array([5, 6, 7]), np.array([0, 1, 1]), 2, splitting.Draws(0))
    assert children.tolist() == [[0, 0, 0, 5], [6, 0, 0, 0], [0, 0, 7, 0]]


@pytest.mark.parametrize("n", [0, 10**9 + 1])
def test_split_refuses(tree, n):
    with pytest.raises(ValueError, match=f"n is {n}"):
        split(tree, n, 0)


def test_a_broadcast_first_token_is_caught(tree, p, monkeypatch):
    """All rollouts of a problem share the first token, here by giving all counts at the root to one child."""
    real = splitting.split_counts

    def broadcast(p, count, problem, depth, draws):
        if depth:
            return real(p, count, problem, depth, draws)
        return real(p, np.ones_like(count), problem, depth, draws) * count[:, None]

    monkeypatch.setattr(splitting, "split_counts", broadcast)
    assert fit(counts(split(tree, 300, 5)), p) < 1e-6


def test_bf16_softmax_is_caught(tree, p, monkeypatch):
    """bf16 moves p by about 0.3 %: invisible to ten thousand rollouts, plain to a hundred million."""
    real, p = TraceTree.policy_logits, p[:, 0]

    def rounded(self, logits, problem):
        return torch.log_softmax(real(self, logits, problem).bfloat16(), dim=-1).float()

    def chi_square(n: int) -> float:
        tally = counts(split(tree, n, 5))[:, 0]
        return float(((tally - n * p) ** 2 / (n * p * (1 - p) + 1e-9)).mean())

    # under the null the mean of 150 squared z is 1 +- .12; fp32 noise of 1e-7 adds nothing visible
    assert chi_square(10**8) < 1.5
    monkeypatch.setattr(TraceTree, "policy_logits", rounded)
    assert chi_square(10**4) < 1.5 and chi_square(10**8) > 5


def test_an_off_by_one_cache_is_caught(make_model, monkeypatch):
    """A cache that writes each new token over the one before it, so it forgets all but the last."""
    tree, _ = dag_tree(make_model, problems=150, scale=1.0)  # a model that looks back at its last tokens
    p, attend = exact(tree).outcomes, Rows.attend

    def late(self, layer, q, k, v):
        shift = 1 if self.length else 0
        self.length -= shift
        out = attend(self, layer, q, k, v)
        self.length += shift
        return out

    monkeypatch.setattr(Rows, "attend", late)
    assert fit(counts(split(tree, 10**4, 5)), p) < 1e-6
