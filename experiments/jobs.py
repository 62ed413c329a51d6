"""Stages as processes of their own: bases use all cores one after the other, the rest run side by side, one core each.

So a run's result does not depend on how many run at once. Finished stages answer at once, unfinished ones go on.
"""

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from minifork import runs
from minifork.cli import COMMANDS
from minifork.config import Config, to_tree

ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def bases(config: Config, pairs: Iterable[int]) -> Path:
    """Pretrain the base of every pair of seeds; returns the config file, runs/<task>/config.yaml, for further stages.

    Raises ValueError naming a stage that failed.
    """
    source = runs.task_folder(config) / "config.yaml"
    text = yaml.safe_dump(to_tree(config), sort_keys=False)
    runs.write_atomically(source, lambda file: file.write(text.encode()))
    for pair in pairs:
        run(source, "pretrain", f"base_seed={pair}")
    return source


def side_by_side(config: Config, source: Path, jobs: list[list[str]]) -> None:
    """Run jobs [stage, override, ...] with one core each, `reproduce.workers` at a time.

    Raises ValueError naming a stage that failed, after the others.
    """
    workers = config.reproduce.workers or os.cpu_count() or 1
    print(f"{len(jobs)} runs, {workers} at a time", flush=True)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda job: run(source, *job, environment=ONE_CORE), jobs))


def run(source: Path, stage: str, *overrides: str, environment: dict[str, str] | None = None) -> None:
    """Run one stage to its end; raises ValueError with its command when it fails."""
    resume = ["--resume"] if COMMANDS[stage][1] else []
    command = [sys.executable, "-m", "minifork", stage, "--config", str(source), *resume, *overrides]
    if subprocess.run(command, env={**os.environ, **(environment or {})}).returncode:
        raise ValueError(f"a stage failed (see above): {' '.join(command[1:])}")
