"""The coverage law against sums over a fine grid, closed forms and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minifork.statistics import law
from minifork.statistics.passk import problem_pass_at_k

KS = [1, 4, 16, 64, 256, 1024]
GRID = np.linspace(-9, 9, 20_001)
WEIGHTS = np.exp(-(GRID**2) / 2) / np.exp(-(GRID**2) / 2).sum()


def on_grid(p: np.ndarray) -> np.ndarray:
    """pass@k of p, one a point of GRID, whose weights are those of a standard normal variable."""
    return WEIGHTS @ problem_pass_at_k(p[:, None], KS)


@pytest.mark.parametrize("r", [1.0, 0.9])
@pytest.mark.parametrize("sigma", [0.5, 2.0, 8.0, 12.0])
def test_two_branches(r, sigma):
    b = 1 / (1 + np.exp(-sigma * GRID))
    paths = law.path_points([sigma])
    assert law.law_pass_at_k(r, paths, KS) == pytest.approx(on_grid(r * b), abs=1e-3)
    passes = problem_pass_at_k(r * b[:, None], KS)
    deviation = np.sqrt(WEIGHTS @ passes**2 - (WEIGHTS @ passes) ** 2)
    assert law.law_deviation(r, paths, KS, symmetrised=False) == pytest.approx(deviation, abs=2e-3)
    both = (passes + passes[::-1]) / 2
    deviation = np.sqrt(np.maximum(WEIGHTS @ both**2 - (WEIGHTS @ both) ** 2, 0))
    assert law.law_deviation(r, paths, KS, symmetrised=True) == pytest.approx(deviation, abs=2e-3)


@pytest.mark.parametrize(("sigmas", "branches"), [([3.0], 3), ([2.0, 5.0], 2), ([1.0, 1.0, 4.0], 2), ([6.0], 6)])
def test_paths_against_simulation(sigmas, branches):
    """200,000 drawn problems: errors of pass@k have a standard deviation of at most .0012 (limit .006)."""
    rng, p = np.random.default_rng(0), 1.0
    for sigma in sigmas:
        odds = np.exp(rng.normal(0, sigma / math.sqrt(2), (200_000, branches)))
        difference = np.diff(np.log(odds[:, :2]))[:, 0]
        assert difference.std() == pytest.approx(sigma, rel=0.01)
        p = p * odds[:, 0] / odds.sum(axis=1)
    paths = law.path_points(sigmas, branches)
    assert paths.shape[1] == branches ** len(sigmas) and paths.sum(axis=1) == pytest.approx(1)
    assert law.law_pass_at_k(1, paths, KS) == pytest.approx(problem_pass_at_k(p[:, None], KS).mean(axis=0), abs=0.006)


@given(st.floats(0.3, 12), st.floats(1.2, 3))
def test_mixtures_have_the_moments_that_they_are_given(sigma, kurtosis):
    b = law.mixture_points(sigma, kurtosis)
    z = np.log(b[:, 0] / b[:, 1]) if b.min() > 0 else np.array([])
    z = np.concatenate([z, -z])
    if len(z):
        assert z.std() == pytest.approx(sigma, rel=0.01)
        assert np.mean(z**4) / z.std() ** 4 == pytest.approx(kurtosis, abs=0.05)


def test_a_mixture_without_distance_is_the_law():
    for kurtosis in (3, 3.5):
        mixture = law.law_pass_at_k(0.95, law.mixture_points(4, kurtosis), KS)
        assert mixture == pytest.approx(law.law_pass_at_k(0.95, law.path_points([4]), KS), abs=1e-3)


def test_laws_from_two_moments():
    """Each recovers the curve of p that follow it."""
    beta = np.random.default_rng(1).beta(0.3, 0.7, 400_000)
    expected = problem_pass_at_k(beta[:, None], KS).mean(axis=0)
    assert law.beta_pass_at_k(0.3, 0.3 * 0.7 / 2, KS) == pytest.approx(expected, abs=0.004)
    p = 1 / (1 + np.exp(1 - 2 * GRID))
    mean = float(WEIGHTS @ p)
    logit_normal = law.logit_normal_pass_at_k(mean, float(WEIGHTS @ p**2 - mean**2), KS)
    assert logit_normal == pytest.approx(on_grid(p), abs=2e-3)
    two = law.two_point_pass_at_k(0.3, 0.3 * 0.6 - 0.09, KS)
    assert two == pytest.approx([0.5 * (1 - 0.4**k) for k in KS])
    b = 0.96 / (1 + np.exp(-5 * GRID))
    mean = float(WEIGHTS @ b)
    assert law.fork_pass_at_k(mean, float(WEIGHTS @ b**2 - mean**2), KS) == pytest.approx(on_grid(b), abs=2e-3)
    for branches in (2, 4):
        p = 0.9 * law.path_points([3.0], branches)
        expected = law.law_pass_at_k(0.9, law.path_points([3.0], branches), KS)
        assert law.fork_pass_at_k(p.mean(), p.var(), KS, branches) == pytest.approx(expected, abs=2e-3)
