"""Tests that need a GPU: the CUDA build against its host twin and against torch, and its failures.

`make gpu-check` runs these; everywhere else they are skipped. Statistical tests have a level of 1e-4 each.
"""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from minifork.decoding.automata import Tables
from minifork.decoding.rollout import rollout
from minifork.decoding.traces import TraceTree
from minifork.gpt import Prompts
from minifork.gpu import backends, kernel
from minifork.gpu.driver import GPU
from minifork.gpu.graphed import graph_rollout
from minifork.gpu.kernel import UnavailableError
from tests.helpers.engines import CASES, POLICIES, make_tree

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


PROBLEMS, ROLLOUTS = 33, 301  # of the runs that are repeated


def on_gpu(tree: TraceTree) -> TraceTree:
    """The same tree on the GPU, the very same numbers in its prompts."""
    prompts = Prompts(*(t.cuda() for t in (tree.prompts.logits, tree.prompts.k, tree.prompts.v)))
    moved = {name: getattr(tree, name).cuda() for name in ("model", "forced", "ids")}
    return replace(tree, prompts=prompts, automata=Tables(tree.dfa.cuda(), tree.outcome_count), **moved)


@pytest.fixture(scope="module")
def gpu(tmp_path_factory) -> GPU:
    return GPU(torch.device("cuda", torch.cuda.current_device()), tmp_path_factory.mktemp("kernels"))


def tiles(gpu: GPU, tree: TraceTree, bf16: bool) -> list[int]:
    """The rows a block that fit this GPU's shared memory, the smallest first."""
    return sorted({backends.tested_rows(gpu, tree, rows, bf16) for rows in kernel.TILES})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("policy", POLICIES[:-1])
def test_fp32_is_bit_equal_to_the_host_twin(make_model, gpu, twin, case, policy):
    tree = make_tree(make_model, case, 24, policy)
    host = kernel.run_kernel(tree, 25, 3, twin, CASES[case][-1], False, traces=True)
    rows = backends.tested_rows(gpu, on_gpu(tree), CASES[case][-1], False)
    device = kernel.run_kernel(on_gpu(tree), 25, 3, gpu, rows, False, traces=True)
    assert np.array_equal(host.outcomes, device.outcomes) and np.array_equal(host.tokens, device.tokens)
    assert torch.equal(host.traces.tokens, device.traces.tokens.cpu())
    assert torch.equal(host.traces.logp, device.traces.logp.cpu())


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_runs_again_alike_on_every_tiling(make_model, gpu, case, bf16):
    tree = on_gpu(make_tree(make_model, case, PROBLEMS))
    fitting = tiles(gpu, tree, bf16)
    results = [kernel.run_kernel(tree, ROLLOUTS, 7, gpu, rows, bf16, traces=True) for rows in (*fitting, fitting[-1])]
    for result in results[1:]:
        assert np.array_equal(results[0].outcomes, result.outcomes)
        assert torch.equal(results[0].traces.logp, result.traces.logp)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("policy", POLICIES[:-1])
def test_scores_are_torchs(make_model, gpu, bf16, policy):
    for case in CASES:
        tree = on_gpu(make_tree(make_model, case, 64, policy))
        backends.self_test(gpu, tree, backends.tested_rows(gpu, tree, 32, bf16), bf16)


@pytest.mark.parametrize("case", CASES)
def test_backends_agree(make_model, case):
    """Kernel, graph and torch on the same draws: equal but for draws on a boundary."""
    tree = on_gpu(make_tree(make_model, case, 50))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a fallback would warn
        fused = backends.sample(tree, 400, 1)
    plain, graph = rollout(tree, 400, 1), graph_rollout(tree, 400, 1, rows=7000)
    for result in (fused, graph):
        moved = np.abs(result.outcomes - plain.outcomes).sum() * 400 / 2
        assert moved <= 1 + 50 * 400 * 2e-4


def test_a_build_is_compiled_and_tested_once(make_model, tmp_path, monkeypatch):
    """Compiled once for all processes, unless the cache is damaged; tested once in each."""
    tree, calls, test = on_gpu(make_tree(make_model, "reference", 40)), [], backends.self_test
    monkeypatch.setattr(backends, "self_test", lambda *args: (calls.append(1), test(*args)))
    for process in range(1, 4):
        gpu = GPU(tree.device, tmp_path)
        assert [backends.tested_rows(gpu, tree, 32, True) for _ in range(2)] == [32, 32]
        assert len(calls) == process and len(list(tmp_path.glob("*.cubin"))) == 1
        if process == 2:
            next(tmp_path.glob("*.cubin")).write_bytes(b"damaged")


def test_falls_back_with_one_line(make_model, monkeypatch):
    tree = on_gpu(make_tree(make_model, "narrow", 20, "top_n_sigma=1"))
    with pytest.warns(UserWarning, match="without the fused kernel, several times slower: the policy top_n_sigma=1"):
        result = backends.sample(tree, 30, 1)
    assert np.array_equal(result.outcomes, graph_rollout(tree, 30, 1).outcomes)

    def fails(device):
        raise UnavailableError("no NVRTC")

    monkeypatch.setattr(backends, "cuda_device", fails)
    with pytest.warns(UserWarning, match="no NVRTC"):
        backends.sample(on_gpu(make_tree(make_model, "narrow", 20)), 30, 1)


def test_a_broken_kernel_is_not_used(make_model, monkeypatch, tmp_path):
    """The self-test catches it, and torch answers instead."""
    tree = on_gpu(make_tree(make_model, "reference", 40))
    monkeypatch.setattr(backends, "cuda_device", lambda device: GPU(device, tmp_path))
    pack = kernel.pack
    monkeypatch.setattr(kernel, "pack", lambda model, bf16: pack(model, bf16).roll(64))
    with pytest.warns(UserWarning, match="not torch's|not finite"):
        result = backends.sample(tree, 100, 1, bf16=True)
    assert np.array_equal(result.outcomes, graph_rollout(tree, 100, 1).outcomes)


def test_memory_is_enough_for_a_million_rollouts_a_problem(make_model, gpu):
    tree = on_gpu(make_tree(make_model, "narrow", 10))
    result = kernel.run_kernel(tree, 10**6, 1, gpu, backends.tested_rows(gpu, tree, 64, True), True)
    assert (np.rint(result.outcomes.sum(axis=1) * 10**6) == 10**6).all()
