"""Exact and rollout on star problems: against brute force, and whatever the batch and the threads."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_gen import star
from data_gen.star import Star
from minifork.decoding.exact import exact
from minifork.decoding.rollout import rollout
from minifork.decoding.split import split
from minifork.settings import Shape
from tests.helpers.dag import by_hand
from tests.helpers.engines import OUTCOMES, TASK, outcome_probabilities, poisoned, random_case, star_case


@pytest.mark.parametrize("scale", [0.02, 0.15, 0.3])
def test_exact_is_brute_force(make_model, scale):
    """Free and forced to the first tokens of either mode's trace, the rest of the trace is what remains."""
    tree, problems, prompt = star_case(make_model, scale=scale)
    free = np.zeros(len(problems))
    for mode in range(2):
        trace = torch.from_numpy(TASK.traces(problems, np.full(len(problems), mode)))
        with torch.no_grad():
            logits = tree.model(torch.cat([prompt, trace], dim=1))[:, TASK.prompt_len - 1 : -1].double()
        p = torch.softmax(logits, dim=2).gather(2, trace[..., None])[..., 0].numpy()
        free += p.prod(axis=1)
        for length in range(1, TASK.trace_len):
            forced = outcome_probabilities(tree.force(trace[:, :length]))
            np.testing.assert_allclose(forced[:, 0], p[:, length:].prod(axis=1), rtol=1e-4)
    np.testing.assert_allclose(outcome_probabilities(tree)[:, 0], free, rtol=1e-4)


def test_exact_forced_past_an_error(make_model):
    tree, problems, _ = star_case(make_model)
    wrong = np.concatenate([TASK.fork_prefix(problems), TASK.children(problems)[:, 1:2]], axis=1)
    forced = outcome_probabilities(tree.force(torch.from_numpy(wrong)))
    np.testing.assert_allclose(forced[:, star.OUTCOMES.index("wrong_branch")], 1, atol=1e-9)


def test_exact_outcomes_are_brute_force(make_model):
    """Every outcome, on two problems of the smallest task, against all token sequences up to the limit."""
    tree, _, prompt = star_case(make_model, 2, task=Star(nodes=3, branches=2, length=2))
    expected = np.stack([by_hand(tree, prompt[i].tolist(), i) for i in range(2)])
    np.testing.assert_allclose(outcome_probabilities(tree), expected, atol=1e-6)
    assert (expected > 0).all(axis=0)[: OUTCOMES - 1].all()


@pytest.mark.parametrize("n", [1, 64])
def test_rollouts_do_not_depend_on_threads(make_model, threads, n):
    """Their tokens; log-probabilities to rounding, as matrix products are cut up otherwise."""
    tree, tokens = random_case(make_model, (Shape(2, 64, 2), 12, 8, 6), 5)
    expected = rollout(tree, n, 1, traces=True).traces
    for count in (2, 3):
        threads(count)
        with torch.no_grad():
            fresh = replace(tree, prompts=tree.model.prefill(tokens))
        traces = rollout(fresh, n, 1, traces=True).traces
        assert torch.equal(traces.tokens, expected.tokens) and torch.allclose(traces.logp, expected.logp, atol=1e-5)


def test_exact_length_limit(make_model):
    """Live prefixes at the limit go to the last outcome, and only they."""
    tree = star_case(make_model)[0]
    lengths = tree.max_new, 1, tree.max_new - 1, tree.max_new + 1
    full, shortest, short, longer = (outcome_probabilities(replace(tree, max_new=length)) for length in lengths)
    modes = torch.softmax(tree.prompts.logits.double(), dim=1)[:, [TASK.fwd, TASK.rev]].sum(dim=1).numpy()
    np.testing.assert_allclose(shortest[:, -1], modes, atol=1e-9)
    np.testing.assert_allclose(shortest[:, 1], 1 - modes, atol=1e-9)
    assert (short[:, 0] == 0).all() and (full[:, 0] > 0).all()
    np.testing.assert_array_equal(longer, full)  # nothing lives that long


@pytest.mark.parametrize("engine", [exact, lambda tree: split(tree, 10, 0), lambda tree: rollout(tree, 4, 0)])
def test_logits_that_are_not_finite(make_model, engine):
    """A sampler that draws something from not-a-number logits reports a healthy 0 instead of a broken model."""
    tree = star_case(make_model)[0]
    with pytest.raises(ValueError, match="problem 17"):
        engine(poisoned(tree, 17))
    broken = copy.deepcopy(tree.model)
    with torch.no_grad():
        broken.position.weight[TASK.prompt_len + 1] = math.nan
    with pytest.raises(ValueError, match=r"problem \d+: the model's logits are not finite"):
        engine(replace(tree, model=broken))
