"""`make gpu-check`: is everything right and how fast is it on this GPU? One table, one JSON file.

Runs the GPU tests, and compute-sanitizer on some where it is installed; trains a base and fine-tunings; tests the
kernel's samples against its own probabilities and against exact ones, and all engines against each other; times every
backend. Installs nothing. Without a GPU it says so and succeeds.

Every part returns its row of the JSON file: "failed", and what it found, by name.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments.checks import agreement
from experiments.checks.bench_gpu import bench_gpu
from experiments.checks.timing import fastest
from minifork import measure, runs
from minifork.decoding.exact import exact
from minifork.decoding.policy import Policy
from minifork.decoding.traces import Tree
from minifork.evaluate import problems_for
from minifork.gpu import backends, kernel
from minifork.measuring.problems import draw
from minifork.schema import Config
from minifork.statistics import passk
from minifork.statistics.agreement import randomised_pit, uniform_p
from minifork.storage.files import write_json
from minifork.training import stages

RESULTS = Path(__file__).parents[1] / "results"
PYTEST = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/minifork/gpu/test_gpu.py", "-p", "no:cacheprovider"]
SANITIZED = "test_runs_again_alike_on_every_tiling and (narrow or reference)"
LEVEL = 1e-4  # of each test of samples
SAMPLES = {"bf16": 10**6, "fp32": 10**5}  # rollouts a problem against scored probabilities
SECONDS = 60  # in which that many may be drawn; a slow GPU draws fewer
GAPS = {"bf16": (0.002, 0.03), "fp32": (1e-4, 1e-4)}  # bars: change of pass@k, 99th percentile of the change of p


def gpu_check(config: Config) -> int:
    """Check and time everything that needs a GPU; returns 1 when something is wrong."""
    if not torch.cuda.is_available():
        print("gpu-check: no CUDA device here, nothing to check")
        return 0
    name = torch.cuda.get_device_name()
    print(f"gpu-check on one {name}, torch {torch.__version__}", flush=True)
    plan = replace(config.sft, epochs=16, fork_rate=1.0)
    config = replace(config, device="cuda", runs=str(Path(config.runs) / "gpu-check"), sft=plan)
    parts = {
        "tests": gpu_tests,
        "sanitizer": sanitizer,
        "bench": lambda: bench(config),
        "samples": lambda: samples(config),
        "agreement": lambda: {"failed": agreement.agreement(config)},
    }
    result: dict[str, Any] = {"machine": runs.machine(), "device": name, "torch": torch.__version__, "seconds": {}}
    path = RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    for part, run in parts.items():
        started = time.monotonic()
        try:
            result[part] = run()
        except Exception as error:  # one part that breaks must not lose what the others measure
            result[part] = {"failed": 1, "broke": f"{type(error).__name__}: {error}"}
        result["seconds"][part] = time.monotonic() - started
        print(f"-- {part}: {result['seconds'][part]:.0f} s", flush=True)
        write_json(path, result)
    for part in parts:
        print_rows(part, result[part])
    failed = [part for part in parts if result[part]["failed"]]
    print(f"{'FAILED: ' + ', '.join(failed) if failed else 'all held'}; written to {path}")
    return int(bool(failed))


def print_rows(title: str, values: dict[str, Any]) -> None:
    """The numbers and texts of a part of the result, one a line; lists are left to the JSON file."""
    for name, value in values.items():
        if isinstance(value, dict):
            print_rows(f"{title}, {name}", value)
        elif isinstance(value, (str, int, float)):
            print(f"{f'{title}, {name}':<90}{value if isinstance(value, str) else format(value, '.3g')}")


def gpu_tests() -> dict[str, Any]:
    """pytest -m gpu."""
    done = subprocess.run(PYTEST, capture_output=True, text=True, timeout=240)
    lines = done.stdout.strip().splitlines()
    if done.returncode:
        print(*lines[-30:], done.stderr[-2000:], sep="\n")
    return {"failed": int(done.returncode != 0), "summary": lines[-1] if lines else ""}


def sanitizer() -> dict[str, Any]:
    """compute-sanitizer's memcheck and racecheck on a few tests, where it is installed."""
    program = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    result: dict[str, Any] = {"failed": 0}
    if program is None:
        return result | {"summary": "compute-sanitizer is not installed"}
    # without torch's caching allocator, which hides accesses past the end of a tensor
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in ("memcheck", "racecheck"):
        command = [program, "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9", *PYTEST]
        try:
            done = subprocess.run(
                [*command, "-k", SANITIZED], capture_output=True, text=True, timeout=100, env=environment
            )
        except subprocess.TimeoutExpired:
            result[tool] = "not finished within 100 s"
            continue
        usable = "not supported" not in done.stdout
        lines = [line.strip("= ") for line in done.stdout.splitlines() if "SUMMARY" in line]
        result[tool] = (lines or [f"exit code {done.returncode}"])[-1] if usable else "not usable on this machine"
        result["failed"] |= int(usable and done.returncode != 0)
    return result


