"""Run folders: what a run writes, how it is kept whole, and how it is found again.

    config.yaml     the resolved config            meta.json      what it is, readable
    metrics.jsonl   one line a logged step         ckpt.pt        weights, optimizer, step
    epochs/e<n>.pt  weights after epoch n (SFT) or update n (RL)

Files are written to a temporary name and moved into place, so a reader sees the old or the new file and
never half of one.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import yaml

from minifork.config import differences, fingerprint, from_tree, read_yaml, to_tree
from minifork.schema import Config

FORMAT = "minifork-1"
META_SCHEMA = 1
SNAPSHOT = re.compile(r"e([1-9][0-9]*)\.pt")


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
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
        with path.open("a") as file:
            file.write(json.dumps(value) + "\n")
    except OSError as error:
        raise _unsaved(path, error) from error


def _unsaved(path: Path, error: Exception) -> OSError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return OSError(f"{path}: cannot be saved ({reason}); make room or choose another folder with runs=...")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically; raises ValueError naming it for not-a-number values."""
    text = as_json(path, value)
    write_atomically(path, lambda file: file.write(text.encode()))


def as_json(path: Path, value: Any) -> str:
    """What `write_json` would write to ``path``; raises ValueError naming it for not-a-number values."""
    try:
        return json.dumps(value, indent=1, allow_nan=False) + "\n"
    except ValueError:
        raise ValueError(f"{path}: a result is not a number and cannot be kept; are there enough problems?") from None


def read_json(path: Path, *needs: str) -> dict:
    """Read a JSON file that holds a mapping with these keys; raises ValueError naming it when it does not."""
    try:
        value = json.loads(path.read_text())
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


def save_weights(path: Path, payload: dict) -> None:
    """torch.save a payload (tensors and plain values) atomically, marked with the format.

    Raises ValueError naming the file, and leaves an older one, when its model's weights are not finite.
    """
    import torch

    if not _finite(payload.get("model", {})):
        raise ValueError(f"{path}: the weights are not finite and are not kept; lower the learning rate")
    write_atomically(path, lambda file: torch.save({"format": FORMAT, **payload}, file))


def load_weights(path: Path, device: str = "cpu") -> dict:
    """Read a file written by `save_weights`, executing nothing (weights_only), once its checksums hold.

    Raises ValueError naming the file when it is missing, damaged or not one of ours, or its weights are not finite.
    """
    import torch

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
        raise ValueError(
            f"{path}: truncated, damaged or not a checkpoint; remove its folder and run it again"
        ) from None
    if not isinstance(payload, dict) or payload.get("format") != FORMAT or not _are_weights(payload.get("model")):
        raise ValueError(f"{path}: not a {FORMAT} checkpoint; remove its folder and run it again")
    if not _finite(payload["model"]):
        raise ValueError(f"{path}: its weights are not finite; remove its folder and run it with a lower learning rate")
    return payload


def _finite(model: dict) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in model.values())


def _are_weights(model: Any) -> bool:
    """Whether this is a mapping of names to plain fp32 tensors."""
    import torch

    return isinstance(model, dict) and all(
        isinstance(name, str)
        and isinstance(tensor, torch.Tensor)
        and (tensor.dtype, tensor.layout, tensor.is_meta) == (torch.float32, torch.strided, False)
        for name, tensor in model.items()
    )


def digest(content: bytes) -> str:
    """Twelve hex digits that name some bytes."""
    return hashlib.sha256(content).hexdigest()[:12]


def weights_hash(path: Path) -> str:
    """Twelve hex digits of a checkpoint's weights, whatever else it holds."""
    model = load_weights(path)["model"]
    return digest(b"".join(name.encode() + model[name].contiguous().numpy().tobytes() for name in sorted(model)))


def require_start(folder: Path, start: Path) -> None:
    """Raise ValueError naming a run that was trained from other weights than ``start`` holds now, if that exists."""
    meta = folder / "meta.json"
    kept = read_json(meta).get("start_hash") if meta.exists() and start.exists() else None
    if kept is not None and kept != weights_hash(start):
        raise ValueError(f"{folder} was trained from other weights than {start} holds now; remove it and run it again")


