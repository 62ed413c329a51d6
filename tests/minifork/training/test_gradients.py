"""Expected updates by enumeration and against autograd of the real loss; their noise; gradients of KL; small."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import minifork.training.reinforce as learning
from data_gen.task import PAD
from minifork import config as configs
from minifork import measure, runs
from minifork.decoding.exact import exact
from minifork.decoding.policy import Policy
from minifork.gpt import GPT
from minifork.measuring.problems import problem_set
from minifork.schema import RL, Config
from minifork.settings import Shape
from minifork.training.gradients import (
    KL,
    LIMITS,
    Updates,
    compare_gradients,
    kl_gradients,
    mean_advantage,
    rollout_factors,
)
from minifork.training.reinforce import ADVANTAGES, training_pairs
from minifork.training.trace_space import TraceSpace, trace_space

STAR = configs.load_config("star").rl


def settings_of(advantage: str, reduction: str = "none", group: int = 4, k: int = 2) -> RL:
    return replace(STAR, advantage=advantage, reduction=reduction, group=group, k=k, kl=0.0)


# expected advantages and what they climb


@pytest.mark.parametrize("n", [4, 6])
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_expected_advantages_by_enumeration(advantage, n):
    """Over all 2^n rewards of a group, given that a rollout is wrong, or right."""
    rewards = torch.tensor([*itertools.product((0.0, 1.0), repeat=n)], dtype=torch.float64)
    p = torch.tensor([0.03, 0.4, 0.9], dtype=torch.float64)
    means = mean_advantage(settings_of(advantage, group=n), p)
    for i, each in enumerate(p):
        chance = (rewards * each + (1 - rewards) * (1 - each)).prod(dim=1)
        values = ADVANTAGES[advantage](rewards, 2) * chance[:, None] / n
        for wrong_or_right, mean in enumerate(means):
            of_reward = (values * (rewards == wrong_or_right)).sum() / (each if wrong_or_right else 1 - each)
            assert float(mean[i]) == pytest.approx(float(of_reward), abs=1e-6)


@pytest.mark.parametrize("advantage", ["grpo", "centred", "maxrl", "passk"])
@pytest.mark.parametrize("n", [4, 16])
def test_what_a_group_climbs(advantage, n):
    """w_N is the derivative of E[phi(C)], C binomial(N, p), phi(c) = sum_{m<c} (A right of m+1 - A wrong of m)/N."""
    rewards = torch.ones(n + 1, n, dtype=torch.float64).tril(-1)
    table = ADVANTAGES[advantage](rewards, 2).double().numpy()
    phi = np.concatenate([[0], np.cumsum(table[1:, 0] - table[:-1, -1])]) / n

    def climbed(p: float) -> float:
        return sum(math.comb(n, c) * p**c * (1 - p) ** (n - c) * phi[c] for c in range(n + 1))

    p, step = torch.tensor([0.2, 0.7], dtype=torch.float64), 1e-5
    wrong, right = mean_advantage(settings_of(advantage, group=n), p)
    slope = [(climbed(each + step) - climbed(each - step)) / (2 * step) for each in p.tolist()]
    np.testing.assert_allclose(right - wrong, slope, rtol=1e-5)


@pytest.mark.parametrize("n", [4, 16])
def test_closed_forms(n):
    """centred: (N - 1)/N p. maxrl: the series of log p. The sampled pass@k: GRPO on n / 2 samples of 2."""
    p = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)

    def weight(advantage: str, group: int = n, at: Tensor = p) -> Tensor:
        wrong, right = mean_advantage(settings_of(advantage, group=group), at)
        return right - wrong

    torch.testing.assert_close(weight("centred"), torch.full_like(p, (n - 1) / n))
    torch.testing.assert_close(weight("maxrl"), torch.stack([(1 - p) ** (k - 1) for k in range(1, n)]).sum(dim=0))
    torch.testing.assert_close(weight("passk_sampled"), (1 - p) * weight("grpo", n // 2, 1 - (1 - p) ** 2))
    torch.testing.assert_close(weight("exact"), 2 * (1 - p))
    torch.testing.assert_close(weight("grpo", 2), torch.ones_like(p))


def test_groups_of_four_hardly_weigh_problems():
    """GRPO's w_4 is sqrt(3) where p is 0 or 1, and least at 1/2: between 1.61 and 1.74, as docs/rl.md says."""
    p = torch.linspace(0, 1, 101, dtype=torch.float64)
    wrong, right = mean_advantage(settings_of("grpo"), p)
    ends, middle = 3**0.5, 1 + 3**-0.5  # b_0 = b_3 and b_1 = b_2 of docs/rl.md
    torch.testing.assert_close(right - wrong, middle + (ends - middle) * (1 - 3 * p * (1 - p)))


