"""How fast are rollouts on a GPU? The fused kernel beside torch loops, over batch sizes.

The torch loops share prompts, keep keys and values in fixed buffers, use torch's own random numbers and run in bf16,
as the kernel does: eager, replayed as a CUDA graph, and compiled by torch.compile and replayed. A batch is as many
rollouts as are in flight at once. A sampled token is one drawn by a row that had not ended before.
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from minifork.decoding.traces import Tree
from minifork.gpt import GPT, Prompts
from minifork.gpu import backends
from minifork.gpu.graphed import Graph, dense, empty_rows
from minifork.gpu.kernel import build_for, lay_out
from minifork.settings import Shape

BATCHES = (1024, 4096, 16384, 65536, 262144)
COMPILED = (4096, 65536)  # torch.compile takes a minute for each
ROUNDS, ROUND_S, WARM_S = 5, 0.1, 0.3  # timed rounds, seconds of a round, seconds before the first
PROBLEMS = 64  # that share a batch


def batch_of(tree: Tree, rollouts: int) -> tuple[Tree, int]:
    """The tree of (at most) PROBLEMS problems, and how many rollouts of each make up the batch."""
    part = tree[:PROBLEMS]
    return part, rollouts // len(part)


def in_bf16(tree: Tree) -> Tree:
    """The same tree with the model and its keys and values in bf16; logits are made fp32 by the policy."""
    model = copy.deepcopy(tree.model).bfloat16()
    prompts = Prompts(tree.prompts.logits.bfloat16(), tree.prompts.k.bfloat16(), tree.prompts.v.bfloat16())
    return replace(tree, model=model, prompts=prompts)


def jobs(tree: Tree, rollouts: int) -> dict[str, Callable[[], Callable[[], object]]]:
    """Ways to run a batch: a function that prepares one (compiles, records) and returns what to time."""
    part, n = batch_of(tree, rollouts)
    coarse = in_bf16(part)
    first = torch.zeros((), dtype=torch.int64, device=tree.dfa.device)

    def fused(bf16: bool) -> Callable[[], object]:
        gpu = backends.machine(tree.dfa.device)
        build = build_for(part, backends.ready(gpu, part, gpu.rows(rollouts), bf16), bf16)
        made, args, blocks = lay_out(part, n, 0, gpu, build, None, False)

        def launch() -> None:
            made["ends"].zero_()
            gpu.launch(build, args, blocks)

        return launch

    def eager() -> Callable[[], object]:
        rows = empty_rows(coarse, n)
        return lambda: dense(coarse, rows, first, None)

    def graph(how: Callable = dense) -> Callable[[], object]:
        recorded = Graph(coarse, n, None, how)
        return lambda: recorded(coarse, 0)

    def compiled() -> Callable[[], object]:
        torch._dynamo.reset()  # else the second size is compiled for all sizes
        return graph(torch.compile(dense, dynamic=False))

    return {
        "kernel bf16": lambda: fused(True),
        "kernel fp32": lambda: fused(False),
        "kernel bf16 + layout": lambda: lambda: backends.sample(part, n, 0, bf16=True),
        "torch eager": eager,
        "torch graph": graph,
        "torch compiled graph": compiled,
    }


def bench_gpu(tree: Tree) -> dict:
    """Tokens and rollouts a second of every backend and batch, as a dictionary; prints a table."""
    result = {"batches": list(BATCHES), "rounds": ROUNDS, "backends": {}, **limits(tree)}
    print(f"{'sampled tokens/s':<22}" + "".join(f"{batch:>16,}" for batch in BATCHES))
    for name in jobs(tree, BATCHES[0]):
        cells, texts = [], []
        for batch in BATCHES:
            if name == "torch compiled graph" and batch not in COMPILED:
                texts.append(f"{'-':>16}")
                continue
            cell = _measure(tree, name, batch)
            cells.append(cell)
            texts.append(f"{cell['tokens_per_s']:>16,.0f}" if "tokens_per_s" in cell else f"{'failed':>16}")
        result["backends"][name] = cells
        print(f"{name:<22}" + "".join(texts), flush=True)
    result["summary"] = summary(result)
    for what, value in result["summary"].items():
        print(f"{what}: {value if value is None else format(value, '.3g')}")
    return result


def _measure(tree: Tree, name: str, batch: int) -> dict:
    """One backend at one batch: seconds (median, spread), rates; what went wrong if it failed."""
    part, n = batch_of(tree, batch)
    try:
        started = time.perf_counter()
        job = jobs(tree, batch)[name]()
        job()
        torch.cuda.synchronize()
        prepared = time.perf_counter() - started
        once, warm = _seconds(job, 3), time.perf_counter()
        while time.perf_counter() - warm < WARM_S:  # until the clocks are up
            _seconds(job, 10)
        repeats = max(1, round(ROUND_S / once))
        seconds = [_seconds(job, repeats) for _ in range(ROUNDS)]
    except Exception as error:  # a baseline that fails, in whatever way, must not lose the other measurements
        return {
            "rollouts": batch,
            "failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        }
    median, rollouts = statistics.median(seconds), n * len(part)  # a batch need not be a multiple of the problems
    tokens = float(backends.sample(part, 256, 0).tokens.sum()) * n  # a trace's mean length, from another sample
    return {
        "rollouts": batch,
        "seconds": median,
        "spread": [min(seconds), max(seconds)],
        "prepared_s": prepared,
        "rollouts_per_s": rollouts / median,
        "tokens_per_s": tokens / median,
        "decoded_per_s": (tokens - rollouts) / median,  # a trace's first token comes from the prompt
    }


def _seconds(job: Callable[[], object], repeats: int) -> float:
    """Seconds of a job, the mean of some repeats."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(repeats):
        job()
    torch.cuda.synchronize()
    return (time.perf_counter() - started) / repeats


