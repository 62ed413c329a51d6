"""The GPU's check and benchmark, as far as they go without a GPU: the host twin stands for one."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.checks import bench_gpu, engines, gpu_check
from experiments.cli import main
from minifork import runs
from minifork.decoding.exact import exact
from minifork.gpu import backends, kernel
from minifork.settings import Shape
from tests.helpers.engines import TASK, make_tree, star_case
from tests.helpers.host_twin import SHARED_KIB, TwinGPU, twin_only
from tests.minifork.gpu import test_gpu

PARTS = ["training", "samples", "agreement", "bench", "tests", "sanitizer"]
SMALL = "model.layers=1 model.width=64 model.heads=4 eval.problems=24 eval.check_problems=8".split()
PASSES = """
import pytest

pytestmark = pytest.mark.gpu

def test_of_what_passes():
    pass

@pytest.mark.skip(reason="no g++")
def test_of_what_is_skipped():
    pass
"""
WRONG = """
@pytest.mark.parametrize("n", [1])
def test_of_what_fails(n):
    assert n == 2
"""
KILLED = """
def test_that_is_killed():
    import os
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def case(make_model):
    return star_case(make_model, 5, shape=Shape(1, 64, 4))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of twins that are compiled once for several tests."""
    return tmp_path_factory.mktemp("twins")


@pytest.fixture
def gpu_tests(tmp_path, monkeypatch):
    """A function that gives the rows of the check's tests, run on a file with this text in place of the real one."""
    path = tmp_path / "test_in_its_place.py"
    path.write_text(PASSES, encoding="utf-8")
    monkeypatch.setattr(gpu_check, "PYTEST", [*gpu_check.PYTEST[:-1], str(path)])

    def rows(text: str) -> dict:
        path.write_text(text, encoding="utf-8")
        return dict(gpu_check.gpu_tests())

    return rows


@pytest.fixture
def small_check(tmp_path, folder, monkeypatch, gpu_tests):
    """The check made small, with the twin in the kernel's place; the file that it writes its result to."""
    gpu = TwinGPU(folder)
    small = {
        "SAMPLES": {"bf16": 40, "fp32": 40},
        "TRIAL_ROLLOUTS": 2,
        "EVAL_ROLLOUTS": 2,
        "EPOCHS": 3,
        "RESULTS": tmp_path,
    }
    small |= {"find_gpu": lambda: ("cpu", "Host Twin"), "MAX_GAPS": {"bf16": (0.05, 0.1), "fp32": (1e-4, 1e-4)}}
    for name, value in small.items():
        monkeypatch.setattr(gpu_check, name, value)
    sizes = {"BATCHES": (64,), "COMPILED": (64,), "ROUNDS": 1, "WARM_S": 0.01, "ROUND_S": 0.01, "MATRIX_SIZE": 64}
    for name, value in sizes.items():
        monkeypatch.setattr(bench_gpu, name, value)
    monkeypatch.setattr(engines, "POLICIES", engines.POLICIES[:1])
    monkeypatch.setattr(engines, "SPLIT_ROLLOUTS", 50)
    monkeypatch.setattr(backends, "cuda_device", lambda device: gpu)
    monkeypatch.setattr(engines, "sample", lambda tree, n, seed: kernel.run_kernel(tree, n, seed, gpu, 16, False))
    return tmp_path / "gpu-host-twin.json"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_check_without_a_gpu(tmp_path, capsys):
    assert main(["gpu-check", f"runs={tmp_path}"]) == 0
    assert "no CUDA device" in capsys.readouterr().out and not list(tmp_path.iterdir())


@twin_only
def test_the_whole_check(small_check, empty, capsys):
    """Every part runs and passes on the twin, with the check's own seeds and epochs, and its rows are in the file."""
    assert empty("gpu-check", *SMALL, "sft.epochs=9", "base_seed=1") == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert f"all checks passed; written to {small_check}" in out and "samples, base bf16, p_value" in out
    result = json.loads(small_check.read_text(encoding="utf-8"))
    assert [*result["seconds"]] == PARTS and not any(result[part]["failed"] for part in PARTS)
    assert not any("broke" in result[part] for part in PARTS)
    assert {"base bf16", "base fp32", "tuned bf16", "tuned fp32"} < {*result["samples"]}
    assert len(result["agreement"]) == 5 and result["tests"]["outcomes"] == {"passed": 1, "skipped": 1}
    reference = result["bench"]["reference"]
    assert set(reference["backends"]) == set(bench_gpu.BACKENDS) and len(reference["summary"]) == 5
    assert reference["backends"]["kernel bf16"][0]["tokens_per_s"] > 0 and result["bench"]["eval_2_fp32_s"] > 0
    trained = [runs.read_run(path.parent) for path in (empty.root / "gpu-check" / "star").glob("*/run.json")]
    assert {(run.config.base_seed, run.config.seed) for run in trained} == {(gpu_check.SEED, gpu_check.SEED)}
    assert [run.config.sft.epochs for run in trained if run.stage == "sft"] == [3] * 3 and gpu_check.SEED >= 100


