"""Add a decoder: locally typical sampling (Meister et al. 2023, arXiv 2202.00666). Its pass@k is exact at once.

make pretrain sft && .venv/bin/python examples/new_decoder.py
"""

import math
import sys

import torch
from torch import Tensor

from minifork.cli import main
from minifork.decoding.policy import STEPS


def typical(logits: Tensor, value: float) -> Tensor:
    """Keep the tokens whose surprise is nearest to the entropy, until their mass reaches ``value``."""
    logp = logits.log_softmax(dim=-1)
    surprise = -logp.where(torch.isfinite(logp), -1e4)
    entropy = (logp.exp() * surprise).sum(dim=-1, keepdim=True)
    order = (surprise - entropy).abs().sort(dim=-1, stable=True).indices
    p = logp.exp().gather(-1, order)
    outside = torch.zeros_like(p, dtype=torch.bool).scatter(-1, order, p.cumsum(dim=-1) - p >= value)
    return logits.masked_fill(outside, -math.inf)


if __name__ == "__main__":
    STEPS["typical"] = (typical, lambda v: 0 < v <= 1, "give a probability in (0, 1]")
    sys.exit(main(["eval", "eval.policy=typical=0.9", *sys.argv[1:]]))
