"""Runs: what each one is, the folder it lives in, and the run that it started from."""

from minifork.runs.deciding import COMMANDS, SEEDS, STAGES, deciding_values, identity, parent_stage, task_folder
from minifork.runs.folders import all_runs, find, finished, folder_of, hold, read, remove, require, require_parent
from minifork.runs.provenance import instruction_sets, machine, made_by
from minifork.runs.run import FORMAT, METRICS, RECORD, VERSION, WEIGHTS, Checkpoint, Run, in_memory, snapshot

__all__ = [
    "COMMANDS", "FORMAT", "METRICS", "RECORD", "SEEDS", "STAGES", "VERSION", "WEIGHTS",
    "Checkpoint", "Run",
    "all_runs", "deciding_values", "find", "finished", "folder_of", "hold", "identity", "in_memory",
    "instruction_sets", "machine",
    "made_by", "parent_stage", "read", "remove", "require", "require_parent", "snapshot", "task_folder",
]  # fmt: skip
