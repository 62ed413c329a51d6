"""The update that an RL objective makes on average, its noise, and gradients of KL, exact where traces can be listed.

Every rollout o of a problem has an advantage A(r) that depends on the rewards r of its group. An update is the mean
over problems of sum_j x_j grad log pi(o_j), where x_j is A_j times the weight that `rl.reduction` gives to rollout j of
N. With reduction none (x_j = A_j / N) the expected update of a problem with p = P(right) is w_N(p) grad p, where of the
N - 1 other rollouts C are right,

    w_N(p) = E[ A of a right rollout of C + 1 - A of a wrong one of C ],    C binomial(N - 1, p).

w_N is a polynomial in p, so the update climbs its antiderivative (docs/rl.md). LIMITS has its limit as N grows. With
sequence_mean x_j is divided by the length of the rollout, and right and wrong traces of other lengths weigh
differently. With token_mean it is divided by the lengths of all rollouts of the update.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from data_gen.task import Batch
from minifork.gpt import GPT
from minifork.schema import RL, Config
from minifork.statistics.passk import log_choose
from minifork.training.reinforce import ADVANTAGES
from minifork.training.trace_space import TraceSpace, trace_space

NOTHING = 1e-5  # relative length below which a gradient is rounding error
SMALLEST = 1e-9  # p is kept this far from 0 and 1, where limits of w_N have poles


def _arcsin_slope(p: Tensor, k: int) -> Tensor:
    """The derivative by p of (2/k) arcsin sqrt(pass@k)."""
    p = p.clamp(SMALLEST, 1 - SMALLEST)
    miss = (1 - p) ** k
    return (1 - p) ** (k - 1) / ((1 - miss) * miss).sqrt()


# What each advantage climbs as groups grow: its name, and its derivative by p as a function of p and k.
LIMITS: dict[str, tuple[str, Callable[[Tensor, int], Tensor]]] = {
    "grpo": ("2 arcsin sqrt(pass@1)", lambda p, k: _arcsin_slope(p, 1)),
    "centred": ("pass@1", lambda p, k: torch.ones_like(p)),
    "maxrl": ("log pass@1", lambda p, k: 1 / p.clamp(min=SMALLEST)),
    "passk": ("(2/k) arcsin sqrt(pass@k)", _arcsin_slope),
    "passk_sampled": ("(2/k) arcsin sqrt(pass@k)", _arcsin_slope),
    "exact": ("pass@k", lambda p, k: k * (1 - p) ** (k - 1)),
}


def mean_advantage(settings: RL, p: Tensor) -> tuple[Tensor, Tensor]:
    """The expected advantage of a wrong and of a right rollout, float64[n] each, at P(right) float64[n].

    settings: advantage, k and group are used. w_N(p) is the second minus the first. Advantage exact has no rollouts:
    the first is 0, the second the derivative of pass@k.
    """
    if settings.advantage == "exact":
        return torch.zeros_like(p), LIMITS["exact"][1](p, settings.k)
    if settings.advantage == "passk_sampled":  # GRPO on samples of k rollouts, of which k - 1 are others
        best = replace(settings, advantage="grpo", group=settings.group // settings.k)
        miss = (1 - p) ** (settings.k - 1)
        wrong, right = mean_advantage(best, 1 - (1 - p) ** settings.k)
        return miss * wrong + (1 - miss) * right, right
    rest = settings.group - 1
    rewards = torch.ones(rest + 2, rest + 1, dtype=torch.float64).tril(-1)  # in row c the first c are right
    advantage = ADVANTAGES[settings.advantage](rewards, settings.k).double()
    c, p = torch.arange(rest + 1), p.clamp(SMALLEST, 1 - SMALLEST)[:, None]
    log_ways = torch.from_numpy(log_choose(rest, np.arange(rest + 1)))
    chance = (log_ways + c * p.log() + (rest - c) * torch.log1p(-p)).exp()
    return chance @ advantage[:-1, -1], chance @ advantage[1:, 0]


def rollout_factors(settings: RL, reward: Tensor, length: Tensor) -> Tensor:
    """x_j of the rollouts of G updates, float64[n, G, N], from their rewards and lengths, alike.

    It is minus n times the derivative of `minifork.training.reinforce.group_loss` by log pi(o_j).
    """
    advantage = ADVANTAGES[settings.advantage](reward.flatten(0, 1), settings.k).double().view_as(reward)
    if settings.reduction == "sequence_mean":
        return advantage / length / reward.shape[2]
    if settings.reduction == "token_mean":
        return advantage * len(reward) / length.sum(dim=(0, 2), keepdim=True)
    return advantage / reward.shape[2]


class Updates:
    """Sampled updates on the problems of a trace space, shared by all objectives, and what they are on average.

    p: float64[n, R, T, V], the probabilities of traces. traces: int64[n, G, N], the rollouts of G updates by their flat
    place in [R, T, V]. An objective with smaller groups uses the first of N.
    """

    def __init__(self, space: TraceSpace, p: Tensor, count: int, group: int) -> None:
        self.space, self.p = space, p
        cumulative = p.flatten(1).cumsum(dim=1)
        uniform = torch.rand(len(p), count * group, dtype=p.dtype, generator=torch.Generator().manual_seed(0))
        places = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        self.traces = places.view(len(p), count, group)

    def factors(self, settings: RL) -> Tensor:
        """The factor of every trace's grad log pi in the sampled updates, float64[n, G, R T V]."""
        traces = self.traces[:, :, : settings.group]
        reward, length = (
            values.double().flatten(1).gather(1, traces.flatten(1)).view(traces.shape)
            for values in (self.space.right, self.space.length)
        )
        by_trace = torch.zeros(*traces.shape[:2], self.p[0].numel(), dtype=torch.float64)
        return by_trace.scatter_add(2, traces, rollout_factors(settings, reward, length))

    def mean(self, settings: RL) -> Tensor:
        """The factor of every trace's grad log pi in the expected update, float64[n, R, T, V].

        It is exact for reductions none and sequence_mean. For token_mean it is that of none over the mean length, and
        the mean difference from it over the sampled updates.
        """
        wrong, right = mean_advantage(settings, (self.p * self.space.right).sum(dim=(1, 2, 3)))
        by_reward = torch.stack([wrong, right], dim=1).gather(1, self.space.right.flatten(1).long())
        mean = self.p * by_reward.view_as(self.p)
        if settings.advantage == "exact" or settings.reduction == "none":
            return mean
        if settings.reduction == "sequence_mean":
            return mean / self.space.length
        share = 1 / (self.p * self.space.length).sum(dim=(1, 2, 3)).mean()
        difference = self.factors(settings) - share * self.factors(replace(settings, reduction="none"))
        return share * mean + difference.mean(dim=1).view_as(mean)

    def noise(self, settings: RL, gram: Tensor) -> float:
        """The trace of the covariance of an update, with G updates for the expected square of its length.

        gram: float64[n, R T V, R T V], as `TraceSpace.trace_gram`. Covariances between problems, which token_mean alone
        has, are left out.
        """
        if settings.advantage == "exact":
            return 0.0
        factors, mean = self.factors(settings), self.mean(settings).flatten(1)[:, None]
        squares = [((rows @ gram) * rows).sum(dim=2).mean(dim=1) for rows in (factors, mean)]
        return float((squares[0] - squares[1]).sum()) / len(gram) ** 2