@pytest.mark.parametrize("advantage", LIMITS)
def test_limits(advantage):
    """At 2,000 rollouts w_N is within 1 % of the derivative of what LIMITS names, which is that of the name."""
    p, k = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64, requires_grad=True), 2
    wrong, right = mean_advantage(settings_of(advantage, group=2000), p.detach())
    torch.testing.assert_close(right - wrong, LIMITS[advantage][1](p.detach(), k), rtol=0.01, atol=0)
    named = {
        "2 arcsin sqrt(pass@1)": 2 * p.sqrt().arcsin(),
        "pass@1": p,
        "log pass@1": p.log(),
        "(2/k) arcsin sqrt(pass@k)": 2 / k * (1 - (1 - p) ** k).sqrt().arcsin(),
        "pass@k": 1 - (1 - p) ** k,
    }
    (slope,) = torch.autograd.grad(named[LIMITS[advantage][0]].sum(), p)
    torch.testing.assert_close(LIMITS[advantage][1](p.detach(), k), slope)


# traces


@pytest.fixture(scope="module")
def space(trained) -> tuple[Config, tuple[GPT, GPT], TraceSpace]:
    """The config of forward RL on two problems, a model that is right on each with p > .3, another, and the traces."""
    config = trained.config("rl.mode=FWD", "rl.problems=24", "rl.prompts=2")
    run, listed = runs.require_run(config, "sft"), trace_space(config, learning.problems_of(config, 0))
    model = run.model(4)
    optimizer, p = torch.optim.Adam(model.parameters(), lr=1e-3), torch.zeros(2)
    while p.min() < 0.3:
        p = (listed.probabilities(listed.token_logp(model)) * listed.right).sum(dim=(1, 2, 3))
        p.log().sum().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    return config, (model, run.model(1)), listed


@pytest.mark.parametrize("mode", ["free", "FWD", "SEARCH"])
def test_traces_are_all_that_a_model_writes(make_model, mode):
    """Against the exact engine: p, the mean length, and all probability; several right traces share beginnings."""
    changes = ["data.modes=FWD,REV,SEARCH", "rl.prompts=6", "rl.problems=6", f"rl.mode={mode}", "walks.seq_len=64"]
    config = configs.load_config("star", changes)
    model = make_model(100, Shape(2, 16, 2), config.data.vocab_size, 64, scale=0.2)
    batch = learning.problems_of(config, 0)
    tree = measure.trace_tree(model, problem_set(config.data, batch, "cpu"), Policy())
    result = exact(tree if mode == "free" else measure.force_mode(tree, config.data, mode))
    with torch.no_grad():
        listed = trace_space(config, batch)
        p = listed.probabilities(listed.token_logp(model))
    np.testing.assert_allclose((p * listed.right).sum(dim=(1, 2, 3)), result.p_lo, rtol=1e-3)
    length = (p * (listed.length + (mode != "free"))).sum(dim=(1, 2, 3))
    np.testing.assert_allclose(length, result.tokens.sum(axis=1), rtol=1e-4)
    np.testing.assert_allclose(p.sum(dim=(1, 2, 3)), 1, atol=1e-5)


def test_traces_that_go_on_after_an_error_are_refused(space):
    _, (model, _), listed = space
    logp = listed.token_logp(model).detach()
    with pytest.raises(ValueError, match="go on after their first wrong token"):
        replace(listed, ends=listed.right).probabilities(logp)


# updates


def tokens_of(listed: TraceSpace, problem: int, place: int) -> list[int]:
    """The tokens of a trace by its flat place."""
    _, right_traces, length, vocab = listed.ends.shape
    row, t, token = np.unravel_index(place, (right_traces, length, vocab))
    return [*listed.tokens[problem, row, :t].tolist(), int(token)]


def flat_gradient(value: Tensor, model: GPT, retain: bool = False) -> Tensor:
    gradients = torch.autograd.grad(value, [*model.parameters()], retain_graph=retain)
    return torch.cat([gradient.flatten() for gradient in gradients]).double()


