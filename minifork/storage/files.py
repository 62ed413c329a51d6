"""Files that are whole or absent: they are written under a temporary name and moved into place."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".tmp"  # A file that is being written is called .<name>.<random><this suffix>.


def write_atomically(path: Path, content: bytes) -> None:
    """Write a temporary file beside ``path``, then move it there.

    Raises OSError naming the file when it cannot be written, say on a full disk. An older file stays as it was.
    """
    with _named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY_SUFFIX, delete=False
        ) as file:
            try:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                os.replace(file.name, path)
            finally:
                Path(file.name).unlink(missing_ok=True)


def append_line(path: Path, value: dict) -> None:
    """Append one JSON line; raises OSError naming the file when it cannot be written."""
    with _named_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Turn an error of writing a file into an OSError that names it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = "make room or choose another folder with runs=..."
        raise OSError(f"{path}: cannot be saved ({reason}); {advice}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; raises ValueError naming it when a value is not a finite number."""
    try:
        text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    except ValueError:
        raise ValueError(f"{path}: a result is not a number and cannot be kept; are there enough problems?") from None
    write_atomically(path, text.encode())


def write_sealed_json(path: Path, value: dict) -> None:
    """Write a JSON file with a checksum, by which `is_sealed` sees whether it was edited; errors as `write_json`."""
    write_json(path, value | {"checksum": fingerprint(json.loads(json.dumps(value)))})


def is_sealed(value: dict) -> bool:
    """True if a mapping read from such a file is as it was written."""
    return value.get("checksum") == fingerprint({key: entry for key, entry in value.items() if key != "checksum"})


def read_json(path: Path, *needs: str) -> dict:
    """The mapping with these keys that a JSON file holds; raises ValueError naming the file when it holds none."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except ValueError:
        value = None
    if not isinstance(value, dict) or not value.keys() >= {*needs}:
        raise ValueError(f"{path}: not a JSON file that this version wrote; remove it and run its stage again")
    return value


def digest(content: bytes) -> str:
    """Twelve hex digits that name some bytes."""
    return hashlib.sha256(content).hexdigest()[:12]


def fingerprint(value: Any) -> str:
    """Twelve hex digits of a JSON-able value, equal for equal values."""
    return digest(json.dumps(value, sort_keys=True).encode())
