"""How fast are the engines, beside common ways to sample? One run, everything on the same problems.

exact, split and the evaluation of a checkpoint are timed on all test problems, samplers as rollouts a second on as
many as they manage in comparable time. A step of pretraining uses all cores and one of fine-tuning one core, as in
studies. Rounds go through all of them in turn, so that a slow spell of the machine hits all alike;
the first round warms up and does not count. On a GPU all ways to run rollouts follow (`bench_gpu`). The JSON
on the last line is also kept in runs/<task>/bench.json.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from experiments.checks.bench_gpu import bench_gpu
from experiments.checks.timing import matmul_rate, timed
from minifork import measure, runs
from minifork.checkpoints import new_model, pick_device
from minifork.cores import cores
from minifork.decoding.exact import exact
from minifork.decoding.policy import Policy
from minifork.decoding.rollout import rollout
from minifork.decoding.split import split
from minifork.decoding.traces import TraceTree
from minifork.evaluate import problems_for
from minifork.gpt import GPT
from minifork.schema import Config, Optim
from minifork.storage.files import write_json
from minifork.training import loop, losses, stages

T = TypeVar("T")
ROUNDS = 5
SPLITS = 10**6  # rollouts a problem
PROBLEMS, ROLLOUTS = 200, 256  # of the rollout engine
FEW_PROBLEMS, FEW_ROLLOUTS = 50, 16  # of the slow samplers, which larger batches make slower
BASELINES = ("recompute", "hf generate")
MANY_STEPS = 10**6  # of the schedule, as all are timed at its start
PRETRAINING, OPTIMIZER, FINE_TUNING = "pretraining step", "of it optimizer", "fine-tuning step"


@dataclass(frozen=True)
class Job:
    """What is timed, and how many rollouts it makes (0 where rollouts are not what it makes)."""

    run: Callable[[], object]
    rollouts: int = 0


@torch.no_grad()
def bench(config: Config) -> None:
    """Time the engines on the base model; raises ValueError when it is missing."""
    device = pick_device(config)
    model = runs.require_run(config, "base").model().to(device)
    problems = problems_for(config, device)
    tree = measure.trace_tree(model, problems, Policy())
    jobs = all_jobs(model, problems.prompts, tree)
    jobs["eval a checkpoint"] = Job(lambda: measure.measure(model, problems, config.eval, None, False))
    steps, flops = training_steps(config, device)
    jobs |= {name: Job(step) for name, step in steps.items()}
    seconds, peak, peak_one_core = run_rounds(jobs, device)
    engines = {name: speed(jobs[name], times) for name, times in seconds.items()}
    decoded = rollout(tree[:PROBLEMS], ROLLOUTS, 0).evaluated
    flops["rollout"] = decoded * flops_a_token(model, tree.prompts.length + tree.max_new)
    peaks = {"rollout": peak, PRETRAINING: peak, FINE_TUNING: peak_one_core}
    result = {
        **runs.made_by(config),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "instruction_sets": runs.instruction_sets(),
        "torch": torch.__version__,
        "problems": len(tree),
        "rounds": ROUNDS,
        "matmul_peak_gflops": peak / 1e9,
        "matmul_peak_gflops_one_core": peak_one_core / 1e9,
        "share_of_peak": {name: flops[name] / engines[name]["seconds"] / peaks[name] for name in peaks},
        "optimizer_share": engines[OPTIMIZER]["seconds"] / engines[PRETRAINING]["seconds"],
        "engines": engines,
        "rollout_against": {
            name: engines["rollout"]["rate"] / engines[name]["rate"] for name in BASELINES if name in engines
        },
    }
    print_table(result)
    if device == "cuda":
        *_, result["gpu"] = bench_gpu(tree)
    write_json(runs.task_folder(config) / "bench.json", result)
    print(json.dumps(result))


def run_rounds(jobs: dict[str, Job], device: str) -> tuple[dict[str, list[float]], float, float]:
    """The seconds of every job, round by round, and the FLOP/s of a matrix product on all cores and on one."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    peaks, one_core = [], []
    for _ in range(ROUNDS + 1):
        for name, job in jobs.items():
            seconds[name].append(timed(job.run))
        peaks.append(matmul_rate(device, 1536, torch.float32))
        one_core.append(on_one_core(lambda: matmul_rate(device, 1536, torch.float32)))
    return {name: times[1:] for name, times in seconds.items()}, median(peaks[1:]), median(one_core[1:])


