"""`make gpu-check`: is everything right and how fast is it on this GPU? One table, one JSON file.

Runs the GPU tests, compute-sanitizer where it is installed, trains a base and one fine-tuning, tests the kernel's
samples against its own probabilities and against exact ones, all engines against each other, and times every
backend. Installs nothing. Without a GPU it says so and succeeds.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from experiments.checks import agreement, bench_gpu
from minifork import measure, runs
from minifork.decoding.exact import exact
from minifork.decoding.policy import Policy
from minifork.decoding.traces import Tree
from minifork.evaluate import problems_for
from minifork.gpu import backends, kernel
from minifork.measuring.problems import draw
from minifork.schema import Config
from minifork.statistics import passk
from minifork.storage.files import write_json
from minifork.training import stages

RESULTS = Path(__file__).parents[1] / "results"
LEVEL = 1e-4  # of each test of samples
SANITIZED = "test_runs_again_alike_on_every_tiling and (narrow or reference)"
SAMPLES = {"bf16": 10**6, "fp32": 10**5}  # rollouts a problem against scored probabilities
SECONDS = 60  # in which that many may be drawn; a slow GPU draws fewer


def gpu_check(config: Config) -> int:
    """Check and time everything that needs a GPU; returns 1 when something is wrong."""
    if not torch.cuda.is_available():
        print("gpu-check: no CUDA device here, nothing to check")
        return 0
    name = torch.cuda.get_device_name()
    print(f"gpu-check on one {name}, torch {torch.__version__}", flush=True)
    plan = replace(config.sft, epochs=16, fork_rate=1.0)
    config = replace(config, device="cuda", runs=str(Path(config.runs) / "gpu-check"), sft=plan)
    result: dict = {"machine": runs.machine(), "device": name, "torch": torch.__version__, "seconds": {}}
    stages_of_the_check = {
        "tests": gpu_tests,
        "bench": lambda: bench(config),
        "samples": lambda: samples(config),
        "agreement": lambda: {"failed": agreement.agreement(config)},
        "sanitizer": sanitizer,
    }
    path = RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    for stage, run in stages_of_the_check.items():
        started = time.monotonic()
        try:
            result[stage] = run()
        except Exception as error:  # one stage that breaks must not lose what the others measure
            result[stage] = {"failed": 1, "error": f"{type(error).__name__}: {error}"}
        result["seconds"][stage] = time.monotonic() - started
        print(f"-- {stage}: {result['seconds'][stage]:.0f} s", flush=True)
        write_json(path, result)  # whatever comes later, this much is kept
    return report(result, path)


def gpu_tests() -> dict:
    """pytest -m gpu."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "tests/minifork/gpu/test_gpu.py", "-p", "no:cacheprovider"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    tail = done.stdout.strip().splitlines()[-30:]
    if done.returncode:
        print("\n".join(tail), done.stderr[-2000:], sep="\n")
    return {"failed": int(done.returncode != 0), "summary": tail[-1] if tail else ""}


def sanitizer() -> dict:
    """compute-sanitizer's memcheck and racecheck on a few tests."""
    path = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if path is None:
        return {"failed": 0, "summary": "compute-sanitizer is not installed"}
    found = {"failed": 0}
    # without torch's caching allocator, which hides accesses past the end of a tensor
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    for tool in ("memcheck", "racecheck"):
        command = [path, "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9"]
        command += [sys.executable, "-m", "pytest", "tests/minifork/gpu/test_gpu.py", "-k", SANITIZED]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)
        except subprocess.TimeoutExpired:
            found[tool] = "not finished within 100 s"
            continue
        lines = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line or "RACECHECK SUMMARY" in line]
        if "not supported" in done.stdout:
            found[tool] = "not usable on this machine"
            continue
        found[tool] = lines[-1].strip("= ") if lines else f"exit code {done.returncode}"
        found["failed"] |= int(done.returncode != 0)
    return found


def trees(config: Config) -> dict[str, Tree]:
    """The base and one fine-tuning at FORK_RATE 1 (16 epochs), trained here, on the test problems."""
    stages.pretrain(config, resume=True)
    for rate in agreement.FORK_RATES:
        stages.sft(replace(config, sft=replace(config.sft, fork_rate=rate)), resume=True)
    problems = problems_for(config, "cuda")
    last = {"base": runs.require(config, "base"), "tuned": runs.require(config, "sft")}
    return {name: measure.tree_of(run.model().cuda(), problems, Policy()) for name, run in last.items()}


