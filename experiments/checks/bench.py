"""The speed of the engines beside common ways to sample: one base model, all on the same problems.

exact, split and the evaluation of a checkpoint are timed on all test problems. The samplers run as many rollouts as
they manage in comparable time. A step of pretraining uses all cores and a step of fine-tuning one core, as in studies.
Every round times all of them in turn, so that all share the machine's slow spells. The first round warms up and does
not count. On a GPU, `bench_gpu` follows with all ways to run rollouts there. The JSON on the last line is also
kept in runs/<task>/bench.json.
"""

import itertools
import json
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple, TypeVar

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
from minifork.storage.files import write_sealed_json
from minifork.training import loop, losses, stages

T = TypeVar("T")

ROUNDS = 5
SPLIT_ROLLOUTS = 10**6  # split samples so many rollouts a problem
ROLLOUT_PROBLEMS, ROLLOUTS = 200, 256  # the rollout engine samples so many rollouts of so many problems
BASELINE_PROBLEMS, BASELINE_ROLLOUTS = 50, 16  # the baselines sample fewer: larger batches make them slower
BASELINES = ("recompute", "hf generate")
SCHEDULE_STEPS = 10**6  # the learning rate's schedule is long, so that all timed steps lie at its start
PRETRAINING, OPTIMIZER, FINE_TUNING = "pretraining step", "of it optimizer", "fine-tuning step"


class TimedCall(NamedTuple):
    """A function without arguments that is timed, and the number of rollouts it samples, 0 if it is no sampler."""

    call: Callable[[], object]
    rollouts: int = 0


@torch.no_grad()
def bench(config: Config) -> None:
    """Time the engines on the base model; raises ValueError when it is missing."""
    device = pick_device(config)
    model = runs.require_run(config, "base").model().to(device)
    problems = problems_for(config, device)
    tree = measure.trace_tree(model, problems, Policy())
    calls = sampling_calls(model, problems.prompts, tree)
    calls["eval a checkpoint"] = TimedCall(lambda: measure.measure(model, problems, config.eval, None, False))
    steps, flops = training_calls(config, device)
    decoded = rollout(tree[:ROLLOUT_PROBLEMS], ROLLOUTS, 0).evaluated
    flops["rollout"] = decoded * flops_a_token(model, tree.prompts.length + tree.max_new)
    machine = {
        **runs.made_by(config),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "instruction_sets": runs.instruction_sets(),
        "torch": torch.__version__,
        "problems": len(tree),
        "rounds": ROUNDS,
    }
    result = machine | run_rounds(calls | steps, flops, device)
    print_speeds(result)
    if device == "cuda":
        *_, result["gpu"] = bench_gpu(tree)
    write_sealed_json(runs.task_folder(config) / "bench.json", result)
    print(json.dumps(result))


