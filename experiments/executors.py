"""Where the runs of a study run: on this machine, in processes of their own.

Runs that others start from are made too. Bases use all cores one after the other. The rest run side by side with one
core each, so that a run's weights do not depend on how many run at once.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import IO

from tqdm import tqdm

from experiments.study import Plan
from minifork import runs
from minifork.cores import cores

ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
RESERVED = range(5, 10)  # pairs of seeds
ATTEMPTS = 3  # of a run that is killed
INTERRUPTED = (130, -signal.SIGINT, -signal.SIGTERM)  # the last two before Python handles the signal


def run(plans: Iterable[Plan]) -> None:
    """Make the runs of plans, and those that they start from, as far as they are missing, stage after stage.

    Raises ValueError naming the runs that failed, after all others of their stage are done, and for reserved pairs.
    """
    needed = _with_parents(plans)
    if reserved := {plan.config.seed for plan in needed} & set(RESERVED):
        raise ValueError(f"pair {min(reserved)}: pairs 5 to 9 are kept for a confirmation that nobody has looked at")
    for stage in runs.STAGES:
        missing = [plan for plan in needed if plan.stage == stage and not runs.finished(plan.config, stage)]
        if stage == "base":
            for plan in missing:
                _on_all_cores(plan)
        elif missing:
            _side_by_side(missing)


def _with_parents(plans: Iterable[Plan]) -> list[Plan]:
    """Plans and the runs that they start from, each run once."""
    needed: dict[str, Plan] = {}
    for plan in plans:
        stage: str | None = plan.stage
        while stage:
            needed.setdefault(runs.identity(plan.config, stage), replace(plan, stage=stage))
            stage = runs.parent_stage(plan.config, stage)
    return list(needed.values())


def _on_all_cores(plan: Plan) -> None:
    """Make a run in a process of its own; raises ValueError with its command when it fails."""
    with subprocess.Popen(plan.command) as process:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            _stop([process])
            process.wait()
            raise
    if code in INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise ValueError(f"a stage failed (see above): {' '.join(plan.command[1:])}")


def _side_by_side(plans: list[Plan]) -> None:
    """Make runs with one core each, `reproduce.workers` at a time; what they print goes to runs/<task>/logs/.

    Raises ValueError naming the runs that failed, after all others are done.
    """
    started, failed, crew = time.monotonic(), [], _Crew()
    pool = ThreadPoolExecutor(plans[0].config.reproduce.workers or cores())
    with pool, tqdm(total=len(plans), unit="run", disable=None) as bar:
        logs = {pool.submit(_attempt, plan, crew): plan.log for plan in plans}
        try:
            for done, future in enumerate(as_completed(logs), 1):
                log, code = logs[future], future.result()
                failed += [log] if code else []
                bar.set_postfix_str(log.stem)
                bar.update()
                if bar.disable:
                    minutes = (time.monotonic() - started) / 60
                    state = "FAILED" if code else "done"
                    print(f"[{done}/{len(plans)}] {log.stem}: {state} ({minutes:.1f} minutes so far)", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            crew.stop()
            raise
    if failed:
        raise ValueError(f"{len(failed)} of {len(plans)} runs failed: {'; '.join(map(_last_line, failed))}")


def _stop(processes: list[subprocess.Popen]) -> None:
    """Tell processes to save and end. After a Ctrl-C, which they got too, that changes nothing."""
    for process in processes:
        process.terminate()


class _Crew:
    """The processes that run side by side."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []
        self.stopped, self.lock = False, threading.Lock()

    def start(self, command: list[str], log: IO[bytes]) -> subprocess.Popen:
        """A process on one core that writes to a log; raises KeyboardInterrupt once all were stopped."""
        with self.lock:
            if self.stopped:
                raise KeyboardInterrupt
            process = subprocess.Popen(command, env={**os.environ, **ONE_CORE}, stdout=log, stderr=log)
            self.processes.append(process)
        return process

    def stop(self) -> None:
        """Tell all processes to save and end, and start no more."""
        with self.lock:
            self.stopped = True
            _stop(self.processes)


def _attempt(plan: Plan, crew: _Crew) -> int:
    """Make a run on one core, again when it is killed; its last exit code. Raises KeyboardInterrupt as it does."""
    plan.log.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(ATTEMPTS):
        with plan.log.open("ab") as file, crew.start(plan.command, file) as process:
            code = process.wait()
        if code in INTERRUPTED:
            raise KeyboardInterrupt
        if code >= 0:
            break
    return code


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{log}: {lines[-1] if lines else 'no output'}"
