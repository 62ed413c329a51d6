"""Anchoring: where a reference model is undecided, fine-tuning keeps the reference's distribution.

At a fork nothing visible decides the branch. A trace shows one branch all the same, and cross-entropy makes the model
sure of it. Anchoring replaces the target there. The *reference* is the run's own snapshot after an early epoch, or the
base. The reference is *undecided* where the entropy of its next token is above a threshold. There the target is not the
trace's token but

    renormalised   the reference's probabilities of its tokens with p >= min_p max p, renormalised
    uniform        the same tokens, all with the same probability
    mask           nothing: the token is left out of the loss (a control)

Everywhere else, and before the reference exists, the loss is cross-entropy. `minifork.schema.Anchor` is the notation of
`sft.anchor`. The price is a second model in memory and its forward pass in every step.

EKSFT (arXiv 2605.29303) masks tokens of high entropy in fine-tuning. SED-SFT (arXiv 2602.07464) adds an entropy bonus
at selected tokens. Learning without Forgetting (arXiv 1606.09282) distils the model from before training, everywhere.
We know of no work whose target is a run's own early snapshot, at undecided tokens only.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from data_gen.walks import IGNORE
from minifork.gpt import GPT
from minifork.schema import Anchor
from minifork.training.loop import BatchAt, Objective


def anchored(batch_at: BatchAt, anchor: Anchor, reference: Callable[[], GPT], device: str) -> Objective:
    """The objective of `anchored_loss` on batches: batch_at(step) gives inputs and targets int64[B, T].

    reference: called once, when a process takes its first step.
    """
    load_once = lru_cache(reference)

    def objective(model: GPT, step: int) -> tuple[Tensor, int, dict[str, Tensor]]:
        inputs, targets = (torch.from_numpy(array) for array in batch_at(step))
        mask, inputs = targets != IGNORE, inputs.to(device)
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device == "cuda"):
            with torch.no_grad():
                reference_logits = load_once()(inputs, mask)
            loss = anchored_loss(model(inputs, mask), reference_logits, targets.to(device), anchor)
        return loss, inputs.numel(), {}

    return objective


def anchored_loss(logits: Tensor, reference_logits: Tensor, targets: Tensor, anchor: Anchor) -> Tensor:
    """Cross-entropy in nats with the targets of this module, a scalar in fp32: the mean over all tokens that have one.

    logits, reference_logits: float[B, T, V]; targets: int64[B, T], IGNORE where there is none. Raises ValueError when a
    mask leaves no token.
    """
    present = targets != IGNORE
    goal = F.one_hot(targets[present], logits.shape[-1]).float()
    p = reference_logits[present].float().softmax(dim=-1)
    undecided = torch.special.entr(p).sum(dim=-1) > anchor.entropy
    if not anchor.mode:
        undecided &= (present.cumsum(dim=1) > 1)[present]
    nll = -logits[present].float().log_softmax(dim=-1)
    if anchor.target == "mask":
        if undecided.all():
            raise ValueError(f"sft.anchor is {str(anchor)!r}: it masks every token of a batch; give a larger entropy")
        return (nll * goal).sum(dim=-1)[~undecided].mean()
    likely = (p >= anchor.min_p * p.amax(dim=-1, keepdim=True)).float()
    support = likely if anchor.target == "uniform" else likely * p
    goal = torch.where(undecided[:, None], support / support.sum(dim=-1, keepdim=True), goal)
    return (nll * goal).sum(dim=-1).mean()
