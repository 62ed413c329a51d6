"""Runs: what each one is, the folder it lives in, and the run that it started from.

    run.json        the record: config, stage, parent, hashes of the weights, progress
    metrics.jsonl   one line a logged step
    ckpt.pt         weights, optimizer, step
    epochs/e<n>.pt  weights after epoch n (SFT, WiSE-FT) or update n (RL)
    eval/           what was measured of its weights (`minifork.storage.measurements`)

A run is what decides its weights: its *identity* hashes the deciding keys of its config together with the identity of
its parent. Its folder is <label>-<8 digits of the identity>; the label is for people and is never read. Nothing here
imports torch unless a run of version 0.1 needs its weights hashed.
"""

import contextlib
import copy
import platform
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minifork import config as configs
from minifork.schema import Config
from minifork.storage import files, legacy

if TYPE_CHECKING:
    from torch import Tensor

    from minifork.gpt import GPT

RECORD, WEIGHTS, METRICS = "run.json", "ckpt.pt", "metrics.jsonl"
FORMAT, VERSION = "minifork-run", 2
STAGES = ("base", "sft", "wise", "rl")  # in this order: each starts from one before it
COMMANDS = {"base": "pretrain", "sft": "sft", "wise": "wise", "rl": "rl"}
SEEDS = ("base_seed", "seed")
KINDS = {"identity": str, "config": dict, "weights": dict, "legs": list, "complete": bool, "step": int, "steps": int}
DECIDING = {  # sections and keys that decide the weights of a stage, beside its parent's
    "base": ("task", "base_seed", "data", "walks", "model", "pretrain"),
    "sft": ("seed", "sft", "data.branch_order"),
    "wise": ("wise",),
    "rl": ("seed", "rl", "data.branch_order"),
}
UNDECIDING = {"base": ("data.branch_order",), "sft": ("sft.allow_leak",)}  # walks are always printed shuffled


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights of a finished run, and the epoch that it is from (of RL the update, of a base None)."""

    run: "Run"
    epoch: int | None
    file: str
    final: bool

    @property
    def path(self) -> Path:
        """Where the file lies; for a run in memory what messages call it."""
        return self.run.folder / self.file

    @property
    def weights(self) -> str:
        """The hash of the weights, as recorded when they were written."""
        return self.run.weights_hash(self.file)

    def state(self) -> "dict[str, Tensor]":
        """The weights by name.

        Raises ValueError naming the file when it is damaged or holds other weights than its run recorded.
        """
        from minifork.storage.weights import hash_of

        weights = self.run.read(self.file)["model"]
        if hash_of(weights) != self.weights:
            raise ValueError(f"{self.path}: holds other weights than its run recorded; make the run again")
        return weights

    def model(self) -> "GPT":
        """The model with these weights, in evaluation mode on the CPU; raises ValueError as `state` does."""
        from minifork.checkpoints import load_state, new_model

        model = new_model(self.run.config, 0)
        load_state(model, {"model": self.state()}, self.path)
        return model.eval()


@dataclass(frozen=True)
class Run:
    """A run: its folder, its record, and the config in it.

    memory: None, or the files of a run that lives in memory; its folder is then only what messages call it.
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
        """One of STAGES."""
        return self.record["stage"]

    @property
    def identity(self) -> str:
        """What tells it from all other runs, in twelve hex digits."""
        return self.record["identity"]

    @property
    def complete(self) -> bool:
        """Whether it is finished."""
        return self.record["complete"]

    @cached_property
    def values(self) -> dict[str, Any]:
        """The deciding keys with their values."""
        return deciding_values(self.config, self.stage)

    def tags(self, study: Config | None = None) -> dict[str, Any]:
        """The deciding keys, seeds apart, that differ from a study's config, by default from what ships."""
        differing = configs.tags(self.config, study)
        return {key: value for key, value in differing.items() if key in self.values and key not in SEEDS}

    @property
    def epochs(self) -> list[int]:
        """The epochs (RL: updates) after which weights are kept; none of a base."""
        last = {"base": 0, "rl": self.config.rl.updates}.get(self.stage, self.config.sft.epochs)
        first = self.config.wise.early if self.stage == "wise" else 0
        return [epoch for epoch in doublings(last) if epoch > first]

    def checkpoint(self, epoch: int | None = None) -> Checkpoint:
        """The weights after an epoch, or the last ones; raises ValueError when the run keeps no such ones."""
        epochs = self.epochs
        epoch = epochs[-1] if epochs and epoch is None else epoch
        file = WEIGHTS if epoch is None else snapshot(epoch)
        if not self.complete or not self.has(file):
            raise ValueError(f"{self.folder / file}: no such weights of a finished run; make it, or name another epoch")
        return Checkpoint(self, epoch, file, not epochs or epoch == epochs[-1])

    def checkpoints(self) -> list[Checkpoint]:
        """All weights worth measuring, in order; raises ValueError when some are missing."""
        return [self.checkpoint(epoch) for epoch in self.epochs] or [self.checkpoint()]

    def model(self, epoch: int | None = None) -> "GPT":
        """The model after an epoch, or at the end, in evaluation mode on the CPU.

        Raises ValueError for an unfinished run, and for an epoch without weights.
        """
        return self.checkpoint(epoch).model()

    def weights_hash(self, file: str) -> str:
        """The recorded hash of a file of weights; runs of version 0.1 recorded none, so theirs is computed."""
        if file not in self.record["weights"]:
            from minifork.storage.weights import weights_hash

            self.record["weights"][file] = weights_hash(self.folder / file)
        return self.record["weights"][file]

    # files

    def has(self, file: str) -> bool:
        """Whether the run has a file of weights."""
        return (self.folder / file).exists() if self.memory is None else file in self.memory

    def read(self, file: str, device: str = "cpu") -> dict:
        """What a file of weights holds; raises ValueError naming it when it is damaged."""
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


