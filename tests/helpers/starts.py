"""The processes that a study starts, in this one."""

import contextlib
import io
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import IO

from minifork.cli import main


class Starts:
    """Stands for subprocess until the test ends: what is started runs here, one after the other.

    commands: what was started, in order; threads: for how many threads each was started, None for all. ``run`` gives
    the exit code of a command line.
    """

    def __init__(self, monkeypatch, run: Callable[[list[str]], int] = main):
        self.commands: list[str] = []
        self.threads: list[str | None] = []
        self._run, self._lock = run, threading.Lock()
        monkeypatch.setattr(subprocess, "Popen", self._open)

    def _start(self, command: list[str], env: Mapping[str, str]) -> int:
        self.commands.append(command[3])  # after python -m minifork
        self.threads.append(env.get("OMP_NUM_THREADS"))
        return self._run(command[3:])

    def _open(
        self,
        command: list[str],
        env: Mapping[str, str] = {},  # noqa: B006 (never changed)
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
    ) -> "_Ended":
        if stdout is None or stderr is None:
            return _Ended(self._start(command, env))
        out, err = (io.TextIOWrapper(file, encoding="utf-8", write_through=True) for file in (stdout, stderr))
        with self._lock, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = self._start(command, env)
        out.detach()
        err.detach()
        return _Ended(code)


class _Ended:
    """A process that has ended with an exit code."""

    def __init__(self, code: int):
        self.code = code

    def __enter__(self) -> "_Ended":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def wait(self) -> int:
        return self.code

    def terminate(self) -> None:
        pass
