"""Runs on disk: the folder of each, finding and reading it, holding it while it is made."""

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from minifork import config as configs
from minifork.runs.deciding import COMMANDS, STAGES, identity, label, parent_stage, task_folder
from minifork.runs.run import FORMAT, RECORD, VERSION, WEIGHTS, Checkpoint, Run, new, with_config
from minifork.schema import Config
from minifork.storage import files, legacy, locks

KINDS = {"identity": str, "config": dict, "weights": dict, "legs": list, "complete": bool, "step": int, "steps": int}


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
    return task_folder(config) / label(config, stage)


def _folders(config: Config) -> list[Path]:
    """The folders of a task that hold a run."""
    root = task_folder(config)
    inside = sorted(root.iterdir()) if root.exists() else []
    return [path for path in inside if (path / RECORD).exists() or (path / legacy.RECORD).exists()]


def read_run(folder: Path) -> Run:
    """The run in a folder.

    Raises ValueError naming the record when it is missing, damaged, of another project or of a newer version.
    """
    record = _read_record(folder)
    try:
        config = configs.from_record(record["config"], folder / RECORD)
    except configs.UnknownTaskError as error:
        raise ValueError(f"{error}; one of your own is to be put into minifork.schema.TASKS first") from None
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
            readable.append(read_run(folder))
        except (ValueError, OSError) as error:
            print(f"{folder}: left out, {error}", flush=True)
    return sorted(readable, key=lambda run: (run.stage != "base", run.name))


def find(config: Config, stage: str) -> Run | None:
    """The run that a config asks for, None when there is none; raises ValueError when its record is unreadable."""
    folder = folder_of(config, stage)
    return read_run(folder) if folder in _folders(config) else None


def require_run(config: Config, stage: str) -> Run:
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
    before = read_run(folder)
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
    with contextlib.ExitStack() as stack:
        with locks.locked(task_folder(config)):  # two labels for one run must not become two folders
            folder = folder_of(config, stage)
            stack.callback(_remove_if_empty, folder)
            try:
                stack.enter_context(locks.locked(folder, wait=False))
            except locks.HeldError as error:
                raise locks.HeldError(f"{error}; wait until it has finished this run") from None
        for path in folder.rglob(".*"):
            if path.is_file() and re.fullmatch(r"\..+\.[a-z0-9_]{8}", path.name):  # of `files.write_atomically`
                path.unlink()
        yield _state(folder, config, stage, parent, resume)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it holds something
        folder.rmdir()


def _state(folder: Path, config: Config, stage: str, parent: Checkpoint | None, resume: bool) -> Run:
    """The run that a folder holds, or a new one."""
    run = find(config, stage)
    if run is None or not run.complete and not (folder / WEIGHTS).exists():
        for path in [*folder.glob("epochs/e*.pt"), folder / WEIGHTS]:  # of a run without a record or a checkpoint
            path.unlink(missing_ok=True)
        return new(folder, config, stage, parent)
    require_parent(run)
    if run.complete:
        return run
    if not resume:
        raise ValueError(f"{folder} holds an unfinished run; continue it with --resume, or remove it")
    return with_config(run.record, folder, config)


def remove(run: Run) -> None:
    """Delete a run's folder; raises ValueError while a process works on it."""
    with locks.locked(run.folder.parent):  # or a new run could begin before the folder is gone
        try:
            with locks.locked(run.folder, wait=False):
                for path in run.folder.iterdir():
                    if path.name in (locks.LOCK, locks.LEASE):
                        continue  # they go with the block
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        except locks.HeldError as error:
            raise ValueError(f"{error}; the run stays") from None
        run.folder.rmdir()