def run_rounds(calls: dict[str, TimedCall], flops: dict[str, float], device: str) -> dict[str, Any]:
    """Time all calls and matrix products; returns speeds, and FLOP/s as shares of the measured matrix peak."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    multiply = partial(matmul_rate, device, 1536, torch.float32)
    rates, rates_one_core = [], []
    for _ in range(ROUNDS + 1):
        for name, timed in calls.items():
            seconds[name].append(seconds_of(timed.call))
        rates.append(multiply())
        rates_one_core.append(on_one_core(multiply))
    engines = {name: spread(times[1:]) for name, times in seconds.items()}
    for name, timed in calls.items():
        engines[name]["rate"] = timed.rollouts / engines[name]["seconds"] if timed.rollouts else None
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


def sampling_calls(model: GPT, prompts: Tensor, tree: TraceTree) -> dict[str, TimedCall]:
    """The engines and the baselines by name."""
    part, baseline_prompts, new = tree[:ROLLOUT_PROBLEMS], prompts[:BASELINE_PROBLEMS], tree.max_new
    baseline = model, baseline_prompts, BASELINE_ROLLOUTS, new
    baseline_rollouts = len(baseline_prompts) * BASELINE_ROLLOUTS
    calls = {
        "prefill": TimedCall(lambda: model.prefill(prompts)),
        "exact": TimedCall(lambda: exact(tree)),
        "split": TimedCall(lambda: split(tree, SPLIT_ROLLOUTS, 0), len(tree) * SPLIT_ROLLOUTS),
        "rollout": TimedCall(lambda: rollout(part, ROLLOUTS, 0), len(part) * ROLLOUTS),
        "recompute": TimedCall(lambda: recompute(*baseline), baseline_rollouts),
    }
    try:
        calls["hf generate"] = TimedCall(hugging_face(*baseline), baseline_rollouts)
    except ImportError:
        print("hf generate: not measured, transformers is not installed (extra: bench)")
    return calls


def training_calls(config: Config, device: str) -> tuple[dict[str, TimedCall], dict[str, float]]:
    """Steps of pretraining, of its optimizers alone and of fine-tuning by name, and the FLOPs of both whole steps."""
    pretraining = training_step(config, device, stages.walk_batches(config), config.pretrain)
    fine_tuning = training_step(config, device, stages.sft_batches(config), config.sft)
    steps = {
        PRETRAINING: TimedCall(pretraining),
        OPTIMIZER: TimedCall(optimizer_step(config, device)),
        FINE_TUNING: TimedCall(partial(on_one_core, fine_tuning)),
    }
    return steps, {PRETRAINING: flops_of(pretraining), FINE_TUNING: flops_of(fine_tuning)}


def training_step(config: Config, device: str, batches: loop.BatchAt, optim: Optim) -> Callable[[], object]:
    """A function that trains a new model on the next batch."""
    model = new_model(config, config.base_seed).to(device)
    optimizers, steps = loop.make_optimizers(model, optim), itertools.count()
    objective = loop.supervised(batches, losses.parse_loss("cross_entropy"), device)
    job = loop.TrainingJob(runs.in_memory(config, "base", None, silent=True), objective, SCHEDULE_STEPS, optim)
    return torch.enable_grad()(lambda: loop.take_step(model, optimizers, job, next(steps)))


def optimizer_step(config: Config, device: str) -> Callable[[], object]:
    """A function that makes one step of pretraining's optimizers on a new model, always with the same gradients."""
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


def on_one_core(call: Callable[[], T]) -> T:
    """The result of a call that runs with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return call()
    finally:
        torch.set_num_threads(threads)


def print_speeds(result: dict[str, Any]) -> None:
    """Print one line for each timed call, then ratios to the rollout engine and shares of the matrix peak."""
    print(f"{'':<20}{'seconds':>10}{'fastest':>10}{'slowest':>10}{'rollouts/s':>16}")
    for name, speed in result["engines"].items():
        cells = "".join(f"{seconds:>10.3f}" for seconds in (speed["seconds"], *speed["spread"]))
        print(f"{name:<20}{cells}{format(speed['rate'], ',.0f') if speed['rate'] else '-':>16}")
    for name, ratio in result["rollout_against"].items():
        print(f"rollout is {ratio:.3g} times as fast as {name}")
    for name, share in result["share_of_peak"].items():
        print(f"{name} runs at {share:.0%} of the measured matrix peak")
    print(f"the optimizer takes {result['optimizer_share']:.1%} of a pretraining step")


def recompute(model: GPT, prompts: Tensor, n: int, new: int) -> Tensor:
    """Sample n rollouts a prompt as nanoGPT does: each token runs the whole sequence again, and no row stops early."""
    tokens = prompts.repeat_interleave(n, dim=0)
    for _ in range(new):
        p = torch.softmax(model(tokens)[:, -1].float(), dim=-1)
        tokens = torch.cat([tokens, torch.multinomial(p, 1)], dim=1)
    return tokens


def hugging_face(model: GPT, prompts: Tensor, n: int, new: int) -> Callable[[], Tensor]:
    """A function that runs GPT-2's generate with a KV cache on a model of the same size.

    Its weights are random, which does not change how long ``new`` tokens take. Raises ImportError without transformers.
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
