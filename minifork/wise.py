"""WiSE-FT: the weights between a model before and after fine-tuning (arXiv 2109.01903; for reasoning, 2504.10478).

(1 - w) before + w after, parameter by parameter, for every later snapshot of a run and every w of `wise.weights`.
Before is the base, or the run's own snapshot of epoch `wise.early`, as the second paper has it. Each w becomes a run
of its own beside the tuned one, so that `minifork eval` measures it like any other.
"""

import torch
from torch import Tensor

from minifork import runs
from minifork.schema import Config
from minifork.stages import require_alike


def wise(config: Config) -> None:
    """Interpolate the fine-tuned run of the config (or the one that ``name`` gives) with its base or early self.

    Raises ValueError naming the file when a run is missing or shapes differ.
    """
    tuned, base = runs.run_folder(config, "sft"), runs.base_folder(config)
    for folder in (base, tuned):
        if not runs.is_complete(folder):
            raise ValueError(f"{folder}: no finished run to interpolate; make it with `minifork pretrain` and `sft`")
    if not config.name:
        require_alike(tuned, config, "sft")
    meta, early = runs.read_json(tuned / "meta.json", "stage", "variant"), config.wise.early
    if "weight" in meta:
        raise ValueError(f"{tuned} is a mixture itself; give the name of the run that was fine-tuned")
    if meta.get("base") != base.name:
        raise ValueError(f"{tuned} was not fine-tuned from {base.name} but from {meta.get('base')}")
    runs.require_start(tuned, base / "ckpt.pt")
    before = tuned / "epochs" / f"e{early}.pt" if early else base / "ckpt.pt"
    if not before.exists():
        raise ValueError(f"{before}: wise.early is {early}, but the run kept no such snapshot")
    start = runs.load_weights(before)["model"]
    snapshots = [path for epoch, path in runs.snapshots_in(tuned).items() if epoch > early]
    if not snapshots:
        raise ValueError(f"{before} is the last snapshot: wise.early must leave one after it")
    source = {"tuned": tuned.name, "tuned_hash": runs.weights_hash(snapshots[-1])}
    for weight in config.wise.shares:
        added = runs.mixture_suffix(weight, early)
        folder = tuned.parent / (tuned.name + added)
        mixture = {"name": folder.name, "variant": meta["variant"] + added, "weight": weight, "early": early, **source}
        mixture["config_hash"] = runs.config_hash(runs.read_config(tuned), meta | mixture)
        with runs.locked(folder):
            if (folder / "meta.json").exists() and "weight" not in runs.read_json(folder / "meta.json"):
                raise ValueError(f"{folder} holds a run that was trained; remove it or rename it")
            for path in [folder / "meta.json", *runs.snapshots_in(folder).values()]:  # of an earlier run of this name
                path.unlink(missing_ok=True)
            for path in snapshots:
                saved = runs.load_weights(path)
                mixed = interpolate(start, saved["model"], weight, str(path))
                runs.save_weights(folder / "epochs" / path.name, {"model": mixed, "step": saved["step"]})
            runs.write_config(folder / "config.yaml", runs.read_config(tuned))
            runs.write_json(folder / "meta.json", meta | mixture)
        print(f"{folder}: {len(snapshots)} snapshots, {weight:g} of {tuned.name} and {1 - weight:g} of {before}")


def interpolate(start: dict[str, Tensor], tuned: dict[str, Tensor], weight: float, source: str) -> dict[str, Tensor]:
    """(1 - weight) start + weight tuned for every parameter; raises ValueError naming the source when shapes differ."""
    if start.keys() != tuned.keys() or any(start[name].shape != tuned[name].shape for name in start):
        raise ValueError(f"{source}: its parameters have other names or shapes than the base's")
    return {name: torch.lerp(start[name], tuned[name], weight) for name in start}
