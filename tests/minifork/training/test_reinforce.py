"""Objectives by brute force and against the exact engine; the problems, what is logged and the stage, small."""

import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import minifork.training.reinforce as learning
from data_gen import streams
from data_gen.task import PAD
from data_gen.walks import IGNORE
from minifork import config as configs
from minifork import measure, runs
from minifork.decoding.exact import exact
from minifork.decoding.policy import Policy
from minifork.decoding.rollout import rollout
from minifork.decoding.traces import TraceTree
from minifork.gpt import GPT
from minifork.gpu import backends
from minifork.measuring.problems import problem_set, training_forks
from minifork.schema import Config
from minifork.settings import Shape
from minifork.storage.weights import load_weights
from minifork.training import loop, stages
from minifork.training.losses import token_logp
from minifork.training.reinforce import ADVANTAGES, training_pairs
from tests.helpers.pipeline import BASE

RL = ["rl.problems=24", "rl.prompts=8", "rl.group=6", "rl.updates=12", "rl.lr=0.003", "rl.epoch=4"]


@pytest.fixture(scope="module")
def start(trained):
    """The config of an RL run from the trained pipeline, and the model it starts from."""
    settings = trained.config(*RL)
    return settings, runs.require_run(settings, "sft").model(4)


def first_update(settings: Config, model: GPT, mode: str) -> tuple[torch.Tensor, TraceTree]:
    """The prompts of the first update, and the traces after them in a mode."""
    problems = problem_set(settings.data, learning.problems_of(settings, 0), "cpu")
    tree = measure.trace_tree(model, problems, Policy())
    return problems.prompts, tree if mode == "free" else measure.force_mode(tree, settings.data, mode)


def logged(folder: Path) -> list[dict]:
    """The lines of a run's metrics without the speed."""
    lines = (folder / runs.METRICS).read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name != "tokens_per_s"} for line in lines]


# objectives


def test_the_policy_shapes_the_rollouts_only(start, monkeypatch):
    """Its rollouts are those of the policy, top_k=1 here; the loss is that of the model without it."""
    settings, sampled = configs.with_changes(start[0], {"rl.policy": "top_k=1", "rl.mode": "REV"}), []
    real = backends.sample
    monkeypatch.setattr(learning, "sample", lambda *a, **k: sampled.append(real(*a, **k)) or sampled[-1])
    monkeypatch.setitem(ADVANTAGES, "grpo", lambda reward, k: torch.ones_like(reward))
    loss = learning.group_objective(settings, start[1], "cpu")(start[1], 0)[0]
    (result,) = sampled
    assert (result.traces.tokens == result.traces.tokens[:, :1]).all()
    inputs, targets = training_pairs(first_update(*start, "REV")[0], result.traces.tokens, settings.data.eos, 1)
    with torch.no_grad():
        logp, present = token_logp(start[1](inputs), targets), targets != IGNORE
    expected = -float(((logp * present).sum(dim=1) / present.sum(dim=1)).mean())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5) and expected > 0.01


@pytest.mark.parametrize("mode", ["free", "REV"])
def test_sequences_score_as_the_rollouts_were_sampled(start, mode):
    """Teacher-forced log-probabilities of the targets are those the sampler reports; forced tokens are no targets."""
    prompts, tree = first_update(*start, mode)
    traces = rollout(tree, 5, 1, traces=True).traces
    inputs, targets = training_pairs(prompts, traces.tokens, start[0].data.eos, tree.forced_len)
    with torch.no_grad():
        logp = token_logp(tree.model(inputs, targets != IGNORE), targets)
    first = prompts.shape[1] - 1
    np.testing.assert_allclose(logp[:, first:], traces.logp.flatten(0, 1), atol=1e-4)
    assert (targets[:, : first + tree.forced_len] == IGNORE).all()
    assert torch.equal(targets[:, first + tree.forced_len :], traces.tokens.flatten(0, 1)[:, tree.forced_len :])


