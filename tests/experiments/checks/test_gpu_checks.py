"""The GPU's check and benchmark, as far as they go without a GPU: the host twin stands for one."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from experiments.checks import bench_gpu, gpu_check
from experiments.cli import main
from minifork.decoding.exact import exact
from minifork.gpu import backends
from minifork.gpu.kernel import UnavailableError
from minifork.settings import Shape
from tests.helpers.engines import TASK, star_case
from tests.helpers.host_twin import Twin
from tests.minifork.gpu.test_kernel import twin_only


@dataclass(frozen=True)
class Pretended(Twin):
    """A twin with what `minifork.gpu.driver.GPU` has beside."""

    tested: set = field(default_factory=set)

    def rows(self, work):
        return 16

    def function(self, build):
        if build.rows > 32:
            raise UnavailableError("too large")
        self.compiled(build)


@pytest.fixture
def case(make_model):
    return star_case(make_model, 5, shape=Shape(1, 64, 4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_gpu_check_without_a_gpu(tmp_path, capsys):
    assert main(["gpu-check", f"runs={tmp_path}"]) == 0
    assert "no CUDA device" in capsys.readouterr().out and not list(tmp_path.iterdir())


@twin_only
@pytest.mark.parametrize("precision", gpu_check.SAMPLES)
def test_samples_and_scores_hold(case, tmp_path, monkeypatch, precision):
    """Every bar is met by the twin; an exact p that is .1 higher misses them."""
    tree, problems, _ = case
    monkeypatch.setattr(backends, "machine", lambda device: Pretended(tmp_path))
    monkeypatch.setattr(gpu_check, "SAMPLES", {precision: 100})
    monkeypatch.setattr(gpu_check, "seconds_of", lambda *given: 1.0)
    accepted = torch.from_numpy(np.stack([TASK.traces(problems, np.full(5, mode)) for mode in range(2)], axis=1))
    for shift in (0.0, 0.1):
        assert gpu_check.compare(tree, accepted, exact(tree).p_lo + shift, precision)["holds"] == (shift == 0)


@twin_only
def test_a_build_is_chosen_and_tested_once(case, tmp_path, monkeypatch):
    gpu, calls = Pretended(tmp_path), []
    monkeypatch.setattr(backends, "self_test", lambda machine, tree, rows, bf16: calls.append((rows, bf16)))
    assert [backends.ready(gpu, case[0], rows, bf16=False) for rows in (64, 32, 16, 64)] == [32, 32, 16, 32]
    assert calls == [(32, False), (16, False)]


def test_backends_are_measured(case, monkeypatch):
    """torch's loops run on a CPU too; a backend that fails is told of, and ratios to it are not made up."""
    monkeypatch.setattr(bench_gpu, "WARM_S", 0.01)
    monkeypatch.setattr(bench_gpu, "ROUND_S", 0.01)
    cells = {name: [bench_gpu.measure(case[0], name, 63)] for name in bench_gpu.BACKENDS if "compiled" not in name}
    cells["torch compiled graph"] = []
    for (cell,) in (cells["torch eager"], cells["torch graph"]):
        assert cell["rollouts"] == 60 and 0 < cell["decoded_per_s"] < cell["tokens_per_s"] < math.inf
    assert "failed" in cells["kernel bf16"][0]
    ratios = bench_gpu.summary(cells, {"matrix_limit": 1.0, "l2_limit": 1.0})
    assert len(ratios) == 5 and set(ratios.values()) == {None}


def test_rows_of_the_report(capsys):
    gpu_check.print_rows("samples", {"failed": 0, "base bf16": {"p_value": 0.25, "spread": [1]}, "broke": "no memory"})
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [(line[0], line[-1].strip()) for line in lines] == [
        ("samples, failed", "0"), ("samples, base bf16, p_value", "0.25"), ("samples, broke", "no memory"),
    ]  # fmt: skip
