"""WiSE-FT: the weights between a base and a model fine-tuned from it (arXiv 2109.01903; for reasoning, 2504.10478).

(1 - w) base + w tuned, parameter by parameter, for every snapshot of a run and every w of `wise.weights`. Each w
becomes a run of its own beside the tuned one, so that `minifork eval` measures it like any other.
"""

import torch
from torch import Tensor

from minifork import runs
from minifork.config import Config, fingerprint


def wise(config: Config) -> None:
    """Interpolate the fine-tuned run of the config (or the one that ``name`` gives) with its base.

    Raises ValueError naming the file when a run is missing or shapes differ.
    """
    tuned, base = runs.run_folder(config, "sft"), runs.base_folder(config)
    for folder in (base, tuned):
        if not runs.is_complete(folder):
            raise ValueError(f"{folder}: no finished run to interpolate; make it with `minifork pretrain` and `sft`")
    meta, start = runs.read_json(tuned / "meta.json"), runs.load_weights(base / "ckpt.pt")["model"]
    if meta.get("base") != base.name:
        raise ValueError(f"{tuned} was not fine-tuned from {base.name} but from {meta.get('base')}")
    snapshots = sorted(tuned.glob("epochs/e*.pt"))
    for weight in config.wise.shares:
        folder = tuned.parent / f"{tuned.name}-wise{weight:g}"
        for path in snapshots:
            saved = runs.load_weights(path)
            mixed = interpolate(start, saved["model"], weight, str(path))
            runs.save_weights(folder / "epochs" / path.name, {"model": mixed, "step": saved["step"]})
        runs.write_config(folder, runs.read_config(tuned))
        hashed = fingerprint([meta["config_hash"], weight])
        runs.write_json(
            folder / "meta.json",
            {
                **meta,
                "name": folder.name,
                "variant": f"{meta['variant']}-wise{weight:g}",
                "weight": weight,
                "config_hash": hashed,
            },
        )
        print(f"{folder}: {len(snapshots)} snapshots, {weight:g} of {tuned.name} and {1 - weight:g} of {base.name}")


def interpolate(start: dict[str, Tensor], tuned: dict[str, Tensor], weight: float, source: str) -> dict[str, Tensor]:
    """(1 - weight) start + weight tuned for every parameter; raises ValueError naming the source when shapes differ."""
    if start.keys() != tuned.keys() or any(start[name].shape != tuned[name].shape for name in start):
        raise ValueError(f"{source}: its parameters have other names or shapes than the base's")
    return {name: torch.lerp(start[name], tuned[name], weight) for name in start}
