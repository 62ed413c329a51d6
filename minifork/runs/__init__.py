"""Runs: what each one is, the folder it lives in, and the run that it started from."""

from minifork.runs.deciding import COMMANDS, SEEDS, STAGES, deciding_values, identity, parent_stage, task_folder
from minifork.runs.folders import (
    all_runs,
    find,
    finished,
    folder_of,
    hold,
    read_run,
    remove,
    require_parent,
    require_run,
)
from minifork.runs.provenance import instruction_sets, made_by, processor
from minifork.runs.run import FORMAT, METRICS, RECORD, VERSION, WEIGHTS, Checkpoint, Run, in_memory, snapshot

__all__ = [
    "COMMANDS", "FORMAT", "METRICS", "RECORD", "SEEDS", "STAGES", "VERSION", "WEIGHTS",
    "Checkpoint", "Run",
    "all_runs", "deciding_values", "find", "finished", "folder_of", "hold", "identity", "in_memory",
    "instruction_sets", "processor",
    "made_by", "parent_stage", "read_run", "remove", "require_run", "require_parent", "snapshot", "task_folder",
]  # fmt: skip
