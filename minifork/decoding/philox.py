"""Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011), on torch integers.

Draws are a pure function of (seed, rollout, step, problem, purpose): no state, no order, any device.
(numpy's Philox is the 4x64 variant, another function.)
"""

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Ten rounds on four counter words, int64 tensors in [0, 2^32), under two key words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2^64; shift and mask read them as unsigned
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (((p1 >> 32) & _WORD) ^ c1 ^ k0, p1 & _WORD, ((p0 >> 32) & _WORD) ^ c3 ^ k1, p0 & _WORD)
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return [c0, c1, c2, c3]


def uniform(seed: int, rollout: Tensor, step: int, problem: Tensor, purpose: int) -> Tensor:
    """fp32[R] in [0, 1), multiples of 2^-24, one for each (rollout, problem) int64[R] pair at this step."""
    key = (seed & _WORD, (seed >> 32) & _WORD)
    counter = [rollout & _WORD, torch.full_like(rollout, step), problem & _WORD, torch.full_like(rollout, purpose)]
    return (philox4x32(counter, key)[0] >> 8).float() * 2.0**-24
