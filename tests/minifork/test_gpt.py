"""The model: decoding against a KV cache gives the logits of the training path, and nothing looks ahead."""

import numpy as np
import pytest
import torch

from minifork.gpt import Rows
from minifork.settings import Shape

SHAPES = [Shape(1, 16, 1), Shape(2, 24, 3), Shape(3, 32, 2)]
VOCAB, PROMPT, CONTEXT = 11, 7, 12


def random_tokens(seed: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(VOCAB, size=shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("problem", "selections"),
    [
        ([0, 1, 2, 3], [None] * 5),  # one row a problem
        ([0, 0, 0, 1, 3], [None] * 5),  # ragged, and problem 2 has no row
        ([0, 0, 1, 1, 1, 2, 3], [None, [0, 2, 4, 6], [0, 1], None, [1]]),  # rows end, problems end
        ([0, 1, 2, 3], [None, [0, 0, 0, 2, 2, 3], [0, 0, 1, 2, 2, 2, 4, 5, 5], [3, 6, 8], None]),  # prefixes branch
        ([2, 2, 2, 2, 2], [None, [0, 2, 4], [0, 1, 2], [0, 0, 2], None]),  # all on one problem
    ],
)
@torch.no_grad()
def test_decode_equals_the_training_path(make_model, shape, problem, selections):
    """Compared on a slice of prompts, for random tokens, with rows selected in between; the prompts stay as they were.

    So children of one parent go different ways without touching each other.
    """
    model, rng, tokens = make_model(1, shape, VOCAB, CONTEXT), np.random.default_rng(3), random_tokens(2, 6, PROMPT)
    prompts, prompt = model.prefill(tokens)[slice(1, 5)], tokens[1:5]
    assert len(prompts) == 4 and prompts.length == PROMPT
    assert (prompts.logits - model(prompt)[:, -1]).abs().max() < 1e-4
    k, v = prompts.k.clone(), prompts.v.clone()
    rows, sequences = Rows(prompts, torch.tensor(problem), CONTEXT - PROMPT), prompt[problem]
    for selection in selections:
        if selection is not None:
            rows, sequences = rows.take(torch.tensor(selection)), sequences[selection]
        token = torch.from_numpy(rng.integers(VOCAB, size=len(sequences)))
        sequences = torch.cat([sequences, token[:, None]], dim=1)
        assert (model.decode(token, rows) - model(sequences)[:, -1]).abs().max() < 1e-4
    assert torch.equal(prompts.k, k) and torch.equal(prompts.v, v)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_causality(make_model, shape):
    """A changed token changes the logits at its own and every later position, and at no earlier one."""
    model = make_model(6, shape, VOCAB, CONTEXT)
    tokens = random_tokens(7, 1, CONTEXT)
    before = model(tokens)
    for at in range(CONTEXT):
        changed = tokens.clone()
        changed[0, at] = (changed[0, at] + 1) % VOCAB
        moved = (model(changed) - before).abs().amax(dim=2)[0]
        assert (moved[:at] < 1e-5).all()
        assert (moved[at:] > 1e-4).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masked_positions(make_model, shape):
    """The same logits and the same gradients, to rounding, where only some positions are computed."""
    model, tokens = make_model(6, shape, VOCAB, CONTEXT), torch.arange(2 * PROMPT).reshape(2, PROMPT) % VOCAB
    mask = torch.from_numpy(np.random.default_rng(0).random(tokens.shape) < 0.5)
    for first in (0, 1, PROMPT - 1):
        mask[:, :first], mask[0, first] = False, True
        gradients = []
        for logits in (model(tokens) * mask[..., None], model(tokens, mask)):
            gradients.append(torch.autograd.grad(logits.square().sum(), list(model.parameters())))
        assert torch.allclose(model(tokens, mask), model(tokens) * mask[..., None], atol=1e-5)
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_positions(make_model):
    """The same token at another position gives other logits."""
    logits = make_model(8, SHAPES[1], VOCAB, CONTEXT)(torch.full((1, CONTEXT), 3))[0]
    assert (logits[1:] - logits[:-1]).abs().amax(dim=1).min() > 1e-3


def test_every_parameter_learns(make_model):
    """No parameter is left out of the computation, and none is shared."""
    model = make_model(1, SHAPES[1], VOCAB, CONTEXT)
    model(random_tokens(2, 4, CONTEXT)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
    pointers = [p.data_ptr() for p in model.parameters()]
    assert len(set(pointers)) == len(pointers)
