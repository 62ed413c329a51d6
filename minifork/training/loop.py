"""The training loop of every stage.

The batch of a step is a pure function of the step and the weights, so training resumes anywhere. A *leg* is one
process's part of a run's training, with the machine and the software that it ran on. Other processors, numbers of
threads and versions of torch add numbers in another order. So a run that continues on another machine may end with
weights that differ in the last bits.
"""

import json
import math
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data_gen.walks import IGNORE
from minifork.gpt import GPT
from minifork.interrupts import held_back
from minifork.models import device_name
from minifork.runs import METRICS, WEIGHTS, Run, processor
from minifork.schema import Optim
from minifork.storage.files import write_atomically
from minifork.training.losses import Loss
from minifork.training.muon import Muon

BatchAt = Callable[[int], tuple[np.ndarray, np.ndarray]]  # step -> inputs, targets
Objective = Callable[[GPT, int], tuple[Tensor, int, dict[str, Tensor]]]  # model, step -> loss, tokens, metrics
_SECONDS_BETWEEN_LINES = 10
_STEPS_BETWEEN_LOSSES = 10  # a GPU waits whenever a loss is read


@dataclass(frozen=True)
class TrainingJob:
    """The arguments of `fit`: a run, its objective, its steps and its optimizer.

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
    state = _TrainingState(model, optimizers, run, device)
    _drop_metrics_after(run.folder / METRICS, state.first)
    run.save(steps=job.steps)
    if state.first:
        run.say(f"{run.name}: goes on after step {state.first} of {job.steps}{state.warning()}")
    display, step = _Display(run, job.steps, state.first), state.first
    with held_back() as interrupted:
        with display.bar:
            while step < job.steps and not interrupted():
                metrics, tokens = take_step(model, optimizers, job, step)
                step += 1
                display.advance(tokens)
                if step % _STEPS_BETWEEN_LOSSES == 0 or step == job.steps:
                    display.log(step, _read(metrics, run, step))
                if step in job.snapshots:
                    state.write_snapshot(job.snapshots[step], step)
                if step % run.config.save_every == 0 and step < job.steps:
                    state.save(step, complete=False)
        if step:
            state.save(step, complete=step == job.steps)
            run.say(f"{run.name}: {step} of {job.steps} steps in {run.record['seconds']:.0f} s, saved")


class _TrainingState:
    """All that a checkpoint holds: the model, its optimizers, the hashes of snapshots, the seconds and legs so far.

    A new one has the content of the run's checkpoint, if there is one. ``first`` counts the steps that it has seen.
    """

    def __init__(self, model: GPT, optimizers: list[torch.optim.Optimizer], run: Run, device: str) -> None:
        self._model, self._optimizers, self._run = model, optimizers, run
        self.first, self._seconds = 0, 0.0
        self._snapshots: dict[str, str] = {}
        self._legs: list[dict[str, Any]] = []
        if run.has(WEIGHTS):
            self._restore(run.read(WEIGHTS, device))
        self._leg, self._started = _new_leg(self.first, device), time.monotonic()

    def _restore(self, saved: dict[str, Any]) -> None:
        """Load a checkpoint; raises ValueError naming it when it does not fit the model or the optimizers."""
        try:
            self._model.load_state_dict(saved["model"])
            for optimizer, state in zip(self._optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError):
            path = self._run.folder / WEIGHTS
            raise ValueError(f"{path}: does not fit this config; remove its folder, run it again") from None
        self.first, self._seconds = saved["step"], saved["seconds"]
        self._snapshots, self._legs = saved["snapshots"], saved["legs"]

    def warning(self) -> str:
        """A warning when this leg may change bits, as it runs on another machine or software than the last; else ""."""
        last, new = self._legs[-1], self._leg
        changes = [f"{key} {new[key]} instead of {last[key]}" for key in new if key != "from" and last[key] != new[key]]
        if not changes:
            return ""
        return f" with {', '.join(changes)}: weights may differ in the last bits from a run that was not moved"

    def write_snapshot(self, file: str, step: int) -> None:
        """Keep the weights after a step as a file of the run."""
        self._snapshots[file] = self._run.write(file, {"model": self._model.state_dict(), "step": step})

    def save(self, step: int, complete: bool) -> None:
        """Write the run's checkpoint after a step, then its record."""
        elapsed = time.monotonic() - self._started
        seconds = self._seconds + elapsed
        self._leg.update(to=step, seconds=round(elapsed, 1))
        legs = self._legs + ([self._leg] if step > self.first else [])
        optimizers = [optimizer.state_dict() for optimizer in self._optimizers]
        payload: dict[str, Any] = {"model": self._model.state_dict(), "optimizers": optimizers}
        payload |= {"step": step, "seconds": seconds, "snapshots": self._snapshots, "legs": legs}
        hashes = self._snapshots | {WEIGHTS: self._run.write(WEIGHTS, payload)}
        self._run.save(step=step, complete=complete, seconds=round(seconds, 1), legs=legs, weights=hashes)


def _new_leg(step: int, device: str) -> dict[str, Any]:
    """The leg of this process, which begins after a step.

    Its keys are the step, the processor, its architecture, the instruction set that torch uses on it, the device,
    torch's version and its number of threads.
    """
    return {
        "from": step,
        "machine": processor(),
        "architecture": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": device_name(device),
        "torch": str(torch.__version__),  # a plain str, which weights_only can read
        "threads": torch.get_num_threads(),
    }


def _drop_metrics_after(path: Path, step: int) -> None:
    """Drop the lines past a step, and one that a crash cut short: a resumed run logs them again."""
    if path.exists():
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        text = "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step)
        write_atomically(path, text.encode())


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
