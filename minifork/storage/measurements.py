"""Measurements are kept with their run: <run>/eval/<key>.json, and the arrays behind it in <key>.npz.

The key hashes what decides a measurement: the weights, the evaluation's settings, the test set and the version of the
code that measured. So measurements with other settings lie side by side, and nothing is measured twice.
"""

import contextlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from minifork.measure import Measurement
from minifork.storage.files import digest, fingerprint, read_json, write_atomically, write_json

FORMAT = 1


@dataclass(frozen=True)
class Key:
    """What decides a measurement: hash of the weights, the run's identity (for its training problems), settings, name
    and description of the test set, version of the code."""

    weights: str
    run: str
    settings: dict[str, Any]
    test_set: dict[str, Any]
    version: str

    @property
    def digits(self) -> str:
        """A file's name, equal for equal keys: digits of all but the version, then the version."""
        values = asdict(self)
        version = values.pop("version")
        return f"{fingerprint(values)}-{version}"


def packed(arrays: dict[str, np.ndarray]) -> bytes:
    """The content of an .npz file with these arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cast(dict[str, Any], arrays))  # mypy takes them for its other arguments
    return buffer.getvalue()


def save_measurement(folder: Path, key: Key, measurement: Measurement) -> None:
    """Keep a measurement with its run; a process that is killed leaves all of it or nothing that is read.

    Raises OSError or ValueError naming the file when it cannot be written, or holds what is no number.
    """
    path, arrays = folder / "eval" / f"{key.digits}.json", packed(measurement.arrays)
    write_atomically(path.with_suffix(".npz"), lambda file: file.write(arrays))
    stored = {"format": FORMAT, "key": asdict(key), "record": measurement.record, "check": measurement.check}
    stored["npz_hash"] = digest(arrays)
    write_json(path, stored | {"checksum": fingerprint(json.loads(json.dumps(stored)))})


def load_measurement(folder: Path, key: Key) -> Measurement | None:
    """The measurement with a key, None where there is none.

    Raises ValueError naming a file that is damaged or was edited.
    """
    path = folder / "eval" / f"{key.digits}.json"
    return _read(path) if path.exists() else None


def load_other_version(folder: Path, key: Key) -> Measurement | None:
    """A measurement that another version of the code made with an otherwise equal key, None where there is none."""
    values = key.digits.removesuffix(key.version)
    for path in sorted((folder / "eval").glob(f"{values}*.json")):
        with contextlib.suppress(ValueError):  # what is damaged is measured again
            return _read(path)
    return None


def _read(path: Path) -> Measurement:
    stored = read_json(path, "format", "key", "record", "check", "npz_hash", "checksum")
    if stored["format"] != FORMAT:
        raise ValueError(f"{path}: of another version of minifork; remove it and run `minifork eval` again")
    try:
        content = path.with_suffix(".npz").read_bytes()
        sound = stored["checksum"] == fingerprint({k: v for k, v in stored.items() if k != "checksum"})
        if sound and Key(**stored["key"]).digits == path.stem and digest(content) == stored["npz_hash"]:
            with np.load(io.BytesIO(content)) as arrays:
                return Measurement(stored["record"], {n: arrays[n] for n in arrays.files}, stored["check"])
    except (FileNotFoundError, TypeError):  # no arrays; a key of another kind
        pass
    raise ValueError(f"{path}: damaged or edited; remove it and run `minifork eval` again")