def trees(config: Config) -> dict[str, Tree]:
    """The base and the fine-tuning at FORK_RATE 1 (16 epochs), trained here, on the test problems."""
    trained = {"base": stages.pretrain(config, resume=True)}
    for rate in agreement.FORK_RATES:
        trained["tuned"] = stages.sft(replace(config, sft=replace(config.sft, fork_rate=rate)), resume=True)
    problems = problems_for(config, "cuda")
    return {name: measure.tree_of(run.model().cuda(), problems, Policy()) for name, run in trained.items()}


def samples(config: Config) -> dict[str, Any]:
    """Samples of both builds against their own scored p, and these p against exact ones."""
    modes = range(len(config.data.mode_names))
    if "SEARCH" in config.data.mode_names:
        raise ValueError("scored p need every accepted trace: SEARCH has several for a problem")
    problems = draw(config.data, config.eval)
    traces = np.stack([config.data.traces(problems, np.full(len(problems), mode)) for mode in modes], axis=1)
    accepted = torch.from_numpy(traces).cuda()
    cells = {
        f"{name} {precision}": compare(tree, accepted, exact(tree).p_lo, precision)
        for name, tree in trees(config).items()
        for precision in SAMPLES
    }
    return {"failed": int(not all(cell["holds"] for cell in cells.values())), **cells}


def compare(tree: Tree, accepted: torch.Tensor, p_exact: np.ndarray, precision: str) -> dict[str, Any]:
    """A sample of one build against p as it scores all accepted traces int64[B, m, T], and this p against exact p."""
    bf16, n = precision == "bf16", SAMPLES[precision]
    n = min(n, int(2000 * SECONDS / seconds_of(tree, 2000, bf16)))
    gpu = backends.machine(tree.dfa.device)
    rows = backends.ready(gpu, tree, gpu.rows(len(tree) * n), bf16)
    scored = kernel.score(tree, accepted, gpu, rows, bf16)
    p = scored.sum(dim=2).exp().sum(dim=1).clamp(max=1).cpu().numpy()
    counts = kernel.run(tree, n, 0, gpu, rows, bf16).accepted
    ks = [1, 4, 16, 64]
    gap = float(np.abs(passk.pass_at_k(p, ks) - passk.pass_at_k(p_exact, ks)).max())
    apart = float(np.quantile(np.abs(p - p_exact), 0.99))
    p_value = uniform_p(randomised_pit(counts, n, p, np.random.default_rng(0)))
    return {
        "p_value": p_value,
        "rollouts_a_problem": n,
        "pass_at_k_gap": gap,
        "p99_gap_of_p": apart,
        "holds": bool(p_value > LEVEL and gap <= GAPS[precision][0] and apart <= GAPS[precision][1]),
    }


def bench(config: Config) -> dict[str, Any]:
    """Rates on the trained base, and seconds of `make eval ENGINE=rollout ROLLOUTS=4096`."""
    tree = trees(config)["base"]
    reference = bench_gpu(tree)
    kernels = [cell for name, row in reference["backends"].items() if name.startswith("kernel") for cell in row]
    return {
        "failed": int(any("failed" in cell for cell in kernels)),
        "reference": reference,
        "eval_4096_bf16_s": seconds_of(tree, 4096, True),
        "eval_4096_fp32_s": seconds_of(tree, 4096, False),
    }


def seconds_of(tree: Tree, n: int, bf16: bool) -> float:
    """Seconds of n rollouts a problem, everything but compiling included."""
    gpu = backends.machine(tree.dfa.device)
    rows = backends.ready(gpu, tree, gpu.rows(len(tree) * n), bf16)
    return fastest(lambda: kernel.run(tree, n, 0, gpu, rows, bf16))
