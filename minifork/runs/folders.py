"""Runs on disk: finding and reading them, and holding the folder of one while a process makes it."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from minifork import config as configs
from minifork.runs.deciding import COMMAND_OF_STAGE, identity, label, parent_stage, task_folder
from minifork.runs.run import RECORD, RUN_FORMAT, RUN_VERSION, WEIGHTS, Checkpoint, Run, new, with_config
from minifork.schema import Config
from minifork.storage import files, locks

KEYS = ("format", "version", "stage", "identity", "config", "parent", "weights", "legs", "step", "steps", "complete")


def folder_of(config: Config, stage: str) -> Path:
    """The folder of the run that a config asks for, under any label; for a new run where it will be."""
    digits = identity(config, stage)[:8]
    folders = [path for path in task_folder(config).glob(f"*-{digits}") if path.is_dir()]
    return min(folders, default=task_folder(config) / label(config, stage))


def read_run(folder: Path) -> Run:
    """The run in a folder.

    Raises ValueError naming the record when it is missing, damaged or not of this version, and for an unknown task.
    """
    path = folder / RECORD
    record = files.read_json(path, *KEYS)
    if (record["format"], record["version"]) != (RUN_FORMAT, RUN_VERSION):
        raise ValueError(f"{path}: not the record of a run of this version of minifork; move it elsewhere")
    mappings = isinstance(record["config"], dict) and isinstance(record["weights"], dict)
    has_parent, has_weights = isinstance(record["parent"], dict), bool(record["weights"]) or not record["complete"]
    if not (mappings and has_weights and has_parent == (record["stage"] != "base")):
        raise ValueError(f"{path}: edited, its config, parent or weights are missing; remove the run and make it again")
    try:
        return Run(folder, record, configs.from_record(record["config"], path))
    except configs.UnknownTaskError as error:
        raise ValueError(f"{error}; put a task of your own into minifork.schema.TASKS first") from None


def all_runs(config: Config) -> list[Run]:
    """Every run of the config's task, bases first. A run that cannot be read is left out, with a printed line."""
    readable = []
    for path in task_folder(config).glob(f"*/{RECORD}"):
        try:
            readable.append(read_run(path.parent))
        except (ValueError, OSError) as error:
            print(f"{path.parent}: left out, {error}", flush=True)
    return sorted(readable, key=lambda run: (run.stage != "base", run.name))


def find_run(config: Config, stage: str) -> Run | None:
    """The run that a config asks for, None when there is none; raises ValueError when its record is unreadable."""
    folder = folder_of(config, stage)
    return read_run(folder) if (folder / RECORD).exists() else None


def require_run(config: Config, stage: str) -> Run:
    """The finished run that a config asks for; raises ValueError saying how to make it."""
    if run := finished(config, stage):
        return run
    seed = "" if stage == "base" else f" seed={config.seed}"
    command = f"minifork {COMMAND_OF_STAGE[stage]} base_seed={config.base_seed}{seed}"
    raise ValueError(f"{folder_of(config, stage)}: no such finished run; make it with `{command}` and the same keys")


def finished(config: Config, stage: str) -> Run | None:
    """The run that a config asks for if it is complete; raises ValueError when its parent was made anew since."""
    run = find_run(config, stage)
    if run is None or not run.complete:
        return None
    require_parent(run)
    return run


def require_parent(run: Run) -> None:
    """Raise ValueError when the run that this one started from, or one before that, was made anew with other weights.

    A parent that is gone is no error: only new runs need it.
    """
    start, stage = run.record["parent"], parent_stage(run.config, run.stage)
    if stage is None:
        return
    parent = find_run(replace(run.config, runs=str(run.folder.parent.parent)), stage)
    if parent is None:
        return
    path = parent.folder / start["file"]
    if parent.complete and parent.record["weights"].get(start["file"]) != start["weights"]:
        raise ValueError(f"{run.folder} started from other weights than {path} holds now; remove it and run it again")
    require_parent(parent)


# making a run


@contextlib.contextmanager
def hold_run(config: Config, stage: str, parent: Checkpoint | None, resume: bool) -> Iterator[Run]:
    """Hold the folder of the run that a config asks for, new, unfinished or complete, while a process works on it.

    Every process that asks for the same run gets the same folder. What a killed process left half-written is removed,
    and so is a folder in which nothing was written. Raises HeldError while another process holds it, ValueError for an
    unfinished run unless ``resume``, and when its parent was made anew since.
    """
    with contextlib.ExitStack() as stack:
        with locks.locked(task_folder(config)):  # two labels for one run must not become two folders
            folder = folder_of(config, stage)
            stack.callback(_remove_if_empty, folder)
            try:
                stack.enter_context(locks.locked(folder, wait=False))
            except locks.HeldError as error:
                raise locks.HeldError(f"{error}; wait until it has finished this run") from None
        run = _run_in_folder(folder, config, stage, parent, resume)
        if not run.complete:  # of a complete run somebody may write a measurement
            for path in folder.rglob(f".*{files.TEMPORARY_SUFFIX}"):
                path.unlink()
        yield run


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # a folder that is not empty stays
        folder.rmdir()


def _run_in_folder(folder: Path, config: Config, stage: str, parent: Checkpoint | None, resume: bool) -> Run:
    """The run that a folder holds; a new one where it holds none, or one that was killed before its first checkpoint.

    The folder of a new run keeps no weights.
    """
    run = find_run(config, stage)
    if run is None or not run.complete and not (folder / WEIGHTS).exists():
        for path in [*folder.glob("epochs/e*.pt"), *folder.glob(WEIGHTS)]:
            path.unlink()
        return new(folder, config, stage, parent)
    require_parent(run)
    if run.complete:
        return run
    if not resume:
        raise ValueError(f"{folder} holds an unfinished run; continue it with --resume, or remove it")
    return with_config(run.record, folder, config)


def remove_run(run: Run) -> None:
    """Delete a run's folder; raises ValueError while a process works on it."""
    with locks.locked(run.folder.parent):  # so no process can begin to work on it
        try:
            with locks.locked(run.folder, wait=False):
                pass
        except locks.HeldError as error:
            raise ValueError(f"{error}; the run stays") from None
        shutil.rmtree(run.folder)
