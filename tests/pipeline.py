"""The command line on a small config, as the tests run it."""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from minifork import config as configs
from minifork import losses, runs
from minifork.cli import main
from minifork.config import fingerprint
from minifork.schema import Config

SFT = {
    "sft-fork0.5-seed0": ["sft.fork_rate=0.5"],
    "sft-fork1-seed0": [],
    "sft-problem-seed0": ["sft.fork_rate=0.5", "sft.allocation=problem"],
    "fresh-seed0": ["sft.fresh=true", "name=fresh-seed0"],
    "cued-seed0": ["sft.cue_rate=1", "sft.allow_leak=true", "name=cued-seed0"],
}


class Pipeline:
    """The command line on the small config with one runs folder."""

    def __init__(self, root: Path, config_file: str, small: list[str]):
        self.root, self.config_file, self.small = root, config_file, [*small, f"runs={root}"]
        self.folder = root / "star"

    def arguments(self, command: str, *overrides: str) -> list[str]:
        flags = [o for o in overrides if o.startswith("--")]
        keys = [o for o in overrides if not o.startswith("--")]
        return [command, "--config", self.config_file, *flags, *self.small, *keys]

    def __call__(self, command: str, *overrides: str) -> int:
        return main(self.arguments(command, *overrides))

    def config(self, *overrides: str) -> Config:
        return configs.load(self.config_file, [*self.small, *overrides])

    def refused(self, capsys, command: str, *overrides: str) -> str:
        """The one line on stderr of a command that must fail with exit code 1."""
        capsys.readouterr()
        assert self(command, *overrides) == 1
        error = capsys.readouterr().err
        assert error.startswith("minifork: ") and error.endswith("\n") and error.count("\n") == 1, error
        return error

    @contextlib.contextmanager
    def edited_evaluation(self) -> Iterator[dict]:
        """What eval.json says, to be changed; it gets a checksum that holds."""
        path = self.folder / "eval.json"
        evaluation = runs.read_json(path)
        yield evaluation
        del evaluation["checksum"]
        runs.write_json(path, evaluation | {"checksum": fingerprint(evaluation)})


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file, hidden ones included."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()
    }


def logged_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(folder: Path, reference: Path) -> None:
    """Weights and optimizer state equal bit for bit, every step logged once, same snapshots."""
    files = {str(p.relative_to(reference)) for p in reference.rglob("*.pt")}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.pt")} == files
    for file in files:
        assert_equal(runs.load_weights(folder / file), runs.load_weights(reference / file), file)
    assert logged_steps(folder) == logged_steps(reference)
    assert not [p for p in folder.rglob(".*") if p.is_file()]  # no temporary file is left
    assert json.loads((folder / "meta.json").read_text())["complete"] is True


def assert_equal(one: Any, other: Any, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key != "seconds":
                assert_equal(one[key], other[key], f"{where}:{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}:{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@contextlib.contextmanager
def ctrl_c(moment: str, step: int) -> Iterator[None]:
    """Send this process SIGINT once, at a moment of a step (from 0) of the training loop.

    before: with the gradients still to be computed; between: when the first of two optimizers has stepped
    (or the only one); after: when the last has.
    """
    seen = {"losses": 0, "steps": 0}
    real = losses.LOSSES["cross_entropy"]

    def cross_entropy(*arguments):
        if seen["losses"] == step and moment == "before":
            signal.raise_signal(signal.SIGINT)
        seen["losses"] += 1
        seen["steps"] = 0
        return real[0](*arguments)

    def stepped(optimizer, *_):
        seen["steps"] += 1
        now = {"between": seen["steps"] == 1, "after": isinstance(optimizer, torch.optim.Muon)}
        if seen["losses"] == step + 1 and now.get(moment):
            signal.raise_signal(signal.SIGINT)

    hook = register_optimizer_step_post_hook(stepped)
    losses.LOSSES["cross_entropy"] = (cross_entropy, *real[1:])
    try:
        yield
    finally:
        losses.LOSSES["cross_entropy"] = real
        hook.remove()
