"""Add a loss: the focal loss (Lin et al. 2017, arXiv 1708.02002), which cares less for tokens that are already likely.

make pretrain && .venv/bin/python examples/new_loss.py sft.fork_rate=1 && make eval
"""

import sys

from torch import Tensor

from data_gen.walks import IGNORE
from minifork.cli import main
from minifork.training.losses import LOSSES, token_logp


def focal(logits: Tensor, targets: Tensor, value: float) -> Tensor:
    """-(1 - p)^value log p(target), the mean over targets; value 0 is cross-entropy."""
    logp = token_logp(logits, targets)[targets != IGNORE]
    return -((1 - logp.exp()).clamp(min=0) ** value * logp).mean()


if __name__ == "__main__":
    # Registered in this process only: the subprocesses of a study do not know it. The docstring of
    # minifork/training/losses.py tells how to add a loss for good.
    LOSSES["focal"] = (focal, lambda v: 0 <= v < 100, "give an exponent, 0 or more")
    sys.exit(main(["sft", "sft.loss=focal=2", *sys.argv[1:]]))
