"""The training loop of every stage. The batch of a step is a pure function of the step and the weights, so training
resumes anywhere."""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data_gen.walks import IGNORE
from minifork.gpt import GPT
from minifork.interrupts import held_back
from minifork.runs import METRICS, WEIGHTS, Run
from minifork.schema import Optim
from minifork.storage.files import write_atomically
from minifork.training.legs import changes_between, new_leg
from minifork.training.losses import Loss
from minifork.training.muon import Muon

BatchAt = Callable[[int], tuple[np.ndarray, np.ndarray]]
Objective = Callable[[GPT, int], tuple[Tensor, int, dict[str, Tensor]]]
_SECONDS_BETWEEN_LINES = 10
_STEPS_BETWEEN_LOSSES = 10  # a GPU waits whenever a loss is read


@dataclass(frozen=True)
class TrainingJob:
    """How to train a run.

    objective(model, step), with steps counted from 0, gives the loss, its number of tokens, and metrics by name, which
    are logged beside the loss. snapshots: files for the weights by number of steps, e.g. {32: "epochs/e1.pt"}.
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


def fit(model: GPT, job: TrainingJob, device: str) -> None:
    """Train a model in place until job.steps, from the run's checkpoint if it has one.

    The same steps give the same weights, bit for bit on one CPU with the same number of threads, however often training
    is interrupted. A signal stops it between two steps, and the last one is saved. Raises ValueError when the loss is
    not finite.
    """
    model.to(device)
    run, optimizers = job.run, make_optimizers(model, job.optim)
    progress = _restore(model, optimizers, run, device)
    first, snapshots, started = progress["step"], progress["snapshots"], time.monotonic()
    leg = new_leg(first, device)
    _drop_metrics_after(run.folder / METRICS, first)
    run.save(steps=job.steps)
    if first:
        change = changes_between(progress["legs"][-1], leg)
        warning = f" with {change}: weights may differ in the last bits from a run that was not moved" if change else ""
        run.say(f"{run.name}: goes on after step {first} of {job.steps}{warning}")

    def save(step: int) -> None:
        seconds = progress["seconds"] + time.monotonic() - started
        leg.update(to=step, seconds=round(time.monotonic() - started, 1))
        legs = progress["legs"] + ([leg] if step > first else [])
        state: dict[str, Any] = {"model": model.state_dict(), "optimizers": [one.state_dict() for one in optimizers]}
        state |= {"step": step, "seconds": seconds, "snapshots": snapshots, "legs": legs}
        hashes = snapshots | {WEIGHTS: run.write(WEIGHTS, state)}
        run.save(step=step, complete=step == job.steps, seconds=round(seconds, 1), legs=legs, weights=hashes)

    forward = cast(GPT, torch.compile(model)) if run.config.compile else model
    display, step = _Display(run, job.steps, first), first
    with display.bar, held_back() as interrupted:
        while step < job.steps and not interrupted():
            metrics, tokens = take_step(forward, optimizers, job, step)
            step += 1
            display.advance(tokens)
            if step % _STEPS_BETWEEN_LOSSES == 0 or step == job.steps:
                display.log(step, _read(metrics, run, step))
            if file := job.snapshots.get(step):
                snapshots[file] = run.write(file, {"model": model.state_dict(), "step": step})
            if step % run.config.save_every == 0 and step < job.steps:
                save(step)
        if step:
            save(step)
            run.say(f"{run.name}: {step} of {job.steps} steps in {run.record['seconds']:.0f} s, saved")


def _restore(model: GPT, optimizers: list[torch.optim.Optimizer], run: Run, device: str) -> dict[str, Any]:
    """Load the run's checkpoint, if it has one; returns its step, the seconds so far, its snapshots' hashes, its legs.

    Raises ValueError naming the checkpoint when it does not fit the model or the optimizers.
    """
    progress: dict[str, Any] = {"step": 0, "seconds": 0.0, "snapshots": {}, "legs": []}
    if not run.has(WEIGHTS):
        return progress
    saved = run.read(WEIGHTS, device)
    try:
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError):
        raise ValueError(f"{run.folder / WEIGHTS}: does not fit this config; remove its folder, run it again") from None
    return {key: saved[key] for key in progress}


def _drop_metrics_after(path: Path, step: int) -> None:
    """Drop the lines past a step, and one that a crash cut short: a resumed run logs them again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        text = "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step)
        write_atomically(path, lambda file: file.write(text.encode()))


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
    model: GPT, optimizers: list[torch.optim.Optimizer], job: TrainingJob, step: int
) -> tuple[dict[str, Tensor], int]:
    """Train on one batch; returns its "loss" and metrics, still on their device, and its number of tokens."""
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


class _Display:
    """Logs a run's metrics, and shows them behind a bar on a terminal, elsewhere in a line every few seconds."""

    def __init__(self, run: Run, steps: int, first: int):
        hidden = run.silent or not sys.stderr.isatty()
        self.bar = tqdm(total=steps, initial=first, desc=run.name, unit="step", disable=hidden)
        self._run, self._steps, self._first, self._tokens = run, steps, first, 0
        self._started = self._printed = time.monotonic()

    def advance(self, tokens: int) -> None:
        """Count a step on so many tokens."""
        self._tokens += tokens
        self.bar.update()

    def log(self, step: int, values: dict[str, float]) -> None:
        """Log the loss and the metrics after a step, and show them."""
        now = time.monotonic()
        rate = self._tokens / max(now - self._started, 1e-9)
        rounded = {name: round(value, 6) for name, value in values.items()}
        self._run.log({"step": step} | rounded | {"tokens_per_s": round(rate)})
        text = " ".join(f"{name} {value:.4f}" for name, value in values.items()) + f" {rate:,.0f} tok/s"
        self.bar.set_postfix_str(text, refresh=False)
        if self.bar.disable and now - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = now
            remaining = (now - self._started) / (step - self._first) * (self._steps - step)
            self._run.say(f"{self._run.name}: step {step}/{self._steps} {text} ETA {remaining:.0f} s")
