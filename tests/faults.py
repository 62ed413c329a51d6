"""Kill every stage again and again, and see that nothing is lost: `make faults` (about 4 minutes, up to 60 kills).

Each stage runs twice, once undisturbed and once killed by SIGKILL at random moments and started again by the same
command. After every kill each file must be whole; in the end the weights and the measurements must be those of the
undisturbed run, bit for bit. Checkpoints are written after every step, so that many kills hit one being written.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from minifork.measure import Measurement
from minifork.storage import measurements
from minifork.storage.files import read_json
from minifork.storage.weights import load_weights
from tests.conftest import SMALL

KILLS = {"pretrain": 15, "sft": 15, "rl": 15, "eval": 8, "reproduce": 7}
OVERRIDES = {
    "pretrain": ["pretrain.steps=400"],
    "sft": ["pretrain.steps=400", "sft.epochs=60"],
    "rl": ["pretrain.steps=400", "sft.epochs=60", "rl.updates=120", "rl.problems=16", "rl.prompts=4", "rl.mode=FWD"],
    "eval": [],
    "reproduce": ["pretrain.steps=400", "sft.epochs=8", "reproduce.workers=2"],
}
RESUMABLE = ("pretrain", "sft", "rl")


def command(stage: str, root: Path) -> list[str]:
    """The command line of a stage with its results below root."""
    resume = ["--resume"] if stage in RESUMABLE else []
    words = [*SMALL, "save_every=1", f"runs={root}", *OVERRIDES[stage]]
    return [sys.executable, "-m", "minifork", stage, *resume, *words]


def killed(stage: str, root: Path, rng: random.Random, kills: int) -> int:
    """Run a stage to its end, killing its whole process group up to ``kills`` times; how often it was."""
    count, pause = 0, 0.8 if stage in RESUMABLE else 3.0
    while True:
        before = state(root)
        log = (root.parent / f"{stage}.log").open("wb")
        with subprocess.Popen(command(stage, root), start_new_session=True, stdout=log, stderr=log) as process:
            if count < kills:
                while stage != "reproduce" and process.poll() is None and state(root) == before:
                    time.sleep(0.02)  # until it writes something
                time.sleep(rng.uniform(0, pause))
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # its children too
                    count += 1
            code = process.wait()
        log.close()
        check_files(root)
        if code == 0 and stage == "eval" and count < kills:  # it ended before it was killed: once more, from nothing
            for folder in root.glob("*/*/eval"):
                shutil.rmtree(folder)
        elif code == 0:
            return count
        assert code in (0, -signal.SIGKILL), f"{stage} failed: {(root.parent / f'{stage}.log').read_text()}"


def state(root: Path) -> dict[str, int]:
    """When each file was last changed."""
    changed = {}
    for path in root.rglob("*"):
        try:
            changed[str(path)] = path.stat().st_mtime_ns
        except FileNotFoundError:  # a temporary file that has just been moved into place
            pass
    return changed


def check_files(root: Path) -> None:
    """Every file that has its final name is whole, and every measurement has its arrays.

    The view, eval.json and eval.npz, is two files, of which a kill may leave one of before.
    """
    for path in root.rglob("*"):
        if path.name.startswith("."):
            continue  # a temporary file that a kill left behind
        if path.suffix == ".pt":
            load_weights(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".npz":
            arrays(path)
    for path in root.glob("*/*/eval/*.json"):
        measurement(path)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file; raises when any of it is damaged."""
    with np.load(path) as stored:
        return {name: stored[name] for name in stored.files}


def measurement(path: Path) -> Measurement:
    """What a file of a run's measurements holds, its arrays included; raises ValueError when it is damaged."""
    key = measurements.Key(**read_json(path)["key"])
    assert path.stem == key.digits, path
    return measurements.load(path.parent.parent, key)


def equal(one: Path, other: Path) -> None:
    """The same weights and results in both folders; what tells time and place apart is not compared."""
    for pattern in ("*.pt", "eval/*.json", "eval/*.npz"):
        names = [sorted(str(path.relative_to(root)) for path in root.rglob(pattern)) for root in (one, other)]
        assert names[0] == names[1], names
    for path in one.rglob("*.pt"):
        a, b = (load_weights(root / path.relative_to(one))["model"] for root in (one, other))
        assert all(torch.equal(a[key], b[key]) for key in a), path
    for path in one.rglob("eval/*.json"):
        a, b = (measurement(root / path.relative_to(one)) for root in (one, other))
        assert a.record == b.record and same_arrays(a.arrays, b.arrays), path
    for path in one.rglob("eval.json"):
        a, b = (read_json(root / path.relative_to(one))["records"] for root in (one, other))
        assert a == b, path
        assert same_arrays(*(arrays((root / path.relative_to(one)).with_suffix(".npz")) for root in (one, other)))


def same_arrays(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether both hold the same names and bits."""
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def main(seed: int = 0) -> None:
    """Print one line a stage; raises AssertionError on the first difference."""
    rng, total = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        calm, rough = Path(scratch) / "calm" / "runs", Path(scratch) / "rough" / "runs"
        for stage, kills in KILLS.items():
            if stage == "reproduce":  # from nothing
                shutil.rmtree(calm)
                shutil.rmtree(rough)
            for root in (calm, rough):
                root.mkdir(parents=True, exist_ok=True)
            killed(stage, calm, rng, 0)
            count = killed(stage, rough, rng, kills)
            equal(calm, rough)
            total += count
            print(f"{stage}: {count} kills, the result is that of an undisturbed run", flush=True)
    print(f"{total} kills, no run lost, no unreadable file (seed {seed})")


if __name__ == "__main__":
    main()
