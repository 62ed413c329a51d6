"""Every stage of the reproduction in order; finished ones are skipped, unfinished ones resumed.

Each run is a process of its own: bases use all cores one after the other, fine-tunings run side by side
with one core each, so a run's result does not depend on how many run at once.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from minifork import runs
from minifork.config import Config, to_tree

FORK_RATES = {"star": (0, 0.25, 0.5, 0.75, 1), "mixed": (0, 0.5, 1), "arith": (0, 1)}
ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def sft_overrides(config: Config, seed: int) -> list[list[str]]:
    """The fine-tunings of one pair of seeds: the dose, then what the task studies at r = 1.

    star: problem-level modes, fresh traces, cued problems; arith: rationale, the published order; with SEARCH
    among the modes, all three of them data-level and problem-level.
    """
    task = config.task
    if "SEARCH" in config.data.mode_names:
        return [[f"name={level}-seed{seed}", f"sft.allocation={level}"] for level in ("data", "problem")]
    dose = [[f"sft.fork_rate={rate:g}"] for rate in FORK_RATES[task]]
    if task == "mixed":
        return dose
    if task == "arith":
        rationale = ["sft.fork_rate=1", "sft.modes=RAT", f"name=rationale-seed{seed}"]
        leak = ["data.branch_order=published", "sft.allow_leak=true"]
        return [*dose, rationale, ["sft.fork_rate=1", *leak, f"name=published-seed{seed}"]]
    problem = ["sft.fork_rate=0.5", "sft.allocation=problem"]
    fresh = ["sft.fork_rate=1", "sft.fresh=true", f"name=fresh-seed{seed}"]
    cued = ["sft.fork_rate=1", "sft.cue_rate=1", "sft.allow_leak=true", f"name=cued-seed{seed}"]
    return [*dose, problem, fresh, cued]


def reproduce(config: Config) -> None:
    """Run everything for `reproduce.pairs` pairs of seeds; raises ValueError naming a stage that failed."""
    started = time.monotonic()
    source = run_all(config, {pair: sft_overrides(config, pair) for pair in range(config.reproduce.pairs)})
    _run(_command("figures", source), {})
    _run(_command("claims", source), {})
    print(
        f"reproduced in {(time.monotonic() - started) / 60:.1f} minutes; figures in {source.parent / 'figures'}",
        flush=True,
    )


def run_all(config: Config, tunings: dict[int, list[list[str]]], then: Sequence[list[str]] = ()) -> Path:
    """Bases, fine-tunings (overrides, by pair of seeds), then other commands for every pair, then `eval`.

    Returns the config file that all of them read. Raises ValueError naming a stage that failed.
    """
    source = runs.task_folder(config) / "config.yaml"
    text = yaml.safe_dump(to_tree(config), sort_keys=False)
    runs.write_atomically(source, lambda file: file.write(text.encode()))
    workers = config.reproduce.workers or os.cpu_count() or 1
    for pair in tunings:
        _run([*_command("pretrain", source), "--resume", f"base_seed={pair}"], {})
    jobs = [
        [*_command("sft", source), "--resume", f"seed={pair}", f"base_seed={pair}", *overrides]
        for pair in tunings
        for overrides in tunings[pair]
    ]
    print(f"fine-tuning: {len(jobs)} runs, {workers} at a time", flush=True)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda job: _run(job, ONE_CORE), jobs))
    for pair in tunings:
        for command, *overrides in then:
            _run([*_command(command, source), f"seed={pair}", f"base_seed={pair}", *overrides], {})
    _run(_command("eval", source), {})
    return source


def _command(stage: str, source: Path) -> list[str]:
    return [sys.executable, "-m", "minifork", stage, "--config", str(source)]


def _run(command: list[str], environment: dict[str, str]) -> None:
    """Run a stage in a process; raises ValueError with its command when it fails."""
    code = subprocess.run(command, env={**os.environ, **environment}).returncode
    if code:
        raise ValueError(f"a stage failed (see above): {' '.join(command[1:])}")
