"""The examples run as they are, at toy size, and are as short as the README says."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.new_decoder import typical
from examples.new_loss import focal
from examples.new_task import Maze, Mazes
from minifork import runs
from minifork.decoding.policy import top_p
from minifork.training import losses
from tests.conftest import SMALL

GENERAL = [override for override in SMALL if not override.startswith("data.")]
ROOT = Path(__file__).parent.parent


def test_short():
    for path in (ROOT / "examples").glob("new_*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < (120 if path.stem == "new_task" else 41), path


def run(name: str, *overrides: str) -> str:
    command = [sys.executable, f"examples/{name}.py", *overrides]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_new_loss(copy):
    pipeline = copy("base")
    run("new_loss", *SMALL, f"runs={pipeline.root}")
    assert runs.read_run(pipeline.at("sft", "sft.loss=focal=2")).complete


def test_focal_loss():
    logits, targets = torch.randn(4, 5, 7), torch.randint(7, (4, 5))
    assert float(focal(logits, targets, 0)) == pytest.approx(float(losses.cross_entropy(logits, targets)), rel=1e-5)
    p = logits.softmax(dim=-1).gather(2, targets[..., None])
    assert float(focal(logits, targets, 2)) == pytest.approx(float(-((1 - p) ** 2 * p.log()).mean()), rel=1e-4)


def test_new_decoder(copy):
    pipeline = copy("base", "fork1")
    run("new_decoder", *SMALL, f"runs={pipeline.root}")
    view = pipeline.view()
    assert view["policy"] == "typical=0.9" and all(check["agrees"] for check in view["checks"])


def test_typical_by_hand():
    """Every token of a uniform distribution is typical. The most probable one of a peaked distribution need not be."""
    uniform = torch.zeros(1, 4)
    assert torch.isfinite(typical(uniform, 1.0)).all() and torch.equal(top_p(uniform, 1.0), typical(uniform, 1.0))
    p = torch.tensor([[0.4, 0.15, 0.15, 0.15, 0.15]])  # entropy 1.50: surprise .92 for the first, 1.90 for the others
    assert torch.isfinite(typical(p.log(), 0.5))[0].tolist() == [False, True, True, True, True]
    thin_tail = torch.tensor([[0.0, *[-40.0] * 10, -math.inf]])
    assert torch.equal(typical(thin_tail, 1.0), thin_tail)
    assert torch.isfinite(typical(thin_tail, 1e-300)).sum() == 1  # fp32 lacks this value


def test_new_task(tmp_path):
    printed = run("new_task", *GENERAL, "data.side=4", "data.steps=2", f"runs={tmp_path}")
    assert printed.count("nothing on the surface gives the branch away") == 2
    view = json.loads((tmp_path / "maze" / "eval.json").read_text(encoding="utf-8"))
    assert view["engine"] == "exact" and all(check["agrees"] for check in view["checks"])
    for record in view["records"]:
        assert set(record["forced"]) == {"FWD", "REV"} and 0 <= record["fork"]["accuracy"] <= 1
        assert sum(record["errors"].values()) + record["pass_at"]["1"] == pytest.approx(1, abs=1e-6)


def test_mazes():
    """Corridors that never meet themselves; the trace passes printed doors, and so does every walk."""
    task, rng = Maze(4, 3), np.random.default_rng(0)
    problems = task.sample(rng, 200)
    forward, reverse = (task.traces(problems, np.full(200, mode))[:, 1:-1].tolist() for mode in (0, 1))
    walks = task.walks(problems, 0.2, 0.0, rng, 3).tolist()
    for i, (*doors, start, goal, sep) in enumerate(task.prompts(problems).tolist()):
        assert len({*doors}) == 7 and sep == task.sep and max(doors) < 16
        assert forward[i] == reverse[i][::-1] and (forward[i][0], forward[i][-1]) == (start, goal)
        printed = [*zip(doors[::2], doors[1::2], strict=True)]
        assert all(door in printed for door in itertools.pairwise(forward[i]))
        for first, second, sep, mode, *walk, end in walks[i]:
            cells, is_forward = [cell for cell in walk if cell >= 0], mode == task.mode_token("FWD")
            assert (sep, end) == (task.sep, task.eos) and cells[0] == (first if is_forward else second)
            assert all(door in printed for door in itertools.pairwise(cells if is_forward else cells[::-1]))


def test_the_new_task_shows_its_docstring():
    task, problems = Maze(3, 1), Mazes(np.array([[1, 4, 5]]), np.array([[0, 1]]))
    assert task.decode(task.prompts(problems)[0]) == "4 1 4 5 4 5 9"
    traces = task.traces(problems[[0, 0]], np.array([0, 1]))
    assert [*map(task.decode, traces)] == ["FWD 4 5 EOS", "REV 5 4 EOS"]
