"""Flips and variance components on simulated branch logits whose truth is known.

Simulations have a fixed seed; with seeds drawn anew |z| < 4.5 fails with probability 7e-6, below 1e-4 for the file.
"""

import itertools
import math

import numpy as np
import pytest

from minifork.statistics.flips import flip_probability, flip_values, variance_components

Z, PROBLEMS = 4.5, 20_000


def simulated(within: float, between: float, orders: int) -> np.ndarray:
    """Branch logits float64[orders, PROBLEMS] of mean 0 with these variances."""
    rng = np.random.default_rng(0)
    problem = rng.normal(0, math.sqrt(between), PROBLEMS)
    return problem + rng.normal(0, math.sqrt(within), (orders, PROBLEMS))


def branches(logit: np.ndarray) -> np.ndarray:
    """The probabilities of two branches, [..., 2], the right one first."""
    return np.stack([1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(logit))], axis=-1)


def z_score(values: np.ndarray, truth: float) -> float:
    return (values.mean() - truth) / (values.std(ddof=1) / math.sqrt(len(values)))


@pytest.mark.parametrize(("within", "between"), [(4.0, 1.0), (0.25, 9.0), (2.0, 0.0)])
@pytest.mark.parametrize("orders", [2, 16])
def test_variance_components(within, between, orders):
    """Both are unbiased, for two orders too, and where problems do not differ."""
    components = variance_components(simulated(within, between, orders))
    for values, truth in zip(components, (within, between), strict=True):
        assert abs(z_score(values, truth)) < Z and values.mean() == pytest.approx(truth, abs=0.15)


@pytest.mark.parametrize(("within", "between"), [(4.0, 1.0), (0.25, 9.0)])
def test_flips_of_normal_logits(within, between):
    """Two orders have normal logits with correlation c = between / (within + between), whose signs differ with
    probability arccos(c) / pi; half of all choices are right."""
    values = flip_values(branches(simulated(within, between, 4)))
    truth = {
        "flips": math.acos(between / (within + between)) / math.pi,
        "accuracy": 0.5,
        "within": within,
        "between": between,
        "within_share": within / (within + between),
    }
    for name, expected in truth.items():
        assert abs(z_score(values[name], expected)) < Z, name
    assert z_score(values["sampled_flips"] - values["sampled_differ"], 0) > Z  # orders add to chance


def test_flips_against_all_pairs_of_orders():
    branch = np.random.default_rng(0).dirichlet(np.ones(3), size=(4, 5))
    pairs = [1 - (branch[r] * branch[s]).sum(axis=1) for r, s in itertools.combinations(range(4), 2)]
    np.testing.assert_allclose(flip_probability(branch), np.mean(pairs, axis=0))


def test_a_model_that_ignores_the_order():
    """It never flips, and its samples differ as often in two orders as in one; nothing of the variance is within."""
    branch = np.tile(np.random.default_rng(0).dirichlet(np.ones(3), size=50), (4, 1, 1))
    values = flip_values(branch)
    assert not values["flips"].any() and values["within"] == pytest.approx(0) and values["within_share"].mean() < 1e-9
    assert values["sampled_flips"] == pytest.approx(values["sampled_differ"])
    logit = np.log(branch[0, :, 0] / (1 - branch[0, :, 0]))
    assert values["between"].mean() == pytest.approx(logit.var(ddof=1))
