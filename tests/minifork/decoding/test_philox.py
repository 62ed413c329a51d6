"""Philox and draws from it, against known answers and their distributions.

Statistical tests have fixed seeds. Under the null, with seeds drawn anew, a KS p-value is below 1e-4 with
probability 1e-4, and |z| above 4.5 with probability 7e-6.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minifork.decoding.philox import philox4x32, uniform
from minifork.decoding.rollout import draw_token
from minifork.statistics import agreement
from tests.helpers.engines import KS_LEVEL, Z, chi_square_z

BELOW_1 = 1 - 2.0**-24


KNOWN_ANSWERS = [  # philox4x32-10 of the Random123 distribution (kat_vectors): counter, key, output
    "00000000 00000000 00000000 00000000  00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff  ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344  a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1",
]


@pytest.mark.parametrize("words", KNOWN_ANSWERS)
def test_philox_known_answers(words):
    """Word for word; `uniform` is made of the first one."""
    words = [int(word, 16) for word in words.split()]
    counter, key = [torch.tensor([word, 0]) for word in words[:4]], (words[4], words[5])
    assert [int(word[0]) for word in philox4x32(counter, key)] == words[6:]
    u = uniform(key[0] | key[1] << 32, counter[0], words[1], counter[2], words[3])
    assert u.dtype == torch.float32 and u[0].item() == (words[6] >> 8) / 2**24


def test_uniform_is_uniform_and_on_its_grid():
    n = 20_000
    ids = torch.arange(n)
    draws = [
        uniform(0, ids, 0, torch.zeros_like(ids), 0),  # over rollouts
        uniform(0, torch.zeros_like(ids), 3, ids, 0),  # over problems
        uniform(5, ids // 100, 2, ids % 100, 1),  # over both
    ]
    for u in draws:
        assert 0 <= u.min() and u.max() < 1
        assert torch.equal(u.double() * 2**24, torch.floor(u.double() * 2**24))
        assert agreement.ks_uniform(u.double().numpy()) > KS_LEVEL
    pairs = [(u[1:], u[:-1]) for u in draws] + list(itertools.combinations(draws, 2))
    assert all(abs(np.corrcoef(a.numpy(), b.numpy())[0, 1]) * math.sqrt(n) < Z for a, b in pairs)


def test_draw_on_exact_boundaries():
    """Each belongs to the token above it."""
    boundary = torch.tensor([0.0, 0.25, 0.5, 0.75])
    for u in (boundary, boundary + 0.25 - 2.0**-24):
        assert draw_token(torch.zeros(4, 4), u).tolist() == [0, 1, 2, 3]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.one_of(st.just(-math.inf), st.floats(-20, 20, width=32)), min_size=1, max_size=9).filter(
        lambda row: max(row) > -math.inf
    ),
    st.integers(0, 2**24 - 1),
)
def test_draw_never_draws_the_impossible(row, grid):
    weights = np.exp(np.array(row) - max(row))
    above = np.cumsum(weights) / weights.sum()
    for u in (0.0, grid / 2**24, BELOW_1):
        token = draw_token(torch.tensor([row]), torch.tensor([u])).item()
        assert row[token] > -math.inf
        assert above[token] - weights[token] / weights.sum() - 1e-6 <= u <= above[token] + 1e-6
        assert u > 0 or token == np.flatnonzero(weights)[0]


def test_draw_has_the_right_frequencies():
    logits, n = torch.tensor([0.3, -1.0, -math.inf, 2.0, 0.0, 1.1, -3.0]), 100_000
    ids = torch.arange(n)
    tokens = draw_token(logits.expand(n, 7), uniform(11, ids, 0, torch.zeros_like(ids), 0))
    counts = np.bincount(tokens.numpy(), minlength=7)
    expected = n * torch.softmax(logits.double(), dim=0).numpy()
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert counts[2] == 0 and abs(chi_square_z(chi_square, 5)) < Z
