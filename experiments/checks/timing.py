"""How long a job takes, and how fast this machine multiplies matrices."""

import time
from collections.abc import Callable

import torch


def timed(job: Callable[[], object], repeats: int = 1) -> float:
    """Seconds that a job takes, the mean of several repeats, until a GPU has finished it."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(repeats):
        job()
    wait()
    return (time.perf_counter() - started) / repeats


def fastest(job: Callable[[], object], repeats: int = 1) -> float:
    """Seconds that a job takes, the least of four measurements."""
    return min(timed(job, repeats) for _ in range(4))


def matmul_rate(device: str, size: int, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / fastest(lambda: a @ b)
