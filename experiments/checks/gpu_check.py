"""`make gpu-check`: checks and times everything that needs a GPU. One table, one JSON file.

Trains a base and fine-tunings. Tests the kernel's samples against its own probabilities and against exact ones, and all
engines against each other. Times every backend. Runs the GPU tests, and compute-sanitizer on some of them where it is
installed. Installs nothing. Without a GPU it says so and succeeds.

Every part yields rows of the JSON file, name and value. The file is written at each row, so a part that breaks, or a
run that is stopped, loses nothing that was measured. A part fails unless it yields ("failed", 0).
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_gen.search import SEARCHES
from experiments.checks import engines
from experiments.checks.bench_gpu import bench_gpu
from experiments.checks.timing import fastest
from minifork import measure, runs
from minifork.decoding.exact import exact
from minifork.decoding.policy import Policy
from minifork.decoding.traces import TraceTree
from minifork.evaluation.targets import problems_for
from minifork.gpu import backends, kernel
from minifork.measuring.problems import evaluation_problems
from minifork.schema import Config
from minifork.statistics import passk
from minifork.statistics.agreement import randomised_pit, uniform_p
from minifork.storage.files import write_sealed_json
from minifork.training import stages

Rows = Iterator[tuple[str, Any]]

CHECKOUT = Path(__file__).parents[2]
RESULTS = CHECKOUT / "experiments" / "results"
SEED, EPOCHS = 101, 16  # the runs trained here have these; seeds below 10 belong to reproductions
TESTS = "tests/minifork/gpu/test_gpu.py"
PYTEST = [sys.executable, "-m", "pytest", "-vv", "-m", "gpu", "-p", "no:cacheprovider", TESTS]
TESTS_S, SANITIZER_S = 900, 300  # the tests, and each tool of the sanitizer, are stopped after so many seconds
OUTCOME = re.compile(r"::(?P<test>\S.*?) (?P<outcome>PASSED|FAILED|ERROR|SKIPPED)\b.*%\]$")  # a line of pytest
KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)  # exit codes of a command that was killed
SANITIZED = "test_runs_again_alike_on_every_tiling"
CASES = {"memcheck": "narrow or reference", "racecheck": "narrow"}  # racecheck takes minutes on the reference
MIN_P_VALUE = 1e-4  # samples fail with a smaller p-value
SAMPLES = {"bf16": 10**6, "fp32": 10**5}  # so many rollouts a problem are compared with scored probabilities
MAX_SECONDS = 20  # sampling may take so long; a slow GPU samples fewer than SAMPLES
TRIAL_ROLLOUTS = 2000  # so many rollouts a problem are timed first, to tell how many fit into MAX_SECONDS
EVAL_ROLLOUTS = 4096  # the timed evaluation samples so many rollouts a problem
MAX_GAPS = {"bf16": (0.002, 0.03), "fp32": (1e-4, 1e-4)}  # largest gap of pass@k, and of p in 99 % of problems


def gpu_check(config: Config) -> int:
    """Check and time everything that needs a GPU; returns 1 when something is wrong.

    Seeds, epochs and FORK_RATE are its own; its runs go to a folder of their own.
    """
    if (gpu := find_gpu()) is None:
        print("gpu-check: no CUDA device here, nothing to check")
        return 0
    device, name = gpu
    print(f"gpu-check on one {name}, torch {torch.__version__}", flush=True)
    result: dict[str, Any] = runs.made_by(config) | {"torch": torch.__version__, "seconds": {}}
    plan = replace(config.sft, epochs=EPOCHS, fork_rate=engines.FORK_RATES[-1])
    folder = str(Path(config.runs) / "gpu-check")
    config = replace(config, device=device, runs=folder, base_seed=SEED, seed=SEED, sft=plan)
    parts = {
        "training": train(config),
        "samples": samples(config),
        "agreement": agree(config),
        "bench": time_backends(config),
        "tests": gpu_tests(),
        "sanitizer": sanitizer(),
    }
    path = RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    for part, rows in parts.items():
        run_part(part, rows, result, path)
    failed = [part for part in parts if result[part]["failed"]]
    print(f"{'FAILED: ' + ', '.join(failed) if failed else 'all checks passed'}; written to {path}")
    return int(bool(failed))


def find_gpu() -> tuple[str, str] | None:
    """The device to check, as torch calls it, and the name of its model; None where there is no GPU."""
    return ("cuda", torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def run_part(part: str, rows: Rows, result: dict[str, Any], path: Path) -> None:
    """Put the rows of a part into the result and its file, each as soon as it is there; then print them."""
    started = time.monotonic()
    result[part] = values = {"failed": 1, "broke": "it was stopped"}

    def save() -> None:
        result["seconds"][part] = time.monotonic() - started
        write_sealed_json(path, result)

    save()
    try:
        for name, value in rows:
            values[name] = json.loads(json.dumps(value), parse_constant=str)  # JSON has no NaN: it becomes a text
            save()
        del values["broke"]
    except Exception as error:  # a part that breaks must not stop the others
        values |= {"failed": 1, "broke": f"{type(error).__name__}: {error}"}
    save()
    print_rows(part, values)
    print(f"-- {part}: {result['seconds'][part]:.0f} s", flush=True)


def print_rows(title: str, values: dict[str, Any]) -> None:
    """The numbers and texts of a part of the result, one a line; lists are left to the JSON file."""
    for name, value in values.items():
        if isinstance(value, dict):
            print_rows(f"{title}, {name}", value)
        elif isinstance(value, (str, int, float)):
            print(f"{f'{title}, {name}':<90}  {value if isinstance(value, str) else format(value, '.3g')}")


def train(config: Config) -> Rows:
    """The base, and the fine-tunings that the agreement of the engines is tested on."""
    yield "base", stages.train(config, "base", resume=True).name
    for tuning in engines.fine_tunings(config):
        yield f"FORK_RATE {tuning.sft.fork_rate:g}", stages.train(tuning, "sft", resume=True).name
    yield "failed", 0


def gpu_tests() -> Rows:
    """The GPU tests; their outcomes are counted as they come."""
    outcomes, output = Counter[str](), ["no output"]
    with start(PYTEST, TESTS_S) as process:
        for line in process.stdout or ():
            output.append(line.rstrip())
            if match := OUTCOME.search(output[-1]):
                outcome = match["outcome"].lower()
                outcomes[outcome] += 1
                yield "outcomes", dict(outcomes)
                if outcome in ("failed", "error"):
                    yield match["test"], outcome
    if process.returncode:
        print(*output[-30:], sep="\n")
    killed = process.returncode in KILLED
    yield "summary", f"killed, or not finished within {TESTS_S} s" if killed else output[-1].strip("= ")
    yield "failed", int(process.returncode != 0 or not outcomes["passed"])


def sanitizer() -> Rows:
    """compute-sanitizer's memcheck and racecheck on a few tests, where it is installed."""
    program = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if program is None:
        yield "summary", "compute-sanitizer is not installed"
    failed = 0
    for tool, cases in CASES.items() if program else ():
        command = [str(program), "--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9", *PYTEST]
        command += ["-k", f"{SANITIZED} and ({cases})"]
        # torch's caching allocator would hide accesses past the end of a tensor
        with start(command, SANITIZER_S, PYTORCH_NO_CUDA_MEMORY_CACHING="1") as process:
            output, _ = process.communicate()
        summaries = [line.strip("= ") for line in output.splitlines() if "SUMMARY" in line]
        if process.returncode in KILLED:
            yield tool, f"not finished within {SANITIZER_S} s"
        elif "not supported" in output:
            yield tool, "not usable on this machine"
        else:
            failed |= int(process.returncode != 0)
            yield tool, [f"exit code {process.returncode}", *summaries][-1]
    yield "failed", failed


