"""Kill every stage again and again, and see that nothing is lost: `make faults` (about 4 minutes, up to 60 kills).

Each stage runs twice, once undisturbed and once killed by SIGKILL at random moments and started again by the same
command. After every kill each file must be whole; in the end the weights and the measurements must be those of the
undisturbed run, bit for bit. Checkpoints are written after every step, so that many kills hit one being written.
"""

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

from minifork.storage import measurements
from minifork.storage.files import read_json
from minifork.storage.weights import hash_of, load_weights
from tests.conftest import SMALL

KILLS = {"pretrain": 15, "sft": 15, "rl": 15, "eval": 8, "reproduce": 7}
OVERRIDES = {
    "pretrain": ["pretrain.steps=400"],
    "sft": ["pretrain.steps=400", "sft.epochs=60"],
    "rl": ["pretrain.steps=400", "sft.epochs=60", "rl.updates=120", "rl.problems=16", "rl.prompts=4", "rl.mode=FWD"],
    "eval": [],
    "reproduce": ["pretrain.steps=400", "sft.epochs=8", "reproduce.workers=2"],
}
ENV = os.environ | {"OMP_NUM_THREADS": "1"}  # as in the tests: the tensors are tiny
RESUMABLE = ("pretrain", "sft", "rl")


def command(stage: str, root: Path) -> list[str]:
    """The command line of a stage with its results below root."""
    resume = ["--resume"] if stage in RESUMABLE else []
    words = [*SMALL, "save_every=1", f"runs={root}", *OVERRIDES[stage]]
    return [sys.executable, "-m", "experiments", stage, *resume, *words]


def killed(stage: str, root: Path, rng: random.Random, kills: int) -> int:
    """Run a stage to its end, killing its whole process group up to ``kills`` times; how often it was."""
    count, pause = 0, 0.8 if stage in RESUMABLE else 3.0
    while True:
        before = state(root)
        log = (root.parent / f"{stage}.log").open("wb")
        with subprocess.Popen(command(stage, root), start_new_session=True, stdout=log, stderr=log, env=ENV) as process:
            if count < kills:
                while stage != "reproduce" and process.poll() is None and state(root) == before:
                    time.sleep(0.02)  # until it writes something
                time.sleep(rng.uniform(0, pause))
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # its children too
                    count += 1
            code = process.wait()
        log.close()
        results(root)
        if code == 0 and stage == "eval" and count < kills:  # it ended before it was killed: once more, from nothing
            for folder in root.glob("*/*/eval"):
                shutil.rmtree(folder)
        elif code == 0:
            return count
        assert code in (0, -signal.SIGKILL), (
            f"{stage} failed: {(root.parent / f'{stage}.log').read_text(encoding='utf-8')}"
        )


def state(root: Path) -> dict[str, int]:
    """When each file was last changed."""
    changed = {}
    for path in root.rglob("*"):
        try:
            changed[str(path)] = path.stat().st_mtime_ns
        except FileNotFoundError:  # a temporary file that has just been moved into place
            pass
    return changed


def results(root: Path) -> dict[str, object]:
    """What files hold that is the same after every history, by path; raises when a file is not whole.

    Logs, and what tells time and place apart, are left out.
    """
    content: dict[str, object] = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.name.startswith("."):
            continue  # a temporary file that a kill left behind
        if path.suffix == ".pt":
            content[name] = hash_of(load_weights(path)["model"])
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                content[name] = {key: arrays[key].tobytes() for key in arrays.files}
        elif path.suffix == ".json":
            stored = read_json(path)
            content[name] = stored.get("records")
            if path.parent.name == "eval":
                key = measurements.Key(**stored["key"])
                assert path.stem == key.digits and measurements.load(path.parent.parent, key), path
                content[name] = stored["record"]
    return content


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
            one, other = results(calm), results(rough)
            assert one == other, [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
            total += count
            print(f"{stage}: {count} kills, the result is that of an undisturbed run", flush=True)
    print(f"{total} kills, no run lost, no unreadable file (seed {seed})")


if __name__ == "__main__":
    main()