def update_of(space: tuple, factors: Tensor) -> Tensor:
    """The update with these factors of the tokens' grad log pi."""
    _, (model, _), listed = space
    return flat_gradient((factors * listed.token_logp(model)).sum() / len(factors), model)


@pytest.mark.parametrize("reduction", ["none", "sequence_mean", "token_mean"])
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_factors_give_the_gradient_of_the_real_loss(space, advantage, reduction):
    """Sampled groups, as factors of listed traces and as `group_loss` of their tokens through the model."""
    config, (model, _), listed = space
    settings = settings_of(advantage, reduction)
    updates = Updates(listed, listed.probabilities(listed.token_logp(model).detach()), 1, 4)
    updates.traces[:, 0, :2] = (updates.p * listed.right).flatten(1).argmax(dim=1)[:, None]  # so that some are right
    updates.traces[:, 0, 2] = (updates.p * ~listed.right).flatten(1).argmax(dim=1)
    factors = listed.through(updates.factors(settings).view_as(updates.p))

    rows = torch.full((2, 4, listed.tokens.shape[2] + 1), PAD)
    rows[:, :, 0] = config.data.mode_token("FWD")
    for problem, rollout in itertools.product(range(2), range(4)):
        tokens = tokens_of(listed, problem, int(updates.traces[problem, 0, rollout]))
        rows[problem, rollout, 1 : 1 + len(tokens)] = torch.tensor(tokens)
    prompts = torch.from_numpy(config.data.prompts(learning.problems_of(config, 0)))
    inputs, targets = training_pairs(prompts, rows, config.data.eos, 1)
    reward = listed.right.flatten(1).gather(1, updates.traces[:, 0]).float()
    logits = model(inputs)
    loss = learning.group_loss(logits, logits.detach(), targets, ADVANTAGES[advantage](reward, 2).flatten(), settings)
    expected = flat_gradient(-loss, model)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(update_of(space, factors), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("reduction", ["none", "sequence_mean", "token_mean"])
@pytest.mark.parametrize("advantage", ["grpo", "maxrl"])
def test_mean_and_noise_by_enumeration(space, advantage, reduction):
    """Over all pairs of traces of one problem. The mean is exact, that of token_mean sampled (within 1 % of its
    length); the noise is sampled too (within 5 %, 5 standard errors)."""
    _, (model, _), listed = space
    settings, one = settings_of(advantage, reduction, group=2), listed[:1]
    p = one.probabilities(one.token_logp(model).detach())
    gram = one.trace_gram(one.jacobian(model))[None]
    places = (p.flatten() > 0).nonzero()[:, 0]
    pairs = torch.cartesian_prod(places, places)
    chance = p.flatten()[pairs].prod(dim=1)
    every = Updates(one, p, 1, 2)
    every.traces = pairs[None]
    rows = every.factors(settings)[0]
    mean = chance @ rows
    noise = float(chance @ ((rows @ gram[0]) * rows).sum(dim=1) - mean @ gram[0] @ mean)

    updates = Updates(one, p, 40_000, 2)
    difference = updates.mean(settings).flatten() - mean
    error = math.sqrt(max(0.0, float(difference @ gram[0] @ difference)) / float(mean @ gram[0] @ mean))
    assert error < (0.01 if reduction == "token_mean" else 1e-3)
    assert updates.noise(settings, gram) == pytest.approx(noise, rel=0.05)


@pytest.mark.parametrize("reduction", ["none", "sequence_mean"])
def test_updates_of_rl_are_what_is_expected_on_average(space, monkeypatch, reduction):
    """150 updates of the real objective on the same problems, along the expected one: within 4 standard errors."""
    config, (model, reference), listed = space
    problems = learning.problems_of(config, 0)
    monkeypatch.setattr(learning, "problems_of", lambda config, step: problems)
    config = configs.with_changes(config, {"rl.reduction": reduction, "rl.kl": 0.0, "rl.group": 4})
    updates = Updates(listed, listed.probabilities(listed.token_logp(model).detach()), 1, 4)
    expected = update_of(space, listed.through(updates.mean(config.rl)))
    objective = learning.group_objective(config, reference, "cpu")
    along = [float(flat_gradient(-objective(model, step)[0], model) @ expected) for step in range(150)]
    assert abs(np.mean(along) - float(expected @ expected)) < 4 * np.std(along) / math.sqrt(150)
    assert np.std(along) / math.sqrt(150) < 0.5 * float(expected @ expected)


def test_factors_by_hand():
    """Two rollouts of 3 and 1 tokens, the first right, in one update on one problem."""
    reward, length = torch.tensor([[[1.0, 0.0]]]).double(), torch.tensor([[[3.0, 1.0]]]).double()
    by_hand = {"none": [0.25, -0.25], "sequence_mean": [1 / 12, -0.25], "token_mean": [0.125, -0.125]}
    for reduction, expected in by_hand.items():
        factors = rollout_factors(settings_of("centred", reduction, group=2, k=1), reward, length)
        torch.testing.assert_close(factors, torch.tensor([[expected]], dtype=torch.float64))


# KL


def test_kl_gradients_by_autograd(space):
    """KL(pi || pi_ref) and its exact estimators; KL(pi_ref || pi), which k3 of traces follows; the loss of RL's k3."""
    config, (model, reference), listed = space
    with torch.no_grad():
        logp, of_reference = listed.token_logp(model), listed.token_logp(reference)
    updates = {name: update_of(space, factors) for name, factors in kl_gradients(listed, logp, of_reference).items()}
    live = listed.token_logp(model)
    ratio = (listed.along(live) - listed.along(of_reference)).where(listed.ends, 0.0)
    p, p_reference, log_ratio = listed.probabilities(live), listed.probabilities(of_reference), of_reference - live
    per_token = log_ratio.exp() - log_ratio - 1
    truths = {
        (KL, "k1 of traces in the reward", "k2 of traces in the loss"): p * ratio,
        ("k3 of traces in the loss",): -p_reference * ratio,
        ("k3 of tokens in the loss, their mean",): p.detach() * listed.along(per_token) / listed.length,
    }
    for names, value in truths.items():
        expected = flat_gradient(value.sum() / 2, model, retain=True)
        for name in names:
            close = {"rtol": 0, "atol": 1e-4 * float(expected.abs().max())}
            torch.testing.assert_close(updates[name], expected, **close, msg=name)
    assert updates["k1 of traces in the loss"].norm() < 1e-4 * updates[KL].norm()
    assert torch.cosine_similarity(updates["k3 of tokens in the loss"], updates[KL], dim=0) < 0.999


# the comparison


def test_compared(space):
    """Against the gradients themselves: lengths and cosines, and a noise of 0 without rollouts."""
    config, models, listed = space
    objectives = {"centred": settings_of("centred"), "GRPO": settings_of("grpo", group=8)}
    objectives |= {f"exact pass@{k}": settings_of("exact", k=k) for k in (1, 16)}
    rows = compare_gradients(config, learning.problems_of(config, 0), models, objectives, 50)
    by_name = {row["objective"]: row for row in rows["objectives"]}
    p = listed.probabilities(listed.token_logp(models[0]).detach())
    right = p * listed.right
    slope = 16 * (1 - right.sum(dim=(1, 2, 3), keepdim=True)) ** 15
    one, sixteen = update_of(space, listed.through(right)), update_of(space, listed.through(slope * right))

    def compared(name: str, truth: str) -> list[float]:
        return [by_name[name][f"{what} to {truth}"] for what in ("cosine", "length")]

    expected = [float(torch.cosine_similarity(one, sixteen, dim=0)), float(sixteen.norm() / one.norm())]
    assert compared("exact pass@16", "pass@1") == pytest.approx(expected, rel=1e-4)
    assert compared("exact pass@1", "pass@1") == pytest.approx([1, 1], rel=1e-5)
    assert compared("exact pass@16", "limit") == pytest.approx([1, 1], rel=1e-5)
    assert compared("centred", "limit") == pytest.approx([1, 3 / 4], rel=1e-5)
    assert [row["noise"] for row in rows["objectives"] if "exact" in row["objective"]] == [0.0, 0.0]
    assert by_name["centred"]["noise"] > by_name["GRPO"]["noise"] > 0  # of 4 and 8 rollouts
    kl = {row["estimator"]: row for row in rows["kl"]}
    assert len(kl) == 13 and kl["k1 of traces in the loss"]["cosine to KL"] is None
    assert kl["k2 of traces in the loss"]["cosine to KL"] == pytest.approx(1, abs=1e-5)
