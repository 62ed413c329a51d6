"""Runs: what decides each one, its folder and record, and the run that it started from."""

from minifork.runs.deciding import COMMAND_OF_STAGE, SEEDS, STAGES, deciding_values, epochs_of, identity, parent_stage
from minifork.runs.deciding import task_folder as task_folder
from minifork.runs.folders import all_runs, find_run, finished, folder_of, hold_run, read_run, remove_run
from minifork.runs.folders import require_parent as require_parent
from minifork.runs.folders import require_run as require_run
from minifork.runs.provenance import instruction_sets, made_by, made_with, processor
from minifork.runs.run import METRICS, RECORD, WEIGHTS, Checkpoint, Run, in_memory, snapshot

__all__ = [
    "COMMAND_OF_STAGE", "METRICS", "RECORD", "SEEDS", "STAGES", "WEIGHTS",
    "Checkpoint", "Run",
    "all_runs", "deciding_values", "epochs_of", "find_run", "finished", "folder_of", "hold_run",
    "identity", "in_memory", "instruction_sets", "made_by", "made_with", "parent_stage", "processor", "read_run",
    "remove_run", "require_parent", "require_run", "snapshot", "task_folder",
]  # fmt: skip