def limits(tree: Tree) -> dict:
    """The machine's measured matrix and L2 rates, and the decoded tokens a second that they allow (64 rows a tile).

    Matrix: two FLOPs a weight. L2: every tile reads all weights once for each token of its rows, and rows write their
    keys and values once and read those before them (half of the longest suffix). Scratch larger than the L2 cache is
    slower than that.
    """
    build = build_for(tree, 64, True)
    weights = 12 * build.layers * build.width**2 + build.vocab * build.width
    suffix = 2 * build.layers * build.width * 2 * (1 + build.steps / 2)
    flops, l2 = matrix_rate(), l2_rate()
    return {
        "matrix_flops": flops,
        "l2_bytes": l2,
        "flops_a_token": 2 * weights,
        "matrix_limit": flops / (2 * weights),
        "l2_limit": l2 / (2 * weights / build.rows + suffix),
    }


def matrix_rate(size: int = 8192) -> float:
    """FLOP/s of a large bf16 matrix product, the best of five."""
    a, b = (torch.randn(size, size, device="cuda").bfloat16() for _ in range(2))
    return 2 * size**3 / _best(lambda: a @ b)


def l2_rate(megabytes: int = 24) -> float:
    """Bytes a second of reading, 64 times over in one kernel, a tensor that stays in the L2 cache."""
    a = torch.ones(megabytes * 2**18, device="cuda")
    wide = a.expand(64, -1)
    return 64 * a.nbytes / _best(lambda: wide.sum(dim=1))


def _best(job: Callable[[], object]) -> float:
    return min([_seconds(job, 5) for _ in range(6)][1:])


def summary(result: dict) -> dict[str, float | None]:
    """The ratios that matter."""

    def best(name: str, most: int | None = None, rate: str = "tokens_per_s") -> float | None:
        cells = [c for c in result["backends"][name] if rate in c and (not most or c["rollouts"] <= most)]
        return max((c[rate] for c in cells), default=None)

    def ratio(a: float | None, b: float | None) -> float | None:
        return a / b if a and b else None

    graphs = [name for name in result["backends"] if "graph" in name]
    baseline = max((best(name) or 0.0 for name in graphs), default=0.0)
    small = max((best(name, 4096) or 0.0 for name in graphs), default=0.0)
    kernel, decoded = best("kernel bf16"), best("kernel bf16", rate="decoded_per_s")
    return {
        "kernel bf16, best tokens/s": kernel,
        "times the better CUDA-graphed baseline, best batch of each": ratio(kernel, baseline),
        "times the better CUDA-graphed baseline, at most 4,096 in flight": ratio(best("kernel bf16", 4096), small),
        "share of the measured matrix limit": ratio(decoded, result["matrix_limit"]),
        "share of the L2 limit": ratio(decoded, result["l2_limit"]),
    }


def reference_tree(layers: int, width: int, heads: int, prompt: int, new: int, problems: int = PROBLEMS) -> Tree:
    """A random model whose rows all live to the length limit, for timings of other sizes than the reference's."""
    vocab = 20
    torch.manual_seed(0)
    model = GPT(Shape(layers, width, heads), vocab, prompt + new).cuda().eval()
    dfa = torch.zeros(problems, 3, vocab, dtype=torch.int64, device="cuda")
    dfa[:, 1], dfa[:, 2] = 1, 2
    with torch.no_grad():
        return Tree(model, model.prefill(torch.randint(vocab, (problems, prompt), device="cuda")), dfa, 2, new)
