"""Moves runs between machines that share no folder: what a run starts from, and what it made.

Files are contents by their paths below a task's folder, such as {"base-seed0-1a2b3c4d/run.json": b"..."}. Weights
travel without the state of their optimizer.
"""

import json
from pathlib import Path

from experiments.study import Plan
from minifork import runs
from minifork.runs import METRICS, RECORD, WEIGHTS, Checkpoint, Run
from minifork.storage.files import write_atomically
from minifork.storage.weights import pack_weights

Files = dict[str, bytes]


def starts_of(plan: Plan) -> list[tuple[str, int | None]]:
    """The stage and epoch of every checkpoint that a plan's run reads."""
    config, stage = plan.config, runs.parent_stage(plan.config, plan.stage)
    if plan.stage != "wise":
        return [(stage, None if stage == "base" else config.rl.epoch)] if stage else []
    early = config.wise.early
    return [("sft", early) if early else ("base", None), *(("sft", epoch) for epoch in runs.epochs_of(config, "wise"))]


def start_files(plan: Plan) -> Files:
    """The records and weights that a plan's run starts from; raises ValueError naming one that is missing."""
    files: Files = {}
    for stage, epoch in starts_of(plan):
        files |= _checkpoint_files(runs.require_run(plan.config, stage).checkpoint(epoch))
    return files


def result_files(run: Run) -> Files:
    """The record, metrics, measurements and weights of a finished run."""
    paths = [run.folder / METRICS, *sorted((run.folder / "eval").glob("[!.]*"))]
    files = {f"{run.name}/{path.relative_to(run.folder)}": path.read_bytes() for path in paths if path.exists()}
    for checkpoint in run.checkpoints():
        files |= _checkpoint_files(checkpoint)
    return files


def _checkpoint_files(checkpoint: Checkpoint) -> Files:
    """The weights of a checkpoint and the record of its run."""
    run = checkpoint.run
    record = json.dumps(run.record).encode()
    return {
        f"{run.name}/{checkpoint.file}": pack_weights({"model": checkpoint.tensors()}),
        f"{run.name}/{RECORD}": record,
    }


def write_files(files: Files, folder: Path) -> None:
    """Write files into a task's folder, records last; raises OSError naming a file that cannot be written."""
    for path in sorted(files, key=lambda path: path.endswith(f"/{RECORD}")):
        write_atomically(folder / path, files[path])


def store(plan: Plan, files: Files) -> None:
    """Keep what came back of a plan's run in the folder that the config asks for, unless the run is finished there.

    Raises ValueError while another process makes the run here, and OSError naming a file that cannot be written.
    """
    with runs.hold_run(plan.config, plan.stage, None, resume=True) as run:
        if run.complete:
            return
        (run.folder / WEIGHTS).unlink(missing_ok=True)
        renamed = {f"{run.name}/{path.partition('/')[2]}": content for path, content in files.items()}
        record = json.loads(renamed[f"{run.name}/{RECORD}"])
        record["config"]["runs"] = plan.config.runs
        write_files(renamed | {f"{run.name}/{RECORD}": json.dumps(record, indent=1).encode()}, run.folder.parent)