def doublings(last: int) -> list[int]:
    """1, 2, 4, ... below ``last``, and ``last``; nothing for 0."""
    return sorted({2**i for i in range(last.bit_length())} | {last}) if last else []


# identity


def parent_stage(config: Config, stage: str) -> str | None:
    """The stage that a run starts from."""
    return {"base": None, "sft": "base", "wise": "sft", "rl": "sft" if config.rl.epoch else "base"}[stage]


def deciding_values(config: Config, stage: str) -> dict[str, Any]:
    """The keys that decide a run's weights, its parents' included, with their values."""
    parent = parent_stage(config, stage)
    return (deciding_values(config, parent) if parent else {}) | _own_values(config, stage)


def _own_values(config: Config, stage: str) -> dict[str, Any]:
    """The keys that decide this stage itself."""
    wanted, unwanted = DECIDING[stage], UNDECIDING.get(stage, ())
    return {
        key: value
        for key, value in configs.flat(config).items()
        if (key in wanted or key.split(".")[0] in wanted) and key not in unwanted
    }


def identity(config: Config, stage: str) -> str:
    """Twelve hex digits, equal for configs that give the same run.

    A key with the value from before it existed does not count, so that runs made before keep their identity.
    """
    parent, before = parent_stage(config, stage), configs.before(config.task)
    values = {k: v for k, v in _own_values(config, stage).items() if k not in before or before[k] != v}
    return files.fingerprint([stage, identity(config, parent) if parent else None, values])


# folders


def task_folder(config: Config) -> Path:
    """<runs>/<task>, where all runs of a task live."""
    return Path(config.runs) / config.task


def folder_of(config: Config, stage: str) -> Path:
    """The folder of the run that a config asks for, whether it exists or not and whatever its label is."""
    wanted = identity(config, stage)
    for path in sorted(task_folder(config).glob(f"*-{wanted[:8]}")):
        if path.is_dir():
            return path
    for path in _folders(config):
        with contextlib.suppress(ValueError, OSError):  # a run that cannot be read is not the one
            if _read_record(path)["identity"] == wanted:
                return path
    return task_folder(config) / _label(config, stage)


