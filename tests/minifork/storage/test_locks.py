"""Locks: one process at a time, on file systems with and without `flock`, whoever is killed."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from minifork.storage import locks
from tests.minifork.storage.test_files import everything

REFUSE = """
import errno, fcntl, sys
number = getattr(errno, sys.argv.pop(1), None)
def refuse(handle, operation):
    raise OSError(number, "refused")
if number:
    fcntl.flock = refuse
"""
HOLD = """
import time
from pathlib import Path
from minifork.storage.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def start(script: str, number: str, *arguments: object) -> subprocess.Popen:
    """A Python process in which `flock` fails with an error of this name; with "-" it works."""
    command = [sys.executable, "-c", REFUSE + script, number, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def refuse(monkeypatch):
    """A function that makes `flock` fail in this process with an error of this name; with "-" it works."""

    def install(number: str) -> None:
        def flock(*_: object) -> None:
            raise OSError(getattr(errno, number), "refused")

        monkeypatch.setattr(locks, "PAUSE", 0.01)
        if number != "-":
            monkeypatch.setattr(locks.fcntl, "flock", flock)

    return install


def lease_text(**changes: object) -> str:
    """The content of a lease of this process, with changes."""
    return json.dumps(json.loads(locks._this_process()) | changes)


@pytest.mark.parametrize("number", ["-", "EBADF", "ENOLCK", "ENOSYS"])  # what NFS and Lustre answer
def test_a_lock_ends_with_its_holder(tmp_path, refuse, number):
    """Even with one that was killed, whether its exit code was asked for or not, and it leaves nothing."""
    refuse(number)
    with start(HOLD, number, tmp_path) as process:
        assert process.stdout.readline() == "held\n"
        line = f"{tmp_path}: process {process.pid} on {socket.gethostname()} is working here"
        with pytest.raises(locks.HeldError, match=line), locks.locked(tmp_path, wait=False):
            pass
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with locks.locked(tmp_path):
            pass
    with locks.locked(tmp_path, wait=False):
        assert everything(tmp_path) == {".lock" if number == "-" else ".lease"}
    assert everything(tmp_path) == set()


def test_a_file_system_without_locks_is_named_once(tmp_path, refuse, capsys):
    refuse("EBADF")
    for _ in range(2):
        with locks.locked(tmp_path):
            pass
    line = f"minifork: {tmp_path}/.lock: this file system refuses locks (refused); .lease beside it stands for one\n"
    assert capsys.readouterr().err == line


def test_other_errors_name_the_file(tmp_path, refuse):
    refuse("EIO")
    with pytest.raises(OSError) as error, locks.locked(tmp_path):
        pass
    assert error.value.filename == str(tmp_path / ".lock") and error.value.errno == errno.EIO


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("text", [lease_text(host="elsewhere"), lease_text(processes="pid:[1]"), "", "\0"])
def test_a_lease_that_cannot_be_judged_is_refused(tmp_path, refuse, text, wait):
    """The line names it and the way out, and it stays: another machine may work there."""
    refuse("EBADF")
    lease = tmp_path / ".lease"
    lease.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"remove {lease} if that process has ended") as error:
        locks.locked(tmp_path, wait).__enter__()
    assert not isinstance(error.value, locks.HeldError) and lease.read_text(encoding="utf-8") == text
    assert ("on elsewhere" in str(error.value)) == ("elsewhere" in text)


@pytest.mark.parametrize(
    "changes", [{"boot": "earlier"}, {"boot": "earlier", "processes": "pid:[1]"}, {"pid": 2**22}, {"started": "1"}]
)
def test_a_lease_from_before_a_reboot_or_of_a_dead_process_is_taken_over(tmp_path, refuse, changes):
    refuse("EBADF")
    lease = tmp_path / ".lease"
    lease.write_text(lease_text(**changes), encoding="utf-8")
    with locks.locked(tmp_path, wait=False):
        assert json.loads(lease.read_text(encoding="utf-8"))["pid"] == os.getpid()
    assert everything(tmp_path) == set()


CROWD = """
import os, random, signal, time
from pathlib import Path
from minifork.storage import locks
locks.PAUSE = 0.001
unlink = Path.unlink
def late(path):
    time.sleep(0.002)  # between a look and what follows from it
    unlink(path)
Path.unlink = late
folder, rng = Path(sys.argv[1]), random.Random(int(sys.argv[2]))
def log(text):
    with open(folder / "log", "a", encoding="utf-8") as file:
        file.write(f"{text} {os.getpid()}\\n")
for _ in range(20):
    with locks.locked(folder):
        log("in")
        if rng.random() < 0.15:
            log("out")
            os.kill(os.getpid(), signal.SIGKILL)
        log("out")
"""


@pytest.mark.parametrize("number", ["-", "EBADF"])
def test_of_many_processes_one_at_a_time_is_inside(tmp_path, number):
    """While holders are killed, and several others see at once that the lease is of a dead one."""
    (tmp_path / "folder").mkdir()
    crowd = [start(CROWD, number, tmp_path / "folder", seed) for seed in range(12)]
    codes = [process.communicate() and process.returncode for process in crowd]
    assert {*codes} == {0, -signal.SIGKILL}
    lines = (tmp_path / "folder" / "log").read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines]
    assert len(pairs) > 100 and [what for what, _ in pairs] == ["in", "out"] * (len(pairs) // 2)
    assert all(pairs[i][1] == pairs[i + 1][1] for i in range(0, len(pairs), 2))


def test_stages_without_locks(copy, refuse, capsys):
    """Each succeeds, says that there are none, and leaves no lease."""
    refuse("EBADF")
    pipeline = copy("base")
    assert pipeline("sft") == pipeline("eval") == 0
    assert "this file system refuses locks" in capsys.readouterr().err
    assert pipeline.view()["records"] and not [*pipeline.root.rglob(".l*")]


def test_an_evaluation_that_meets_the_lease_of_another_machine_loses_nothing(copy, refuse, capsys):
    """It names the lease. Without the lease the next evaluation has nothing to measure."""
    refuse("EBADF")
    pipeline = copy("base")
    lease = pipeline.folder / ".lease"
    lease.write_text(lease_text(host="elsewhere"), encoding="utf-8")
    assert pipeline("eval") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"remove {lease}" in error and "on elsewhere" in error
    lease.unlink()
    assert pipeline("eval") == 0 and "0 of them not measured yet" in capsys.readouterr().out