def start(command: list[str], seconds: float, **environment: str) -> subprocess.Popen[str]:
    """Start a command whose output can be read while it runs.

    GNU `timeout` kills it and all that it started after so many seconds. Raises FileNotFoundError without `timeout`.
    """
    if shutil.which("timeout") is None:
        raise FileNotFoundError("gpu-check needs the command `timeout` of GNU coreutils: install it")
    return subprocess.Popen(
        ["timeout", "--signal=KILL", f"{seconds}", *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, encoding="utf-8", cwd=CHECKOUT, env=os.environ | environment,
    )  # fmt: skip


def trees(config: Config) -> dict[str, TraceTree]:
    """The base and the config's fine-tuning on the test problems. Raises ValueError naming a run that is missing."""
    problems = problems_for(config, config.device)
    models = {name: runs.require_run(config, stage).model() for name, stage in (("base", "base"), ("tuned", "sft"))}
    return {name: measure.trace_tree(model.to(config.device), problems, Policy()) for name, model in models.items()}


def samples(config: Config) -> Rows:
    """The kernel's samples in bf16 and fp32 against its own scored p, and these p against exact ones."""
    modes = range(len(config.data.mode_names))
    if {*SEARCHES} & {*config.data.mode_names}:
        searches = " and ".join(SEARCHES)
        raise ValueError(f"scored p need all accepted traces, and {searches} have many; use a task without them")
    problems, failed = evaluation_problems(config.data, config.eval), 0
    traces = np.stack([config.data.traces(problems, np.full(len(problems), mode)) for mode in modes], axis=1)
    accepted = torch.from_numpy(traces).to(config.device)
    for name, tree in trees(config).items():
        p_exact = exact(tree).p_lo
        for precision in SAMPLES:
            cell = compare_samples(tree, accepted, p_exact, precision)
            failed |= int(not cell["holds"])
            yield f"{name} {precision}", cell
    yield "failed", failed


def compare_samples(tree: TraceTree, accepted: torch.Tensor, p_exact: np.ndarray, precision: str) -> dict[str, Any]:
    """Compare the kernel's samples with its own p, and this p with the exact one.

    accepted: int64[B, m, T], all accepted traces. The kernel's own p sums their scored probabilities.
    """
    bf16, n = precision == "bf16", SAMPLES[precision]
    n = max(1, min(n, int(TRIAL_ROLLOUTS * MAX_SECONDS / rollout_seconds(tree, TRIAL_ROLLOUTS, bf16))))
    gpu, rows = gpu_and_rows(tree, n, bf16)
    scored = kernel.score(tree, accepted, gpu, rows, bf16)
    p = scored.sum(dim=2).exp().sum(dim=1).clamp(max=1).cpu().numpy()
    counts = kernel.run_kernel(tree, n, 0, gpu, rows, bf16).accepted
    ks = [1, 4, 16, 64]
    gap = float(np.abs(passk.pass_at_k(p, ks) - passk.pass_at_k(p_exact, ks)).max())
    p99_gap = float(np.quantile(np.abs(p - p_exact), 0.99))
    p_value = uniform_p(randomised_pit(counts, n, p, np.random.default_rng(0)))
    holds = p_value > MIN_P_VALUE and gap <= MAX_GAPS[precision][0] and p99_gap <= MAX_GAPS[precision][1]
    cell = {"p_value": p_value, "rollouts_a_problem": n, "pass_at_k_gap": gap, "p99_gap_of_p": p99_gap}
    return cell | {"holds": bool(holds)}


def agree(config: Config) -> Rows:
    """The smallest p-value of the engines against each other, for every model and policy."""
    groups = []
    for tests in engines.comparisons(config):
        groups.append(tests)
        yield f"{tests[0]['run']}, {tests[0]['policy']}", min(test["p_value"] for test in tests)
    yield "failed", engines.conclude(config, groups)


def time_backends(config: Config) -> Rows:
    """Rates on the trained base, and seconds of `make eval ENGINE=rollout ROLLOUTS=4096`."""
    tree, reference = trees(config)["base"], dict[str, Any]()
    for reference in bench_gpu(tree):
        yield "reference", reference
    for precision in SAMPLES:
        yield f"eval_{EVAL_ROLLOUTS}_{precision}_s", rollout_seconds(tree, EVAL_ROLLOUTS, precision == "bf16")
    kernels = [cell for name, row in reference["backends"].items() if name.startswith("kernel") for cell in row]
    yield "failed", int(any("failed" in cell for cell in kernels))


def rollout_seconds(tree: TraceTree, n: int, bf16: bool) -> float:
    """Seconds of n rollouts a problem, everything but compiling included."""
    gpu, rows = gpu_and_rows(tree, n, bf16)
    return fastest(lambda: kernel.run_kernel(tree, n, 0, gpu, rows, bf16))


def gpu_and_rows(tree: TraceTree, n: int, bf16: bool) -> tuple[kernel.Machine, int]:
    """The tree's GPU, and how many rows a tile of its tested kernel has for n rollouts a problem."""
    gpu = backends.cuda_device(tree.device)
    return gpu, backends.tested_rows(gpu, tree, gpu.rows(len(tree) * n), bf16)