def test_parts_that_break(tmp_path):
    """The file holds the rows that a part gave before it broke or was interrupted."""
    result, path = {"seconds": {}}, tmp_path / "result.json"

    def rows(error: BaseException):
        yield "before", {"p": math.nan}
        stored = json.loads(path.read_text(encoding="utf-8"))["samples"]
        assert stored == {"failed": 1, "broke": "it was stopped", "before": {"p": "NaN"}}
        raise error

    gpu_check.run_part("samples", rows(RuntimeError("out of luck")), result, path)
    assert json.loads(path.read_text(encoding="utf-8"))["samples"]["broke"] == "RuntimeError: out of luck"
    with pytest.raises(KeyboardInterrupt):
        gpu_check.run_part("samples", rows(KeyboardInterrupt()), result, path)


@twin_only
def test_the_check_fails_where_a_part_does(small_check, empty, monkeypatch, capsys):
    for part in ("samples", "agree", "time_backends"):
        monkeypatch.setattr(gpu_check, part, lambda config, part=part: iter([("failed", int(part == "samples"))]))
    train = gpu_check.stages.train

    def only_bases(config, stage, resume):
        return train(config, stage, resume) if stage == "base" else {}["no such fine-tuning"]

    monkeypatch.setattr(gpu_check.stages, "train", only_bases)
    assert empty("gpu-check", *SMALL) == 1
    assert "FAILED: training, samples; written to" in capsys.readouterr().out
    result = json.loads(small_check.read_text(encoding="utf-8"))
    assert result["training"]["base"].startswith("base") and "no such fine-tuning" in result["training"]["broke"]
    assert [*result["seconds"]] == PARTS and result["tests"]["failed"] == 0


def test_outcomes_of_the_tests(gpu_tests, capsys):
    """Tests that fail are named. If no test passes, or the process is killed, the part fails."""
    wrong = gpu_tests(PASSES + WRONG)
    assert wrong["failed"] == 1 and wrong["test_of_what_fails[1]"] == "failed"
    assert wrong["outcomes"] == {"passed": 1, "skipped": 1, "failed": 1} and "1 failed, 1 passed" in wrong["summary"]
    assert "assert 1 == 2" in capsys.readouterr().out
    assert gpu_tests(PASSES.replace("def test_of_what_passes", "def no_test"))["failed"] == 1
    killed = gpu_tests(PASSES + KILLED)
    assert killed["failed"] == 1 and killed["outcomes"] == {"passed": 1, "skipped": 1}
    assert killed["summary"] == "killed, or not finished within 900 s"


def test_a_command_ends_with_all_that_it_started():
    """At its limit: else the pipe, which the child holds too, would stay open."""
    with gpu_check.start(["sh", "-c", "echo on; sleep 60; true"], 0.5) as process:
        assert process.stdout.read() == "on\n"
    assert process.returncode in gpu_check.KILLED


def test_the_gpu_tests_need_pytest_alone(tmp_path):
    """They are collected without hypothesis and without pytest's plugins."""
    (tmp_path / "hypothesis.py").write_text("raise ModuleNotFoundError", encoding="utf-8")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with gpu_check.start(
        [*gpu_check.PYTEST, "--collect-only"], 100, PYTHONPATH=path, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"
    ) as process:
        output, _ = process.communicate()
    assert process.returncode == 0 and "test_runs_again_alike_on_every_tiling" in output, output


def test_the_sanitizer(tmp_path, monkeypatch):
    """Its verdicts are read: a clean run, an error, a machine that it does not support, and one that it is not on."""
    program = tmp_path / "compute-sanitizer"
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def rows(text: str) -> dict:
        program.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        program.chmod(0o755)
        return dict(gpu_check.sanitizer())

    clean = rows("echo '========= ERROR SUMMARY: 0 errors'")
    assert clean == {"memcheck": "ERROR SUMMARY: 0 errors", "racecheck": "ERROR SUMMARY: 0 errors", "failed": 0}
    wrong = rows("[ $2 = memcheck ] || exit 0; echo '========= ERROR SUMMARY: 3 errors'; exit 9")
    assert wrong == {"memcheck": "ERROR SUMMARY: 3 errors", "racecheck": "exit code 0", "failed": 1}
    assert rows("echo 'Device not supported'; exit 1")["racecheck"] == "not usable on this machine"
    monkeypatch.setattr(gpu_check, "SANITIZER_S", 0.5)
    assert rows("sleep 30") == {**dict.fromkeys(clean, "not finished within 0.5 s"), "failed": 0}


