"""Interrupted, killed and failed runs go on to the same weights, bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minifork import runs
from tests.pipeline import SFT, assert_same_training, ctrl_c


@pytest.mark.parametrize(
    ("moment", "step"), [("before", 10), ("before", 0), ("between", 21), ("after", 17), ("after", 39)]
)
def test_pretraining_resumes_bit_for_bit(trained, copy, capsys, moment, step):
    pipeline = copy()
    with ctrl_c(moment, step):
        assert pipeline("pretrain") == 130
    assert "interrupted" in capsys.readouterr().err
    saved = runs.load_weights(pipeline.folder / "base-seed0" / "ckpt.pt")["step"]
    assert step <= saved <= step + 1
    assert pipeline("pretrain", "--resume") == 0
    assert_same_training(pipeline.folder / "base-seed0", trained.folder / "base-seed0")


@pytest.mark.parametrize("name", ["sft-fork1-seed0", "fresh-seed0"])
@pytest.mark.parametrize(("moment", "step"), [("before", 6), ("between", 3), ("between", 9)])
def test_fine_tuning_resumes_bit_for_bit(trained, copy, name, moment, step):
    """Step 3 ends epoch 1, whose snapshot must not be lost."""
    pipeline = copy("base-seed0")
    with ctrl_c(moment, step):
        assert pipeline("sft", *SFT[name]) == 130
    assert pipeline("sft", "--resume", *SFT[name]) == 0
    assert_same_training(pipeline.folder / name, trained.folder / name)


def test_interrupted_twice(trained, copy):
    pipeline = copy()
    for arguments, after in ((["pretrain"], 8), (["pretrain", "--resume"], 13)):
        with ctrl_c("before", after):
            assert pipeline(*arguments) == 130
    assert pipeline("pretrain", "--resume") == 0
    assert_same_training(pipeline.folder / "base-seed0", trained.folder / "base-seed0")


def test_interrupting_leaves_the_signal_handler_as_it_was(copy):
    before = signal.getsignal(signal.SIGINT)
    pipeline = copy()
    with ctrl_c("before", 2):
        assert pipeline("pretrain") == 130
    assert signal.getsignal(signal.SIGINT) is before


KILL = """
import os, signal, sys
from data_gen import walks
real = walks.walk_batch
def batch(task, stop, seq_len, seed, step, n, informed):
    if step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(task, stop, seq_len, seed, step, n, informed)
walks.walk_batch = batch
from minifork.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("step", [20, 2])
def test_resumes_bit_for_bit_after_a_kill(trained, copy, step):
    """Checkpoints lie at every third step: at 20 two steps are lost, one of them logged; at 2 all are."""
    pipeline = copy()
    process = subprocess.run(
        [sys.executable, "-c", KILL, str(step), *pipeline.arguments("pretrain")],
        capture_output=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    checkpoint = pipeline.folder / "base-seed0" / "ckpt.pt"
    assert runs.load_weights(checkpoint)["step"] == 18 if step == 20 else not checkpoint.exists()
    assert pipeline("pretrain", "--resume") == 0
    assert_same_training(pipeline.folder / "base-seed0", trained.folder / "base-seed0")


def test_a_failed_save_at_the_end_is_resumed(trained, copy, monkeypatch, capsys):
    """The disk is full at the last checkpoint; with room again the run goes on from the one before."""
    pipeline, real = copy(), torch.save

    def full(payload, file):
        if payload.get("step") == 40:
            file.write(b"half of")
            raise OSError(28, "No space left on device")
        real(payload, file)

    monkeypatch.setattr(torch, "save", full)
    assert "No space left on device" in pipeline.refused(capsys, "pretrain")
    monkeypatch.undo()
    assert "--resume" in pipeline.refused(capsys, "pretrain")
    assert pipeline("pretrain", "--resume") == 0
    assert_same_training(pipeline.folder / "base-seed0", trained.folder / "base-seed0")


def test_a_run_that_failed_early_may_be_corrected(copy, capsys):
    """Killed before its first checkpoint it has only snapshots; another config then starts anew, without them."""
    pipeline = copy("base-seed0")
    folder = pipeline.folder / "sft-fork1-seed0"
    assert pipeline("sft") == 0
    for name in ("ckpt.pt", "meta.json"):
        (folder / name).unlink()
    assert pipeline("sft", "sft.epochs=2", "sft.lr=0.002") == 0
    assert sorted(path.name for path in folder.glob("epochs/*")) == ["e1.pt", "e2.pt"]
    assert "another config" in pipeline.refused(capsys, "sft")
