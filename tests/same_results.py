"""Do two checkouts train the same weights and compute the same p? ``python -m tests.same_results OLD NEW [FOLDER]``.

Both run the same small stages in FOLDER (a temporary one by default): a base, four kinds of fine-tuning, RL and weight
interpolation on star, arith and sizes, then an exact evaluation. Weights and arrays are compared bit for bit, whatever
the folders and files are called. Exits with 1 when anything differs.
"""

import hashlib
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
    shipped = checkout / "experiments" / "configs" / f"{task}.yaml"
    config = ["--config", str(shipped) if shipped.exists() else task]
    for command in dict.fromkeys(("pretrain", "sft", stage, "eval")):
        words = [*config, *SMALL, *overrides, f"runs={root}"]
        subprocess.run(
            [sys.executable, "-m", "minifork", command, *words], cwd=checkout, check=True, capture_output=True
        )


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
    """Compare two checkouts; prints one line a case."""
    differ = 0
    with tempfile.TemporaryDirectory() as scratch:
        for task in ("star", "arith", "sizes"):
            for case, (stage, overrides) in CASES.items():
                both = []
                for checkout in (old, new):
                    root = Path(folder or scratch) / Path(checkout).resolve().name / task / stage / case
                    if not list(root.rglob("eval.npz")):
                        run(Path(checkout).resolve(), root, task, stage, overrides)
                    both.append(results(root))
                same = both[0] == both[1] and both[0].total() > 0
                print(f"{'same' if same else 'DIFFER'}  {task}, {case}: {both[0].total()} arrays", flush=True)
                differ += not same
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
