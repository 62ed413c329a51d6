"""The training loop, one for every stage: what a step learns from is a pure function of the step and the weights,
so it resumes anywhere."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data_gen.walks import IGNORE
from minifork.checkpoints import load_state
from minifork.gpt import GPT
from minifork.interrupts import held_back
from minifork.runs import METRICS, WEIGHTS, Run
from minifork.schema import Optim
from minifork.storage.files import write_atomically
from minifork.training.legs import moved, new_leg
from minifork.training.losses import Loss
from minifork.training.muon import Muon

BatchAt = Callable[[int], tuple[np.ndarray, np.ndarray]]
Objective = Callable[[GPT, int], tuple[Tensor, int, dict[str, Tensor]]]
_SECONDS_BETWEEN_LINES = 10
_STEPS_BETWEEN_LOSSES = 10  # read and logged, with the metrics; reading every one would make a GPU wait


@dataclass(frozen=True)
class Job:
    """What to train: objective(model, step) gives the loss, how many tokens it is on, and metrics, scalars by name that
    are logged beside the loss; step counted from 0.

    snapshots: the file to keep the weights in after so many steps, e.g. {32: "epochs/e1.pt"}.
    """

    run: Run
    objective: Objective
    steps: int
    optim: Optim
    snapshots: dict[int, str] = field(default_factory=dict)


def supervised(batch_at: BatchAt, loss: Loss, device: str) -> Objective:
    """A loss of the logits on batches: batch_at(step) gives inputs and targets int64[B, T]."""

    def objective(model: GPT, step: int) -> tuple[Tensor, int, dict[str, Tensor]]:
        inputs, targets = (torch.from_numpy(array) for array in batch_at(step))
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device == "cuda"):
            logits = model(inputs.to(device), targets != IGNORE)
            return loss(logits, targets.to(device)), inputs.numel(), {}

    return objective


def fit(model: GPT, job: Job, device: str) -> None:
    """Train a model in place until job.steps, from the run's checkpoint if it has one.

    The same steps give the same weights, bit for bit on one CPU with the same number of threads, however
    often training is interrupted. Raises ValueError when the loss is not finite.
    """
    model.to(device)
    run, optimizers = job.run, make_optimizers(model, job.optim)
    progress = _restore(model, optimizers, job, device)
    first, spent, weights = progress["step"], progress["seconds"], progress["snapshots"]
    _keep_metrics_until(run.folder / METRICS, first)
    leg, earlier = new_leg(first, device), progress["legs"]
    if earlier and (change := moved(earlier[-1], leg)):
        run.say(f"{run.name}: goes on with {change}: its weights may differ in the last bits from a run that stayed")
    run.save(steps=job.steps)
    if first:
        run.say(f"{run.name}: goes on after step {first} of {job.steps}")
    started = time.monotonic()
    forward = cast(GPT, torch.compile(model)) if run.config.compile else model

    def save(step: int) -> None:
        seconds = spent + time.monotonic() - started
        leg.update(to=step, seconds=round(seconds - spent, 1))
        legs = [*earlier, leg] if step > first else earlier
        state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
        progress = {"step": step, "seconds": seconds, "snapshots": weights, "legs": legs}
        hashes = weights | {WEIGHTS: run.write(WEIGHTS, state | progress)}
        run.save(step=step, complete=step == job.steps, seconds=round(seconds, 1), legs=legs, weights=hashes)

    step = first
    with _progress(run, job.steps, first) as show, held_back() as interrupted:  # between steps, which stay whole
        while step < job.steps and not interrupted():
            metrics, tokens = take_step(forward, optimizers, job, step)
            step += 1
            read = step % _STEPS_BETWEEN_LOSSES == 0 or step == job.steps
            show(step, _read(metrics, run, step) if read else None, tokens)
            if file := job.snapshots.get(step):
                weights[file] = run.write(file, {"model": model.state_dict(), "step": step})
            if step % run.config.save_every == 0 and step < job.steps:
                save(step)
        if step:
            save(step)
        if 0 < step < job.steps:
            run.say(f"{run.name}: saved after step {step} of {job.steps}")
    run.say(f"{run.name}: {job.steps} steps in {spent + time.monotonic() - started:.0f} s")


def make_optimizers(model: GPT, optim: Optim) -> list[torch.optim.Optimizer]:
    """AdamW for every parameter, or Muon for the matrices inside blocks and AdamW for the rest.

    Each group keeps its peak learning rate as "peak"; `take_step` sets the scheduled one.
    """
    inner = [p for block in model.blocks for p in block.parameters() if p.dim() == 2]
    inner = inner if optim.optimizer == "muon" else []
    rest = [p for p in model.parameters() if not any(p is q for q in inner)]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=optim.lr, weight_decay=optim.weight_decay, betas=(0.9, 0.95), fused=True)
    ]
    if inner:
        kind = Muon if optim.muon == "minifork" else torch.optim.Muon
        optimizers.append(kind(inner, lr=optim.muon_lr, weight_decay=optim.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate at a step (from 0): linear warm-up, then cosine to 0."""
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def take_step(
    model: GPT, optimizers: list[torch.optim.Optimizer], job: Job, step: int
) -> tuple[dict[str, Tensor], int]:
    """Train on one batch; returns its "loss" and metrics, still on their device, and how many tokens it was on."""
    loss, tokens, metrics = job.objective(model, step)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), job.optim.clip)
    share = schedule(step, job.steps, job.optim.warmup)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak"]
        optimizer.step()
        optimizer.zero_grad()
    return {"loss": loss.detach()} | metrics, tokens


