"""Stop every stage again and again, and see that nothing is lost: `make faults` (about 10 minutes, 72 signals).

Each stage runs twice, once undisturbed and once stopped at random moments and started again by the same command. In
the end the weights and the measurements must be those of the undisturbed run, bit for bit. After every signal each file
must be whole. The signals take turns: SIGKILL, Ctrl-C, SIGTERM (preemption) and SIGHUP (a closed terminal). After all
but the first the exit code is 130, or that of the bare signal where it came before or after the command itself.
Nothing prints a traceback, the last step that was taken is saved, and no measurement is made twice. Before a SIGKILL
checkpoints are written after every step, so that many hit one being written; before the other signals none is.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import cycle
from pathlib import Path

import numpy as np

from minifork.runs import RECORD, WEIGHTS
from minifork.storage import locks, measurements
from minifork.storage.files import read_json
from minifork.storage.weights import load_weights
from tests.conftest import SMALL
from tests.helpers.pipeline import logged_steps, weights_hash

SIGNALS = {"pretrain": 16, "sft": 16, "rl": 16, "wise": 4, "eval": 12, "reproduce": 8}
BASE, TUNED = ["pretrain.steps=500"], ["sft.epochs=100"]
OVERRIDES = {
    "pretrain": BASE,
    "sft": BASE + TUNED,
    "rl": [*BASE, *TUNED, "rl.updates=100", "rl.problems=16", "rl.prompts=4", "rl.mode=FWD"],
    "wise": BASE + TUNED,
    "eval": [],
    "reproduce": ["pretrain.steps=300", "sft.epochs=8", "reproduce.workers=2"],
}
RESULTS = {"pretrain": "base-*", "sft": "sft-*", "rl": "rl-*", "wise": "wise-*", "eval": "*/eval", "reproduce": "*"}
RESUMABLE = ("pretrain", "sft", "rl")
WITNESSED = (*RESUMABLE, "eval")
WITNESS = """
import signal
import sys
from pathlib import Path
from minifork.storage import measurements
from minifork.training import loop

signal.signal(signal.SIGINT, signal.SIG_DFL)  # as `python -m experiments` has it
path, take_step, save = Path(sys.argv.pop(1)), loop.take_step, measurements.save_measurement

def write(line):
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\\n")

def step_and_tell(model, optimizers, job, step):
    result = take_step(model, optimizers, job, step)
    write(step + 1)
    return result

def save_and_tell(folder, key, measurement):
    save(folder, key, measurement)
    write(f"{folder}/{key.file_stem}")

