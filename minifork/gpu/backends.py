"""Rollouts in the fastest way: on a CPU the torch reference; on a GPU the fused kernel, or a CUDA graph of torch
operations if the kernel cannot run. All draw the same tokens from the same logits.
"""

import warnings
from functools import lru_cache

import torch
from torch import Tensor

from minifork.decoding.rollout import rollout
from minifork.decoding.traces import Result, TraceTree
from minifork.gpt import GPT
from minifork.gpu import kernel
from minifork.gpu.driver import GPU
from minifork.gpu.graphed import empty_rows, graph_rollout
from minifork.gpu.kernel import UnavailableError

TOLERANCE = 1e-3  # largest difference between a token's probabilities in the kernel (fp32) and in torch
MISSES = 1e-3  # share of tokens that may differ more, as rounding decides at the edge of a policy's cut
TOLERANCE_BF16 = 0.02  # largest mean difference, over tokens, between probabilities in bf16 and in torch


def sample(tree: TraceTree, n: int, seed: int, traces: bool = False, bf16: bool = False) -> Result:
    """The result of n rollouts a problem, as `minifork.decoding.rollout.rollout`, in the fastest way.

    bf16: the kernel computes in bf16, which moves p by up to some percent (docs/kernel.md). Models that are no GPT are
    run by the torch reference.
    """
    if tree.device.type != "cuda" or not isinstance(tree.model, GPT):
        return rollout(tree, n, seed, traces)
    try:
        kernel.require_supported(tree)
        gpu = cuda_device(tree.device)
        rows = tested_rows(gpu, tree, gpu.rows(len(tree) * n), bf16)
        return kernel.run_kernel(tree, n, seed, gpu, rows, bf16, traces)
    except UnavailableError as error:
        warnings.warn(f"rollouts run without the fused kernel, several times slower: {error}", stacklevel=2)
    return rollout(tree, n, seed, traces) if traces else graph_rollout(tree, n, seed)


@lru_cache
def cuda_device(device: torch.device) -> GPU:
    """The GPU with its loaded kernels, one object for each device. Raises UnavailableError."""
    return GPU(device)


def tested_rows(gpu: GPU, tree: TraceTree, rows: int, bf16: bool) -> int:
    """The rows that a block decodes: ``rows``, or fewer if so many do not fit. Tests a build before its first use.

    Raises UnavailableError if no number of rows fits or the test fails.
    """
    build = kernel.build_for(tree, rows, bf16)
    try:
        gpu.function(build)
    except UnavailableError:
        if rows == kernel.TILES[-1]:
            raise
        return tested_rows(gpu, tree, rows // 2, bf16)  # the next smaller tile
    if build not in gpu.tested:
        self_test(gpu, tree, rows, bf16)
        gpu.tested.add(build)
    return rows


def self_test(machine: kernel.Machine, tree: TraceTree, rows: int, bf16: bool) -> None:
    """Compare the kernel's probabilities of the tokens that it samples with torch's.

    Raises UnavailableError if they differ.
    """
    tree = tree[:64]
    traces = kernel.run_kernel(tree, 32, 0, machine, rows, bf16, traces=True).traces
    assert traces is not None
    scored, expected = kernel.score(tree, traces.tokens, machine, rows, bf16), teacher_forced(tree, traces.tokens)
    error = (scored.exp() - expected.exp()).abs()[traces.tokens >= 0]
    close = error.mean() <= TOLERANCE_BF16 if bf16 else (error > TOLERANCE).float().mean() <= MISSES
    if not (close and torch.isfinite(error).all()):
        raise UnavailableError("its probabilities are not torch's on this GPU")
    if (scored - traces.logp.double()).abs().max() > 1e-5:
        raise UnavailableError("it scores its own traces with other probabilities than it sampled them with")


@torch.no_grad()
def teacher_forced(tree: TraceTree, tokens: Tensor) -> Tensor:
    """The log-probabilities float64[B, n, T] of traces int64[B, n, T] (-1 past the end) under the tree's policy.

    By torch, in fp32; 0 past the end and for the tree's forced tokens.
    """
    count, n, length = tokens.shape
    rows = empty_rows(tree, n)
    flat = tokens.reshape(count * n, length)
    logp = torch.zeros(flat.shape, dtype=torch.float64, device=flat.device)
    logits = tree.prompts.logits[rows.problem]
    for step in range(length):
        if step >= tree.forced_len:
            step_logp = torch.log_softmax(tree.policy(logits).double(), dim=1)
            logp[:, step] = step_logp.gather(1, flat[:, step : step + 1].clamp(min=0))[:, 0]
        if step < length - 1:
            logits = tree.model.decode(flat[:, step].clamp(min=0), rows)
    return logp.where(flat >= 0, 0.0).view(tokens.shape)