def _label(config: Config, stage: str) -> str:
    """What a new run is called: for people, and eight digits of its identity."""
    rate = f"-fork{config.sft.fork_rate:g}" if stage != "base" else ""
    seed = config.base_seed if stage == "base" else config.seed
    return f"{config.name or f'{stage}{rate}-seed{seed}'}-{identity(config, stage)[:8]}"


def _folders(config: Config) -> list[Path]:
    """The folders of a task that hold a run."""
    root = task_folder(config)
    inside = sorted(root.iterdir()) if root.exists() else []
    return [path for path in inside if (path / RECORD).exists() or (path / legacy.RECORD).exists()]


def read(folder: Path) -> Run:
    """The run in a folder.

    Raises ValueError naming the record when it is missing, damaged, of another project or of a newer version.
    """
    record = _read_record(folder)
    try:
        config = configs.from_record(record["config"], folder / RECORD)
    except ValueError as error:
        raise ValueError(f"{error}; remove its folder and run it again") from None
    return Run(folder, record, config)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.exists() and (folder / legacy.RECORD).exists():
        record = legacy.read(folder)
        if not _is_parent(record["parent"]):
            raise ValueError(f"{folder / legacy.RECORD}: damaged; remove its folder and run it again")
        config = configs.from_record(record["config"], folder)
        return record | {"identity": identity(config, record["stage"])}
    record = files.read_json(path)
    if record.get("format") != FORMAT:
        raise ValueError(f"{path}: not the record of a minifork run; move it elsewhere")
    if type(record.get("version")) is int and record["version"] > VERSION:
        raise ValueError(f"{path}: written by a newer version of minifork; update this one, or use another runs=...")
    whole = all(type(record.get(key)) is kind for key, kind in KINDS.items())
    whole = whole and all(type(digits) is str for digits in record["weights"].values())
    if not whole or record.get("stage") not in STAGES or not _is_parent(record.get("parent")):
        raise ValueError(f"{path}: damaged; remove its folder and run it again")
    return record


def _is_parent(parent: Any) -> bool:
    kinds = {key: type(value) for key, value in parent.items()} if isinstance(parent, dict) else None
    return parent is None or kinds == {"run": str, "file": str, "weights": str}


def all_runs(config: Config) -> list[Run]:
    """Every run of the config's task, bases first; those that cannot be read are named in a line and left out."""
    readable = []
    for folder in _folders(config):
        try:
            readable.append(read(folder))
        except (ValueError, OSError) as error:
            print(f"{folder}: left out, {error}", flush=True)
    return sorted(readable, key=lambda run: (run.stage != "base", run.name))


def find(config: Config, stage: str) -> Run | None:
    """The run that a config asks for, None when there is none; raises ValueError when its record is unreadable."""
    folder = folder_of(config, stage)
    return read(folder) if folder in _folders(config) else None


def require(config: Config, stage: str) -> Run:
    """The finished run that a config asks for; raises ValueError saying how to make it."""
    if run := finished(config, stage):
        return run
    command = f"minifork {COMMANDS[stage]} base_seed={config.base_seed}"
    command += "" if stage == "base" else f" seed={config.seed}"
    raise ValueError(f"{folder_of(config, stage)}: no such finished run; make it with `{command}` and the same keys")


def finished(config: Config, stage: str) -> Run | None:
    """The run that a config asks for if it is complete; raises ValueError when its parent was made anew since."""
    run = find(config, stage)
    if run is None or not run.complete:
        return None
    require_parent(run)
    return run


