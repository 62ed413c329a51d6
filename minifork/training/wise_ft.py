"""WiSE-FT: the weights between a model before and after fine-tuning (arXiv 2109.01903; for reasoning, 2504.10478).

(1 - w) before + w after, parameter by parameter, for every w of `wise.weights` and every later snapshot of a run.
The numbers w are called shares here, to tell them from the models' weights. "Before" is the base, or as in the second
paper the run's own snapshot of epoch `wise.early`. Each w becomes a run of its own, which `minifork eval` measures like
any other.
"""

from dataclasses import replace

import torch
from torch import Tensor

from minifork import runs
from minifork.schema import Config


def wise(config: Config) -> None:
    """Interpolate the fine-tuned run of a config with its base or early self.

    Raises ValueError naming the file when a run is missing or wise.early leaves no later snapshot.
    """
    tuned, early = runs.require_run(config, "sft"), config.wise.early
    before = tuned.checkpoint(early) if early else runs.require_run(config, "base").checkpoint()
    if early >= tuned.epochs[-1]:
        raise ValueError(f"{before.path} is the last snapshot: wise.early must leave one after it")
    for mixture in mixtures(config):
        (share,) = mixture.wise.shares
        with runs.hold_run(mixture, "wise", tuned.checkpoint(), resume=True) as run:
            if not run.complete:
                _mix(run, before, tuned, share)
        print(f"{run.folder}: {share:g} of {tuned.name} and {1 - share:g} of {before.path}")


def mixtures(config: Config) -> list[Config]:
    """The configs of the runs that `wise` makes, one for every share."""
    return [replace(config, wise=replace(config.wise, weights=f"{share!r}")) for share in config.wise.shares]


def _mix(run: runs.Run, before: runs.Checkpoint, tuned: runs.Run, share: float) -> None:
    """Write the snapshots of a mixture, ``share`` of the tuned weights, and its record."""
    start, hashes = before.tensors(), {}
    for epoch in run.epochs:
        after = tuned.checkpoint(epoch)
        payload = {"model": interpolate(start, after.tensors(), share), "step": epoch}
        hashes[after.file] = run.write(after.file, payload)
    run.save(step=len(hashes), steps=len(hashes), complete=True, seconds=tuned.record["seconds"], weights=hashes)


def interpolate(start: dict[str, Tensor], tuned: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) start + share tuned, for every parameter by name."""
    return {name: torch.lerp(start[name], tuned[name], share) for name in start}
