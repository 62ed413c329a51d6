"""The speed of rollouts on a GPU: the fused kernel beside torch loops, over batch sizes.

The torch loops share prompts, keep keys and values in fixed buffers, use torch's own random numbers and run in bf16,
as the kernel does: eager, replayed as a CUDA graph, and compiled by torch.compile and replayed. A batch is as many
rollouts as are in flight at once. Sampled tokens are those drawn by rows that had not ended before.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from experiments.checks.timing import fastest, matmul_rate, seconds_of, spread
from minifork.decoding.traces import TraceTree
from minifork.gpt import Prompts
from minifork.gpu import backends
from minifork.gpu.graphed import Graph, empty_rows, roll_to_limit
from minifork.gpu.kernel import build_for, lay_out

BATCHES = (1024, 4096, 16384, 65536, 262144)
COMPILED = (4096, 65536)  # torch.compile takes a minute for each
ROUNDS = 5  # how often each backend is timed
ROUND_S, WARM_S = 0.1, 0.3  # seconds that a round lasts, and that the GPU warms up before the first one
BATCH_PROBLEMS = 64  # the rollouts of a batch belong to so many problems
MATRIX_SIZE = 8192  # the timed matrices have so many rows and columns
BACKENDS = "kernel bf16", "kernel fp32", "kernel bf16 + layout", "torch eager", "torch graph", "torch compiled graph"


def in_bf16(tree: TraceTree) -> TraceTree:
    """The same tree with the model and its keys and values in bf16; logits are made fp32 by the policy."""
    model = copy.deepcopy(tree.gpt).bfloat16()
    prompts = Prompts(tree.prompts.logits.bfloat16(), tree.prompts.k.bfloat16(), tree.prompts.v.bfloat16())
    return replace(tree, model=model, prompts=prompts)


def prepare(tree: TraceTree, n: int, name: str) -> Callable[[], object]:
    """A function that runs n rollouts a problem on a backend. It is compiled and recorded, and ready to be timed."""
    device = tree.device
    if name == "kernel bf16 + layout":
        return lambda: backends.sample(tree, n, 0, bf16=True)
    if name.startswith("kernel"):
        gpu, bf16 = backends.cuda_device(device), name.endswith("bf16")
        build = build_for(tree, backends.tested_rows(gpu, tree, gpu.rows(len(tree) * n), bf16), bf16)
        tensors, args, blocks = lay_out(tree, n, 0, gpu, build, None, False)

        def launch() -> None:
            tensors["totals"].zero_()  # this function also keeps the tensors alive
            gpu.launch(build, args, blocks)

        return launch
    coarse, run = in_bf16(tree), roll_to_limit
    if name == "torch eager":
        rows, first = empty_rows(coarse, n), torch.zeros((), dtype=torch.int64, device=device)
        return lambda: roll_to_limit(coarse, rows, first, None)
    if name == "torch compiled graph":
        torch._dynamo.reset()  # without it torch compiles the second batch for all sizes
        run = torch.compile(roll_to_limit, dynamic=False)
    graph = Graph(coarse, n, None, run)
    return lambda: graph(coarse, 0)


def bench_gpu(tree: TraceTree) -> Iterator[dict[str, Any]]:
    """Tokens and rollouts a second of every backend and batch; prints them.

    Yields what is measured so far after every backend, and in the end all, with the machine's limits and the ratios.
    """
    part, cells = tree[:BATCH_PROBLEMS], dict[str, list[dict[str, Any]]]()
    result = {"batches": list(BATCHES), "rounds": ROUNDS, "backends": cells}
    for name in BACKENDS:
        cells[name] = []
        for batch in COMPILED if "compiled" in name else BATCHES:
            cells[name].append(cell := time_backend(part, name, batch))
            text = f"{cell['tokens_per_s']:>16,.0f}" if "tokens_per_s" in cell else f" failed: {cell['failed']}"
            print(f"{name:<22}{cell['rollouts']:>10,} in flight, sampled tokens/s:{text}", flush=True)
        yield result
    limit = limits(part)
    ratios = speed_ratios(cells, limit)
    for name, ratio in ratios.items():
        print(f"{name}: {'not measured' if ratio is None else format(ratio, '.3g')}")
    yield {**result, **limit, "summary": ratios}


def time_backend(tree: TraceTree, name: str, batch: int) -> dict[str, Any]:
    """One backend at one batch: seconds (median, spread), rates; the error if it failed."""
    n = batch // len(tree)
    rollouts = n * len(tree)  # a batch need not be a multiple of the problems
    try:
        job = prepare(tree, n, name)
        job()
        seconds_of(job, math.ceil(WARM_S / seconds_of(job, 3)))  # runs until the GPU clocks have risen
        repeats = math.ceil(ROUND_S / seconds_of(job, 3))
        times = spread([seconds_of(job, repeats) for _ in range(ROUNDS)])
        tokens = float(backends.sample(tree, 256, 0).tokens.sum()) * n  # estimated from a sample of its own
    except Exception as error:  # a baseline that fails, in whatever way, must not lose the other measurements
        return {"rollouts": rollouts, "failed": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    counts = {"rollouts": rollouts, "tokens": tokens, "decoded": tokens - rollouts}  # the prompt gives the first token
    return {"rollouts": rollouts, **times} | {f"{name}_per_s": n / times["seconds"] for name, n in counts.items()}


def limits(tree: TraceTree) -> dict[str, float]:
    """The machine's measured matrix and L2 rates, and the decoded tokens a second that they allow (64 rows a tile).

    Matrix: two FLOPs a weight. L2: every tile reads all weights once for each token of its rows, and rows write their
    keys and values once and read those before them (half of the longest suffix). Scratch larger than the L2 cache is
    slower than that.
    """
    build, device = build_for(tree, 64, True), tree.device.type
    weights = 12 * build.layers * build.width**2 + build.vocab * build.width
    suffix = 2 * build.layers * build.width * 2 * (1 + build.steps / 2)
    flops, l2 = matmul_rate(device, MATRIX_SIZE, torch.bfloat16), l2_rate(device)
    return {
        "matrix_flops": flops,
        "l2_bytes": l2,
        "flops_a_token": 2 * weights,
        "matrix_limit": flops / (2 * weights),
        "l2_limit": l2 / (2 * weights / build.rows + suffix),
    }


def l2_rate(device: str, megabytes: int = 24) -> float:
    """Bytes a second of reading, 64 times over in one kernel, a tensor that stays in the L2 cache."""
    a = torch.ones(megabytes * 2**18, device=device)
    return 64 * a.nbytes / fastest(lambda: a.expand(64, -1).sum(dim=1), 5)


def speed_ratios(cells: dict[str, list[dict[str, Any]]], limit: dict[str, float]) -> dict[str, float | None]:
    """The ratios that matter; None where a backend failed."""

    def best(names: tuple[str, ...], rate: str = "tokens_per_s", max_batch: int = max(BATCHES)) -> float:
        rates = [cell.get(rate, math.nan) for name in names for cell in cells[name] if cell["rollouts"] <= max_batch]
        return max((value for value in rates if value > 0), default=math.nan)

    kernel, graphs = ("kernel bf16",), ("torch graph", "torch compiled graph")
    small, decoded = best(kernel, max_batch=4096) / best(graphs, max_batch=4096), best(kernel, "decoded_per_s")
    ratios = {
        "kernel bf16, best tokens/s": best(kernel),
        "times the better CUDA-graphed baseline, best batch of each": best(kernel) / best(graphs),
        "times the better CUDA-graphed baseline, at most 4,096 in flight": small,
        "share of the measured matrix limit": decoded / limit["matrix_limit"],
        "share of the L2 limit": decoded / limit["l2_limit"],
    }
    return {name: None if math.isnan(ratio) else ratio for name, ratio in ratios.items()}
