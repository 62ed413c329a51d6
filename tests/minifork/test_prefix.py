"""A random integer before the trace: drawn anew whenever an example is shown, averaged over when p is computed."""

import numpy as np
import pytest
import torch

from data_gen import streams
from minifork import runs
from minifork.decoding.automata import Tables
from minifork.decoding.exact import exact
from minifork.decoding.traces import TraceTree
from minifork.measuring import problems
from minifork.training import stages
from tests.helpers.pipeline import BASE, seen_targets

PREFIX = 3
PREFIXED = f"sft.prefix={PREFIX}"


def test_drawn_anew_and_not_learned(copy, monkeypatch):
    """Every presentation has its own; the loss is on the same traces as without one."""
    pipeline, seen = copy(BASE), seen_targets(monkeypatch)
    config = pipeline.config(PREFIXED)
    batch_at, prompt = stages.sft_batches(config), config.data.prompt_len
    inputs = np.stack([batch_at(step)[0] for step in range(16)]).reshape(4, 64, -1)
    drawn, order = inputs[..., prompt], inputs[..., :prompt].reshape(4, 64, -1)
    assert set(drawn.ravel()) == set(range(PREFIX))
    by_problem = [dict(zip(map(bytes, order[e]), drawn[e], strict=True)) for e in range(4)]
    assert all(by_problem[0] != other for other in by_problem[1:])
    assert pipeline("sft", PREFIXED) == 0
    targets = np.concatenate(seen).reshape(4, 64, -1)[..., prompt:]  # the integer itself is no target
    traces = sorted(stages.sft_data(config, 0).tokens[:, prompt:].tolist())
    assert all(sorted(epoch) == traces for epoch in targets.tolist())


def test_p_is_the_mean_over_integers(copy):
    """What eval.json says is the mean of what each integer, as a fixed end of the prompts, gives."""
    pipeline = copy(BASE)
    assert pipeline("sft", PREFIXED) == pipeline("eval") == 0
    record = pipeline.view()["records"][-1]
    assert record["run"] == pipeline.at("sft", PREFIXED).name and record["tags"] == {"sft.prefix": PREFIX}
    p = pipeline.arrays()[f"{record['run']}/e4/plain/free"]
    config = pipeline.config(PREFIXED)
    model = runs.require_run(config, "sft").model(4)
    plain = problems.problem_set(config.data, streams.test_problems(config.data, 64), "cpu")
    by_prefix = []
    for drawn in range(PREFIX):
        prompts = model.prefill(torch.cat([plain.prompts, torch.full((64, 1), drawn)], dim=1))
        tree = TraceTree(model, prompts, Tables(plain.dfa, len(plain.outcome_names)), config.data.trace_len)
        by_prefix.append(exact(tree).p_lo)
    np.testing.assert_allclose(p, np.mean(by_prefix, axis=0), rtol=1e-4)
    assert (np.ptp(by_prefix, axis=0) > 1e-3 * p).any()  # the prefix matters
    assert record["pass_at"]["1"] == pytest.approx(p.mean())
    assert record["pass_at"]["1"] + sum(record["errors"].values()) == pytest.approx(1)


def test_one_prefix_is_a_longer_prompt(copy):
    """With a single integer there is nothing to average: rows are problems."""
    config = copy(BASE).config()
    test = streams.test_problems(config.data, 8)
    plain, one, three = (problems.problem_set(config.data, test, "cpu", prefix=n) for n in (0, 1, 3))
    assert one.integers == plain.integers == 1 and (one.prompts[:, -1] == 0).all()
    assert torch.equal(one.prompts[:, :-1], plain.prompts) and torch.equal(one.dfa, plain.dfa)
    assert three.prompts[:6, -1].tolist() == [0, 1, 2, 0, 1, 2]
    assert problems.mean_over_integers(three, np.arange(24.0)).tolist() == [1, 4, 7, 10, 13, 16, 19, 22]


def test_what_it_does_not_go_with(copy, capsys):
    """An evaluation that cannot average leaves its run out by name."""
    pipeline = copy(BASE)
    assert pipeline("sft", PREFIXED) == 0
    assert "sft.prefix" in pipeline.refused(capsys, "rl", PREFIXED, "rl.epoch=4")
    run = pipeline.at("sft", PREFIXED)
    for override, path in {"engine=split": run, "budget=50": run / "epochs" / "e4.pt"}.items():
        assert pipeline("eval", f"eval.{override}") == 0
        assert f"{path}: left out, its p is an average over prefixes" in capsys.readouterr().out
        assert {record["run"] for record in pipeline.view()["records"]} == {pipeline.run(BASE).name}


def test_a_context_as_long_as_a_trace_is_enough(copy):
    """The prefix takes the place of the last token, which no model needs to read."""
    pipeline = copy()
    tight = [f"walks.seq_len={pipeline.config().data.prompt_len + pipeline.config().data.trace_len}"]
    assert pipeline("pretrain", *tight) == pipeline("sft", *tight, PREFIXED) == 0
    assert pipeline("eval", *tight) == 0 and len(pipeline.view()["records"]) == 4


def test_wrong_labels_at_forks_leave_the_trace_as_it_is(copy):
    """Half of the forks have a wrong branch as their label; inputs and every other label stay."""
    pipeline = copy(BASE)
    plain, wrong = (pipeline.config("sft.fork_rate=1", f"sft.wrong_forks={share}") for share in (0, 0.5))
    place = plain.data.prompt_len + 2 - 1  # of the branch among targets, after the mode and the start
    (inputs, targets), (same, labels) = (stages.sft_batches(config)(0) for config in (plain, wrong))
    np.testing.assert_array_equal(inputs, same)
    changed = targets != labels
    assert changed[:, place].any() and not changed[:, place].all() and not np.delete(changed, place, axis=1).any()
    data = stages.sft_data(plain, 0)
    pairs = {tuple(pair) for pair in plain.data.children(data.problems)}
    assert all((right, label) in pairs for right, label in zip(targets[changed], labels[changed], strict=True))
