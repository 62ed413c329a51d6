"""Advantages by hand, by brute force and in expectation; how the loss averages tokens, by hand."""

import itertools
import math

import numpy as np
import pytest
import torch

from data_gen.walks import IGNORE
from minifork import config as configs
from minifork.training.reinforce import ADVANTAGES, group_loss, grpo_advantage, passk_advantage, sequence_kl


@pytest.mark.parametrize("n", [2, 5, 6])
def test_passk_is_the_mean_over_all_groups_of_k(n):
    """(best of the k - mean) / deviation, averaged over the subsets of k that hold the rollout. GRPO is k = 1."""
    for k, reward in itertools.product(range(1, n + 1), itertools.product((0.0, 1.0), repeat=n)):
        best = {subset: max(reward[i] for i in subset) for subset in itertools.combinations(range(n), k)}
        mean = np.mean([*best.values()])
        deviation = math.sqrt(mean * (1 - mean))
        with_rollout = [np.mean([value for subset, value in best.items() if i in subset]) for i in range(n)]
        expected = (np.array(with_rollout) - mean) / deviation if deviation > 1e-6 else np.zeros(n)
        for advantage in [passk_advantage, grpo_advantage][: 1 + (k == 1)]:
            np.testing.assert_allclose(advantage(torch.tensor([reward]), k)[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "right", "wrong"), [("centred", 2 / 3, -1 / 3), ("maxrl", 2.0, -1.0), ("grpo", 2**0.5, -(0.5**0.5))]
)
def test_advantages_by_hand(name, right, wrong):
    """One of three rollouts is right; none is; all are."""
    advantage = ADVANTAGES[name](torch.tensor([[0.0, 1, 0], [0, 0, 0], [1, 1, 1]]), 1)
    torch.testing.assert_close(advantage, torch.tensor([[wrong, right, wrong], [0, 0, 0], [0, 0, 0]]))


@pytest.mark.parametrize("n", [2, 3, 6])
@pytest.mark.parametrize("p", [0.03, 0.4, 0.9])
def test_expected_gradients_by_enumeration(n, p):
    """Over all outcomes of n rollouts that are right with probability p: the mean of A d log P(r)/dp.

    centred: (n - 1)/n of the derivative of pass@1. maxrl: the derivative of sum_{k<n} pass@k / k, not of n terms.
    """
    rewards = torch.tensor([*itertools.product((0.0, 1.0), repeat=n)], dtype=torch.float64)
    weights = (rewards * p + (1 - rewards) * (1 - p)).prod(dim=1)
    scores = rewards / p - (1 - rewards) / (1 - p)

    def expected(name: str) -> float:
        return float(weights @ (ADVANTAGES[name](rewards, 1) * scores).mean(dim=1))

    assert float(weights.sum()) == pytest.approx(1)
    assert expected("centred") == pytest.approx((n - 1) / n)
    assert expected("maxrl") == pytest.approx(sum((1 - p) ** (k - 1) for k in range(1, n)))


REDUCED = {  # the loss of two rollouts of 3 and 1 tokens, from the losses of their tokens
    "sequence_mean": lambda a, b, c, d: ((a + b + c) / 3 + d) / 2,
    "token_mean": lambda a, b, c, d: (a + b + c + d) / 4,
    "none": lambda a, b, c, d: (a + b + c + d) / 2,
}


@pytest.mark.parametrize("reduction", REDUCED)
@pytest.mark.parametrize("form", ["k3", "sequence"])
def test_reductions_by_hand(reduction, form):
    """Loss and gradient of two rollouts with advantages 2 and -.5. KL k3 is reduced alike, that of traces is not."""
    generator = torch.Generator().manual_seed(100)
    logits, anchor = (torch.randn(2, 4, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    targets = torch.tensor([[IGNORE, 4, 0, 2], [IGNORE, 3, IGNORE, IGNORE]])
    changes = {"rl.kl": 0.3, "rl.kl_form": form, "rl.reduction": reduction}
    plan = configs.with_changes(configs.load_config("star"), changes).rl
    advantage = torch.tensor([2, -0.5], dtype=torch.float64)
    loss = group_loss(logits.requires_grad_(), anchor, targets, advantage, plan)

    logp, reference = logits.log_softmax(dim=-1), anchor.log_softmax(dim=-1)
    places = [(0, 1, 4), (0, 2, 0), (0, 3, 2), (1, 1, 3)]
    tokens = [-float(advantage[row]) * logp[row, step, token] for row, step, token in places]
    if form == "k3":
        ratios = [reference[place] - logp[place] for place in places]
        tokens = [token + 0.3 * (ratio.exp() - ratio - 1) for token, ratio in zip(tokens, ratios, strict=True)]
    expected = REDUCED[reduction](*tokens)
    if form == "sequence":
        expected = expected + 0.3 * sequence_kl(logits, anchor, targets).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (loss, expected)))
