"""Reinforcement learning with verifiable rewards: rollouts of the current model, rewarded by their DFA.

GRPO (arXiv 2402.03300) without clipping: every update uses fresh rollouts once, so its ratios are 1. For a group of n
rollouts o_i of one problem with rewards r and advantages A(r), and pi_ref the *reference*, the model at the start,

    loss = - mean_i [ 1/|o_i| sum_t A_i log pi(o_it) ] + kl D

`rl.reduction` chooses how tokens are averaged. sequence_mean: as above. token_mean: the sum over all tokens of the
update, divided by their number (DAPO, arXiv 2503.14476). none: mean_i [ sum_t A_i log pi(o_it) ], the policy gradient
itself (Dr. GRPO, arXiv 2503.20783). In one update token_mean is none divided by the mean length of the rollouts.

`rl.kl_form` chooses D. sequence: KL(pi || pi_ref) of whole traces, with an unbiased gradient (`sequence_kl`). k3: the
form of arXiv 2402.03300, D = mean_i [ 1/|o_i| sum_t (pi_ref/pi - log(pi_ref/pi) - 1)(o_it) ]. Its gradient is that of
KL(pi_ref || pi) of single tokens, at prefixes sampled from pi and weighted by 1/|o_i| (arXiv 2510.01555, 2512.21852).
The tokens of k3 are averaged as `rl.reduction` says.

The published code of arXiv 2605.17026 has token_mean, k3 and rollouts with `rl.policy` top_p=0.999
(src/training/nano_r1_fsdp.py).

Where all right traces of a problem can be listed, p_i is a differentiable function of the weights. The policy gradient
of pass@k then needs no samples: `exact_objective`. `minifork.training.gradients` has what every other objective follows
in expectation.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from data_gen import streams
from data_gen.accepted import accepted_traces
from data_gen.task import PAD, Batch, Task
from data_gen.walks import IGNORE
from minifork import measure
from minifork.decoding.policy import Policy, parse_policy
from minifork.gpt import GPT
from minifork.gpu.backends import sample
from minifork.measuring.problems import problem_set
from minifork.schema import RL, Config
from minifork.training.loop import Objective
from minifork.training.losses import sequence_logp, token_logp

FREE = "free"
MOST_TRACES = 64  # right traces of a problem that are listed: more cost more than as many rollouts
RL_POOL_STEP = 10**6  # fresh problems come from this step of the training stream; fine-tuning uses lower steps


def grpo_advantage(reward: Tensor, k: int = 1) -> Tensor:
    """(r - mean) / std over each group, float[B, n]; 0 where all rewards of a group are equal.

    k is not used. Every entry of ADVANTAGES takes the same arguments.
    """
    spread = reward.std(dim=1, keepdim=True, correction=0)
    return torch.where(spread > 0, (reward - reward.mean(dim=1, keepdim=True)) / spread.clamp(min=1e-6), 0.0)


def centred_advantage(reward: Tensor, k: int = 1) -> Tensor:
    """r - mean over each group, float[B, n]: without the division by the deviation (Dr. GRPO, arXiv 2503.20783).

    With `rl.reduction` none and n rollouts the expected gradient is (n - 1)/n times that of pass@1. k is not used.
    """
    return reward - reward.mean(dim=1, keepdim=True)


def maxrl_advantage(reward: Tensor, k: int = 1) -> Tensor:
    """(r - mean) / mean over each group, float[B, n]; 0 where no rollout is right (MaxRL, arXiv 2602.02710).

    With `rl.reduction` none and n rollouts the expected gradient is that of sum_{k=1}^{n-1} pass@k / k, which is the
    series of log p after n - 1 terms, up to a constant. (r / mean would give n terms.) k is not used.
    """
    mean = reward.mean(dim=1, keepdim=True)
    return torch.where(mean > 0, (reward - mean) / mean.clamp(min=1e-6), 0.0)


def passk_advantage(reward: Tensor, k: int) -> Tensor:
    """The advantage when k <= n of a group's n rollouts are judged by the best of them, float[B, n].

    The analytical form of Chen et al. 2025 (arXiv 2508.10751): with w wrong rollouts the mean reward is
    R = 1 - C(w, k)/C(n, k), its deviation s = sqrt(R (1 - R)). Right rollouts get (1 - R)/s, wrong ones
    (1 - R - C(w-1, k-1)/C(n-1, k-1))/s. 0 where s is 0.
    """
    n = reward.shape[1]
    mean = 1 - np.array([math.comb(w, k) / math.comb(n, k) for w in range(n + 1)])
    rest_wrong = np.array([math.comb(max(w - 1, 0), k - 1) / math.comb(n - 1, k - 1) for w in range(n + 1)])
    spread = np.sqrt(mean * (1 - mean))
    scale = np.divide(1, spread, out=np.zeros(n + 1), where=spread > 1e-9)
    # Row 0 is for wrong rollouts, row 1 for right ones; column w is for groups with w wrong rollouts.
    by_wrong = np.stack([(1 - mean - rest_wrong) * scale, (1 - mean) * scale])
    table = torch.as_tensor(by_wrong, dtype=torch.float32, device=reward.device)
    return table[(reward > 0).long(), (reward == 0).sum(dim=1, keepdim=True)]


def passk_sampled_advantage(reward: Tensor, k: int) -> Tensor:
    """GRPO's advantage of the best of every k rollouts in turn, which all k get, float[B, n]; k divides n.

    The form of Chen et al. 2025 (arXiv 2508.10751) that samples subgroups, instead of averaging over all of them.
    """
    best = reward.unflatten(1, (-1, k)).amax(dim=2)
    return grpo_advantage(best).repeat_interleave(k, dim=1)


ADVANTAGES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "grpo": grpo_advantage,
    "centred": centred_advantage,
    "maxrl": maxrl_advantage,
    "passk": passk_advantage,
    "passk_sampled": passk_sampled_advantage,
}


def rollout_policy(config: Config) -> Policy:
    """The decode policy of rollouts; raises ValueError naming the step of rl.policy that is wrong."""
    try:
        return parse_policy(config.rl.policy)
    except ValueError as error:
        raise ValueError(f"rl.policy: {error}") from None


@lru_cache(maxsize=2)
def _pool(task: Task, seed: int, count: int, source: str) -> Batch:
    """The rl.problems problems to learn from: the first of fine-tuning's epoch 0, or a draw of the same stream anew.

    A small task has so few graphs that the new draw repeats some of fine-tuning's. Those of fine-tuning are as drawn:
    with a fork, and without a cue to it (`data_gen.streams.sft_examples`).
    """
    return streams.training_problems(task, seed, count, 0 if source == "sft" else RL_POOL_STEP)


def problems_of(config: Config, step: int) -> Batch:
    """The rl.prompts problems of an update, from a fixed pool that is shuffled anew for every pass over it."""
    settings = config.rl
    passes, places = np.divmod(np.arange(step * settings.prompts, (step + 1) * settings.prompts), settings.problems)
    rows = np.empty_like(places)
    for number in np.unique(passes):
        rng = streams.generator(config.seed, "train", RL_POOL_STEP + 1 + int(number), "shuffle")
        rows[passes == number] = rng.permutation(settings.problems)[places[passes == number]]
    return _pool(config.data, config.seed, settings.problems, settings.source)[rows]


def group_objective(config: Config, reference: GPT, device: str) -> Objective:
    """Policy gradient with group advantages from sampled rollouts; rl.mode forces the mode token or leaves it free.

    reference: the model at the start.
    """
    settings, task, policy = config.rl, config.data, rollout_policy(config)

    def update(model: GPT, step: int) -> tuple[Tensor, int, dict[str, Tensor]]:
        batch = problem_set(task, problems_of(config, step), device)
        tree = measure.trace_tree(model, batch, policy)
        # Problems have other ids in every update, so that no two updates share random numbers.
        tree = replace(tree, ids=tree.ids + step * settings.prompts)
        if settings.mode != FREE:
            tree = measure.force_mode(tree, task, settings.mode)
        traces = sample(tree, settings.group, config.seed, traces=True).traces
        assert traces is not None
        reward = (traces.outcome == 0).float()
        advantage = ADVANTAGES[settings.advantage](reward, settings.k)
        inputs, targets = training_pairs(batch.prompts, traces.tokens, task.eos, tree.forced_len)
        at_targets = (targets != IGNORE).cpu()
        logits = model(inputs, at_targets)
        with torch.no_grad():
            reference_logits = reference(inputs, at_targets)
        loss = group_loss(logits, reference_logits, targets, advantage.flatten(), settings)
        return loss, inputs.numel(), group_metrics(logits, reference_logits, targets, reward, advantage)

    return update


def group_loss(logits: Tensor, reference_logits: Tensor, targets: Tensor, advantage: Tensor, settings: RL) -> Tensor:
    """The loss at the top of this file, a scalar, of N rollouts with advantages float[N].

    logits, reference_logits, targets: as in `sequence_kl`. settings: the config's rl section; kl, kl_form and
    reduction are used.
    """
    present = targets != IGNORE
    logp = token_logp(logits, targets)
    per_token = -advantage[:, None] * logp
    if settings.kl_form == "sequence":
        kl = sequence_kl(logits, reference_logits, targets).mean()
        return reduced(per_token, present, settings.reduction) + settings.kl * kl
    ratio = token_logp(reference_logits, targets) - logp
    return reduced(settings.kl * (ratio.exp() - ratio - 1) + per_token, present, settings.reduction)


def reduced(per_token: Tensor, present: Tensor, reduction: str) -> Tensor:
    """The tokens' losses float[N, T], where ``present`` bool[N, T], as one scalar by `rl.reduction` (see the top)."""
    sums, lengths = (per_token * present).sum(dim=1), present.sum(dim=1)
    if reduction == "sequence_mean":
        return (sums / lengths.clamp(min=1)).mean()
    return sums.sum() / lengths.sum().clamp(min=1) if reduction == "token_mean" else sums.mean()


