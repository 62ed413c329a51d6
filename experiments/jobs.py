"""Makes one run in a process of its own. A run that is killed is started again.

The process has one core, so that its weights do not depend on how many runs are made at once. It ends with the process
that started it.
"""

import os
import signal
import subprocess
import tempfile
import threading
from typing import Any

from experiments.study import Plan
from minifork import runs
from minifork.cli import EXIT_HELD
from minifork.interrupts import PARENT
from minifork.storage.locks import HeldError, locked

ONE_CORE = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# Dask sets this for its workers. malloc then gives memory back after every step, and training takes a third longer.
TRIM = "MALLOC_TRIM_THRESHOLD_"
MAX_ATTEMPTS = 5  # a run that is killed is started again until then
INTERRUPTED = (130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP)  # negative if killed before Python handles signals
POLL_SECONDS = 0.5  # the pause between checks of a run that another process makes


def make_on_one_core(plan: Plan, processes: "Processes", measure: bool = False) -> str:
    """Make a run on one core, and measure it; a run that is killed is started again. Its output goes to its log.

    Returns its log and the reason if it failed, else an empty text. Raises KeyboardInterrupt as `Processes.make` does.
    """
    plan.log.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(MAX_ATTEMPTS):
        # Another process may write to the log at the same time, so errors go through a file of this attempt.
        with plan.log.open("ab") as log, tempfile.TemporaryFile() as error_file:
            try:
                environment = {key: value for key, value in os.environ.items() if key != TRIM} | ONE_CORE
                code = processes.make(plan, measure, env=environment, stdout=log, stderr=error_file)
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


class Processes:
    """The processes that make runs. They can all be stopped."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen] = []
        self._stopped, self._lock = threading.Event(), threading.Lock()

    def make(self, plan: Plan, measure: bool = False, **options: Any) -> int:
        """Run a plan's command, with the options of Popen, and return its exit code.

        If another process makes the run, wait for it and return 0, unless the run is to be measured too. Raises
        KeyboardInterrupt when the command is interrupted or all processes are stopped.
        """
        code = EXIT_HELD
        while code == EXIT_HELD:
            self._wait_until_free(plan)
            if runs.finished(plan.config, plan.stage) and not measure:
                return 0
            code = self._run([*plan.command, *(["--measure"] if measure else [])], options)
        if code in INTERRUPTED:
            raise KeyboardInterrupt
        return code

    def _run(self, command: list[str], options: dict[str, Any]) -> int:
        environment = {**options.get("env", os.environ), PARENT: str(os.getpid())}
        with self._lock:
            if self._stopped.is_set():
                raise KeyboardInterrupt
            process = subprocess.Popen(command, **options | {"env": environment})
            self._started.append(process)
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
            if self._stopped.wait(POLL_SECONDS):
                raise KeyboardInterrupt

    def stop(self) -> None:
        """Tell all processes to save and end, and start no more. Processes that also received Ctrl-C ignore this."""
        with self._lock:
            self._stopped.set()
            for process in self._started:
                process.terminate()
