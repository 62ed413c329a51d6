"""Where the runs of a study run: on this machine, in processes of their own.

Runs that others start from are made too. Bases use all cores one after the other. The rest run side by side with one
core each, so that a run's weights do not depend on how many run at once.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import IO

from tqdm import tqdm

from experiments.study import Plan
from minifork import runs
from minifork.cli import HELD
from minifork.cores import cores
from minifork.storage.locks import HeldError, locked

ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
RESERVED = range(5, 10)  # pairs of seeds
ATTEMPTS = 3  # of a run that is killed
INTERRUPTED = (130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)  # negative: before Python handles the signal
SECONDS_BETWEEN_LOOKS = 0.5  # at a run that another process makes


def run_plans(plans: Iterable[Plan]) -> None:
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

    def start() -> int:
        with subprocess.Popen(plan.command) as process:
            try:
                return process.wait()
            except KeyboardInterrupt:
                _stop([process])
                process.wait()
                raise

    code = _made_once(plan, start, threading.Event())
    if code in INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise ValueError(f"a stage failed (see above): {' '.join(plan.command[1:])}")


def _made_once(plan: Plan, start: Callable[[], int], stopped: threading.Event) -> int:
    """The exit code of ``start``, which runs a plan's command; 0 without it where another process makes the run.

    Raises KeyboardInterrupt when ``stopped`` is set while it waits for that process.
    """
    while True:
        _wait_until_free(plan, stopped)
        if runs.finished(plan.config, plan.stage):
            return 0
        if (code := start()) != HELD:
            return code


def _wait_until_free(plan: Plan, stopped: threading.Event) -> None:
    """Return once no other process works on a plan's run; a line says which one does."""
    said = False
    while (folder := runs.folder_of(plan.config, plan.stage)).exists():
        try:
            with locked(folder, wait=False):
                return
        except HeldError as error:
            if not said:
                tqdm.write(f"{error}; waiting until it has finished this run")
            said = True
        if stopped.wait(SECONDS_BETWEEN_LOOKS):
            raise KeyboardInterrupt


def _side_by_side(plans: list[Plan]) -> None:
    """Make runs with one core each, `reproduce.workers` at a time; what they print goes to runs/<task>/logs/.

    Raises ValueError naming the runs that failed, after all others are done.
    """
    started, failed, crew = time.monotonic(), [], _Crew()
    pool = ThreadPoolExecutor(plans[0].config.reproduce.workers or cores())
    with pool, tqdm(total=len(plans), unit="run", disable=None) as bar:
        names = {pool.submit(_attempt, plan, crew): plan.log.stem for plan in plans}
        try:
            for done, future in enumerate(as_completed(names), 1):
                name, error = names[future], future.result()
                failed += [error] if error else []
                bar.set_postfix_str(name)
                bar.update()
                if bar.disable:
                    minutes = (time.monotonic() - started) / 60
                    state = "FAILED" if error else "done"
                    print(f"[{done}/{len(plans)}] {name}: {state} ({minutes:.1f} minutes so far)", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            crew.stop()
            raise
    if failed:
        raise ValueError(f"{len(failed)} of {len(plans)} runs failed: {'; '.join(failed)}")


def _stop(processes: list[subprocess.Popen]) -> None:
    """Tell processes to save and end. After a Ctrl-C, which they got too, that changes nothing."""
    for process in processes:
        process.terminate()


class _Crew:
    """The processes that run side by side."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []
        self.stopped, self.lock = threading.Event(), threading.Lock()

    def start(self, command: list[str], log: IO[bytes], errors: IO[bytes]) -> subprocess.Popen:
        """A process on one core that writes to two files; raises KeyboardInterrupt once all were stopped."""
        with self.lock:
            if self.stopped.is_set():
                raise KeyboardInterrupt
            process = subprocess.Popen(command, env={**os.environ, **ONE_CORE}, stdout=log, stderr=errors)
            self.processes.append(process)
        return process

    def stop(self) -> None:
        """Tell all processes to save and end, and start no more."""
        with self.lock:
            self.stopped.set()
            _stop(self.processes)


def _attempt(plan: Plan, crew: _Crew) -> str:
    """Make a run on one core, again when it is killed; its log and why it failed, nothing when it did not.

    Raises KeyboardInterrupt as it does.
    """
    plan.log.parent.mkdir(parents=True, exist_ok=True)
    errors = b""

    def start() -> int:
        nonlocal errors
        with plan.log.open("ab") as log, tempfile.TemporaryFile() as error_file:
            # Another process may write to the log at the same time, so errors go through a file of this attempt.
            with crew.start(plan.command, log, error_file) as process:
                code = process.wait()
            error_file.seek(0)
            errors = error_file.read()
            log.write(errors)
        return code

    for _ in range(ATTEMPTS):
        try:
            code = _made_once(plan, start, crew.stopped)
        except ValueError as error:  # of a run that was made meanwhile from other weights, say
            return str(error)
        if code in INTERRUPTED:
            raise KeyboardInterrupt
        if code >= 0:
            break
    return f"{plan.log}: {_reason(code, errors)}" if code else ""


def _reason(code: int, errors: bytes) -> str:
    """Why a process failed: the signal that ended it, or else its last error, or else the last line that it wrote."""
    lines = errors.decode(errors="replace").strip().splitlines() or [f"exit code {code}, no output"]
    said = [line for line in lines if line.startswith("minifork: ")] or lines
    return said[-1] if code > 0 else f"killed by signal {-code}, {ATTEMPTS} times"