loop.take_step, measurements.save_measurement = step_and_tell, save_and_tell
from experiments.cli import main
sys.exit(main(sys.argv[1:]))
"""


class Trial:
    """A stage below a folder: it is run to its end, with signals on the way.

    witness: a file that names every step taken and every measurement saved since the stage began from nothing.
    """

    def __init__(self, stage: str, root: Path, rng: random.Random):
        self.stage, self.root, self.rng = stage, root, rng
        self.log, self.witness = root.parent / f"{stage}.log", root.parent / f"{stage}.steps"

    def run(self, number: signal.Signals | None = None) -> tuple[int, bool]:
        """Start it, send it a signal, if any, and wait for its end; its exit code, and whether the signal met it.

        It writes a checkpoint after every step before a SIGKILL, and none before the other signals.
        """
        every = 1 if number == signal.SIGKILL else 10**6
        program = ["-c", WITNESS, str(self.witness)] if self.stage in WITNESSED else ["-m", "experiments"]
        resume = ["--resume"] if self.stage in RESUMABLE else []
        words = [*SMALL, f"save_every={every}", f"runs={self.root}", *OVERRIDES[self.stage]]
        command, before, met = [sys.executable, *program, self.stage, *resume, *words], state(self.root), False
        pipes = {"stdout": self.log.open("wb"), "stderr": subprocess.STDOUT, "start_new_session": True}
        with pipes["stdout"], subprocess.Popen(command, **pipes) as process:
            if number is not None:
                while self.stage in WITNESSED and process.poll() is None and state(self.root) == before:
                    time.sleep(0.02)  # until it writes something
                time.sleep(self.rng.uniform(0, 0.8 if self.stage in RESUMABLE else 4.0))
                met = process.poll() is None
            if met:  # Ctrl-C goes to all processes of a terminal, and SIGKILL here; the others go to one
                send = os.kill if number in (signal.SIGTERM, signal.SIGHUP) else os.killpg
                send(process.pid, number)
            code = process.wait()
        return code, met

    def check(self, number: signal.Signals | None, code: int) -> None:
        """Raise AssertionError unless a run that was sent a signal ended as it should, and left all that it did."""
        printed = self.log.read_text(encoding="utf-8")
        case = f"{self.stage} after {number}, exit code {code}: {printed}"
        assert "Traceback" not in printed and "Exception ignored" not in printed, case
        # Python itself ends by SIGINT, not by 130, if it was interrupted while it ran text, say to make a dataclass.
        interrupted = [] if number in (None, signal.SIGKILL) else [130, -signal.SIGINT]
        assert code in (0, -(number or 0), *interrupted), case
        results(self.root)
        if number == signal.SIGKILL:
            return
        for folder in (path.parent for path in self.root.rglob(RECORD)):
            record, steps = read_json(folder / RECORD), (folder / "metrics.jsonl").exists() and logged_steps(folder)
            with locks.locked(folder, wait=False):  # its process has ended
                assert not steps or steps[-1] <= record["step"] < steps[-1] + 10, (folder, steps[-1], record["step"])
            assert [leg["from"] for leg in record["legs"][1:]] == [leg["to"] for leg in record["legs"][:-1]]

    def witnessed(self) -> list[str]:
        """The steps taken and measurements saved."""
        return self.witness.read_text(encoding="utf-8").splitlines() if self.witness.exists() else []

    def begin_anew(self) -> None:
        """Remove the results of the stage."""
        for path in [*self.root.glob(f"*/{RESULTS[self.stage]}")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.witness.unlink(missing_ok=True)


def disturbed(trial: Trial, signals: int) -> Counter[str]:
    """Run a trial to its end with so many signals on the way; how often each met it."""
    numbers = cycle([signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    met: Counter[str] = Counter()
    number = next(numbers)
    while met.total() < signals:
        earlier = trial.witnessed()
        code, hit = trial.run(number)
        trial.check(number, code)
        if hit and number != signal.SIGKILL:
            check_witness(trial, earlier, trial.witnessed()[len(earlier) :])
        met += Counter([number.name]) if hit else Counter()
        number = next(numbers) if hit else number
        if code == 0:  # it ended too soon
            trial.begin_anew()
    code, _ = trial.run()
    trial.check(None, code)
    assert code == 0
    return met


def check_witness(trial: Trial, earlier: list[str], lines: list[str]) -> None:
    """Raise AssertionError unless the last step that a process took is saved, and it did nothing a second time.

    Of steps before a SIGKILL the last one may be missing in the checkpoint, and is then taken again.
    """
    if trial.stage in RESUMABLE and lines:
        (path,) = trial.root.glob(f"*/{'base' if trial.stage == 'pretrain' else trial.stage}-*/{WEIGHTS}")
        steps = [int(line) for line in lines]
        assert load_weights(path)["step"] == read_json(path.parent / RECORD)["step"] == steps[-1], (path, steps[-1])
        assert steps == [*range(steps[0], steps[-1] + 1)] and steps[0] >= max(map(int, earlier), default=0)
    elif trial.stage == "eval":
        assert not {*earlier} & {*lines}, lines


def state(root: Path) -> dict[str, int]:
    """When each file was last changed, hidden ones apart."""
    changed = {}
    for path in root.rglob("[!.]*"):
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
            content[name] = weights_hash(path)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                content[name] = {key: arrays[key].tobytes() for key in arrays.files}
        elif path.suffix == ".json":
            stored = read_json(path)
            content[name] = stored.get("records")
            if path.parent.name == "eval":
                key = measurements.Key(**stored["key"])
                assert path.stem == key.file_stem and measurements.load_measurement(path.parent.parent, key), path
                content[name] = stored["record"]
    return content


def main(seed: int = 0) -> None:
    """Print one line a stage; raises AssertionError on the first difference."""
    rng, total = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as scratch:
        calm, rough = Path(scratch) / "calm" / "runs", Path(scratch) / "rough" / "runs"
        for stage, signals in SIGNALS.items():
            trials = [Trial(stage, root, rng) for root in (calm, rough)]
            for trial in trials:
                trial.root.mkdir(parents=True, exist_ok=True)
                if stage == "reproduce":
                    trial.begin_anew()
            code, _ = trials[0].run()
            trials[0].check(None, code)
            met = disturbed(trials[1], signals)
            one, other = results(calm), results(rough)
            assert one == other, [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]
            total += met
            print(f"{stage}: {words(met)}; the result is that of an undisturbed run", flush=True)
    print(f"{total.total()} signals ({words(total)}): no run lost, no step lost, no unreadable file (seed {seed})")


def words(met: Counter[str]) -> str:
    """How often each signal was sent."""
    return ", ".join(f"{name} {times}" for name, times in sorted(met.items()))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
