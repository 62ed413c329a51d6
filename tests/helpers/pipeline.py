"""The command line on a small config, as the tests run it."""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._pytree import tree_flatten

from experiments.cli import main
from minifork import config as configs
from minifork import runs
from minifork.schema import Config
from minifork.storage import files, weights
from minifork.training import losses
from minifork.training.muon import Muon

BASE = "base"
SFT = {
    "fork0.5": ["sft.fork_rate=0.5"],
    "fork1": [],
    "problem": ["sft.fork_rate=0.5", "sft.allocation=problem"],
    "fresh": ["sft.fresh=true"],
    "cued": ["sft.cue_rate=1", "sft.allow_leak=true"],
}


def weights_hash(path: Path) -> str:
    """Twelve hex digits of the weights in a checkpoint file, whatever else it holds."""
    return weights.hash_of(weights.load_weights(path)["model"])


class Pipeline:
    """The command line on the small config with one runs folder."""

    def __init__(self, root: Path, small: list[str]):
        self.root, self.small = root, [*small, f"runs={root}"]
        self.folder = root / "star"

    def arguments(self, command: str, *overrides: str) -> list[str]:
        """The words of a command line: flags first, then the small config's overrides, then these."""
        flags = [o for o in overrides if o.startswith("--")]
        small = [f"runs={self.root}"] if command == "runs" else self.small
        return [command, *flags, *small, *(o for o in overrides if not o.startswith("--"))]

    def __call__(self, command: str, *overrides: str) -> int:
        return main(self.arguments(command, *overrides))

    def config(self, *overrides: str) -> Config:
        return configs.load_config("star", [*self.small, *overrides])

    def run(self, name: str) -> Path:
        """The folder of the base, or of one of SFT, by name."""
        return self.at("base") if name == BASE else self.at("sft", *SFT[name])

    def at(self, stage: str, *overrides: str) -> Path:
        """The folder of the run of a stage that the small config with overrides asks for."""
        return runs.folder_of(self.config(*overrides), stage)

    def view(self) -> dict:
        """What eval.json says."""
        return files.read_json(self.folder / "eval.json")

    def arrays(self) -> dict[str, np.ndarray]:
        """What eval.npz holds."""
        with np.load(self.folder / "eval.npz") as stored:
            return {name: stored[name] for name in stored.files}

    def refused(self, capsys, command: str, *overrides: str) -> str:
        """The one line on stderr of a command that must fail with exit code 1."""
        capsys.readouterr()
        assert self(command, *overrides) == 1
        error = capsys.readouterr().err
        assert error.startswith("minifork: ") and error.endswith("\n") and error.count("\n") == 1, error
        return error


def edit_record(folder: Path, **changes: Any) -> None:
    """Change a run's record as a person with an editor might."""
    record = files.read_json(folder / runs.RECORD)
    files.write_json(folder / runs.RECORD, record | changes)


def replace_weights(folder: Path, file: str, factor: float = 1.001) -> None:
    """Make a run's weights anew, as another machine would: other bits, and their hash in the record."""
    saved = weights.load_weights(folder / file)
    saved["model"]["head.weight"] *= factor
    record = files.read_json(folder / runs.RECORD)
    edit_record(folder, weights=record["weights"] | {file: weights.save_weights(folder / file, saved)})


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file, hidden ones included."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()
    }


def logged_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_training(folder: Path, reference: Path) -> None:
    """Weights and optimizer state equal bit for bit, every step logged once, same snapshots."""
    names = {str(p.relative_to(reference)) for p in reference.rglob("*.pt")}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.pt")} == names
    for file in names:
        assert_equal(weights.load_weights(folder / file), weights.load_weights(reference / file), file)
    assert logged_steps(folder) == logged_steps(reference)
    assert not [p for p in folder.rglob(".*") if p.is_file()]  # no temporary file is left
    assert runs.read_run(folder).complete


def assert_equal(one: dict, other: dict, where: str) -> None:
    """Two files of weights hold the same, bit for bit, the seconds and legs apart."""
    plain = {"seconds": 0, "legs": []}
    (leaves, tree), (other_leaves, other_tree) = (tree_flatten(saved | plain) for saved in (one, other))
    assert tree == other_tree, where
    for a, b in zip(leaves, other_leaves, strict=True):
        assert type(a) is type(b), where
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, where


def seen_targets(monkeypatch) -> list[np.ndarray]:
    """The targets int[batch, steps] of every batch whose cross-entropy is taken from now on."""
    seen, (real, *rest) = [], losses.LOSSES["cross_entropy"]

    def cross_entropy(logits, targets, value):
        seen.append(targets.numpy())
        return real(logits, targets, value)

    monkeypatch.setitem(losses.LOSSES, "cross_entropy", (cross_entropy, *rest))
    return seen


@contextlib.contextmanager
def ctrl_c(moment: str, step: int, number: int = signal.SIGINT) -> Iterator[None]:
    """Send this process a signal once, at a moment of a step (from 0) of the training loop.

    before: with the gradients still to be computed; between: when the first of two optimizers has stepped
    (or the only one); after: when the last has.
    """
    seen = {"losses": 0, "steps": 0}
    real = losses.LOSSES["cross_entropy"]

    def cross_entropy(*arguments):
        if seen["losses"] == step and moment == "before":
            signal.raise_signal(number)
        seen["losses"] += 1
        seen["steps"] = 0
        return real[0](*arguments)

    def stepped(optimizer, *_):
        seen["steps"] += 1
        now = {"between": seen["steps"] == 1, "after": isinstance(optimizer, Muon)}
        if seen["losses"] == step + 1 and now.get(moment):
            signal.raise_signal(number)

    hook = register_optimizer_step_post_hook(stepped)
    losses.LOSSES["cross_entropy"] = (cross_entropy, *real[1:])
    try:
        yield
    finally:
        losses.LOSSES["cross_entropy"] = real
        hook.remove()
