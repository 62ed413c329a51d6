"""Measurements of how long a call takes, and of how fast this machine multiplies matrices."""

import time
from collections.abc import Callable
from statistics import median

import torch


def seconds_of(job: Callable[[], object], repeats: int = 1) -> float:
    """Seconds that a job takes until a GPU has finished it, the mean of several repeats."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(repeats):
        job()
    wait()
    return (time.perf_counter() - started) / repeats


def fastest(job: Callable[[], object], repeats: int = 1) -> float:
    """Seconds that a job takes, the smallest of four measurements."""
    return min(seconds_of(job, repeats) for _ in range(4))


def spread(seconds: list[float]) -> dict:
    """The median, the smallest and the largest of seconds: {"seconds": .., "spread": [.., ..]}."""
    return {"seconds": median(seconds), "spread": [min(seconds), max(seconds)]}


def matmul_rate(device: str, size: int, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / fastest(lambda: a @ b)