def _read(metrics: dict[str, Tensor], run: Run, step: int) -> dict[str, float]:
    """The values of a step's loss and metrics, in one transfer; raises ValueError when the loss is not finite."""
    values = dict(zip(metrics, torch.stack([*metrics.values()]).tolist(), strict=True))
    if not math.isfinite(values["loss"]):
        raise ValueError(f"{run.folder}: the loss is {values['loss']} at step {step}; lower the learning rate")
    return values


def _restore(model: GPT, optimizers: list[torch.optim.Optimizer], job: Job, device: str) -> dict[str, Any]:
    """Load the run's checkpoint, if it has one; returns its step, the seconds behind it, its snapshots' hashes, its
    legs. A checkpoint that holds no legs, of an earlier version, has those of the run's record."""
    path = job.run.folder / WEIGHTS
    if not job.run.has(WEIGHTS):
        return {"step": 0, "seconds": 0.0, "snapshots": {}, "legs": []}
    saved = job.run.read(WEIGHTS, device)
    load_state(model, saved, path)
    try:
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            fresh = _kinds(optimizer)
            optimizer.load_state_dict(state)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            if _kinds(optimizer) != fresh or not all(_fits(optimizer, p) for p in parameters):
                raise ValueError
        step, seconds, legs = saved["step"], saved["seconds"], saved.get("legs", job.run.record["legs"])
        if type(step) is not int or not 0 < step <= job.steps or not 0 <= seconds < math.inf:
            raise ValueError
        snapshots = dict(saved.get("snapshots", {}))
        return {"step": step, "seconds": float(seconds), "snapshots": snapshots, "legs": [dict(leg) for leg in legs]}
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError):
        raise ValueError(f"{path}: its optimizer state does not fit this config; remove the folder") from None


def _kinds(optimizer: torch.optim.Optimizer) -> list[dict[str, type]]:
    """What an optimizer's groups hold, by name."""
    return [{name: type(value) for name, value in group.items()} for group in optimizer.param_groups]


def _fits(optimizer: torch.optim.Optimizer, parameter: Tensor) -> bool:
    """Whether an optimizer's state is what its kind keeps of a parameter: torch's fused steps do not look."""
    state = optimizer.state.get(parameter, {})
    expected = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.AdamW) else {"momentum_buffer"}
    return state.keys() == expected and all(
        isinstance(value, Tensor)
        and value.shape == (() if name == "step" else parameter.shape)
        and (value.dtype, value.layout) == (torch.float32, torch.strided)
        for name, value in state.items()
    )


def _keep_metrics_until(path: Path, step: int) -> None:
    """Drop logged lines past ``step``: a resumed run will log them again."""
    if not path.exists():
        return
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if _step_of(line) <= step]
    write_atomically(path, lambda file: file.write("".join(f"{line}\n" for line in lines).encode()))


def _step_of(line: str) -> float:
    """The step of a metrics line; a damaged line, say one cut short by a crash, counts as past every step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")


@contextmanager
def _progress(run: Run, steps: int, first: int) -> Iterator[Callable[[int, dict[str, float] | None, int], None]]:
    """A tqdm bar on a terminal, else a plain line every few seconds; logs every step whose loss and metrics it is
    given."""
    hidden = run.silent or not sys.stderr.isatty()
    bar = tqdm(total=steps, initial=first, desc=run.name, unit="step", disable=hidden)
    clock = {"line": time.monotonic(), "start": time.monotonic(), "tokens": 0}

    def show(step: int, values: dict[str, float] | None, tokens: int) -> None:
        clock["tokens"] += tokens
        bar.update()
        if values is None:
            return
        now = time.monotonic()
        rate = clock["tokens"] / max(now - clock["start"], 1e-9)
        short = {name: f"{value:.4f}" for name, value in values.items()}
        bar.set_postfix(short, tok_s=f"{rate:,.0f}", refresh=False)
        rounded = {name: round(value, 6) for name, value in values.items()}
        run.log({"step": step} | rounded | {"tokens_per_s": round(rate)})
        if bar.disable and (now - clock["line"] > _SECONDS_BETWEEN_LINES):
            eta = (now - clock["start"]) / (step - first) * (steps - step)
            text = " ".join(f"{name} {value}" for name, value in short.items())
            run.say(f"{run.name}: step {step}/{steps} {text} {rate:,.0f} tok/s ETA {eta:.0f} s")
            clock["line"] = now

    with bar:
        yield show
