"""Odd places: folders with spaces and umlauts, terminals that lack their letters or are narrow, no home."""

import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.helpers.pipeline import Pipeline

ROOT = Path(__file__).parents[2]
PLAIN = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": "/nowhere"}
COMMANDS = ("runs", "sft", "claims", "report")


@pytest.fixture
def odd(copy, tmp_path, small) -> Pipeline:
    """A finished study in a folder whose name has a space and an umlaut."""
    pipeline = copy("base", "fork0.5", "fork1", measured=True)
    assert pipeline("eval") == 0
    shutil.move(pipeline.root, tmp_path / "mit Leerzeichen ü")
    return Pipeline(tmp_path / "mit Leerzeichen ü", small)


def test_letters_that_the_terminal_lacks(odd):
    for command in COMMANDS:
        words = [sys.executable, "-m", "experiments", *odd.arguments(command)]
        done = subprocess.run(words, capture_output=True, env=os.environ | PLAIN | {"PYTHONPATH": str(ROOT)})
        assert done.stderr == b"" and (done.returncode == 0 or command == "claims"), (command, done.stderr)
    assert "mit Leerzeichen ü" in (odd.folder / "report.html").read_text(encoding="utf-8")


def test_a_terminal_of_forty_columns(empty):
    """Bars fit, and nothing complains."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "experiments", *empty.arguments("pretrain")])
    printed = b""
    while True:
        try:
            printed += os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    bars = [line for line in printed.decode().split("\r") if "step/s" in line or "%|" in line]
    assert bars and all(len(line.rstrip("\n")) <= 40 for line in bars), bars
    assert b"Traceback" not in printed