def sequence_kl(logits: Tensor, reference_logits: Tensor, targets: Tensor) -> Tensor:
    """An estimate of KL(pi || pi_ref) of whole traces from each of N traces sampled from pi, float[N] in nats.

    Its value and its gradient are unbiased. logits, reference_logits: float[N, T, V], the next-token logits of pi and
    of pi_ref. targets: int64[N, T], the sampled tokens, IGNORE elsewhere. Places without a target, such as forced
    tokens, do not count. With KL_t the divergence of the next token at t, summed over the vocabulary,

        KL = E sum_t KL_t        grad KL = E sum_t [ grad KL_t + (sum_{s > t} KL_s) grad log pi(o_t) ]

    The second term of the gradient is due to the prefixes, which are sampled from pi too. Its value here is 0, as its
    factor log pi(o_t) has its own value subtracted. The estimator is Rao-Blackwellised (Amini et al. 2025, arXiv
    2504.10637): it varies less than one from log-ratios.
    """
    present = targets != IGNORE
    logp = logits.log_softmax(dim=-1)
    kl = (logp.exp() * (logp - reference_logits.log_softmax(dim=-1))).sum(dim=-1) * present
    later_kl = (kl.sum(dim=1, keepdim=True) - kl.cumsum(dim=1)).detach() * present
    target_logp = logp.gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return (kl + later_kl * (target_logp - target_logp.detach())).sum(dim=1)