@pytest.mark.parametrize("mode", ["free", "FWD", "REV"])
@pytest.mark.parametrize("k", [1, 7])
def test_exact_objective_is_pass_at_k(start, mode, k):
    settings = configs.with_changes(start[0], {"rl.k": k, "rl.mode": mode})
    loss, tokens, metrics = learning.exact_objective(settings, "cpu")(start[1], 0)
    p = exact(first_update(settings, start[1], mode)[1]).p_lo
    assert float(loss.detach()) == pytest.approx(-float(np.mean(1 - (1 - p) ** k)), abs=1e-5) and tokens > 0
    assert {name: float(value) for name, value in metrics.items()} == {"reward": pytest.approx(p.mean(), abs=1e-5)}


@pytest.mark.parametrize("task", ["star", "sizes", "openers"])
@pytest.mark.parametrize("place", [None, 2])
def test_exact_objective_sums_over_all_right_traces(make_model, task, place):
    """Problems have several in each mode, of other lengths and as many as their size gives; free, and one forced."""
    modes = ["sft.modes=FWD,REV"] if task == "openers" else ["data.modes=FWD,REV,SEARCH"]
    modes += ["data.sizes=2x4,3x3"] if task == "sizes" else []
    config = configs.load_config(task, [*modes, "rl.prompts=12", "rl.problems=12", "walks.seq_len=64", "rl.k=3"])
    mode = "free" if place is None else [*config.data.first_tokens][place]
    config = configs.with_changes(config, {"rl.advantage": "exact", "rl.mode": mode})
    model = make_model(100, Shape(1, 16, 2), config.data.vocab_size, 64)
    problems = problem_set(config.data, learning.problems_of(config, 0), "cpu")
    tree = measure.trace_tree(model, problems, Policy())
    p = exact(tree if place is None else measure.force_mode(tree, config.data, mode)).p_lo
    loss, _, metrics = learning.exact_objective(config, "cpu")(model, 0)
    assert float(metrics["reward"]) == pytest.approx(p.mean(), rel=1e-4) and p.min() > 0
    assert float(loss.detach()) == pytest.approx(np.mean((1 - p) ** 3) - 1, rel=1e-3)


def test_traces_that_are_too_many_to_list_are_refused():
    """Five branches can be tried in 65 orders up to the right one."""
    many = ["data.branches=5", "data.nodes=16", "data.modes=FWD,REV,SEARCH", "walks.seq_len=64", "rl.advantage=exact"]
    config = configs.load_config("star", [*many, "rl.epoch=0"])
    needle = r"star: problem 0 has more than 64 right traces, .* choose another rl.advantage, or a task with fewer"
    with pytest.raises(ValueError, match=needle):
        stages.check_rl(config)
    stages.check_rl(configs.with_changes(config, {"rl.mode": "FWD"}))
    stages.check_rl(configs.with_changes(config, {"rl.advantage": "grpo"}))


