"""Add a decoder: locally typical sampling (Meister et al. 2023, arXiv 2202.00666). Its pass@k is exact at once.

make pretrain sft && .venv/bin/python examples/new_decoder.py
"""

import math
import sys

import torch
from torch import Tensor

from minifork.cli import main
from minifork.decoding.policy import STEPS, Step


def typical(logits: Tensor, value: float) -> Tensor:
    """Only the tokens whose surprise is nearest to the entropy, until their mass reaches ``value``; 1 keeps all."""
    if value >= 1:  # rounding must not cut the tail
        return logits
    logp = logits.log_softmax(dim=-1)
    surprise = -logp.where(torch.isfinite(logp), -1e4)
    entropy = (logp.exp() * surprise).sum(dim=-1, keepdim=True)
    order = (surprise - entropy).abs().sort(dim=-1, stable=True).indices
    p = logp.exp().gather(-1, order)
    late = p.cumsum(dim=-1) - p >= value
    late[..., 0] = False  # the first token stays, even if value is 0 in fp32
    outside = torch.zeros_like(late).scatter(-1, order, late)
    return logits.masked_fill(outside, -math.inf)


if __name__ == "__main__":
    # Registered in this process only: the subprocesses of a study do not know it. The comment at STEPS in
    # minifork/decoding/policy.py tells how to add a step for good.
    STEPS["typical"] = Step(typical, lambda v: 0 < v <= 1, "give a probability in (0, 1]")
    sys.exit(main(["eval", "eval.policy=typical=0.9", *sys.argv[1:]]))