@torch.no_grad()
def group_metrics(
    logits: Tensor, reference_logits: Tensor, targets: Tensor, reward: Tensor, advantage: Tensor
) -> dict[str, Tensor]:
    """The metrics of an update, fp32 scalars by name, from rewards and advantages float[B, n].

    reward: the share of accepted rollouts. kl: the mean of `sequence_kl`, in nats a trace. signal: the share of
    groups with an advantage other than 0, without which there is nothing to learn (in grpo: groups with both right and
    wrong rollouts). entropy: of the next token, in nats, averaged over all sampled tokens.
    """
    present, logp = targets != IGNORE, logits.log_softmax(dim=-1)
    entropy = -(logp.exp() * logp).sum(dim=-1) * present
    return {
        "reward": reward.mean(),
        "kl": sequence_kl(logits, reference_logits, targets).mean(),
        "signal": advantage.any(dim=1).float().mean(),
        "entropy": entropy.sum() / present.sum().clamp(min=1),
    }


def exact_objective(config: Config, device: str) -> Objective:
    """-mean_i [1 - (1 - p_i)^k], p_i the sum over the problem's right traces, differentiated through the model.

    This is the policy gradient of pass@k without variance. It logs the reward, the mean of p_i; there are no rollouts
    and no KL.
    """
    settings, task, forced_len = config.rl, config.data, int(config.rl.mode != FREE)

    def update(model: GPT, step: int) -> tuple[Tensor, int, dict[str, Tensor]]:
        problems = problems_of(config, step)
        prompts = torch.from_numpy(task.prompts(problems)).to(device)
        tokens = torch.from_numpy(right_traces(config, problems)).to(device)
        inputs, targets = training_pairs(prompts, tokens, task.eos, forced_len)
        logp = sequence_logp(model(inputs, (targets != IGNORE).cpu()), targets).view(tokens.shape[:2])
        logp = logp.masked_fill(tokens[:, :, 0] == PAD, -math.inf)
        p = logp.double().exp().sum(dim=1).clamp(max=1 - 1e-9)
        loss = torch.expm1(settings.k * torch.log1p(-p)).mean().float()
        return loss, inputs.numel(), {"reward": p.detach().mean().float()}

    return update


def right_traces(config: Config, problems: Batch) -> np.ndarray:
    """int64[n, R, trace_len]: all right traces that begin as rl.mode says, PAD past the end and in unused rows.

    Raises ValueError if a problem has more than MOST_TRACES.
    """
    dfa = config.data.dfa(problems)
    if config.rl.mode != FREE:
        table, token = dfa.next.copy(), config.data.first_tokens[config.rl.mode]
        table[:, 0, np.arange(table.shape[2]) != token] = table.shape[1] - 1  # the last outcome
        dfa = replace(dfa, next=table)
    try:
        return accepted_traces(dfa, config.data.trace_len, MOST_TRACES)
    except ValueError as error:
        advice = "choose another rl.advantage, or a task with fewer"
        raise ValueError(f"{config.task}: {error}, and the exact gradient lists them all; {advice}") from None


def training_pairs(prompts: Tensor, traces: Tensor, pad_token: int, forced_len: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets int64[B n, P + T - 1] of traces int64[B, n, T] (PAD past the end) after prompts int64[B, P].

    Targets are the traces' tokens after the first ``forced_len``, IGNORE elsewhere. Inputs have ``pad_token`` for PAD.
    """
    count, n, length = traces.shape
    tokens = torch.cat([prompts.repeat_interleave(n, dim=0), traces.reshape(count * n, length)], dim=1)
    targets = tokens[:, 1:].clone()
    targets[:, : prompts.shape[1] - 1 + forced_len] = IGNORE
    return tokens.where(tokens != PAD, pad_token)[:, :-1], targets