# Estimators of KL(pi || pi_ref) as functions of a log-ratio log pi - log pi_ref, and their derivatives by log pi
# (http://joschu.net/blog/kl-approx.html).
ESTIMATORS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "k1": (lambda ratio: ratio, torch.ones_like),
    "k2": (lambda ratio: ratio**2 / 2, lambda ratio: ratio),
    "k3": (lambda ratio: torch.expm1(-ratio) + ratio, lambda ratio: -torch.expm1(-ratio)),
}
KL, PASS_AT_1, LIMIT = "KL", "pass@1", "limit"  # the names of true gradients


def kl_gradients(space: TraceSpace, logp: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """The factor of every token's grad log pi, float64[n, R, T, V], in grad KL(pi || pi_ref) and in what stands for it.

    logp, reference: float64[n, R, T, V], the log-probability of every token under pi and pi_ref. An estimator is one
    of ESTIMATORS, of the log-ratio of the trace or summed over its tokens. In the reward, its value multiplies the
    gradient of log pi of the trace. In the loss, it is differentiated. The last one is the mean over a trace's tokens
    (`rl.kl_form` k3 with `rl.reduction` sequence_mean).
    """
    p, ratio = space.probabilities(logp), logp - reference
    whole = space.along(ratio)
    gradients = {KL: space.through(p * whole)}
    for name, (value, slope) in ESTIMATORS.items():
        gradients[f"{name} of traces in the reward"] = space.through(p * value(whole))
        gradients[f"{name} of traces in the loss"] = space.through(p * slope(whole))
        gradients[f"{name} of tokens in the reward"] = space.through(p * space.along(value(ratio)))
        gradients[f"{name} of tokens in the loss"] = space.through(p) * slope(ratio)
    return gradients | {"k3 of tokens in the loss, their mean": space.through(p / space.length) * slope(ratio)}


def inner_products(space: TraceSpace, model: GPT, factors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The inner products float64[Q, Q] of Q gradients, and of the traces' as `Updates.noise` takes them.

    factors: the factor of every token's grad log pi, float64[n, R, T, V] each. A gradient is the mean over problems.
    """
    rows, gram = torch.stack(list(factors), dim=1).flatten(2), []
    total = torch.zeros(len(factors), sum(parameter.numel() for parameter in model.parameters()))
    for problem, row in enumerate(rows):
        one = space[problem : problem + 1]
        jacobian = one.jacobian(model)
        total += row.float() @ jacobian
        gram.append(one.trace_gram(jacobian))
    mean = total.double() / len(rows)
    return mean @ mean.T, torch.stack(gram)


def compare_gradients(
    config: Config, problems: Batch, models: tuple[GPT, GPT], objectives: Mapping[str, RL], count: int
) -> dict[str, list[dict]]:
    """Rows "objectives", each on average against pass@1 and what it climbs, and "kl", estimators against grad KL.

    models: pi, and pi_ref of KL. objectives: their settings by name. count: sampled updates. "cosine to X" is the
    cosine with the gradient of X (null for a mean of 0), "length to X" the length relative to it. noise: the trace of
    the covariance of an update on these problems over the square of its mean. Raises ValueError if traces cannot be
    listed.
    """
    space, (model, reference) = trace_space(config, problems), models
    with torch.no_grad():
        logp, of_reference = space.token_logp(model), space.token_logp(reference)
        p = space.probabilities(logp)
    right = p * space.right
    updates = Updates(space, p, count, max(settings.group for settings in objectives.values()))
    gradients = kl_gradients(space, logp, of_reference)
    estimators = [name for name in gradients if name != KL]
    gradients[PASS_AT_1] = space.through(right)
    for name, settings in objectives.items():
        slope = LIMITS[settings.advantage][1](right.sum(dim=(1, 2, 3), keepdim=True), settings.k)
        gradients |= {name: space.through(updates.mean(settings)), f"{LIMIT} of {name}": space.through(slope * right)}
    products, gram = inner_products(space, model, [*gradients.values()])
    place = {name: number for number, name in enumerate(gradients)}

    def against(name: str, truth: str, key: str) -> dict[str, float | None]:
        a, b = place[name], place[truth]
        length = float((products[a, a] / products[b, b]).sqrt())
        cosine = float(products[a, b] / products[b, b]) / length if length > NOTHING else None
        return {f"cosine to {key}": cosine, f"length to {key}": length}

    rows = [
        {"objective": name, "climbs": LIMITS[settings.advantage][0].replace("k", str(settings.k))}
        | against(name, PASS_AT_1, PASS_AT_1)
        | against(name, f"{LIMIT} of {name}", LIMIT)
        | {"noise": updates.noise(settings, gram) / float(products[place[name], place[name]])}
        for name, settings in objectives.items()
    ]
    return {"objectives": rows, "kl": [{"estimator": name} | against(name, KL, KL) for name in estimators]}
