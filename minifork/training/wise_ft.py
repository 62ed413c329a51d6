"""WiSE-FT: the weights between a model before and after fine-tuning (arXiv 2109.01903; for reasoning, 2504.10478).

(1 - w) before + w after, parameter by parameter, for every later snapshot of a run and every w of `wise.weights`.
Before is the base, or the run's own snapshot of epoch `wise.early`, as the second paper has it. Each w becomes a run
of its own, so that `minifork eval` measures it like any other.
"""

from dataclasses import replace

import torch
from torch import Tensor

from minifork import runs
from minifork.schema import Config


def wise(config: Config) -> None:
    """Interpolate the fine-tuned run of a config with its base or early self.

    Raises ValueError naming the file when a run is missing or shapes differ.
    """
    tuned, early = runs.require_run(config, "sft"), config.wise.early
    before = tuned.checkpoint(early) if early else runs.require_run(config, "base").checkpoint()
    if early >= tuned.epochs[-1]:
        raise ValueError(f"{before.path} is the last snapshot: wise.early must leave one after it")
    for share in config.wise.shares:
        one = replace(config, wise=replace(config.wise, weights=f"{share!r}"))
        with runs.hold(one, "wise", tuned.checkpoint(), resume=True) as run:
            if not run.complete:
                _mix(run, before, tuned, share)
        print(f"{run.folder}: {share:g} of {tuned.name} and {1 - share:g} of {before.path}")


def _mix(run: runs.Run, before: runs.Checkpoint, tuned: runs.Run, share: float) -> None:
    """Write the snapshots of a mixture, ``share`` of the tuned weights, and its record."""
    start, weights = before.state(), {}
    for epoch in run.epochs:
        later = tuned.checkpoint(epoch)
        mixed = interpolate(start, later.state(), share, str(later.path))
        weights[later.file] = run.write(later.file, {"model": mixed, "step": epoch})
    run.save(step=len(weights), steps=len(weights), complete=True, seconds=tuned.record["seconds"], weights=weights)


def interpolate(start: dict[str, Tensor], tuned: dict[str, Tensor], weight: float, source: str) -> dict[str, Tensor]:
    """(1 - weight) start + weight tuned for every parameter; raises ValueError naming the source when shapes differ."""
    if start.keys() != tuned.keys() or any(start[name].shape != tuned[name].shape for name in start):
        raise ValueError(f"{source}: its parameters have other names or shapes than the base's")
    return {name: torch.lerp(start[name], tuned[name], weight) for name in start}
