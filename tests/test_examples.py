"""The examples run as they are, at toy size, and are as short as the README says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.new_decoder import typical
from examples.new_loss import focal
from examples.new_task import Ordered
from minifork import runs
from minifork.decoding.policy import top_p
from minifork.training import losses
from tests.conftest import SMALL

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("new_*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_short(path):
    assert len(path.read_text().splitlines()) <= 40


def run(name: str, *overrides: str) -> str:
    path = next(path for path in EXAMPLES if path.stem == name)
    command = [sys.executable, str(path), *SMALL, *overrides]
    environment = {"PYTHONPATH": str(path.parent.parent), "OMP_NUM_THREADS": "1", "PATH": ""}
    result = subprocess.run(command, capture_output=True, text=True, cwd=path.parent.parent, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_new_loss(copy):
    pipeline = copy("base")
    run("new_loss", f"runs={pipeline.root}")
    assert runs.read(pipeline.at("sft", "sft.loss=focal=2")).complete


def test_focal_loss():
    logits, targets = torch.randn(4, 5, 7), torch.randint(7, (4, 5))
    assert float(focal(logits, targets, 0)) == pytest.approx(float(losses.cross_entropy(logits, targets)), rel=1e-5)
    p = logits.softmax(dim=-1).gather(2, targets[..., None])
    assert float(focal(logits, targets, 2)) == pytest.approx(float(-((1 - p) ** 2 * p.log()).mean()), rel=1e-4)


def test_new_decoder(copy):
    pipeline = copy("base", "fork1")
    run("new_decoder", f"runs={pipeline.root}")
    view = pipeline.view()
    assert view["policy"] == "typical=0.9" and all(check["agrees"] for check in view["checks"])


def test_typical_by_hand():
    """Where all kept tokens are equally likely every token is typical; the mode of a peaked one can be untypical."""
    uniform = torch.zeros(1, 4)
    assert torch.isfinite(typical(uniform, 1.0)).all() and torch.equal(top_p(uniform, 1.0), typical(uniform, 1.0))
    p = torch.tensor([[0.4, 0.15, 0.15, 0.15, 0.15]])  # entropy 1.50: surprise .92 for the first, 1.90 for the others
    assert torch.isfinite(typical(p.log(), 0.5))[0].tolist() == [False, True, True, True, True]


def test_new_task(tmp_path):
    printed = run("new_task", f"runs={tmp_path}")
    assert "the branch is given away by" in printed and "child label order" in printed
    assert json.loads((tmp_path / "ordered" / "eval.json").read_text())["task"] == "ordered"


def test_the_new_task_leaks_what_it_says():
    task = Ordered(16, 3, 4)
    problems = task.sample(np.random.default_rng(0), 500)
    assert (task.children(problems).argmin(axis=1) == 0).all()
    assert len(np.unique(problems.labels[:, 1:-1], axis=0)) == 500 and (problems.labels < 16).all()
    assert all(len(set(row)) == len(row) for row in problems.labels.tolist())