def samples(config: Config) -> dict:
    """Samples of both builds against their own scored p, and these p against exact ones."""
    if "SEARCH" in config.data.mode_names:
        raise ValueError("scored p need every accepted trace: SEARCH has several for a problem")
    found: dict = {"failed": 0}
    problems = draw(config.data, config.eval)
    for name, tree in trees(config).items():
        gpu = backends.machine(tree.dfa.device)
        known = exact(tree).p_lo
        traces = np.stack(
            [config.data.traces(problems, np.full(len(problems), m)) for m in range(len(config.data.mode_names))],
            axis=1,
        )
        for precision, n in SAMPLES.items():
            bf16 = precision == "bf16"
            rows = backends.ready(gpu, tree, gpu.rows(len(tree) * n), bf16)
            n = min(n, int(2000 * SECONDS / seconds_of(tree, 2000, bf16)))
            scored = kernel.score(tree, torch.from_numpy(traces).cuda(), gpu, rows, bf16)
            p = scored.sum(dim=2).exp().sum(dim=1).cpu().numpy()
            torch.cuda.synchronize()
            started = time.perf_counter()
            result = kernel.run(tree, n, 0, gpu, rows, bf16)
            seconds = time.perf_counter() - started
            pits = agreement.randomised_pit(result.accepted, n, p, np.random.default_rng(0))
            ks = [1, 4, 16, 64]
            gap = np.abs(passk.pass_at_k(p, ks) - passk.pass_at_k(known, ks)).max()
            apart = float(np.quantile(np.abs(p - known), 0.99))
            cell = {
                "p_value": agreement.uniform_p(pits),
                "rollouts_a_problem": n,
                "seconds": seconds,
                "pass_at_k_gap": float(gap),
                "p99_gap_of_p": apart,
            }
            limits = (0.002, 0.03) if bf16 else (1e-4, 1e-4)
            cell["holds"] = bool(cell["p_value"] > LEVEL and gap <= limits[0] and apart <= limits[1])
            found["failed"] |= int(not cell["holds"])
            found[f"{name} {precision}"] = cell
            print(f"{name} {precision}: {cell}", flush=True)
    return found


def bench(config: Config) -> dict:
    """Rates on the trained reference model, on a larger one, and of `make eval ENGINE=rollout ROLLOUTS=4096`."""
    tree = trees(config)["base"]
    found: dict = {"reference": bench_gpu.bench_gpu(tree)}
    cells = [
        cell for name, cells in found["reference"]["backends"].items() if name.startswith("kernel") for cell in cells
    ]
    found["failed"] = int(any("failed" in cell for cell in cells))
    for precision in ("bf16", "fp32"):
        found[f"eval_4096_{precision}_s"] = seconds_of(tree, 4096, precision == "bf16")
    large, n = bench_gpu.reference_tree(layers=4, width=256, heads=4, prompt=64, new=16), 4096
    found["large_tokens_per_s"] = len(large) * n * large.max_new / seconds_of(large, n, True)
    return found


def seconds_of(tree: Tree, n: int, bf16: bool) -> float:
    """Seconds of n rollouts a problem, everything but compiling included."""
    gpu = backends.machine(tree.dfa.device)
    rows = backends.ready(gpu, tree, gpu.rows(len(tree) * n), bf16)
    kernel.run(tree, n, 0, gpu, rows, bf16)
    started = time.perf_counter()
    kernel.run(tree, n, 0, gpu, rows, bf16)
    torch.cuda.synchronize()
    return time.perf_counter() - started


def report(result: dict, path: Path) -> int:
    """The table that comes last; returns the exit code."""
    bench = result["bench"]
    rows = [
        ("GPU tests", result["tests"].get("summary", result["tests"].get("error"))),
        ("memcheck, racecheck", result["sanitizer"].get("summary") or
         f"{result['sanitizer'].get('memcheck')}; {result['sanitizer'].get('racecheck')}"),
        *((f"samples, {name}", f"p {cell['p_value']:.2g}, pass@k within {cell['pass_at_k_gap']:.1e}, |dp| p99 "
           f"{cell['p99_gap_of_p']:.1e}") for name, cell in result["samples"].items() if isinstance(cell, dict)),
        ("agreement of engines", "DISAGREE" if result["agreement"]["failed"] else "agree"),
        *((name, f"{value:.3g}") for name, value in bench.get("reference", {}).get("summary", {}).items() if value),
        *((name, f"{bench[name]:.3g}") for name in ("large_tokens_per_s", "eval_4096_bf16_s", "eval_4096_fp32_s")
          if name in bench),
        *((f"{stage} broke", result[stage]["error"]) for stage in result["seconds"] if "error" in result[stage]),
    ]  # fmt: skip
    for what, found in rows:
        print(f"{what:<66}{found}")
    failed = [stage for stage in result["seconds"] if result[stage].get("failed")]
    print(f"{'FAILED: ' + ', '.join(failed) if failed else 'all held'}; written to {path}")
    return int(bool(failed))
