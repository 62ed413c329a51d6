"""Muon, the optimizer of the matrices inside blocks (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

A step follows the momentum of a matrix, with all singular values brought near 1. torch.optim.Muon computes this in bf16
on every device, which is slow on processors without bf16 instructions.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b, c of the Newton-Schulz step: singular values end in about [0.7, 1.2]
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum with decoupled weight decay, as torch.optim.Muon.

    The step of a matrix float[rows, columns] is lr * sqrt(max(1, rows / columns)) times an almost orthogonal matrix.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            directions = orthogonalised([self._look_ahead(p, group["momentum"]) for p in parameters])
            for parameter, direction in zip(parameters, directions, strict=True):
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction, alpha=-group["lr"] * max(1, rows / columns) ** 0.5)

    def _look_ahead(self, parameter: Tensor, momentum: float) -> Tensor:
        """The gradient mixed with its running mean, after the mean was updated by the gradient."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        mean = state["momentum_buffer"]
        mean.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(mean, momentum)


def orthogonalised(matrices: list[Tensor]) -> list[Tensor]:
    """Matrices with the singular vectors of these float[m, n] and singular values near 1 (Newton-Schulz iteration).

    Computed in fp32 on a CPU and in bf16 on a GPU, matrices of one shape (or its transpose) in one product.
    """
    stacks: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        stacks[tuple(sorted(matrix.shape))].append(index)
    results = list(matrices)
    for indices in stacks.values():
        wide = [matrices[i] if matrices[i].shape[0] <= matrices[i].shape[1] else matrices[i].T for i in indices]
        for i, result in zip(indices, _newton_schulz(torch.stack(wide)), strict=True):
            results[i] = (result if matrices[i].shape == result.shape else result.T).to(matrices[i].dtype)
    return results


def _newton_schulz(x: Tensor) -> Tensor:
    """float[B, m, n], m <= n, with singular values near 1: x becomes a x + (b x x^T + c (x x^T)^2) x, five times."""
    a, b, c = COEFFICIENTS
    x = x.to(torch.bfloat16 if x.is_cuda else torch.float32)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
