"""Do two checkouts train the same weights and compute the same p? ``python -m tests.same_results OLD NEW [FOLDER]``.

Both run the same small stages in FOLDER (a temporary one by default): a base, four kinds of fine-tuning, RL and weight
interpolation on star, arith and sizes, then an exact evaluation. Weights and arrays are compared bit for bit, whatever
the folders and files are called. Exits with 1 when anything differs.
"""

import hashlib
import itertools
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

SMALL = """
    device=cpu save_every=50 model.layers=2 model.width=32 model.heads=1 pretrain.steps=60 pretrain.batch=16
    sft.traces=64 sft.epochs=4 sft.batch=16 sft.allow_leak=true
    rl.problems=32 rl.prompts=8 rl.updates=6 rl.mode=FWD
    eval.problems=64 eval.max_k=64 eval.check_problems=16 eval.check_rollouts=16
""".split()
KINDS = {
    "data-level": ["sft.fork_rate=0.5"],
    "problem-level": ["sft.fork_rate=0.5", "sft.allocation=problem"],
    "fresh": ["sft.fresh=true"],
    "cued, GEM": ["sft.cue_rate=1", "sft.loss=gem=0.7"],
}
CASES = {kind: ("sft", overrides) for kind, overrides in KINDS.items()}
CASES |= {"GRPO": ("rl", ["rl.advantage=grpo"]), "WiSE-FT": ("wise", ["wise.weights=0.5"])}


def run(checkout: Path, root: Path, task: str, stage: str, overrides: list[str]) -> None:
    """Run a stage and all before it, then the evaluation, with the results in root."""
    for command in dict.fromkeys(("pretrain", "sft", stage, "eval")):
        words = ["--config", task, *SMALL, *overrides, f"runs={root}"]
        command_line = [sys.executable, "-m", "minifork", command, *words]
        subprocess.run(command_line, cwd=checkout, check=True, capture_output=True)


def results(root: Path) -> Counter:
    """Every file of weights and every array of p below root, by its name without the run's, as hashes."""
    hashes: Counter = Counter()
    for path in root.rglob("*.pt"):
        model = torch.load(path, weights_only=True)["model"]
        content = b"".join(name.encode() + model[name].numpy().tobytes() for name in sorted(model))
        hashes[path.name, hashlib.sha256(content).hexdigest()] += 1
    for path in root.rglob("eval.npz"):
        with np.load(path) as arrays:
            for name in arrays.files:
                hashes[name.partition("/")[2], hashlib.sha256(arrays[name].tobytes()).hexdigest()] += 1
    return hashes


def main(old: str, new: str, folder: str | None = None) -> int:
    """Compare two checkouts; prints one line a case. Results that lie in the folder are not made again."""
    differences = 0
    with tempfile.TemporaryDirectory() as scratch:
        for task, case in itertools.product(("star", "arith", "sizes"), CASES):
            stage, overrides = CASES[case]
            hashes = []
            for checkout in (Path(old).resolve(), Path(new).resolve()):
                root = Path(folder or scratch) / checkout.name / task / stage / case
                if not list(root.rglob("eval.npz")):
                    run(checkout, root, task, stage, overrides)
                hashes.append(results(root))
            is_same = hashes[0] == hashes[1] and hashes[0].total() > 0
            print(f"{'same' if is_same else 'DIFFER'}  {task}, {case}: {hashes[0].total()} arrays", flush=True)
            differences += not is_same
    return int(differences > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
