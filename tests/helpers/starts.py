"""The processes that a study starts, in this one."""

import contextlib
import io
import subprocess
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import IO
from unittest import mock

from minifork.cli import main


class Starts:
    """Stands for subprocess until the test ends: every command runs here, one after the other.

    commands: what was started, in order; environments: the environment of each. ``run`` gives the exit code of a
    command line.
    """

    def __init__(self, monkeypatch, run: Callable[[list[str]], int] = main):
        self.commands: list[str] = []
        self.environments: list[Mapping[str, str]] = []
        self._run, self._lock = run, threading.Lock()
        monkeypatch.setattr(subprocess, "Popen", self._open)

    @property
    def threads(self) -> list[str | None]:
        """For how many threads each was started, None for all."""
        return [environment.get("OMP_NUM_THREADS") for environment in self.environments]

    def _open(
        self,
        command: list[str],
        env: Mapping[str, str] = MappingProxyType({}),
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
    ) -> mock.MagicMock:
        """A process that has ended with the exit code of the command."""
        with self._lock, contextlib.ExitStack() as stack:
            if stdout and stderr:
                out, err = (io.TextIOWrapper(file, encoding="utf-8", write_through=True) for file in (stdout, stderr))
                stack.callback(out.detach)
                stack.callback(err.detach)
                stack.enter_context(contextlib.redirect_stdout(out))
                stack.enter_context(contextlib.redirect_stderr(err))
            self.commands.append(command[3])  # after python -m minifork
            self.environments.append(env)
            code = self._run(command[3:])
        process = mock.MagicMock()
        process.__enter__.return_value = process
        process.wait.return_value = code
        return process
