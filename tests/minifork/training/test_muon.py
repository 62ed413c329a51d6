"""Muon against a singular value decomposition and against torch's."""

import numpy as np
import pytest
import torch

from minifork.training.muon import Muon, orthogonalised

BAND = 0.65, 1.25  # of the singular values, which the quintic brings near 1 and not to it


def matrices(*shapes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    return [torch.tensor(rng.standard_normal(shape), dtype=torch.float32) for shape in shapes]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_singular_vectors_stay_and_singular_values_go_near_one(scale):
    """In one call for square, wide and tall matrices, in whatever order, of any size of gradient."""
    gradients = matrices((16, 64), (64, 16), (16, 64), (24, 24), (8, 96), (24, 24), (1, 5))
    for matrix, result in zip(gradients, orthogonalised([scale * matrix for matrix in gradients]), strict=True):
        u, _, v = torch.linalg.svd(matrix, full_matrices=False)
        values = u.T @ result @ v.T
        if matrix.shape[0] != matrix.shape[1]:  # square Gaussian matrices have singular values near 0, which stay small
            assert BAND[0] < values.diagonal().min() and values.diagonal().max() < BAND[1]
        assert values.diagonal().min() > 0 and (values - values.diagonal().diag()).abs().max() < 1e-3


def test_zeros_stay_zeros():
    assert not orthogonalised([torch.zeros(3, 5)])[0].any()


def steps(kind: type[torch.optim.Optimizer], **options: float) -> list[torch.Tensor]:
    """Parameters after six steps on fixed gradients, one parameter without any."""
    shapes = (16, 64), (64, 16), (24, 24), (16, 64)
    parameters = [torch.nn.Parameter(matrix) for matrix in matrices(*shapes)]
    optimizer = kind([*parameters, torch.nn.Parameter(torch.ones(2, 2))], **options)
    for step in range(6):
        for parameter, gradient in zip(parameters, matrices(*shapes, seed=step + 1), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_the_steps_are_those_of_torch(monkeypatch, weight_decay):
    """To rounding where torch's iteration runs in fp32 too, to that of bf16 where it runs in bf16."""
    ours = steps(Muon, lr=0.02, weight_decay=weight_decay)
    rounded = steps(torch.optim.Muon, lr=0.02, weight_decay=weight_decay)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    precise = steps(torch.optim.Muon, lr=0.02, weight_decay=weight_decay)
    for mine, torchs, in_bf16 in zip(ours, precise, rounded, strict=True):
        torch.testing.assert_close(mine, torchs, rtol=0, atol=1e-5)
        assert 1e-5 < (mine - in_bf16).abs().max() < 0.01
