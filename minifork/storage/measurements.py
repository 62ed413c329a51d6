"""Measurements are kept with their run: <run>/eval/<key>.json, and the arrays behind it in <key>.npz.

The key hashes what decides a measurement: the weights, the evaluation's settings, the test set and the version of the
code that measured. So measurements with other settings lie side by side, and nothing is measured twice.
"""

import contextlib
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from minifork.measure import Measurement
from minifork.storage.files import digest, fingerprint, is_sealed, read_json, write_atomically, write_sealed_json

MEASUREMENT_FORMAT = 1


@dataclass(frozen=True)
class Key:
    """All that decides a measurement.

    weights: the hash of the weights; run: the run's identity, which decides its training problems; settings: those of
    the evaluation; test_set: its name and description; version: that of the measuring code.
    """

    weights: str
    run: str
    settings: dict[str, Any]
    test_set: dict[str, Any]
    version: str

    @property
    def file_stem(self) -> str:
        """The name of its files without suffix: a hash of all but the version, then the version."""
        values = asdict(self)
        version = values.pop("version")
        return f"{fingerprint(values)}-{version}"


def pack_npz(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of an .npz file with these arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cast(dict[str, Any], arrays))  # mypy takes them for its other arguments
    return buffer.getvalue()


def save_measurement(folder: Path, key: Key, measurement: Measurement) -> None:
    """Keep a measurement with its run; a process that is killed leaves all of it or nothing that is read.

    Raises OSError naming the file when it cannot be written, and ValueError when a value is not a finite number.
    """
    path, arrays = folder / "eval" / f"{key.file_stem}.json", pack_npz(measurement.arrays)
    write_atomically(path.with_suffix(".npz"), arrays)
    stored = {"format": MEASUREMENT_FORMAT, "key": asdict(key), "record": measurement.record}
    stored |= {"check": measurement.check, "npz_hash": digest(arrays)}
    write_sealed_json(path, stored)
    for older in _other_versions(folder, key):
        older.unlink(missing_ok=True)
        older.with_suffix(".npz").unlink(missing_ok=True)


def load_measurement(folder: Path, key: Key) -> Measurement | None:
    """The measurement with a key, None where there is none; raises ValueError naming a file that is damaged."""
    path = folder / "eval" / f"{key.file_stem}.json"
    return _read(path) if path.exists() else None


def load_other_version(folder: Path, key: Key) -> Measurement | None:
    """A measurement that another version of the code made with an otherwise equal key, None where there is none."""
    for path in _other_versions(folder, key):
        with contextlib.suppress(ValueError, FileNotFoundError):  # a damaged one counts as missing
            return _read(path)
    return None


def _other_versions(folder: Path, key: Key) -> list[Path]:
    """The files of measurements by other versions of the code with an otherwise equal key."""
    values = key.file_stem.removesuffix(key.version)
    return [path for path in sorted((folder / "eval").glob(f"{values}*.json")) if path.stem != key.file_stem]


def _read(path: Path) -> Measurement:
    """The measurement in a file; raises ValueError naming it unless its checksum and those of its arrays hold."""
    stored = read_json(path, "format", "key", "record", "check", "npz_hash", "checksum")
    arrays_path = path.with_suffix(".npz")
    content = arrays_path.read_bytes() if arrays_path.exists() else b""
    intact = is_sealed(stored) and stored["npz_hash"] == digest(content)
    if not intact or stored["format"] != MEASUREMENT_FORMAT or Key(**stored["key"]).file_stem != path.stem:
        raise ValueError(f"{path}: damaged or edited; remove it and run `minifork eval` again")
    with np.load(io.BytesIO(content)) as arrays:
        return Measurement(stored["record"], {name: arrays[name] for name in arrays.files}, stored["check"])
