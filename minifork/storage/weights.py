"""Files of weights: written whole, read without executing anything, named by a hash of what they hold."""

import io
import zipfile
from pathlib import Path

import torch

from minifork.storage.files import digest, write_atomically

WEIGHTS_FORMAT = "minifork-1"


def save_weights(path: Path, payload: dict) -> str:
    """torch.save a payload (tensors and plain values) atomically; returns the hash of payload["model"], the weights.

    Raises ValueError naming the file, and leaves an older one, when the weights are not finite.
    """
    require_finite(payload["model"], path)
    write_atomically(path, pack_weights(payload))
    return hash_of(payload["model"])


def pack_weights(payload: dict) -> bytes:
    """The content of a file with a payload, as `save_weights` writes it."""
    buffer = io.BytesIO()
    torch.save({"format": WEIGHTS_FORMAT, **payload}, buffer)
    return buffer.getvalue()


def load_weights(path: Path, device: str = "cpu") -> dict:
    """Read a file written by `save_weights`, executing nothing (weights_only), once its checksums hold.

    Raises ValueError naming the file when it is missing, damaged or not one of ours.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not check the CRC of what it reads
            intact = archive.testzip() is None
        payload = torch.load(path, map_location=device, weights_only=True)
        intact = intact and isinstance(payload, dict) and payload.get("format") == WEIGHTS_FORMAT
    except FileNotFoundError:
        raise ValueError(f"{path}: no such checkpoint; remove its folder and run it again") from None
    except (PermissionError, MemoryError):  # these do not mean that the file is damaged
        raise
    except Exception:  # a damaged file can make the unpickler fail in any way
        intact = False
    if not intact:
        raise ValueError(f"{path}: damaged or not a {WEIGHTS_FORMAT} checkpoint; remove its folder and run it again")
    return payload


def hash_of(model: dict[str, torch.Tensor]) -> str:
    """Twelve hex digits of weights by name."""
    arrays = {name: model[name].detach().cpu().contiguous().numpy() for name in sorted(model)}
    return digest(b"".join(name.encode() + array.tobytes() for name, array in arrays.items()))


def require_finite(model: dict[str, torch.Tensor], path: Path) -> None:
    """Raise ValueError naming the file that weights are for, unless all are finite."""
    if not all(bool(tensor.isfinite().all()) for tensor in model.values()):
        raise ValueError(f"{path}: the weights are not finite and are not kept; lower the learning rate")
