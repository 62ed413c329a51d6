"""How fast are the engines, beside common ways to sample? One base model, all of them on the same problems.

exact, split and the evaluation of a checkpoint are timed on all test problems. The samplers run as many rollouts as
they manage in comparable time. A step of pretraining uses all cores and a step of fine-tuning one core, as in studies.
Every round times all of them in turn, so that a slow spell of the machine hits all alike. The first round warms up and
does not count. On a GPU, `bench_gpu` follows with all ways to run rollouts there. The JSON on the last line is also
kept in runs/<task>/bench.json.
"""

import itertools
import json
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.checks.bench_gpu import bench_gpu
from experiments.checks.timing import matmul_rate, seconds_of, spread
from minifork import measure, runs
from minifork.cores import cores
from minifork.decoding.exact import exact
from minifork.decoding.policy import Policy
from minifork.decoding.rollout import rollout
from minifork.decoding.split import split
from minifork.decoding.traces import TraceTree
from minifork.evaluation.targets import problems_for
from minifork.gpt import GPT
from minifork.models import new_model, pick_device
from minifork.schema import Config, Optim
from minifork.storage.files import write_json
from minifork.training import loop, losses, stages

T = TypeVar("T")
Job = tuple[Callable[[], object], int]  # what is timed, and how many rollouts it makes (0 for anything but a sampler)

ROUNDS = 5
SPLITS = 10**6  # rollouts a problem
ROLLOUT_PROBLEMS, ROLLOUTS = 200, 256  # of the rollout engine
BASELINE_PROBLEMS, BASELINE_ROLLOUTS = 50, 16  # of the slow samplers: larger batches make them slower
BASELINES = ("recompute", "hf generate")
SCHEDULE = 10**6  # steps of the learning rate's schedule, as all steps are timed at its start
PRETRAINING, OPTIMIZER, FINE_TUNING = "pretraining step", "of it optimizer", "fine-tuning step"


@torch.no_grad()
def bench(config: Config) -> None:
    """Time the engines on the base model; raises ValueError when it is missing."""
    device = pick_device(config)
    model = runs.require_run(config, "base").model().to(device)
    problems = problems_for(config, device)
    tree = measure.trace_tree(model, problems, Policy())
    jobs = sampling_jobs(model, problems.prompts, tree)
    jobs["eval a checkpoint"] = lambda: measure.measure(model, problems, config.eval, None, False), 0
    steps, flops = training_jobs(config, device)
    decoded = rollout(tree[:ROLLOUT_PROBLEMS], ROLLOUTS, 0).evaluated
    flops["rollout"] = decoded * flops_a_token(model, tree.prompts.length + tree.max_new)
    machine = {
        **runs.made_by(config),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "instruction_sets": runs.instruction_sets(),
        "torch": torch.__version__,
        "problems": len(tree),
        "rounds": ROUNDS,
    }
    result = machine | run_rounds(jobs | steps, flops, device)
    print_speeds(result)
    if device == "cuda":
        *_, result["gpu"] = bench_gpu(tree)
    write_json(runs.task_folder(config) / "bench.json", result)
    print(json.dumps(result))


