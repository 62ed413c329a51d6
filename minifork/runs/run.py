"""A run: the files in its folder, its record, its config and its checkpoints.

    run.json        the run's record: config, stage, parent, hashes of the weights, progress
    metrics.jsonl   one line a logged step
    ckpt.pt         weights, optimizer, step
    epochs/e<n>.pt  weights after epoch n (SFT, WiSE-FT) or update n (RL)
    eval/           measurements of its weights (`minifork.storage.measurements`)

The record's "weights" are hashes of weights, by file. The weights themselves are in ckpt.pt and epochs/. "parent" has
the hash of the weights that the run started from under the same key.

In RL an *epoch* of a run or checkpoint means an update. Only the config's rl.epoch is always an epoch of fine-tuning.

A run's *identity* hashes the keys of its config that decide its weights, together with its parent's identity. Its
folder is called <label>-<8 digits of the identity>. The label is for people and is never read. torch is imported only
when weights are read or written.
"""

import copy
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifork import config as configs
from minifork.runs.deciding import SEEDS, deciding_values, epochs_of, identity, label
from minifork.schema import Config
from minifork.storage import files

if TYPE_CHECKING:
    from torch import Tensor

    from minifork.gpt import GPT

RECORD, WEIGHTS, METRICS = "run.json", "ckpt.pt", "metrics.jsonl"
RUN_FORMAT, RUN_VERSION = "minifork-run", 2


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights of a finished run.

    epoch: the epoch after which they were written (RL: the update), None for a base. final: they are the run's last.
    """

    run: "Run"
    epoch: int | None
    file: str
    final: bool

    @property
    def path(self) -> Path:
        """The path of the file; for a run in memory only a name in messages."""
        return self.run.folder / self.file

    @property
    def weights_hash(self) -> str:
        """The hash of the weights, as recorded when they were written."""
        return self.run.record["weights"][self.file]

    @property
    def is_here(self) -> bool:
        """True if its file is here; of a run made on another machine some weights are not."""
        return self.run.has(self.file)

    def tensors(self) -> "dict[str, Tensor]":
        """The weights by name.

        Raises ValueError naming the file when it is damaged or holds other weights than its run recorded.
        """
        from minifork.storage.weights import hash_of

        weights = self.run.read(self.file)["model"]
        if hash_of(weights) != self.weights_hash:
            raise ValueError(f"{self.path}: holds other weights than its run recorded; make the run again")
        return weights

    def model(self) -> "GPT":
        """The model with these weights, in evaluation mode on the CPU; raises ValueError as `tensors` does."""
        from minifork.models import new_model

        model = new_model(self.run.config, 0)
        model.load_state_dict(self.tensors())
        return model.eval()


@dataclass(frozen=True)
class Run:
    """A run: its folder, its record, and the config in it.

    memory: None, or the files of a run that lives in memory; its folder is then only its name in messages.
    """

    folder: Path
    record: dict[str, Any] = field(repr=False)
    config: Config = field(repr=False)
    memory: dict[str, Any] | None = field(default=None, repr=False)
    silent: bool = False

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def stage(self) -> str:
        """The run's stage, one of STAGES."""
        return self.record["stage"]

    @property
    def identity(self) -> str:
        """Twelve hex digits that tell it from all other runs."""
        return self.record["identity"]

    @property
    def complete(self) -> bool:
        """True once the last step's weights are written."""
        return self.record["complete"]

    @cached_property
    def values(self) -> dict[str, Any]:
        """The deciding keys with their values."""
        return deciding_values(self.config, self.stage)

    def tags(self, study: Config | None = None) -> dict[str, Any]:
        """The deciding keys, seeds apart, that differ from a study's config; by default from the shipped one."""
        differing = configs.tags(self.config, study)
        return {key: value for key, value in differing.items() if key in self.values and key not in SEEDS}

    @property
    def epochs(self) -> list[int]:
        """The epochs after which weights are kept (RL: updates); none of a base."""
        return epochs_of(self.config, self.stage)

    def checkpoint(self, epoch: int | None = None) -> Checkpoint:
        """The weights after an epoch (RL: update), by default the last; raises ValueError when the run has none."""
        checkpoint = self.checkpoints()[-1] if epoch is None else self._checkpoint(epoch)
        if not self.complete or not checkpoint.is_here:
            raise ValueError(f"{checkpoint.path}: no such weights of a finished run; make it, or name another epoch")
        return checkpoint

    def checkpoints(self) -> list[Checkpoint]:
        """All weights worth measuring, in order, whether their files are here or not."""
        return [self._checkpoint(epoch) for epoch in self.epochs] or [self._checkpoint(None)]

    def _checkpoint(self, epoch: int | None) -> Checkpoint:
        last = self.epochs[-1] if self.epochs else None
        return Checkpoint(self, epoch, WEIGHTS if epoch is None else snapshot(epoch), final=epoch == last)

    def model(self, epoch: int | None = None) -> "GPT":
        """The model after an epoch (RL: update), or at the end, in evaluation mode on the CPU.

        Raises ValueError for an unfinished run, and for an epoch without weights.
        """
        return self.checkpoint(epoch).model()

    # files

    def has(self, file: str) -> bool:
        """True if the run has this file of weights."""
        return (self.folder / file).exists() if self.memory is None else file in self.memory

    def read(self, file: str, device: str = "cpu") -> dict:
        """The content of a file of weights; raises ValueError naming it when it is damaged."""
        if self.memory is not None:
            return self.memory[file]
        from minifork.storage.weights import load_weights

        return load_weights(self.folder / file, device)

    def write(self, file: str, payload: dict) -> str:
        """Keep a payload with weights as a file; returns the weights' hash. Raises as `save_weights` does."""
        from minifork.storage.weights import hash_of, require_finite, save_weights

        if self.memory is None:
            return save_weights(self.folder / file, payload)
        require_finite(payload["model"], self.folder / file)
        self.memory[file] = copy.deepcopy(payload)
        return hash_of(payload["model"])

    def log(self, line: dict) -> None:
        """Append a line to the metrics; raises OSError naming the file when it cannot be written."""
        if self.memory is None:
            files.append_line(self.folder / METRICS, line)
        else:
            self.memory.setdefault(METRICS, []).append(line)

    def save(self, **progress: Any) -> None:
        """Write the record with new progress; raises OSError naming it when it cannot be written."""
        self.record.update(progress)
        if self.memory is None:
            files.write_json(self.folder / RECORD, self.record)

    def say(self, text: str) -> None:
        """Print a line of progress, unless the run is silent."""
        if not self.silent:
            print(text, flush=True)


def snapshot(epoch: int) -> str:
    """The file, below a run's folder, of the weights after an epoch or update."""
    return f"epochs/e{epoch}.pt"


def in_memory(config: Config, stage: str, parent: Checkpoint | None, silent: bool) -> Run:
    """A new run that lives in memory and is gone with the process."""
    run = new(Path("(memory)", label(config, stage)), config, stage, parent)
    return replace(run, memory={}, silent=silent)


def new(folder: Path, config: Config, stage: str, parent: Checkpoint | None) -> Run:
    """A run that is still to be made, which will start from a parent's weights."""
    start = {"run": parent.run.name, "file": parent.file, "weights": parent.weights_hash} if parent else None
    progress = {"weights": {}, "legs": [], "step": 0, "steps": 0, "complete": False, "seconds": 0.0}
    record = {"stage": stage, "identity": identity(config, stage), "parent": start} | progress
    return with_config(record, folder, config)


def with_config(record: dict[str, Any], folder: Path, config: Config) -> Run:
    """The run of a record whose config is replaced by one that decides the same weights."""
    header = {"format": RUN_FORMAT, "version": RUN_VERSION, "config": asdict(config)}
    run = Run(folder, record | header, config)
    run.record["tags"] = run.tags()
    return run