@pytest.mark.slow
def test_the_group_gradient_is_the_exact_one_on_average(start):
    """With centred advantages, summed tokens and no KL, REINFORCE follows the gradient of pass@1: over many rollouts
    the two point nearly the same way, and along the exact one they are equally long."""
    settings, model = start
    changes = {"rl.group": 4000, "rl.kl": 0.0, "rl.k": 1, "rl.advantage": "centred", "rl.reduction": "none"}
    settings = configs.with_changes(settings, changes)
    gradients = []
    for objective in (learning.group_objective(settings, model, "cpu"), learning.exact_objective(settings, "cpu")):
        model.zero_grad()
        objective(model, 0)[0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model.zero_grad()
    sampled, exact_one = gradients
    assert torch.cosine_similarity(sampled, exact_one, dim=0) > 0.9
    assert float(sampled @ exact_one / (exact_one @ exact_one)) == pytest.approx(1, abs=0.15)


def test_every_update_takes_other_problems_and_every_pass_holds_each_once(start):
    """24 problems, 8 an update: a pass is three updates."""
    identity = start[0].data.identity
    first, second = (
        np.concatenate([identity(learning.problems_of(start[0], step)) for step in steps]).tolist()
        for steps in (range(3), range(3, 6))
    )
    assert len(set(first)) == 24 and sorted(first) == sorted(second) and first != second


def test_fresh_problems_are_not_those_of_fine_tuning():
    """At full size, where two draws hardly ever share a graph."""
    config = configs.load_config("star", ["rl.prompts=1600"])
    fresh, tuned = learning.problems_of(config, 0), stages.sft_data(config, 0).problems
    assert len({*config.data.identity(fresh).tolist()}) == 1600
    assert not {*config.data.identity(fresh).tolist()} & {*config.data.identity(tuned).tolist()}


@pytest.mark.parametrize("mixture", [{}, {"sft.fork_rate": 0.5}, {"sft.fork_rate": 0.5, "sft.allocation": "problem"}])
def test_problems_of_fine_tuning(start, mixture):
    """They are the prompts that fine-tuning saw, all of them if there are no more, each once a pass."""
    task, changes = start[0].data, mixture | {"rl.source": "sft", "rl.problems": 32, "sft.traces": 64}
    settings = configs.with_changes(start[0], changes)
    prompts = np.concatenate([task.prompts(learning.problems_of(settings, step)) for step in range(4)])
    data = stages.sft_data(settings, 0).tokens[:, : prompts.shape[1]]
    assert len(np.unique(prompts, axis=0)) == 32 and {*map(bytes, prompts)} <= {*map(bytes, data)}
    if settings.sft.problem_count == 32:
        assert {*map(bytes, prompts)} == {*map(bytes, data)}


# the divergence from the start


def every_trace(first: tuple[int, ...]) -> torch.Tensor:
    """All traces int64[1, n, 3] of tokens 0, 1, 2 that begin with these; 0 ends a trace, PAD follows."""
    ends = {tokens: (*tokens, 0).index(0) + 1 for tokens in itertools.product(range(3), repeat=3)}
    traces = {(*tokens[:end], *[PAD] * (3 - end)) for tokens, end in ends.items() if tokens[: len(first)] == first}
    return torch.tensor([sorted(traces)])


def whole_logp(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """As `minifork.training.losses.sequence_logp`, in the precision of the logits."""
    logp = logits.log_softmax(dim=-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    return (logp * (targets != IGNORE)).sum(dim=1)


@pytest.mark.parametrize("forced", [(), (1,)])
def test_the_gradient_is_that_of_the_divergence(make_model, start, forced):
    """Averaged over all traces, at advantage 0 and rl.kl 1; that of the published form points elsewhere."""
    model, reference = (make_model(seed, Shape(1, 8, 1), 3, 5).double() for seed in (100, 101))
    inputs, targets = training_pairs(torch.tensor([[2, 1]]), every_trace(forced), 0, len(forced))
    logits, anchor = model(inputs), reference(inputs).detach()
    logp = whole_logp(logits, targets)
    assert float(logp.exp().sum().detach()) == pytest.approx(1, abs=1e-12)

    def gradient(value: torch.Tensor) -> torch.Tensor:
        parts = torch.autograd.grad(value, [*model.parameters()], retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    def mean_loss(form: str) -> torch.Tensor:
        plan = configs.with_changes(start[0], {"rl.kl": 1.0, "rl.kl_form": form}).rl
        rows = zip(logits.split(1), anchor.split(1), targets.split(1), strict=True)
        losses = torch.stack([learning.group_loss(*row, torch.zeros(1), plan) for row in rows])
        return (logp.exp().detach() * losses).sum()

    divergence = (logp.exp() * (logp - whole_logp(anchor, targets))).sum()
    expected = gradient(divergence)
    torch.testing.assert_close(mean_loss("sequence"), divergence, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient(mean_loss("sequence")), expected, atol=1e-12, rtol=0)
    assert expected.norm() > 0.1 and torch.cosine_similarity(gradient(mean_loss("k3")), expected, dim=0) < 0.99


@pytest.mark.parametrize("seed", range(100, 103))
def test_the_published_form(start, seed):
    """Loss and gradient are, bit for bit, those of the formula at the top of the module."""
    generator = torch.Generator().manual_seed(seed)
    logits, anchor = (torch.randn(2, 7, 9, generator=generator) for _ in range(2))
    targets, advantage = torch.randint(9, (2, 7), generator=generator), torch.randn(2, generator=generator)
    targets[:, :2], targets[:1, 5:] = IGNORE, IGNORE
    plan = configs.with_changes(start[0], {"rl.kl": 0.3, "rl.kl_form": "k3"}).rl
    loss = learning.group_loss(logits.requires_grad_(), anchor, targets, advantage, plan)

    present, logp = targets != IGNORE, token_logp(logits, targets)
    ratio = token_logp(anchor, targets) - logp
    per_token = ((ratio.exp() - ratio - 1) * plan.kl - advantage.reshape(-1, 1) * logp) * present
    expected = (per_token.sum(dim=1) / present.sum(dim=1).clamp(min=1)).mean()
    assert torch.equal(loss, expected)
    assert torch.equal(*(torch.autograd.grad(value, logits)[0] for value in (loss, expected)))


# what is logged


@pytest.mark.parametrize("mode", ["free", "FWD"])
def test_metrics_of_an_update(start, mode):
    """Reward and signal are those of the rollouts. KL and entropy are within 4 standard errors of the rollouts' mean
    log-ratio and mean surprisal; a correct program fails that in 1 of 8,000 tests."""
    settings, model = start
    settings = configs.with_changes(settings, {"rl.mode": mode, "rl.group": 500})
    reference = runs.require_run(settings, "base").model()
    with torch.no_grad():
        metrics = learning.group_objective(settings, reference, "cpu")(model, 0)[2]
        prompts, tree = first_update(settings, model, mode)
        traces = rollout(tree, 500, settings.seed, traces=True).traces
        inputs, targets = training_pairs(prompts, traces.tokens, settings.data.eos, tree.forced_len)
        anchor = whole_logp(reference(inputs), targets)
    values, right = {name: float(value) for name, value in metrics.items()}, traces.outcome == 0
    assert values["reward"] == pytest.approx(float(right.float().mean()))
    assert values["signal"] == pytest.approx(float((right.any(dim=1) & ~right.all(dim=1)).float().mean()))
    sampled = (targets != IGNORE)[:, -traces.tokens.shape[2] :].unflatten(0, right.shape)
    ratio = traces.logp.sum(dim=2).flatten() - anchor
    for name, samples in (("kl", ratio), ("entropy", -traces.logp[sampled])):
        assert abs(values[name] - float(samples.mean())) < 4 * float(samples.std()) / math.sqrt(len(samples)), name


def test_metrics_are_written_and_shown(copy, capsys, monkeypatch):
    monkeypatch.setattr(loop, "_SECONDS_BETWEEN_LINES", -1)
    pipeline, names = copy(BASE, "fork1"), ["loss", "reward", "kl", "signal", "entropy"]
    assert pipeline("rl", *RL) == 0
    lines = logged(pipeline.at("rl", *RL))
    assert [[*line] for line in lines] == [["step", *names]] * 2
    shown = " ".join(f"{name} {lines[-1][name]:.4f}" for name in names)
    assert f"step 12/12 {shown} " in capsys.readouterr().out


# the stage


def test_rewards_raise_pass_at_1(copy):
    pipeline, tuned = copy(BASE), ["sft.fork_rate=0.5", "sft.traces=512", "sft.epochs=4", "sft.lr=0.01"]
    problems = problem_set(pipeline.config().data, streams.test_problems(pipeline.config().data, 64), "cpu")

    def pass_at_1(run: runs.Run) -> float:
        return float(exact(measure.trace_tree(run.model(), problems, Policy())).p_lo.mean())

    assert pipeline("sft", *tuned) == 0
    before = pass_at_1(runs.require_run(pipeline.config(*tuned), "sft"))
    for advantage in ("grpo", "maxrl", "passk", "exact"):
        changes = [*RL, *tuned, "rl.updates=32", "rl.k=2", f"rl.advantage={advantage}"]
        assert pipeline("rl", *changes) == 0
        run = runs.require_run(pipeline.config(*changes), "rl")
        assert run.epochs == [1, 2, 4, 8, 16, 32] and run.tags().get("rl.advantage", "grpo") == advantage
        assert pass_at_1(run) > before + 0.02


PUBLISHED = ["rl.source=sft", "rl.reduction=token_mean", "rl.policy=top_p=0.999", "rl.kl_form=k3"]


@pytest.mark.parametrize("changes", [[], PUBLISHED])
def test_resumes_bit_for_bit(copy, monkeypatch, changes):
    pipeline, words = copy(BASE, "fork1"), [*RL, *changes]
    folder, real = pipeline.at("rl", *words), backends.sample
    assert pipeline("rl", *words) == 0
    whole, metrics, calls = load_weights(folder / "ckpt.pt")["model"], logged(folder), []
    shutil.rmtree(folder)

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(learning, "sample", interrupted)
    assert pipeline("rl", *words) == 130 and not runs.read_run(folder).complete
    assert pipeline("rl", "--resume", *words) == 0
    halves = load_weights(folder / "ckpt.pt")["model"]
    assert all(torch.equal(whole[key], halves[key]) for key in whole) and logged(folder) == metrics


def test_bad_starts_are_refused(copy, capsys):
    """A missing start, an epoch that is not kept, prefixes, prompts that leak, a wrong policy, problems of fine-tuning
    where there are too few or none; the base is a start."""
    pipeline, from_base = copy(BASE, "fork1"), [*RL, "rl.epoch=0", "rl.updates=1"]
    for override in ("sft.fork_rate=0.5", "model.width=64", "sft.epochs=2"):
        error = pipeline.refused(capsys, "rl", *RL, override)
        assert f"{pipeline.at('sft', override)}: no such finished run; make it with `minifork sft" in error
    assert "e3.pt: no such weights" in pipeline.refused(capsys, "rl", *RL, "rl.epoch=3")
    assert "sft.prefix is 3" in pipeline.refused(capsys, "rl", *from_base, "sft.prefix=3")
    assert "sft.allow_leak=true" in pipeline.refused(capsys, "rl", *from_base, "data.branch_order=published")
    assert "rl.policy: policy top_p is 2: give a prob" in pipeline.refused(capsys, "rl", *RL, "rl.policy=top_p=2")
    from_sft = [*RL, "rl.source=sft"]
    error = pipeline.refused(capsys, "rl", *from_sft, "rl.problems=65")
    assert "rl.problems is 65: rl.source=sft, and fine-tuning has 64 distinct problems; lower it" in error
    assert "rl.source is 'sft': RL from the base" in pipeline.refused(capsys, "rl", *from_sft, "rl.epoch=0")
    assert sorted(pipeline.folder.iterdir()) == sorted([pipeline.run(BASE), pipeline.run("fork1")])
    assert pipeline("rl", *from_base, "sft.fork_rate=0.5") == 0


def test_a_run_names_its_start_and_has_its_training_forks(copy):
    """A run that started from the base has none."""
    pipeline, from_snapshot = copy(BASE), [*RL, "seed=5", "rl.updates=1"]
    from_base = [*from_snapshot, "rl.epoch=0"]
    assert pipeline("sft", "seed=5") == pipeline("rl", *from_snapshot) == pipeline("rl", *from_base) == 0
    assert pipeline("eval") == 0
    tuned, base = (runs.read_run(pipeline.at("rl", *changes)) for changes in (from_snapshot, from_base))
    start = runs.read_run(pipeline.at("sft", "seed=5"))
    expected = {"run": start.name, "file": "epochs/e4.pt", "weights": start.checkpoint(4).weights_hash}
    assert tuned.record["parent"] == expected and base.record["parent"] == start.record["parent"]
    task, arrays = tuned.config.data, pipeline.arrays()
    forks = problem_set(task, training_forks(task, tuned.config.sft, 5, 64, 64), "cpu")
    probabilities = measure.branch_probabilities(tuned.model(1), forks)
    np.testing.assert_allclose(arrays[f"{tuned.name}/e1/plain/fork_train"], probabilities, rtol=1e-5)
    assert f"{base.name}/e1/plain/fork_train" not in arrays