def all_jobs(model: GPT, prompts: Tensor, tree: TraceTree) -> dict[str, Job]:
    """The engines and the baselines by name."""
    part, few, new = tree[:PROBLEMS], prompts[:FEW_PROBLEMS], tree.max_new
    jobs = {
        "prefill": Job(lambda: model.prefill(prompts)),
        "exact": Job(lambda: exact(tree)),
        "split": Job(lambda: split(tree, SPLITS, 0), len(tree) * SPLITS),
        "rollout": Job(lambda: rollout(part, ROLLOUTS, 0), len(part) * ROLLOUTS),
        "recompute": Job(lambda: recompute(model, few, FEW_ROLLOUTS, new), len(few) * FEW_ROLLOUTS),
    }
    generate = hugging_face(model, new)
    if generate is None:
        print("hf generate: not measured, transformers is not installed (extra: bench)")
    else:
        jobs["hf generate"] = Job(lambda: generate(few, FEW_ROLLOUTS), len(few) * FEW_ROLLOUTS)
    return jobs


@torch.enable_grad()
def training_steps(config: Config, device: str) -> tuple[dict[str, Callable[[], object]], dict[str, float]]:
    """Steps of pretraining, of its optimizers alone and of fine-tuning by name, and the FLOPs of both whole steps."""
    pretraining = _Trainer(config, device, stages.walk_batches(config), config.pretrain)
    optimizers = _Trainer(config, device, stages.walk_batches(config), config.pretrain)
    fine_tuning = _Trainer(config, device, stages.sft_batches(config), config.sft)
    optimizers.job.objective(optimizers.model, 0)[0].backward()
    steps: dict[str, Callable[[], object]] = {
        PRETRAINING: pretraining.step,
        OPTIMIZER: optimizers.step_again,
        FINE_TUNING: partial(on_one_core, fine_tuning.step),
    }
    return steps, {PRETRAINING: pretraining.flops(), FINE_TUNING: fine_tuning.flops()}


class _Trainer:
    """A new model with what it takes to train it."""

    def __init__(self, config: Config, device: str, batches: loop.BatchAt, plan: Optim) -> None:
        self.model = new_model(config, config.base_seed).to(device)
        self.optimizers, self.number = loop.make_optimizers(self.model, plan), itertools.count()
        objective = loop.supervised(batches, losses.parse_loss("cross_entropy"), device)
        self.job = loop.Job(runs.in_memory(config, "base", None, silent=True), objective, MANY_STEPS, plan)

    @torch.enable_grad()
    def step(self) -> None:
        """Train on the next batch."""
        loop.take_step(self.model, self.optimizers, self.job, next(self.number))

    def step_again(self) -> None:
        """Move the parameters along the gradients that they have."""
        for optimizer in self.optimizers:
            optimizer.step()

    def flops(self) -> int:
        """Those of the matrix products of a step."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops()


def on_one_core(job: Callable[[], T]) -> T:
    """What a job returns, run with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return job()
    finally:
        torch.set_num_threads(threads)


def speed(job: Job, seconds: list[float]) -> dict[str, Any]:
    """The median of a job's seconds, their spread, and rollouts a second."""
    middle = median(seconds)
    return {
        "seconds": middle,
        "spread": [min(seconds), max(seconds)],
        "rate": job.rollouts / middle if job.rollouts else None,
    }


def print_table(result: dict[str, Any]) -> None:
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
    twin = GPT2LMHeadModel(config).eval().to(model.head.weight.device)

    def generate(prompts: Tensor, n: int) -> Tensor:
        lengths = {"min_new_tokens": new, "max_new_tokens": new, "num_return_sequences": n}
        return twin.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, **lengths)

    return generate


def flops_a_token(model: GPT, context: int) -> float:
    """FLOPs to decode one token: two a weight of every matrix product, and attention over the context."""
    shape = model.shape
    matrices = 12 * shape.layers * shape.width**2 + model.vocab_size * shape.width
    return 2 * matrices + 4 * shape.layers * context * shape.width