@twin_only
@pytest.mark.parametrize("precision", gpu_check.SAMPLES)
def test_samples_and_scores_hold(case, folder, monkeypatch, precision):
    """Every bar is met by the twin; an exact p that is .1 higher misses them."""
    tree, problems, _ = case
    monkeypatch.setattr(backends, "cuda_device", lambda device: TwinGPU(folder))
    monkeypatch.setattr(gpu_check, "SAMPLES", {precision: 100})
    monkeypatch.setattr(gpu_check, "rollout_seconds", lambda *given: 1.0)
    accepted = torch.from_numpy(np.stack([TASK.traces(problems, np.full(5, mode)) for mode in range(2)], axis=1))
    for shift in (0.0, 0.1):
        assert gpu_check.compare_samples(tree, accepted, exact(tree).p_lo + shift, precision)["holds"] == (shift == 0)


@twin_only
@pytest.mark.parametrize("architecture", SHARED_KIB)
@pytest.mark.parametrize("name", ["reference", "wide"])
def test_rows_fit_the_shared_memory(make_model, folder, monkeypatch, architecture, name):
    """The largest tile that fits is chosen, and tested once."""
    gpu, calls = TwinGPU(folder, shared_kib=SHARED_KIB[architecture]), []
    monkeypatch.setattr(backends, "self_test", lambda machine, tree, rows, bf16: calls.append((rows, bf16)))
    tree, asked = make_tree(make_model, name, 2), (64, 32, 16, 64)
    for bf16 in (False, True):
        row = (8 if bf16 else 12) * (tree.model.shape.width + 8) + 80  # bytes of x, a, b and the row's state
        most = next(rows for rows in kernel.TILES if rows * row < gpu.shared_kib * 1024)
        assert [backends.tested_rows(gpu, tree, rows, bf16) for rows in asked] == [min(rows, most) for rows in asked]
    assert len(calls) == len(set(calls))


@twin_only
@pytest.mark.parametrize(("architecture", "bf16"), [*zip(SHARED_KIB, (False, True, True), strict=True)])
def test_the_gpu_tests_choose_rows_that_fit(make_model, folder, monkeypatch, architecture, bf16):
    """The tests of `test_gpu` that choose rows, on the twin of GPUs with less shared memory than an H100."""
    gpu = TwinGPU(folder, shared_kib=SHARED_KIB[architecture])
    for name, value in {"on_gpu": lambda tree: tree, "PROBLEMS": 3, "ROLLOUTS": 11}.items():
        monkeypatch.setattr(test_gpu, name, value)
    monkeypatch.setattr(backends, "self_test", lambda *given: None)
    test_gpu.test_runs_again_alike_on_every_tiling(make_model, gpu, "wide" if bf16 else "reference", bf16)


def test_backends_are_measured(case, monkeypatch):
    """torch's loops run on a CPU too. A backend that fails is named, and ratios to it are not made up.

    Rollouts that give the mean length belong to the measurement, and must not end the benchmark either.
    """
    monkeypatch.setattr(bench_gpu, "WARM_S", 0.01)
    monkeypatch.setattr(bench_gpu, "ROUND_S", 0.01)
    names = [name for name in bench_gpu.BACKENDS if "compiled" not in name]
    cells = {name: [bench_gpu.time_backend(case[0], name, 63)] for name in names} | {"torch compiled graph": []}
    for (cell,) in (cells["torch eager"], cells["torch graph"]):
        assert cell["rollouts"] == 60 and 0 < cell["decoded_per_s"] < cell["tokens_per_s"] < math.inf
    assert "failed" in cells["kernel bf16"][0]
    ratios = bench_gpu.speed_ratios(cells, {"matrix_limit": 1.0, "l2_limit": 1.0})
    assert len(ratios) == 5 and set(ratios.values()) == {None}
    monkeypatch.setattr(backends, "sample", lambda *given, **more: {}["out of memory"])
    assert "out of memory" in bench_gpu.time_backend(case[0], "torch eager", 63)["failed"]
