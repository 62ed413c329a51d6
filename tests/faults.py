"""Kill every stage again and again, and see that nothing is lost: `make faults` (about 4 minutes, up to 60 kills).

Each stage runs twice, once undisturbed and once killed by SIGKILL at random moments and started again by the same
command. After every kill each file must be whole; in the end the weights and the evaluation must be those of the
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

from minifork import runs
from minifork.evaluate import read_evaluation
from tests.conftest import CONFIG, SMALL

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
    return [sys.executable, "-m", "minifork", stage, "--config", str(CONFIG), *resume, *words]


def killed(stage: str, root: Path, rng: random.Random, kills: int) -> int:
    """Run a stage to its end, killing its whole process group up to ``kills`` times; how often it was."""
    count, pause = 0, 0.8 if stage in RESUMABLE else 3.0
    while True:
        before = state(root)
        log = (root.parent / f"{stage}.log").open("wb")
        with subprocess.Popen(command(stage, root), start_new_session=True, stdout=log, stderr=log) as process:
            if count < kills:
                while stage in RESUMABLE and process.poll() is None and state(root) == before:
                    time.sleep(0.02)  # until it writes something
                time.sleep(rng.uniform(0, pause))
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)  # its children too
                    count += 1
            code = process.wait()
        log.close()
        check_files(root)
        if code == 0 and stage == "eval" and count < kills:  # it ended before it was killed: once more, from nothing
            (root / "star" / "eval.json").unlink()
        elif code == 0:
            return count
        assert code in (0, -signal.SIGKILL), f"{stage} failed: {(root.parent / f'{stage}.log').read_text()}"


def state(root: Path) -> dict[str, int]:
    """When each file was last changed."""
    found = {}
    for path in root.rglob("*"):
        try:
            found[str(path)] = path.stat().st_mtime_ns
        except FileNotFoundError:  # a temporary file that has just been moved into place
            pass
    return found


def check_files(root: Path) -> None:
    """Every file that has its final name is whole, and of an evaluation both."""
    for path in root.rglob("eval.json"):
        read_evaluation(path)
    for path in root.rglob("*"):
        if path.name.startswith("."):
            continue  # a temporary file that a kill left behind
        if path.suffix == ".pt":
            runs.load_weights(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".npz":
            with np.load(path) as stored:
                [stored[name] for name in stored.files]


def equal(one: Path, other: Path) -> None:
    """The same files, weights and results in both folders; what tells time and place apart is not compared."""
    names = [sorted(str(p.relative_to(root)) for p in root.rglob("*.pt")) for root in (one, other)]
    assert names[0] == names[1], names
    for name in names[0]:
        a, b = (runs.load_weights(root / name)["model"] for root in (one, other))
        assert all(torch.equal(a[key], b[key]) for key in a), name
    for path in one.rglob("eval.npz"):
        with np.load(path) as a, np.load(other / path.relative_to(one)) as b:
            assert sorted(a.files) == sorted(b.files) and all(np.array_equal(a[key], b[key]) for key in a.files)
    for path in one.rglob("eval.json"):
        a, b = (json.loads((root / path.relative_to(one)).read_text())["records"] for root in (one, other))
        assert a == b


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
