"""Exact and rollout on star problems: against brute force, and whatever the batch, the order and the threads."""

import copy
import math

import numpy as np
import pytest
import torch

from data_gen import star
from data_gen.star import Star
from minifork.decoding.policy import parse
from minifork.decoding.rollout import rollout
from minifork.decoding.traces import Tree
from minifork.settings import Shape
from tests.helpers.engines import SINKS, TASK, ends, forced, sample, star_case


@torch.no_grad()
def teacher_forced(model, prompt: torch.Tensor, problems, forward: bool) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the FWD or REV trace, free and given its mode, by the training path."""
    trace = torch.from_numpy(TASK.traces(problems, 1 - np.full(len(problems), forward)))
    logits = model(torch.cat([prompt, trace], dim=1)[:, :-1]).double()
    each = torch.log_softmax(logits[:, -trace.shape[1] :], dim=2).gather(2, trace[..., None])[..., 0]
    return each.sum(dim=1).exp().numpy(), each[:, 1:].sum(dim=1).exp().numpy()


@pytest.mark.parametrize("scale", [0.02, 0.15, 0.3])
def test_exact_is_brute_force(make_model, scale):
    model, problems, prompt, prompts, dfa = star_case(make_model, scale=scale)
    n = len(problems)
    free = ends(model, prompts, dfa, SINKS, TASK.trace_len)
    assert free.shape == (n, SINKS) and (free >= 0).all()
    np.testing.assert_allclose(free.sum(axis=1), 1, atol=1e-9)
    fwd, fwd_given = teacher_forced(model, prompt, problems, True)
    rev, rev_given = teacher_forced(model, prompt, problems, False)
    np.testing.assert_allclose(free[:, 0], fwd + rev, rtol=1e-4)
    for mode, given_mode in (("FWD", fwd_given), ("REV", rev_given)):
        values = ends(model, prompts, dfa, SINKS, TASK.trace_len, forced(n, mode))
        np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-9)
        np.testing.assert_allclose(values[:, 0], given_mode, rtol=1e-4)


def test_exact_is_the_mixture_of_its_first_tokens(make_model):
    """free = sum over first tokens of P(token) times the sinks under that forced token, for every sink."""
    model, problems, _, prompts, dfa = star_case(make_model)
    n = len(problems)
    free = ends(model, prompts, dfa, SINKS, TASK.trace_len)
    first = torch.softmax(prompts.logits.double(), dim=1).numpy()
    mixture = np.zeros_like(free)
    for token in range(TASK.vocab_size):
        given_token = ends(model, prompts, dfa, SINKS, TASK.trace_len, torch.full((n, 1), token))
        mixture += first[:, token, None] * given_token
    np.testing.assert_allclose(free, mixture, atol=1e-7)


def test_exact_forces_several_tokens(make_model):
    """Forced to the fork, the rest of the right branch is what remains; forced past an error, so is the error."""
    model, problems, prompt, prompts, dfa = star_case(make_model)
    n = len(problems)
    trace = torch.from_numpy(TASK.traces(problems, 1 - np.ones(n, dtype=bool)))
    with torch.no_grad():
        logits = model(torch.cat([prompt, trace], dim=1)[:, :-1]).double()[:, -trace.shape[1] :]
    each = torch.softmax(logits, dim=2).gather(2, trace[..., None])[..., 0].numpy()
    for length in range(1, TASK.trace_len):
        values = ends(model, prompts, dfa, SINKS, TASK.trace_len, trace[:, :length])
        np.testing.assert_allclose(values[:, 0], each[:, length:].prod(axis=1), rtol=1e-4)
    wrong = torch.from_numpy(np.stack([trace[:, 0], trace[:, 1], TASK.children(problems)[:, 1]], axis=1))
    values = ends(model, prompts, dfa, SINKS, TASK.trace_len, wrong)
    np.testing.assert_allclose(values[:, star.SINKS.index("wrong_branch")], 1, atol=1e-9)


def test_exact_sinks_are_brute_force(make_model):
    """Every sink, on two problems of the smallest task, against all token sequences up to the limit."""
    task = Star(nodes=3, branches=2, length=2)
    problems = task.sample(np.random.default_rng(3), 2)
    model = make_model(5, Shape(1, 16, 2), task.vocab_size, task.prompt_len + task.trace_len)
    prompt = torch.from_numpy(task.prompts(problems))
    dfa = task.dfa(problems)
    expected = np.zeros((2, SINKS))
    for i in range(2):
        live = {(): 1.0}
        for _ in range(task.trace_len):
            longer = {}
            for prefix, mass in live.items():
                with torch.no_grad():
                    logits = model(torch.cat([prompt[i], torch.tensor(prefix, dtype=torch.int64)])[None])[0, -1]
                for token, p in enumerate(torch.softmax(logits.double(), dim=0).tolist()):
                    state = dfa.run(i, [*prefix, token])
                    if state >= dfa.first_sink:
                        expected[i, state - dfa.first_sink] += mass * p
                    else:
                        longer[(*prefix, token)] = mass * p
            live = longer
        assert not live
    with torch.no_grad():
        prompts = model.prefill(prompt)
    values = ends(model, prompts, torch.from_numpy(dfa.next.astype(np.int64)), SINKS, task.trace_len)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert (expected > 0).all(axis=0)[: SINKS - 1].all()


def test_exact_does_not_depend_on_batch_order_or_threads(make_model, threads):
    model, problems, prompt, prompts, dfa = star_case(make_model)
    n = len(problems)
    threads(1)
    together = ends(model, prompts, dfa, SINKS, TASK.trace_len)
    order = np.random.default_rng(0).permutation(n)
    with torch.no_grad():
        shuffled = ends(model, model.prefill(prompt[order]), dfa[order], SINKS, TASK.trace_len)
        alone = [ends(model, model.prefill(prompt[i : i + 1]), dfa[i : i + 1], SINKS, TASK.trace_len) for i in range(5)]
    middle = ends(model, prompts[3:14], dfa[3:14], SINKS, TASK.trace_len)
    threads(2)
    two_threads = ends(model, prompts, dfa, SINKS, TASK.trace_len)
    np.testing.assert_allclose(shuffled, together[order], atol=1e-6)
    np.testing.assert_allclose(np.concatenate(alone), together[:5], atol=1e-6)
    np.testing.assert_allclose(middle, together[3:14], atol=1e-6)
    np.testing.assert_allclose(two_threads, together, atol=1e-6)


@pytest.mark.parametrize("n", [1, 7, 64])
def test_rollouts_do_not_depend_on_threads(make_model, threads, n):
    """Their tokens; log-probabilities to rounding, as matrix products are cut up otherwise."""
    model = make_model(0, Shape(2, 64, 2), 12, 14)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(12, (5, 8), generator=generator)
    dfa = torch.randint(6, (5, 6, 12), generator=generator)
    dfa[:, 4:] = torch.arange(4, 6)[:, None]
    drawn = []
    for count in (1, 2, 3):
        threads(count)
        with torch.no_grad():
            drawn.append(
                rollout(
                    Tree(model, model.prefill(prompts), dfa, 2, 6, parse("temperature=1")), n, 1, traces=True
                ).traces
            )
    for one in drawn[1:]:
        assert torch.equal(one.tokens, drawn[0].tokens) and torch.allclose(one.logp, drawn[0].logp, atol=1e-5)


def test_exact_length_limit(make_model):
    """What still lives at the limit goes to the last sink, and only that."""
    model, _, _, prompts, dfa = star_case(make_model)
    full = ends(model, prompts, dfa, SINKS, TASK.trace_len)
    modes = torch.softmax(prompts.logits.double(), dim=1)[:, [TASK.fwd, TASK.rev]].sum(dim=1).numpy()
    one = ends(model, prompts, dfa, SINKS, 1)
    np.testing.assert_allclose(one[:, -1], modes, atol=1e-9)
    np.testing.assert_allclose(one[:, 1], 1 - modes, atol=1e-9)
    short = ends(model, prompts, dfa, SINKS, TASK.trace_len - 1)
    np.testing.assert_allclose(short.sum(axis=1), 1, atol=1e-9)
    assert (short[:, 0] == 0).all() and (full[:, 0] > 0).all()
    early, late = star.SINKS.index("early_stop"), star.SINKS.index("too_long")
    for sink in set(range(1, SINKS)) - {early, late}:
        assert (short[:, sink] <= full[:, sink] + 1e-9).all()
    longer = ends(model, prompts, dfa, SINKS, TASK.trace_len + 1)  # nothing lives that long
    np.testing.assert_array_equal(longer, full)


def poisoned(prompts, problem: int):
    logits = prompts.logits.clone()
    logits[problem, 2] = math.nan
    return type(prompts)(logits, prompts.k, prompts.v)


def test_nan_logits_are_refused(make_model):
    model, _, _, prompts, dfa = star_case(make_model)
    with pytest.raises(ValueError, match="problem 17"):
        ends(model, poisoned(prompts, 17), dfa, SINKS, TASK.trace_len)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.position.weight[TASK.prompt_len + 1] = math.nan
    with pytest.raises(ValueError, match="problem 0"):
        ends(broken, prompts, dfa, SINKS, TASK.trace_len)


def test_nan_logits_are_refused_by_rollouts(make_model):
    """A sampler that draws something from not-a-number logits reports a healthy 0 instead of a broken model."""
    model, _, _, prompts, dfa = star_case(make_model)
    with pytest.raises(ValueError, match="problem 17"):
        sample(model, poisoned(prompts, 17), dfa, SINKS, TASK.trace_len, 4, seed=0)
