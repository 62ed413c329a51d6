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
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

LOCK, LEASE = ".lock", ".lease"
UNSUPPORTED = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of flock on some NFS and Lustre mounts
PAUSE = 0.2  # seconds between two looks at a lease
LOOKS = {True: 50, False: 5}  # at a lease that cannot be judged, with and without waiting: it may be about to end
ANYBODY = {"host": None, "boot": None, "processes": None, "pid": None, "started": None}


class HeldError(ValueError):
    """A running process holds a folder."""


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Hold a folder, made where it is missing, for one process as long as the block lasts.

    Raises HeldError when another process holds it and ``wait`` is False, ValueError naming the lease of another
    machine, and OSError naming the file that cannot be locked.
    """
    handle = _lock(folder / LOCK, wait)
    if handle is None:
        _lease(folder / LEASE, wait)
    try:
        yield
    finally:
        if handle is None:
            _remove(folder / LEASE)
        else:
            _unlock(folder / LOCK, handle)


# flock


def _lock(path: Path, wait: bool) -> int | None:
    """A descriptor of the locked file, None where the file system refuses `flock`."""
    while True:
        handle = _open(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(handle, path):
                with contextlib.suppress(OSError):  # a full disk: the lock holds without a name in it
                    os.pwrite(handle, _signature(), 0)
                return handle
            os.close(handle)  # the holder before removed it
        except BlockingIOError:
            os.close(handle)
            raise HeldError(_held(path, _holder(path) or ANYBODY)) from None
        except OSError as error:
            os.close(handle)
            if error.errno not in UNSUPPORTED:
                raise OSError(error.errno, error.strerror, str(path)) from None
            _remove(path)
            _say(f"{path}: this file system refuses locks ({error.strerror}); {LEASE} beside it stands for one")
            return None
        except BaseException:
            os.close(handle)
            raise


def _open(path: Path) -> int:
    """A descriptor for writing of a file, made with its folder where they are missing."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the folder was removed in between
            return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _is_at(handle: int, path: Path) -> bool:
    """Whether a path still leads to an open file; a file that another NFS client removed is stale."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


def _unlock(path: Path, handle: int) -> None:
    """Remove a locked file, unless its folder was removed with it, and end its lock."""
    if _is_at(handle, path):
        _remove(path)
    os.close(handle)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


@lru_cache
def _say(text: str) -> None:
    """Print a line on standard error, once a process."""
    print(f"minifork: {text}", file=sys.stderr, flush=True)


# leases


def _lease(path: Path, wait: bool) -> None:
    """Create a lease of this process. Raises as `locked` does."""
    looks = 0
    while not _create(path):
        holder = _holder(path)
        if holder is None:  # it has just ended
            continue
        running = _is_running(holder)
        if running is False:
            _remove_dead(path, holder)
        elif running and not wait:
            raise HeldError(_held(path, holder))
        elif running is None and (looks := looks + 1) == LOOKS[wait]:
            way_out = f"which {socket.gethostname()} cannot look into; remove {path} if that process has ended"
            raise ValueError(f"{_held(path, holder)}, {way_out}")
        time.sleep(PAUSE)


def _create(path: Path) -> bool:
    """Create a lease of this process, unless there is one."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(handle, _signature())
    except BaseException:
        _remove(path)
        raise
    finally:
        os.close(handle)
    return True


def _is_running(holder: dict[str, Any]) -> bool | None:
    """Whether the process that made a lease still runs, None where this process cannot tell."""
    here = _machine()
    if holder["host"] != here["host"]:
        return None
    if holder["boot"] != here["boot"]:
        return False
    if holder["processes"] != here["processes"]:
        return None
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    state, started = _life(holder["pid"])
    # One that was killed stays as a zombie until its parent asks for its exit code. A number may be given anew.
    return state not in ("Z", "X") and started == holder["started"]


def _remove_dead(path: Path, holder: dict[str, Any]) -> None:
    """Remove the lease of a dead process, unless another process is doing so.

    All that may do so run on one machine, so a name in its memory, which ends with its process, decides between them:
    else the second might remove the lease that the first has made since.
    """
    name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
    with socket.socket(socket.AF_UNIX) as guard:
        try:
            guard.bind(f"\0minifork-{name}")
        except OSError:
            return
        if _holder(path) == holder:
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


def _life(pid: int) -> tuple[str, str]:
    """The state of a process and when it started, in ticks since the boot; empty where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]


def _signature() -> bytes:
    """What a lock and a lease say of this process."""
    pid = os.getpid()
    return json.dumps(_machine() | {"pid": pid, "started": _life(pid)[1]}).encode() + b"\n"


def _holder(path: Path) -> dict[str, Any] | None:
    """What a lock or a lease says of its process: None where there is no file, ANYBODY where it cannot be read."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return ANYBODY
    kinds = {"host": str, "boot": str, "processes": str, "pid": int, "started": str}
    whole = isinstance(holder, dict) and all(type(holder.get(key)) is kind for key, kind in kinds.items())
    return holder if whole and 0 < holder["pid"] < 2**31 else ANYBODY


def _held(path: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder['pid']} on {holder['host']}" if holder["pid"] else "another process"
    return f"{path.parent}: {who} is working here"
