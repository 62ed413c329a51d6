"""Rewards, advantages and objectives by hand, by brute force and against the exact engine; the stage, small."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

import minifork.rl as learning
from data_gen.walks import IGNORE
from minifork import backends, config, evaluate, measure, stages
from minifork.exact import exact
from minifork.losses import token_logp
from minifork.policy import Policy
from minifork.rl import grpo_advantage, passk_advantage, sequences
from minifork.rollout import rollout

RL = ["rl.problems=24", "rl.prompts=8", "rl.group=6", "rl.updates=12", "rl.lr=0.003", "rl.epoch=4"]


@pytest.fixture(scope="module")
def start(trained):
    """The config of an RL run from the trained pipeline, and the model it starts from."""
    settings = trained.config(*RL)
    return settings, stages.load_run(stages.start_of(settings), settings)


# advantages


def test_grpo_by_hand():
    reward = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])
    right, wrong = 0.75 / math.sqrt(0.1875), -0.25 / math.sqrt(0.1875)
    expected = torch.tensor([[right, wrong, wrong, wrong], [0] * 4, [0] * 4, [1, 1, -1, -1]])
    torch.testing.assert_close(grpo_advantage(reward), expected)


@pytest.mark.parametrize("n", [2, 5, 6])
def test_passk_is_the_mean_over_all_groups_of_k(n):
    """(best of the k - mean) / deviation, averaged over the subsets of k that hold the rollout."""
    for k, reward in itertools.product(range(1, n + 1), itertools.product((0.0, 1.0), repeat=n)):
        best = {some: max(reward[i] for i in some) for some in itertools.combinations(range(n), k)}
        mean = sum(best.values()) / len(best)
        deviation = math.sqrt(mean * (1 - mean))
        expected = [0.0] * n
        if deviation > 1e-6:
            for i in range(n):
                mine = [value for some, value in best.items() if i in some]
                expected[i] = (sum(mine) / len(mine) - mean) / deviation
        found = passk_advantage(torch.tensor([reward]), k)[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_passk_of_one_is_grpo():
    reward = (torch.rand(50, 8, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    torch.testing.assert_close(passk_advantage(reward, 1), grpo_advantage(reward), atol=1e-5, rtol=1e-5)


# objectives


def test_sequences_score_as_the_rollouts_were_drawn(start):
    """Teacher-forced log-probabilities of the targets are those the sampler reports; forced tokens are no targets."""
    settings, model = start
    problems = measure.problem_set(settings.data, learning.problems_of(settings, 0), "cpu")
    tree = measure.tree_of(model, settings.data, problems, Policy())
    for some in (tree, measure.force_mode(tree, settings.data, "REV")):
        traces = rollout(some, 5, 1, traces=True).traces
        inputs, targets = sequences(problems.prompts, traces.tokens, settings.data.eos, some.forced_len)
        with torch.no_grad():
            logp = token_logp(model(inputs, problems.prompts.shape[1] - 1), targets)
        np.testing.assert_allclose(logp, traces.logp.flatten(0, 1), atol=1e-4)
        assert (targets[:, : some.forced_len] == IGNORE).all()
        assert torch.equal(targets[:, some.forced_len :], traces.tokens.flatten(0, 1)[:, some.forced_len :])


@pytest.mark.parametrize("mode", ["free", "FWD", "REV"])
@pytest.mark.parametrize("k", [1, 7])
def test_exact_objective_is_pass_at_k(start, mode, k):
    settings, model = start
    settings = config.from_tree(config.to_tree(settings) | {"rl": vars(settings.rl) | {"k": k, "mode": mode}}, "test")
    loss, tokens = learning.exact_objective(settings, "cpu")(model, 3)
    problems = measure.problem_set(settings.data, learning.problems_of(settings, 3), "cpu")
    tree = measure.tree_of(model, settings.data, problems, Policy())
    p = exact(tree if mode == "free" else measure.force_mode(tree, settings.data, mode)).p_lo
    assert float(loss.detach()) == pytest.approx(-float(np.mean(1 - (1 - p) ** k)), abs=1e-5) and tokens > 0


def test_the_group_gradient_is_the_exact_one_on_average(start, monkeypatch):
    """With rewards minus their mean as advantages and no KL, REINFORCE follows the gradient of pass@1, but that it
    weighs long traces less: over many rollouts the two point nearly the same way."""
    settings, model = start
    tree = config.to_tree(settings)
    tree["rl"] |= {"group": 4000, "kl": 0.0, "k": 1}
    settings = config.from_tree(tree, "test")
    monkeypatch.setitem(learning.ADVANTAGES, "grpo", lambda reward, k: reward - reward.mean(dim=1, keepdim=True))
    gradients = []
    for objective in (learning.group_objective(settings, model, "cpu"), learning.exact_objective(settings, "cpu")):
        model.zero_grad()
        objective(model, 0)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    assert torch.cosine_similarity(*gradients, dim=0) > 0.9


def test_every_update_draws_anew_and_problems_come_round(start):
    settings, model = start
    identity = settings.data.identity
    seen = np.concatenate([identity(learning.problems_of(settings, step)) for step in range(3)])
    assert len(set(seen.tolist())) == 24  # 24 problems, 8 an update: every pass holds each once
    again = np.concatenate([identity(learning.problems_of(settings, step)) for step in range(3, 6)])
    assert sorted(again.tolist()) == sorted(seen.tolist()) and again.tolist() != seen.tolist()
    fine_tuned = set(identity(stages.sft_data(settings, 0).problems).tolist())
    assert len(set(seen.tolist()) & fine_tuned) < 24


# the stage


@pytest.mark.parametrize("advantage", ["grpo", "passk", "exact"])
def test_rewards_raise_pass_at_1(copy, advantage):
    pipeline = copy("base-seed0")
    tuned = ["sft.fork_rate=0.5", "sft.traces=512", "sft.epochs=4", "sft.lr=0.01"]  # right often enough to learn from
    assert pipeline("sft", *tuned) == 0
    name = f"rl.advantage={advantage}"
    assert pipeline("rl", *RL, *tuned, "rl.updates=60", "rl.k=2", name) == pipeline("eval") == 0
    records = json.loads((pipeline.folder / "eval.json").read_text())["records"]
    mine = [record for record in records if record["stage"] == "rl"]
    assert [record["epoch"] for record in mine] == [1, 2, 4, 8, 16, 32, 60]
    assert mine[0]["variant"] == ("rl-grpo" if advantage == "grpo" else f"rl-{advantage}2") + "-free-fork0.5-epoch4"
    before = next(r for r in records if r["run"] == "sft-fork0.5-seed0" and r["epoch"] == 4)
    assert mine[-1]["pass_at"]["1"] > before["pass_at"]["1"] + 0.02


def test_resumes_bit_for_bit(copy, monkeypatch):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("rl", *RL, "sft.fork_rate=1", "name=whole") == 0
    calls, real = [], backends.sample

    def interrupted(*arguments, **named):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr(learning, "sample", interrupted)
    assert pipeline("rl", *RL, "sft.fork_rate=1", "name=halves") == 130
    assert pipeline("rl", "--resume", *RL, "sft.fork_rate=1", "name=halves") == 0
    one, other = (
        torch.load(pipeline.folder / name / "ckpt.pt", weights_only=True)["model"] for name in ("whole", "halves")
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_groups_without_signal_are_said(copy, capsys, monkeypatch):
    monkeypatch.setattr(learning, "PATIENCE", 3)
    monkeypatch.setitem(learning.ADVANTAGES, "grpo", lambda reward, k: reward * 0)
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("rl", *RL, "sft.fork_rate=1") == 0
    assert capsys.readouterr().out.count("no group had both right and wrong rollouts for 3 updates") == 1


def test_bad_starts_are_refused(copy, capsys):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert "no such weights" in pipeline.refused(capsys, "rl", "sft.fork_rate=0.5")
    assert "e3.pt" in pipeline.refused(capsys, "rl", "sft.fork_rate=1", "rl.epoch=3")
    assert "another config" in pipeline.refused(
        capsys, "rl", "rl.start=sft-fork1-seed0", "model.width=64", "rl.epoch=4"
    )
    assert "sft.fork_rate=1" in pipeline.refused(capsys, "rl", *RL, "rl.start=sft-fork1-seed0", "sft.fork_rate=0")
    assert pipeline("rl", *RL, "rl.start=sft-fork1-seed0", "sft.epochs=2", "name=named", "rl.updates=1") == 0
    assert pipeline("rl", *RL, "rl.epoch=0", "name=from-base", "rl.updates=1") == 0


def test_training_forks_are_those_of_the_run_it_started_from(copy):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("rl", *RL, "rl.start=sft-fork1-seed0", "seed=5", "name=named", "rl.updates=1") == 0
    assert pipeline("rl", *RL, "rl.epoch=0", "name=from-base", "rl.updates=1") == 0
    found = {c.meta["name"]: evaluate.training_forks(c, 64) for c in evaluate.find_checkpoints(pipeline.config())}
    assert found["from-base"] is None
    assert np.array_equal(found["named"].labels, found["sft-fork1-seed0"].labels)


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("rl.group=1", "rl.group"),
        ("rl.kl=-1", "rl.kl"),
        ("rl.mode=SEARCH", "rl.mode"),
        ("rl.advantage=ppo", "rl.advantage"),
        ("rl.prompts=2000", "rl.prompts"),
        ("rl.updates=0", "rl.updates"),
        ("rl.lr=0", "rl.lr"),
    ],
)
def test_impossible_settings_are_refused(trained, capsys, override, named):
    assert named in trained.refused(capsys, "rl", override)


def test_k_must_fit_the_group(trained, capsys):
    assert "rl.k is 8: in a group of rl.group=8 only 1 to 7" in trained.refused(  # with k = n all advantages are 0
        capsys, "rl", "rl.advantage=passk", "rl.k=8", "rl.group=8"
    )
    with pytest.raises(ValueError, match="rl.k is 9"):
        passk_advantage(torch.zeros(1, 8), 9)
