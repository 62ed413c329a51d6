"""How fast are the engines, beside common ways to sample? One run, everything on the same problems.

exact and split are timed on all test problems, samplers as rollouts a second on as many as they manage in
comparable time. Rounds go through all of them in turn, so that a slow spell of the machine hits all alike;
the first round warms up and does not count. On a GPU all ways to run rollouts follow (`bench_gpu`). The JSON
on the last line is also kept in runs/<task>/bench.json.
"""

import json
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from experiments.checks.bench_gpu import bench_gpu
from minifork import measure, runs
from minifork.checkpoints import pick_device
from minifork.decoding.exact import exact
from minifork.decoding.policy import Policy
from minifork.decoding.rollout import rollout
from minifork.decoding.split import split
from minifork.evaluate import problems_for
from minifork.gpt import GPT
from minifork.schema import Config
from minifork.storage.files import write_json

ROUNDS = 5
SPLITS = 10**6  # rollouts a problem
PROBLEMS, ROLLOUTS = 200, 256  # of the rollout engine
FEW_PROBLEMS, FEW_ROLLOUTS = 50, 16  # of the slow samplers, which larger batches make slower


@torch.no_grad()
def bench(config: Config) -> None:
    """Time the engines on the base model; raises ValueError when it is missing."""
    device = pick_device(config)
    model = runs.require(config, "base").model().to(device)
    problems = problems_for(config, device)
    tree = measure.tree_of(model, problems, Policy())
    some, few, new = tree[:PROBLEMS], problems.prompts[:FEW_PROBLEMS], config.data.trace_len
    jobs: dict[str, tuple[Callable[[], object], int]] = {
        "prefill": (lambda: model.prefill(problems.prompts), 0),
        "exact": (lambda: exact(tree), 0),
        "split": (lambda: split(tree, SPLITS, 0), len(tree) * SPLITS),
        "rollout": (lambda: rollout(some, ROLLOUTS, 0), len(some) * ROLLOUTS),
        "recompute": (lambda: recompute(model, few, FEW_ROLLOUTS, new), len(few) * FEW_ROLLOUTS),
    }
    generate = hugging_face(model, new)
    if generate:
        jobs["hf generate"] = (lambda: generate(few, FEW_ROLLOUTS), len(few) * FEW_ROLLOUTS)
    else:
        print("hf generate: not measured, transformers is not installed (extra: bench)")

    seconds = {name: [] for name in jobs}
    peak = []
    for turn in range(ROUNDS + 1):
        for name, (job, _) in jobs.items():
            taken = timed(job, device)
            seconds[name] += [taken] if turn else []
        peak += [matmul_peak(device)] if turn else []

    decoded = rollout(some, ROLLOUTS, 0).evaluated
    flops = decoded * flops_a_token(model, tree.prompts.length + new)
    result = {
        **runs.made_by(config),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "problems": len(tree),
        "rounds": ROUNDS,
        "matmul_peak_gflops": statistics.median(peak) / 1e9,
        "rollout_share_of_peak": flops / statistics.median(seconds["rollout"]) / statistics.median(peak),
        "engines": {},
    }
    print(f"{'':<14}{'seconds':>10}{'fastest':>10}{'slowest':>10}{'rollouts/s':>16}")
    for name, (_, rollouts) in jobs.items():
        median, rate = statistics.median(seconds[name]), None
        if rollouts:
            rate = rollouts / median
        result["engines"][name] = {"seconds": median, "spread": [min(seconds[name]), max(seconds[name])], "rate": rate}
        cells = f"{median:>10.3f}{min(seconds[name]):>10.3f}{max(seconds[name]):>10.3f}"
        print(f"{name:<14}{cells}{f'{rate:,.0f}' if rate else '-':>16}")
    rates = {name: job["rate"] for name, job in result["engines"].items()}
    result["rollout_against"] = {
        name: rates["rollout"] / rates[name] for name in ("recompute", "hf generate") if name in rates
    }
    for name, ratio in result["rollout_against"].items():
        print(f"rollout is {ratio:.3g} times as fast as {name}")
    print(f"rollout runs at {result['rollout_share_of_peak']:.0%} of the measured matrix peak")
    if device == "cuda":
        result["gpu"] = bench_gpu(tree)
    write_json(runs.task_folder(config) / "bench.json", result)
    print(json.dumps(result))


def recompute(model: GPT, prompts: Tensor, n: int, new: int) -> Tensor:
    """nanoGPT's way: every token runs the whole sequence again; rows go on to the end."""
    tokens = prompts.repeat_interleave(n, dim=0)
    for _ in range(new):
        p = torch.softmax(model(tokens)[:, -1].float(), dim=-1)
        tokens = torch.cat([tokens, torch.multinomial(p, 1)], dim=1)
    return tokens


def hugging_face(model: GPT, new: int) -> Callable[[Tensor, int], Tensor] | None:
    """GPT-2's generate with a KV cache, a model of the same size; None without transformers.

    Its weights are random, which does not change how long ``new`` tokens take.
    """
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
        from transformers.utils import logging
    except ImportError:
        return None
    logging.set_verbosity_error()
    shape, vocab = model.shape, model.vocab_size
    config = GPT2Config(
        vocab_size=vocab, n_positions=model.context, n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    twin = GPT2LMHeadModel(config).eval().to(next(model.parameters()).device)

    def generate(prompts: Tensor, n: int) -> Tensor:
        mask = torch.ones_like(prompts)
        return twin.generate(
            prompts, attention_mask=mask, do_sample=True, top_k=0, num_return_sequences=n,
            min_new_tokens=new, max_new_tokens=new,
        )  # fmt: skip

    return generate


def timed(job: Callable[[], object], device: str) -> float:
    """Seconds a job takes, the device's queue included."""
    _wait(device)
    started = time.perf_counter()
    job()
    _wait(device)
    return time.perf_counter() - started


def matmul_peak(device: str, size: int = 1536) -> float:
    """FLOP/s of a large fp32 matrix product, the best of three."""
    a = torch.randn(size, size, device=device)
    return 2 * size**3 / min(timed(lambda: a @ a, device) for _ in range(3))


def flops_a_token(model: GPT, context: int) -> float:
    """FLOPs to decode one token: two a weight of every matrix product, and attention over the context."""
    shape = model.shape
    matrices = 12 * shape.layers * shape.width**2 + model.vocab_size * shape.width
    return 2 * matrices + 4 * shape.layers * context * shape.width


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
