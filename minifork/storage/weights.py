"""Files of weights: written whole, read without executing anything, named by a hash of what they hold."""

import zipfile
from pathlib import Path
from typing import Any

import torch

from minifork.storage.files import digest, write_atomically

FORMAT = "minifork-1"


def save_weights(path: Path, payload: dict) -> str:
    """torch.save a payload (tensors and plain values) atomically, marked with the format; returns its weights' hash.

    Raises ValueError naming the file, and leaves an older one, when its model's weights are not finite.
    """
    model = payload.get("model", {})
    require_finite(model, path)
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **payload}, file))
    return hash_of(model)


def load_weights(path: Path, device: str = "cpu") -> dict:
    """Read a file written by `save_weights`, executing nothing (weights_only), once its checksums hold.

    Raises ValueError naming the file when it is missing, damaged or not one of ours, or its weights are not finite.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not check the CRC of what it reads
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
        payload = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such checkpoint; remove its folder and run it again") from None
    except (PermissionError, MemoryError):  # says nothing of the file
        raise
    except Exception:  # a damaged file can make the unpickler fail in any way
        raise ValueError(f"{path}: damaged or not a checkpoint; remove its folder and run it again") from None
    if not isinstance(payload, dict) or payload.get("format") != FORMAT or not _are_weights(payload.get("model")):
        raise ValueError(f"{path}: not a {FORMAT} checkpoint; remove its folder and run it again")
    if not _finite(payload["model"]):
        raise ValueError(f"{path}: its weights are not finite; remove its folder and run it with a lower learning rate")
    return payload


def weights_hash(path: Path) -> str:
    """Twelve hex digits of a checkpoint's weights, whatever else it holds."""
    return hash_of(load_weights(path)["model"])


def hash_of(model: dict[str, torch.Tensor]) -> str:
    """Twelve hex digits of weights by name."""
    arrays = {name: model[name].detach().cpu().contiguous().numpy() for name in sorted(model)}
    return digest(b"".join(name.encode() + array.tobytes() for name, array in arrays.items()))


def require_finite(model: dict[str, torch.Tensor], path: Path) -> None:
    """Raise ValueError naming the file that weights are for, unless all are finite."""
    if not _finite(model):
        raise ValueError(f"{path}: the weights are not finite and are not kept; lower the learning rate")


def _finite(model: dict) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in model.values())


def _are_weights(model: Any) -> bool:
    """Whether this is a mapping of names to plain fp32 tensors."""
    return isinstance(model, dict) and all(
        isinstance(name, str)
        and isinstance(tensor, torch.Tensor)
        and (tensor.dtype, tensor.layout, tensor.is_meta) == (torch.float32, torch.strided, False)
        for name, tensor in model.items()
    )
