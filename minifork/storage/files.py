"""Files that are whole or absent: they are written under a temporary name and moved into place."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call ``write`` on a temporary file beside ``path``, then move it there.

    Raises OSError naming the file when it cannot be written (a full disk, say); an older file stays.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()
        if isinstance(error, (OSError, RuntimeError)):  # torch reports a failed write as RuntimeError
            raise _unsaved(path, error) from error
        raise


def append_line(path: Path, value: dict) -> None:
    """Append one JSON line; raises OSError naming the file when it cannot be written."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value) + "\n")
    except OSError as error:
        raise _unsaved(path, error) from error


def _unsaved(path: Path, error: Exception) -> OSError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return OSError(f"{path}: cannot be saved ({reason}); make room or choose another folder with runs=...")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; raises ValueError naming it for not-a-number values."""
    try:
        text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    except ValueError:
        raise ValueError(f"{path}: a result is not a number and cannot be kept; are there enough problems?") from None
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path, *needs: str) -> dict:
    """Read a JSON file that holds a mapping with these keys; raises ValueError naming it when it does not."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path}: not a JSON file; remove it and run its stage again") from None
    missing = [key for key in needs if key not in value]
    if missing:
        raise ValueError(f"{path}: has no {missing[0]!r}, so this version did not write it; run its stage again")
    return value


def digest(content: bytes) -> str:
    """Twelve hex digits that name some bytes."""
    return hashlib.sha256(content).hexdigest()[:12]


def fingerprint(value: Any) -> str:
    """Twelve hex digits of a JSON-able value, equal for equal values."""
    return digest(json.dumps(value, sort_keys=True).encode())
