"""Makes the runs of a study on this machine, each in a process of its own.

Missing parents of runs are made first. Bases use all cores, one after the other. The other runs run side by side with
one core each, so that their weights do not depend on how many run at once.
"""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

from experiments.study import Plan
from minifork import runs
from minifork.cli import EXIT_HELD
from minifork.cores import cores
from minifork.storage.locks import HeldError, locked

ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
RESERVED_PAIRS = range(5, 10)
MAX_ATTEMPTS = 3  # a run that is killed is started again until then
INTERRUPTED = (130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)  # negative if killed before Python handles signals
POLL_SECONDS = 0.5  # the pause between checks of a run that another process makes


def run_plans(plans: Iterable[Plan]) -> None:
    """Make the runs of plans that are missing, and their missing parents, stage after stage.

    Raises ValueError naming the runs that failed, after all others of their stage are done, and for RESERVED_PAIRS.
    """
    needed = _with_parents(plans)
    if reserved := {plan.config.seed for plan in needed} & set(RESERVED_PAIRS):
        raise ValueError(f"pair {min(reserved)}: pairs 5 to 9 are reserved for a later confirmation; use pairs 0 to 4")
    for stage in runs.STAGES:
        missing = [plan for plan in needed if plan.stage == stage and not runs.finished(plan.config, stage)]
        if stage == "base":
            for plan in missing:
                if _Processes().make(plan):
                    raise ValueError(f"a stage failed (see above): {' '.join(plan.command[1:])}")
        elif missing:
            _side_by_side(missing)


def _with_parents(plans: Iterable[Plan]) -> list[Plan]:
    """Plans and those of their parents, each run once."""
    needed: dict[str, Plan] = {}
    for plan in plans:
        stage: str | None = plan.stage
        while stage:
            needed.setdefault(runs.identity(plan.config, stage), replace(plan, stage=stage))
            stage = runs.parent_stage(plan.config, stage)
    return list(needed.values())


def _side_by_side(plans: list[Plan]) -> None:
    """Make runs with one core each, `reproduce.workers` at a time; their output goes to runs/<task>/logs/.

    Raises ValueError naming the runs that failed, after all others are done.
    """
    started, failures, processes = time.monotonic(), [], _Processes()
    with ThreadPoolExecutor(plans[0].config.reproduce.workers or cores()) as pool:
        names = {pool.submit(_attempt, plan, processes): plan.log.stem for plan in plans}
        try:
            for done, future in enumerate(as_completed(names), 1):
                failure, minutes = future.result(), (time.monotonic() - started) / 60
                failures += [failure] if failure else []
                state = "FAILED" if failure else "done"
                print(f"[{done}/{len(plans)}] {names[future]}: {state} ({minutes:.1f} minutes so far)", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise
    if failures:
        raise ValueError(f"{len(failures)} of {len(plans)} runs failed: {'; '.join(failures)}")


def _attempt(plan: Plan, processes: "_Processes") -> str:
    """Make a run on one core; a run that is killed is started again.

    Returns its log and the reason if it failed, else an empty text.
    """
    plan.log.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(MAX_ATTEMPTS):
        # Another process may write to the log at the same time, so errors go through a file of this attempt.
        with plan.log.open("ab") as log, tempfile.TemporaryFile() as error_file:
            try:
                code = processes.make(plan, env={**os.environ, **ONE_CORE}, stdout=log, stderr=error_file)
            except ValueError as error:  # for example, another process made the run from other weights
                return str(error)
            finally:  # an interrupted run keeps its errors too
                error_file.seek(0)
                errors = error_file.read()
                log.write(errors)
        if code >= 0:
            break
    return f"{plan.log}: {_reason(code, errors)}" if code else ""


def _reason(code: int, errors: bytes) -> str:
    """The reason why a process failed: the signal that ended it, or else its last error, or else its last line."""
    if code < 0:
        return f"killed by signal {-code}, {MAX_ATTEMPTS} times"
    lines = errors.decode(errors="replace").strip().splitlines() or [f"exit code {code}, no output"]
    return ([line for line in lines if line.startswith("minifork: ")] or lines)[-1]


class _Processes:
    """The processes that make runs. They can all be stopped."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen] = []
        self.stopped, self.lock = threading.Event(), threading.Lock()

    def make(self, plan: Plan, **options: Any) -> int:
        """Run a plan's command, with the options of Popen, and return its exit code.

        If another process makes the run, wait for it and return 0. Raises KeyboardInterrupt when the command is
        interrupted or all processes are stopped.
        """
        code = EXIT_HELD
        while code == EXIT_HELD:
            self._wait_until_free(plan)
            if runs.finished(plan.config, plan.stage):
                return 0
            code = self._run(plan.command, options)
        if code in INTERRUPTED:
            raise KeyboardInterrupt
        return code

    def _run(self, command: list[str], options: dict[str, Any]) -> int:
        with self.lock:
            if self.stopped.is_set():
                raise KeyboardInterrupt
            process = subprocess.Popen(command, **options)
            self.started.append(process)
        with process:
            try:
                return process.wait()
            except KeyboardInterrupt:
                self.stop()
                process.wait()
                raise

    def _wait_until_free(self, plan: Plan) -> None:
        """Wait until no other process works on a plan's run, and print which one does."""
        waiting = False
        while (folder := runs.folder_of(plan.config, plan.stage)).exists():
            try:
                with locked(folder, wait=False):
                    return
            except HeldError as error:
                if not waiting:
                    print(f"{error}; waiting until it has finished this run", flush=True)
                waiting = True
            if self.stopped.wait(POLL_SECONDS):
                raise KeyboardInterrupt

    def stop(self) -> None:
        """Tell all processes to save and end, and start no more. Processes that also received Ctrl-C ignore this."""
        with self.lock:
            self.stopped.set()
            for process in self.started:
                process.terminate()
