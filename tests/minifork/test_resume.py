"""Interrupted, killed and failed runs go on to the same weights, bit for bit."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minifork import runs
from minifork.storage.weights import load_weights
from minifork.training import loop
from tests.helpers.pipeline import SFT, assert_same_training, ctrl_c, logged_steps

MOMENTS = [("before", 10), ("before", 0), ("between", 21), ("after", 17), ("after", 39)]


@pytest.mark.parametrize(("moment", "step"), MOMENTS)
def test_pretraining_resumes_bit_for_bit(trained, empty, capsys, moment, step):
    with ctrl_c(moment, step):
        assert empty("pretrain") == 130
    assert "interrupted" in capsys.readouterr().err
    saved = load_weights(empty.run("base") / "ckpt.pt")["step"]
    assert step <= saved <= step + 1
    assert empty("pretrain", "--resume") == 0
    assert_same_training(empty.run("base"), trained.run("base"))


@pytest.mark.parametrize("name", ["fork1", "fresh"])
@pytest.mark.parametrize(("moment", "step"), [("before", 6), ("between", 3), ("between", 9)])
def test_fine_tuning_resumes_bit_for_bit(trained, copy, name, moment, step):
    """Step 3 ends epoch 1, whose snapshot must not be lost."""
    pipeline = copy("base")
    with ctrl_c(moment, step):
        assert pipeline("sft", *SFT[name]) == 130
    assert pipeline("sft", "--resume", *SFT[name]) == 0
    assert_same_training(pipeline.run(name), trained.run(name))


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("moment", "step"), MOMENTS[::2])
def test_preemption_loses_no_step(trained, empty, moment, step, number):
    handler = signal.getsignal(number)
    with ctrl_c(moment, step, number):
        assert empty("pretrain") == 130
    assert step <= load_weights(empty.run("base") / "ckpt.pt")["step"] <= step + 1
    assert empty("pretrain", "--resume") == 0 and signal.getsignal(number) is handler
    assert_same_training(empty.run("base"), trained.run("base"))


def test_a_signal_during_the_last_save_loses_no_step(trained, empty, monkeypatch):
    """The run is complete, and nobody goes on as if nothing had come."""
    real = torch.save

    def save(payload, file):
        if payload.get("step") == 40:
            signal.raise_signal(signal.SIGTERM)
        real(payload, file)

    monkeypatch.setattr(torch, "save", save)
    assert empty("pretrain", "save_every=100") == 130
    assert_same_training(empty.run("base"), trained.run("base"))


def test_a_signal_before_the_first_step(trained, empty, monkeypatch):
    """There is nothing to save, and what is there stays readable."""
    drop = loop._drop_metrics_after

    def signalled(*arguments):
        drop(*arguments)
        monkeypatch.undo()
        signal.raise_signal(signal.SIGINT)

    for arguments, step in ((["pretrain"], 3), (["pretrain", "--resume"], 0)):
        monkeypatch.setattr(loop, "_drop_metrics_after", signalled)
        assert empty(*arguments) == 130
        with ctrl_c("before", step):
            assert empty(*arguments) == 130
    assert load_weights(empty.run("base") / "ckpt.pt")["step"] == 5
    assert empty("pretrain", "--resume") == 0
    assert_same_training(empty.run("base"), trained.run("base"))


def test_a_signal_that_is_ignored_stays_so(empty, monkeypatch):
    """As under nohup: the run goes on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ctrl_c("before", 3, signal.SIGHUP):
            assert empty("pretrain") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("ending", ["| true", ">&- 2>&-", "> /dev/full 2> /dev/full"])
def test_output_that_nobody_reads_ends_nothing(empty, tmp_path, ending):
    """The run is complete and nothing complains."""
    command = shlex.join([sys.executable, "-m", "minifork", *empty.arguments("pretrain")])
    errors = tmp_path / "errors"
    redirect = "" if "2>" in ending else f"2> {errors}"
    script = f"set -o pipefail; {command} {redirect} {ending}"
    subprocess.run(["bash", "-c", script], check=ending != "| true", stdout=subprocess.DEVNULL)
    assert runs.read_run(empty.run("base")).complete
    assert not errors.exists() or errors.read_text(encoding="utf-8") == ""


EARLY = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIG{name})
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize(
    ("module", "name"), [("argparse", "INT"), ("argparse", "HUP"), ("numpy", "TERM"), ("torch", "INT")]
)
def test_a_signal_during_imports(empty, tmp_path, module, name):
    """Before the command handles signals, and after: no traceback, and the exit code that a shell expects."""
    (tmp_path / "sitecustomize.py").write_text(EARLY.format(module=module, name=name), encoding="utf-8")
    command = [sys.executable, "-m", "experiments", *empty.arguments("pretrain")]
    path = f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"
    process = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    early = module == "argparse"
    assert process.returncode == (-getattr(signal, f"SIG{name}") if early else 130), process.stderr
    assert "Traceback" not in process.stderr and ("interrupted" in process.stderr) != early


def test_interrupted_twice(trained, empty):
    """And the signal handler is as it was."""
    handler = signal.getsignal(signal.SIGINT)
    for arguments, after in ((["pretrain"], 8), (["pretrain", "--resume"], 13)):
        with ctrl_c("before", after):
            assert empty(*arguments) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    assert empty("pretrain", "--resume") == 0
    assert_same_training(empty.run("base"), trained.run("base"))


KILL = """
import os, signal, sys
from data_gen import walks
real = walks.walk_batch
def batch(task, stop, seq_len, seed, step, n, informed):
    if step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(task, stop, seq_len, seed, step, n, informed)
walks.walk_batch = batch
from experiments.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("step", [20, 2])
def test_resumes_bit_for_bit_after_a_kill(trained, empty, step):
    """Checkpoints lie at every third step: at 20 two steps are lost, one of them logged; at 2 all are."""
    command = [sys.executable, "-c", KILL, str(step), *empty.arguments("pretrain")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, cwd=Path(__file__).parents[2], env=environment)
    assert process.returncode == -signal.SIGKILL, process.stderr
    checkpoint = empty.run("base") / "ckpt.pt"
    assert load_weights(checkpoint)["step"] == 18 if step == 20 else not checkpoint.exists()
    assert empty("pretrain", "--resume") == 0
    assert_same_training(empty.run("base"), trained.run("base"))


def test_a_failed_save_at_the_end_is_resumed(trained, empty, monkeypatch, capsys):
    """The disk is full at the last checkpoint; with room again the run goes on from the one before."""
    replace = os.replace

    def full(source, target):
        if target.name == "ckpt.pt" and load_weights(Path(source))["step"] == 40:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert "No space left on device" in empty.refused(capsys, "pretrain")
    monkeypatch.undo()
    assert "--resume" in empty.refused(capsys, "pretrain")
    assert empty("pretrain", "--resume") == 0
    assert_same_training(empty.run("base"), trained.run("base"))


def test_metrics_past_the_checkpoint_are_dropped(trained, empty):
    """A resumed run logs them again, and a line that a crash cut short."""
    with ctrl_c("before", 21):
        assert empty("pretrain") == 130
    folder = empty.run("base")
    assert logged_steps(folder) == [10, 20]
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as log:
        log.write('{"step": 30, "loss": 9}\n{"step": 40, "lo')
    assert empty("pretrain", "--resume") == 0
    assert_same_training(folder, trained.run("base"))