def require_parent(run: Run) -> None:
    """Raise ValueError when the run that this one started from, or one before that, holds other weights by now."""
    parent = run.record["parent"]
    if parent is None:
        return
    folder = run.folder.parent / parent["run"]
    stage = parent_stage(run.config, run.stage)
    if stage and not folder.exists():  # it has another label by now, or is gone
        folder = folder_of(replace(run.config, runs=str(run.folder.parent.parent)), stage)
    if not folder.exists():
        return
    before = read(folder)
    if before.complete and before.weights_hash(parent["file"]) != parent["weights"]:
        start = folder / parent["file"]
        raise ValueError(f"{run.folder} started from other weights than {start} holds now; remove it and run it again")
    require_parent(before)


# making a run


@contextlib.contextmanager
def hold(config: Config, stage: str, parent: Checkpoint | None, resume: bool) -> Iterator[Run]:
    """Hold the folder of the run that a config asks for, new, unfinished or complete, while a process works on it.

    Every process that asks for the same run gets the same folder. What a killed process left half-written is removed,
    and so is a folder in which nothing was written. Raises ValueError while another process holds it, for an
    unfinished run unless ``resume``, and when it started from other weights than ``parent`` has.
    """
    root = task_folder(config)
    root.mkdir(parents=True, exist_ok=True)
    with files.locked(root):  # two labels for one run must not become two folders
        folder = folder_of(config, stage)
        folder.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(folder, wait=False))
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is working on this run; wait for it") from None
        for path in folder.rglob(".*"):
            if path.is_file() and re.fullmatch(r"\..+\.[a-z0-9_]{8}", path.name):  # of `files.write_atomically`
                path.unlink()
        try:
            yield _state(folder, config, stage, parent, resume)
        finally:
            if not any(folder.iterdir()):
                folder.rmdir()


def _state(folder: Path, config: Config, stage: str, parent: Checkpoint | None, resume: bool) -> Run:
    """The run that a folder holds, or a new one."""
    run = find(config, stage)
    if run is None or not run.complete and not (folder / WEIGHTS).exists():
        for path in [*folder.glob("epochs/e*.pt"), folder / WEIGHTS]:  # of a run without a record or a checkpoint
            path.unlink(missing_ok=True)
        return _new(folder, config, stage, parent)
    require_parent(run)
    if run.complete:
        return run
    if not resume:
        raise ValueError(f"{folder} holds an unfinished run; continue it with --resume, or remove it")
    return _with_config(run.record, folder, config)


def in_memory(config: Config, stage: str, parent: Checkpoint | None, silent: bool) -> Run:
    """A new run that lives in memory and is gone with the process."""
    run = _new(Path("(memory)", _label(config, stage)), config, stage, parent)
    return replace(run, memory={}, silent=silent)


def _new(folder: Path, config: Config, stage: str, parent: Checkpoint | None) -> Run:
    start = {"run": parent.run.name, "file": parent.file, "weights": parent.weights} if parent else None
    progress = {"weights": {}, "legs": [], "step": 0, "steps": 0, "complete": False, "seconds": 0.0}
    record = {"stage": stage, "identity": identity(config, stage), "parent": start} | progress
    return _with_config(record, folder, config)


def _with_config(record: dict[str, Any], folder: Path, config: Config) -> Run:
    """The run of a record whose config is replaced by one that decides the same weights."""
    record = record | {"format": FORMAT, "version": VERSION, "config": configs.to_tree(config)}
    run = Run(folder, record, config)
    return Run(folder, record | {"tags": run.tags()}, config)


def remove(run: Run) -> None:
    """Delete a run's folder; raises ValueError while a process works on it."""
    try:
        with files.locked(run.folder, wait=False):
            shutil.rmtree(run.folder)
    except BlockingIOError:
        raise ValueError(f"{run.folder}: a process is working on this run; it stays") from None


# provenance


def machine() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [line.split(":", 1)[1] for line in text.splitlines() if "model name" in line]
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


def made_by(config: Config) -> dict[str, str]:
    """What a result file says of how it was made: this process's command, the config's hash, the machine."""
    command = shlex.join(["minifork", *sys.argv[1:]])
    return {"command": command, "config_hash": files.fingerprint(configs.to_tree(config)), "machine": machine()}
