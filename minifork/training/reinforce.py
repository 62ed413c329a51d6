"""Reinforcement learning with verifiable rewards: rollouts of the current model, rewarded by their DFA.

GRPO (arXiv 2402.03300) without clipping: every update uses fresh rollouts once, so its ratios are 1. For a group of n
rollouts o_i of one problem with rewards r and advantages A(r), and pi_0 the model that training started from,

    loss = - mean_i [ 1/|o_i| sum_t A_i log pi(o_it) ] + kl D

`rl.kl_form` says what D is. sequence: KL(pi || pi_0) of whole traces, with an unbiased gradient (`sequence_kl`).
k3: the form of arXiv 2402.03300, D = mean_i [ 1/|o_i| sum_t (pi_0/pi - log(pi_0/pi) - 1)(o_it) ]. Its gradient is that
of KL(pi_0 || pi) of single tokens, at prefixes drawn from pi and weighted by 1/|o_i| (arXiv 2510.01555, 2512.21852).

Where every accepted trace can be written down, p_i is a differentiable function of the weights, and the policy
gradient of pass@k needs no samples: `exact_objective`.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from data_gen import streams
from data_gen.task import PAD, Problems, Task
from data_gen.walks import IGNORE
from minifork import measure
from minifork.decoding.policy import Policy
from minifork.gpt import GPT
from minifork.gpu.backends import sample
from minifork.measuring.problems import problem_set
from minifork.schema import RL, Config
from minifork.training.loop import Objective
from minifork.training.losses import sequence_logp, token_logp

FREE = "free"
POOL_STEP = 10**6  # of the training stream, far from the steps that fine-tuning draws from
PATIENCE = 50  # updates without any signal before it is said


def grpo_advantage(reward: Tensor, k: int = 1) -> Tensor:
    """(r - mean) / std over each group, float[B, n]; 0 where all rewards of a group are equal."""
    spread = reward.std(dim=1, keepdim=True, correction=0)
    return torch.where(spread > 0, (reward - reward.mean(dim=1, keepdim=True)) / spread.clamp(min=1e-6), 0.0)


def passk_advantage(reward: Tensor, k: int) -> Tensor:
    """The advantage when k of a group's n rollouts are judged by the best of them, float[B, n].

    The analytical form of Chen et al. 2025 (arXiv 2508.10751): with w wrong rollouts the mean reward is
    R = 1 - C(w, k)/C(n, k), its deviation s = sqrt(R (1 - R)); right rollouts get (1 - R)/s, wrong ones
    (1 - R - C(w-1, k-1)/C(n-1, k-1))/s. 0 where s is 0. Raises ValueError for k > n.
    """
    n = reward.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"rl.k is {k}: of a group of {n} it can be 1 to {n}")
    mean = 1 - np.array([math.comb(wrong, k) / math.comb(n, k) for wrong in range(n + 1)])
    with_one_wrong = [math.comb(max(wrong - 1, 0), k - 1) / math.comb(n - 1, k - 1) for wrong in range(n + 1)]
    spread = np.sqrt(mean * (1 - mean))
    scale = np.divide(1, spread, out=np.zeros(n + 1), where=spread > 1e-9)
    right, wrong_one = (1 - mean) * scale, (1 - mean - np.array(with_one_wrong)) * scale
    count = (reward == 0).sum(dim=1)
    table = torch.as_tensor(np.stack([wrong_one, right]), dtype=torch.float32, device=reward.device)
    return torch.where(reward > 0, table[1][count, None], table[0][count, None])


ADVANTAGES: dict[str, Callable[[Tensor, int], Tensor]] = {"grpo": grpo_advantage, "passk": passk_advantage}


def objective(config: Config, reference: GPT, device: str, say: Callable[[str], None] = print) -> Objective:
    """What `minifork.training.loop.fit` minimises in the config's kind of RL; say: where warnings go."""
    if config.rl.advantage == "exact":
        return exact_objective(config, device)
    return group_objective(config, reference, device, say)


@lru_cache(maxsize=2)
def _pool(task: Task, seed: int, count: int) -> Problems:
    """The problems to learn from, of the training stream, drawn apart from those of fine-tuning."""
    return streams.training_problems(task, seed, count, POOL_STEP)


def problems_of(config: Config, step: int) -> Problems:
    """The problems of an update: a fixed pool, shuffled anew for every pass over it."""
    plan = config.rl
    passes, places = np.divmod(np.arange(step * plan.prompts, (step + 1) * plan.prompts), plan.problems)
    chosen = np.empty_like(places)
    for number in np.unique(passes):
        rng = streams.generator(config.seed, "train", POOL_STEP + 1 + int(number), "shuffle")
        chosen[passes == number] = rng.permutation(plan.problems)[places[passes == number]]
    return _pool(config.data, config.seed, plan.problems)[chosen]


def group_objective(config: Config, reference: GPT, device: str, say: Callable[[str], None] = print) -> Objective:
    """Policy gradient with group advantages from sampled rollouts; rl.mode forces the mode token or leaves it free."""
    plan, task, barren = config.rl, config.data, 0

    def update(model: GPT, step: int) -> tuple[Tensor, int, dict[str, Tensor]]:
        nonlocal barren
        batch = problem_set(task, problems_of(config, step), device)
        tree = measure.trace_tree(model, batch, Policy())
        tree = replace(tree, ids=tree.ids + step * plan.prompts)  # draws of their own for every update
        tree = tree if plan.mode == FREE else measure.force_mode(tree, task, plan.mode)
        traces = sample(tree, plan.group, config.seed, traces=True).traces
        assert traces is not None
        reward = (traces.outcome == 0).float()
        advantage = ADVANTAGES[plan.advantage](reward, plan.k)
        barren = 0 if bool(advantage.any()) else barren + 1
        if barren == PATIENCE:
            say(f"no group had both right and wrong rollouts for {PATIENCE} updates: there is nothing to learn from")

        inputs, targets = sequences(batch.prompts, traces.tokens, task.eos, tree.forced_len)
        wanted = (targets != IGNORE).cpu()
        logits = model(inputs, wanted)
        with torch.no_grad():
            anchor = reference(inputs, wanted)
        loss = group_loss(logits, anchor, targets, advantage.flatten(), plan)
        return loss, inputs.numel(), group_metrics(logits, anchor, targets, reward, advantage)

    return update


