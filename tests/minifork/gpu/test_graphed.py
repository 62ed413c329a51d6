"""Rollouts as one fixed sequence of operations, which on a CPU run without a CUDA graph, against the torch engine."""

import math

import numpy as np
import pytest
import torch

from minifork.decoding.rollout import rollout
from minifork.gpu.graphed import graph_rollout
from minifork.statistics import agreement
from tests.helpers.engines import make_tree


@pytest.mark.parametrize(("rows", "forced"), [(7, 0), (64, 2), (10_000, 0)])
def test_graphed_is_the_torch_engine(make_model, rows, forced):
    tree = make_tree(make_model, "reference", 11, "temperature=0.9,top_k=7")
    tree = tree.force(torch.ones(11, forced, dtype=torch.int64))
    first, second = graph_rollout(tree, 30, 5, rows), rollout(tree, 30, 5)
    assert np.array_equal(first.outcomes, second.outcomes) and np.array_equal(first.tokens, second.tokens)


def test_graphed_with_torchs_own_draws(make_model):
    tree = make_tree(make_model, "narrow", 60)
    torch.manual_seed(0)
    first, second = graph_rollout(tree, 200, None), rollout(tree, 200, 5)
    pits = agreement.two_sample_pit(first.accepted, 200, second.accepted, 200, np.random.default_rng(0))
    assert agreement.uniform_p(pits) > 1e-4 and not np.array_equal(first.outcomes, second.outcomes)


def test_logits_that_are_not_finite(make_model):
    tree = make_tree(make_model, "narrow", 5)
    with torch.no_grad():
        tree.model.token.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        graph_rollout(tree, 4, 0)