def start_file(meta: dict) -> str:
    """The weights that a run of this meta.json started from, below the task's folder."""
    return str(meta.get("start")) if meta["stage"] == "rl" else f"{meta.get('base')}/ckpt.pt"


def require_tuned(folder: Path, meta: dict) -> None:
    """Raise ValueError naming a mixture (`minifork.wise`) whose run was made anew since, or that does not name it."""
    tuned = folder.parent / str(meta.get("tuned"))
    kept = snapshots_in(tuned)
    if "tuned_hash" not in meta or (kept and weights_hash(kept[max(kept)]) != meta["tuned_hash"]):
        raise ValueError(f"{folder} was mixed from other weights than {tuned} holds now; run `minifork wise` again")


def machine() -> str:
    """The processor's name."""
    try:
        names = [
            line.split(":", 1)[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
        ]
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


def made_by(config: Config) -> dict[str, str]:
    """What a result file says of how it was made: this process's command, the config's hash, the machine."""
    command = shlex.join(["minifork", *sys.argv[1:]])
    return {"command": command, "config_hash": fingerprint(to_tree(config)), "machine": machine()}


def task_folder(config: Config) -> Path:
    """runs/<task>, where all runs of a task live."""
    return Path(config.runs) / config.task


def base_folder(config: Config) -> Path:
    """The folder of the base model a config asks for."""
    return task_folder(config) / f"base-seed{config.base_seed}"


def run_folder(config: Config, stage: str) -> Path:
    """The folder of a base, sft or rl run: its name if it has one, else what makes it what it is."""
    if config.name:
        return task_folder(config) / config.name
    if stage == "base":
        return base_folder(config)
    kind = variant(config, stage)
    kind = kind if stage == "rl" else "sft-" + kind.replace("data", f"fork{config.sft.fork_rate:g}", 1)
    return task_folder(config) / f"{kind}-seed{config.seed}"


def eval_file(config: Config) -> Path:
    """Where an evaluation is kept: eval.json, or eval-<name>.json for one with a name (npz beside it)."""
    return task_folder(config) / (f"eval-{config.name}.json" if config.name else "eval.json")


def variant(config: Config, stage: str) -> str:
    """What kind of run this is, whatever its seeds and FORK_RATE.

    "base"; "data" (data-level) or "problem" (problem-level), with what its mixture adds ("data-fresh"); "rl-" with
    advantage, mode, and FORK_RATE and epoch of its start; or the name it was given, without "-seed<s>".
    """
    if config.name:
        return re.sub(r"-seed\d+$", "", config.name)
    if stage == "base":
        return "base"
    if stage == "rl":
        k = "" if config.rl.advantage == "grpo" else f"{config.rl.k}"
        return f"rl-{config.rl.advantage}{k}-{config.rl.mode}-fork{config.sft.fork_rate:g}-epoch{config.rl.epoch}"
    cue = f"-cue{config.sft.cue_rate:g}" if config.sft.cue_rate else ""
    graph, fresh = "-graph" * config.sft.fork_in_graph, "-fresh" * config.sft.fresh
    modes = "" if config.sft.modes == "FWD,REV" else "-" + config.sft.modes.replace(",", "+")
    order = "" if config.data.branch_order == "shuffled" else f"-{config.data.branch_order}"
    prefix = f"-prefix{config.sft.prefix}" if config.sft.prefix else ""
    loss = "" if config.sft.loss == "cross_entropy" else f"-{config.sft.loss.replace('=', '')}"
    return config.sft.allocation + modes + graph + cue + order + fresh + prefix + loss


def mixture_suffix(weight: float, early: int) -> str:
    """What the interpolation of a run's weights adds to its name and variant."""
    return f"-wise{weight:g}" + (f"-early{early}" if early else "")


def comparable(data: dict) -> dict:
    """A data section without the order in which branches are printed, which walks and plain test sets ignore."""
    return {key: value for key, value in data.items() if key != "branch_order"}


def identity(config: Config, stage: str) -> dict:
    """The part of a config that decides a run's result; two runs with equal identities are the same run."""
    tree = to_tree(config)
    sections = ["task", "base_seed", "data", "walks", "model", "pretrain"]
    if stage != "base":
        sections += ["seed", "sft"]
    if stage == "rl":
        sections += ["rl"]
    if stage == "base":  # walks are always printed in shuffled order: a base serves runs of either
        tree["data"] = comparable(tree["data"])
    return {name: tree[name] for name in sections}


def setup(config: Config, stage: str) -> dict:
    """The part of a run's identity that its replications under other seeds share."""
    return {name: part for name, part in identity(config, stage).items() if name not in ("seed", "base_seed")}


def recipe(config: Config, stage: str) -> dict:
    """The part of a run's identity that runs at other FORK_RATEs share as well."""
    parts = setup(config, stage)
    if "sft" in parts:
        parts["sft"] = {name: value for name, value in parts["sft"].items() if name != "fork_rate"}
    return parts


def config_hash(config: Config, meta: dict) -> str:
    """The config_hash that a run of this config has in its meta.json."""
    plain = fingerprint(identity(config, meta["stage"]))
    return fingerprint([plain, meta["weight"], meta.get("early")]) if "weight" in meta else plain


def read_config(folder: Path) -> Config:
    """The config of an existing run; raises ValueError naming the file when it is missing or foreign."""
    path = folder / "config.yaml"
    try:
        return from_tree(read_yaml(path), path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; remove the folder and run it again") from None


def is_complete(folder: Path) -> bool:
    """Whether a run in this folder finished."""
    return (folder / "meta.json").exists() and bool(read_json(folder / "meta.json").get("complete"))


def state_of(folder: Path, config: Config, stage: str, resume: bool) -> str:
    """How a run in this folder goes on: "new", "resume" or "complete"; touches nothing.

    Raises ValueError when the folder holds a run of another config (naming the first key that differs)
    or an unfinished run while ``resume`` is False.
    """
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return "new"  # a process killed during its first write leaves a hidden file
    meta = folder / "meta.json"
    if meta.exists() and read_json(meta).get("stage") != stage:
        raise ValueError(f"{folder} holds a run of another stage; give this one its own folder with name=...")
    kept = read_config(folder)
    if not meta.exists() and not (folder / "ckpt.pt").exists():
        return "new"  # it failed or was killed before its first checkpoint: there is nothing to lose
    changed = differences(identity(kept, stage), identity(config, stage))
    if changed:
        raise ValueError(
            f"{folder} holds a run of another config ({'; '.join(changed[:3])}); "
            "give this one its own folder with name=..., or remove that one"
        )
    if is_complete(folder):
        return "complete"
    if not resume:
        raise ValueError(f"{folder} holds an unfinished run; continue it with --resume, or remove it")
    return "resume"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run's folder for one process, as long as that lives; makes it if need be, leaves nothing in it.

    What a killed process left half-written is removed. Raises ValueError naming the folder while another process
    holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: another process is training there; wait for it, or give this run its own folder with "
                "name=..."
            ) from None
        for path in folder.rglob(".*"):
            if path.is_file() and re.fullmatch(r"\..+\.[a-z0-9_]{8}", path.name):  # of `write_atomically`
                path.unlink()
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is in here for the same folder."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def write_config(path: Path, config: Config) -> None:
    """Write a resolved config as a YAML file."""
    text = yaml.safe_dump(to_tree(config), sort_keys=False)
    write_atomically(path, lambda file: file.write(text.encode()))


def snapshots_in(folder: Path) -> dict[int, Path]:
    """The snapshots that a run kept, by their epoch (or update), in order; raises OSError when it may not look."""
    kept = folder / "epochs"
    names = [found[1] for name in (os.listdir(kept) if kept.exists() else ()) if (found := SNAPSHOT.fullmatch(name))]
    return {epoch: kept / f"e{epoch}.pt" for epoch in sorted(map(int, names))}


def keep_metrics_until(folder: Path, step: int) -> None:
    """Drop logged lines past ``step``: a resumed run will log them again."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return
    kept = [line for line in path.read_text(errors="replace").splitlines() if _step_of(line) <= step]
    write_atomically(path, lambda file: file.write("".join(f"{line}\n" for line in kept).encode()))


def _step_of(line: str) -> float:
    """The step of a metrics line; a damaged line, say one cut short by a crash, counts as past every step."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return float("inf")