def group_loss(logits: Tensor, anchor: Tensor, targets: Tensor, advantage: Tensor, plan: RL) -> Tensor:
    """The loss at the top of this file, a scalar, of N rollouts with advantages float[N].

    logits, anchor, targets: as `sequence_kl` takes them; plan: its kl and kl_form count.
    """
    present = targets != IGNORE
    logp = token_logp(logits, targets)
    each = -advantage[:, None] * logp
    if plan.kl_form == "k3":
        ratio = token_logp(anchor, targets) - logp
        each = plan.kl * (ratio.exp() - ratio - 1) + each
    loss = ((each * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)).mean()
    return loss if plan.kl_form == "k3" else loss + plan.kl * sequence_kl(logits, anchor, targets).mean()


def sequence_kl(logits: Tensor, anchor: Tensor, targets: Tensor) -> Tensor:
    """From each of N traces drawn from pi an estimate of KL(pi || pi_0) of whole traces, float[N] in nats.

    Its value and its gradient are unbiased. logits and anchor: float[N, T, V], the next-token logits of pi and pi_0;
    targets: int64[N, T], the drawn tokens, IGNORE elsewhere. Places without a target, such as forced tokens, do not
    count. With KL_t the divergence of the next token at t, summed over the vocabulary,

        KL = E sum_t KL_t        grad KL = E sum_t [ grad KL_t + (sum_{s > t} KL_s) grad log pi(o_t) ]

    The second term is there because the prefixes are drawn from pi as well; here its value is 0. After the
    Rao-Blackwellised estimators of Amini et al. 2025 (arXiv 2504.10637), which vary less than those from log-ratios.
    """
    present = targets != IGNORE
    logp = logits.log_softmax(dim=-1)
    each = (logp.exp() * (logp - anchor.log_softmax(dim=-1))).sum(dim=-1) * present
    later = (each.sum(dim=1, keepdim=True) - each.cumsum(dim=1)).detach() * present
    drawn = logp.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return (each + later * (drawn - drawn.detach())).sum(dim=1)


@torch.no_grad()
def group_metrics(
    logits: Tensor, anchor: Tensor, targets: Tensor, reward: Tensor, advantage: Tensor
) -> dict[str, Tensor]:
    """What an update logs beside its loss, fp32 scalars, from rewards and advantages float[B, n].

    reward: the share of accepted rollouts. kl: the mean of `sequence_kl`, in nats a trace. signal: the share of
    groups in which some advantage is not 0 (of grpo, those with both right and wrong rollouts). entropy: that of the
    next token, in nats, the mean over all drawn tokens.
    """
    present, logp = targets != IGNORE, logits.log_softmax(dim=-1)
    entropy = -(logp.exp() * logp).sum(dim=-1) * present
    return {
        "reward": reward.mean(),
        "kl": sequence_kl(logits, anchor, targets).mean(),
        "signal": advantage.any(dim=1).float().mean(),
        "entropy": entropy.sum() / present.sum().clamp(min=1),
    }


def exact_objective(config: Config, device: str) -> Objective:
    """-mean_i [1 - (1 - p_i)^k], p_i the sum over the problem's accepted traces, differentiated through the model.

    The policy gradient of pass@k without variance, where every mode has one accepted trace (SEARCH has more). It logs
    the reward, the mean of p_i; there are no rollouts and no KL.
    """
    plan, task = config.rl, config.data
    modes = task.mode_names if plan.mode == FREE else (plan.mode,)
    forced = int(plan.mode != FREE)

    def update(model: GPT, step: int) -> tuple[Tensor, int, dict[str, Tensor]]:
        problems = problems_of(config, step)
        prompts = torch.from_numpy(task.prompts(problems)).to(device)
        traces = [task.traces(problems, np.full(len(problems), task.mode_names.index(mode))) for mode in modes]
        tokens = torch.from_numpy(np.stack(traces, axis=1)).to(device)
        inputs, targets = sequences(prompts, tokens, task.eos, forced)
        logp = sequence_logp(model(inputs, (targets != IGNORE).cpu()), targets).view(len(problems), len(modes))
        p = logp.double().exp().sum(dim=1).clamp(max=1 - 1e-9)
        loss = torch.expm1(plan.k * torch.log1p(-p)).mean().float()
        return loss, inputs.numel(), {"reward": p.detach().mean().float()}

    return update


def sequences(prompts: Tensor, traces: Tensor, filler: int, skip: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets int64[B n, P + T - 1] of traces int64[B, n, T] (PAD past the end) after prompts int64[B, P].

    Targets are the traces' tokens but for the first ``skip`` (forced ones), IGNORE elsewhere.
    """
    count, n, length = traces.shape
    tokens = torch.cat([prompts.repeat_interleave(n, dim=0), traces.reshape(count * n, length)], dim=1)
    targets = tokens[:, 1:].clone()
    targets[:, : prompts.shape[1] - 1 + skip] = IGNORE
    return tokens.where(tokens != PAD, filler)[:, :-1], targets
