"""Locks: one process at a time works in a folder, on every kind of file system.

The lock is `flock` on <folder>/.lock, opened for writing, as NFS needs it. It ends with its process. Some file systems
refuse `flock`. There a *lease* stands for it: the file <folder>/.lease, which only one process can create. The lease
says which process on which machine made it, and outlives a process that is killed. The next process on the same
machine sees that its maker is dead, and takes it over. A process on another machine cannot see that, and refuses.
Machines are told apart by their names, which must differ.
"""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

LOCK, LEASE = ".lock", ".lease"
FLOCK_REFUSALS = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of some NFS and Lustre mounts
PAUSE = 0.2  # seconds between two looks at a lease
# A lease of another machine may be about to end. So it is looked at this often before it is refused.
LOOKS_WHILE_WAITING = 50
LOOKS_WITHOUT_WAITING = 5

Holder = dict[str, str | int]  # the process that a lock or a lease names, see `_this_process`; {} if it is unreadable


class HeldError(ValueError):
    """A running process holds a folder."""


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a folder for one process as long as the block lasts; makes it where it is missing.

    Raises HeldError when another process holds it and ``wait`` is False, ValueError naming the lease of another
    machine, and OSError naming a file that cannot be locked.
    """
    lock, lease = folder / LOCK, folder / LEASE
    while True:
        with _open(lock) as file:
            if not _flock(file, lock, wait):
                break
            if not _is_at(file, lock):  # its last holder removed it in between
                continue
            with contextlib.suppress(OSError):  # a full disk: the lock holds without a name in it
                file.truncate(0)
                file.write(_this_process())
            try:
                yield
            finally:
                if _is_at(file, lock):  # else the block removed the folder
                    _remove(lock)
            return
    _take_lease(lease, wait)
    try:
        yield
    finally:
        _remove(lease)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


# flock


def _open(path: Path) -> io.FileIO:
    """A file that is open for writing; makes it and its folder where they are missing."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the folder was removed in between
            return path.open("ab", buffering=0)


def _flock(file: io.FileIO, path: Path, wait: bool) -> bool:
    """Lock an open file; returns False where the file system refuses `flock`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise HeldError(_held_text(path, _read_holder(path) or {})) from None
    except OSError as error:
        if error.errno not in FLOCK_REFUSALS:
            error.filename = str(path)
            raise
        _remove(path)
        _warn(f"{path}: this file system refuses locks ({error.strerror}); {LEASE} beside it stands for one")
        return False
    return True


def _is_at(file: io.FileIO, path: Path) -> bool:
    """True if a path still leads to an open file; a file that another NFS client removed is stale."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        return False


@lru_cache
def _warn(text: str) -> None:
    """Print a line on standard error, once a process."""
    print(f"minifork: {text}", file=sys.stderr, flush=True)


# leases


def _take_lease(path: Path, wait: bool) -> None:
    """Create a lease of this process. Raises as `locked` does."""
    looks, most_looks = 0, LOOKS_WHILE_WAITING if wait else LOOKS_WITHOUT_WAITING
    while not _create_lease(path):
        holder = _read_holder(path)
        if holder is None:  # the lease has just ended
            continue
        running = _is_running(holder)
        if running is False:
            _remove_dead(path, holder)
        elif running and not wait:
            raise HeldError(_held_text(path, holder))
        elif running is None and (looks := looks + 1) == most_looks:
            advice = f"which {socket.gethostname()} cannot look into; remove {path} if that process has ended"
            raise ValueError(f"{_held_text(path, holder)}, {advice}")
        time.sleep(PAUSE)


def _create_lease(path: Path) -> bool:
    """Create a lease of this process; returns False where there is one."""
    try:
        file = path.open("xb", buffering=0)
    except FileExistsError:
        return False
    with file:
        try:
            file.write(_this_process())
        except BaseException:
            _remove(path)
            raise
    return True


def _is_running(holder: Holder) -> bool | None:
    """True if the process that made a lease still runs, None where this process cannot tell."""
    machine = _machine()
    if holder.get("host") != machine["host"]:
        return None
    if holder["boot"] != machine["boot"]:
        return False
    if holder["processes"] != machine["processes"]:
        return None
    pid = int(holder["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # the process is another user's
        return True
    return _started(pid) == holder["started"]  # else the number was given to another process since


def _remove_dead(path: Path, holder: Holder) -> None:
    """Remove the lease of a dead process, unless another process is doing so.

    Without a guard the second of two processes could remove the lease that the first has made since. Both run on one
    machine, so a name in its memory decides between them. It ends with its process.
    """
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    with socket.socket(socket.AF_UNIX) as guard:
        try:
            guard.bind(f"\0minifork-{name}")
        except OSError:
            return
        if _read_holder(path) == holder:
            path.unlink()


# who holds a folder


@lru_cache
def _machine() -> dict[str, str]:
    """This machine's name, its boot, and the name space of its process numbers: containers have their own."""
    machine = {"host": socket.gethostname(), "boot": "", "processes": ""}
    with contextlib.suppress(OSError):
        machine["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        machine["processes"] = os.readlink("/proc/self/ns/pid")
    return machine


def _started(pid: int) -> str:
    """The time at which a process started, in ticks since the boot; "dead" for a zombie, "" where it is not known.

    A killed process stays as a zombie until its parent asks for its exit code.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "dead" if fields[0] in ("Z", "X") else fields[19]


def _this_process() -> bytes:
    """This process as the text of a lock or a lease."""
    pid = os.getpid()
    return json.dumps(_machine() | {"pid": pid, "started": _started(pid)}).encode() + b"\n"


def _read_holder(path: Path) -> Holder | None:
    """The process that a lock or a lease names: None where there is no file, {} where it cannot be read."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}


def _held_text(path: Path, holder: Holder) -> str:
    """The line of an error that says who works in a folder."""
    who = f"process {holder['pid']} on {holder['host']}" if holder else "another process"
    return f"{path.parent}: {who} is working here"