def run_rounds(jobs: dict[str, Job], flops: dict[str, float], device: str) -> dict[str, Any]:
    """Time all jobs and matrix products; returns the speeds, and what share of the matrix peak the FLOPs are."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    multiply = partial(matmul_rate, device, 1536, torch.float32)
    rates, rates_one_core = [], []
    for _ in range(ROUNDS + 1):
        for name, (job, _) in jobs.items():
            seconds[name].append(seconds_of(job))
        rates.append(multiply())
        rates_one_core.append(on_one_core(multiply))
    engines = {name: spread(times[1:]) for name, times in seconds.items()}
    for name, (_, rollouts) in jobs.items():
        engines[name]["rate"] = rollouts / engines[name]["seconds"] if rollouts else None
    peak, peak_one_core = median(rates[1:]), median(rates_one_core[1:])
    peaks = {"rollout": peak, PRETRAINING: peak, FINE_TUNING: peak_one_core}
    rate = engines["rollout"]["rate"]
    return {
        "matmul_peak_gflops": peak / 1e9,
        "matmul_peak_gflops_one_core": peak_one_core / 1e9,
        "share_of_peak": {name: flops[name] / engines[name]["seconds"] / peaks[name] for name in peaks},
        "optimizer_share": engines[OPTIMIZER]["seconds"] / engines[PRETRAINING]["seconds"],
        "engines": engines,
        "rollout_against": {name: rate / engines[name]["rate"] for name in BASELINES if name in engines},
    }


def sampling_jobs(model: GPT, prompts: Tensor, tree: TraceTree) -> dict[str, Job]:
    """The engines and the baselines by name."""
    part, few, new = tree[:ROLLOUT_PROBLEMS], prompts[:BASELINE_PROBLEMS], tree.max_new
    jobs: dict[str, Job] = {
        "prefill": (lambda: model.prefill(prompts), 0),
        "exact": (lambda: exact(tree), 0),
        "split": (lambda: split(tree, SPLITS, 0), len(tree) * SPLITS),
        "rollout": (lambda: rollout(part, ROLLOUTS, 0), len(part) * ROLLOUTS),
        "recompute": (lambda: recompute(model, few, BASELINE_ROLLOUTS, new), len(few) * BASELINE_ROLLOUTS),
    }
    try:
        jobs["hf generate"] = hugging_face(model, few, BASELINE_ROLLOUTS, new), len(few) * BASELINE_ROLLOUTS
    except ImportError:
        print("hf generate: not measured, transformers is not installed (extra: bench)")
    return jobs


def training_jobs(config: Config, device: str) -> tuple[dict[str, Job], dict[str, float]]:
    """Steps of pretraining, of its optimizers alone and of fine-tuning by name, and the FLOPs of both whole steps."""
    pretraining = training_step(config, device, stages.walk_batches(config), config.pretrain)
    fine_tuning = training_step(config, device, stages.sft_batches(config), config.sft)
    steps: dict[str, Job] = {
        PRETRAINING: (pretraining, 0),
        OPTIMIZER: (optimizer_step(config, device), 0),
        FINE_TUNING: (partial(on_one_core, fine_tuning), 0),
    }
    return steps, {PRETRAINING: flops_of(pretraining), FINE_TUNING: flops_of(fine_tuning)}


def training_step(config: Config, device: str, batches: loop.BatchAt, optim: Optim) -> Callable[[], object]:
    """A function that trains a new model on the next batch."""
    model = new_model(config, config.base_seed).to(device)
    optimizers, numbers = loop.make_optimizers(model, optim), itertools.count()
    objective = loop.supervised(batches, losses.parse_loss("cross_entropy"), device)
    job = loop.TrainingJob(runs.in_memory(config, "base", None, silent=True), objective, SCHEDULE, optim)
    return torch.enable_grad()(lambda: loop.take_step(model, optimizers, job, next(numbers)))


def optimizer_step(config: Config, device: str) -> Callable[[], object]:
    """A function that moves the parameters of a new model along gradients that stay as they are."""
    model = new_model(config, config.base_seed).to(device)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers = loop.make_optimizers(model, config.pretrain)
    return lambda: [optimizer.step() for optimizer in optimizers]


def flops_of(step: Callable[[], object]) -> int:
    """The FLOPs of the matrix products of a step."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def on_one_core(job: Callable[[], T]) -> T:
    """What a job returns, run with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return job()
    finally:
        torch.set_num_threads(threads)


def print_speeds(result: dict[str, Any]) -> None:
    """One line an engine, then how the rollout engine compares."""
    print(f"{'':<14}{'seconds':>10}{'fastest':>10}{'slowest':>10}{'rollouts/s':>16}")
    for name, job in result["engines"].items():
        cells = "".join(f"{seconds:>10.3f}" for seconds in (job["seconds"], *job["spread"]))
        print(f"{name:<14}{cells}{format(job['rate'], ',.0f') if job['rate'] else '-':>16}")
    for name, ratio in result["rollout_against"].items():
        print(f"rollout is {ratio:.3g} times as fast as {name}")
    for name, share in result["share_of_peak"].items():
        print(f"{name} runs at {share:.0%} of the measured matrix peak")
    print(f"the optimizer takes {result['optimizer_share']:.1%} of a pretraining step")


def recompute(model: GPT, prompts: Tensor, n: int, new: int) -> Tensor:
    """nanoGPT's way: every token runs the whole sequence again; rows go on to the end."""
    tokens = prompts.repeat_interleave(n, dim=0)
    for _ in range(new):
        p = torch.softmax(model(tokens)[:, -1].float(), dim=-1)
        tokens = torch.cat([tokens, torch.multinomial(p, 1)], dim=1)
    return tokens


def hugging_face(model: GPT, prompts: Tensor, n: int, new: int) -> Callable[[], Tensor]:
    """GPT-2's generate with a KV cache, on a model of the same size. Raises ImportError without transformers.

    Its weights are random, which does not change how long ``new`` tokens take.
    """
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    shape, vocab = model.shape, model.vocab_size
    config = GPT2Config(
        vocab_size=vocab, n_positions=model.context, n_embd=shape.width, n_layer=shape.layers, n_head=shape.heads,
        bos_token_id=0, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    twin = GPT2LMHeadModel(config).eval().to(model.head.weight.device)
    options = {"min_new_tokens": new, "max_new_tokens": new, "num_return_sequences": n, "do_sample": True, "top_k": 0}
    return lambda: twin.generate(prompts, attention_mask=torch.ones_like(prompts), **options)


def flops_a_token(model: GPT, context: int) -> float:
    """FLOPs to decode one token: two for each weight of every matrix product, and attention over the context."""
    shape = model.shape
    matrices = 12 * shape.layers * shape.width**2 + model.vocab_size * shape.width
    return 2 * matrices + 4 * shape.layers * context * shape.width
