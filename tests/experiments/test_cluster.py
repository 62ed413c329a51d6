"""A study on a Dask cluster: the same weights as here, with and without a shared folder, and what goes wrong."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
from distributed import LocalCluster

from experiments import cluster, executors, study
from experiments.cli import main
from experiments.jobs import MAX_ATTEMPTS
from experiments.study import Plan
from minifork import config as configs
from minifork import runs
from minifork.interrupts import PARENT
from minifork.runs import METRICS
from tests.helpers.pipeline import Pipeline, weights_hash

ENTRIES = [
    {"sft.fork_rate": [0.5, 1]},
    {"stage": "rl", "rl.epoch": 2, "rl.updates": 2, "rl.prompts": 4, "rl.problems": 8},
    {"stage": "wise", "wise.weights": "0.5"},
]
LONG = {"sft.epochs": 600, "save_every": 100}  # some ten seconds


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """A scheduler and two workers in processes of their own."""
    folder = tmp_path_factory.mktemp("workers")
    options = {"threads_per_worker": 1, "dashboard_address": None, "local_directory": str(folder)}
    with LocalCluster(n_workers=2, **options) as started:
        yield started


@pytest.fixture
def apart(monkeypatch, tmp_path):
    """Let workers see nothing of the driver's folder."""
    monkeypatch.setattr(cluster, "_marker", lambda config: contextlib.nullcontext(tmp_path / "nowhere"))


def planned(pipeline: Pipeline, workers: LocalCluster, entries: list[dict] = ENTRIES) -> list[Plan]:
    config = pipeline.config(f"reproduce.cluster={workers.scheduler_address}")
    return study.plans(config, entries, [0])


def snapshots(folder: Path) -> dict[str, str]:
    return {path.name: weights_hash(path) for path in sorted(folder.glob("epochs/*.pt"))}


def scratch_of(workers: LocalCluster) -> Path:
    """The folder in which workers that do not see the driver's make their runs."""
    return Path(workers.worker_spec[0]["options"]["local_directory"], "dask-scratch-space", "minifork")


@pytest.mark.slow
def test_workers_without_a_shared_folder_give_the_same_weights(copy, trained, workers, apart, capsys, small, tmp_path):
    """A study from nothing but a config: its weights, its measurements, and nothing left with the workers."""
    plans = planned(copy(), workers)
    executors.run_plans(plans)
    output = capsys.readouterr().out
    assert "2 workers; " in output and "[5/5]" in output
    assert scratch_of(workers).exists() and not [*scratch_of(workers).glob("*")]
    reference = Pipeline(tmp_path / "here", small)
    executors.run_plans(study.plans(reference.config(), ENTRIES, [0]))
    for plan in plans:
        run = runs.require_run(plan.config, plan.stage)
        expected = runs.require_run(replace(plan.config, runs=str(reference.root)), plan.stage)
        assert run.record["weights"] == expected.record["weights"]
        assert all(checkpoint.is_here for checkpoint in run.checkpoints())
    assert main(["eval", *configs.arguments(plans[0].config)]) == 0
    assert ", 0 of them not measured yet" in capsys.readouterr().out
    executors.run_plans(plans)
    assert "workers; " not in capsys.readouterr().out  # nothing is missing


@pytest.mark.slow
def test_workers_with_the_drivers_folder_work_there(copy, trained, workers, capsys):
    plans = planned(copy("base"), workers, [{}])
    executors.run_plans(plans)
    folder = runs.require_run(plans[0].config, "sft").folder
    assert snapshots(folder) == snapshots(trained.run("fork1")) and (folder / "ckpt.pt").exists()
    assert len([*(folder / "eval").glob("*.json")]) == 3 and not [*folder.parent.parent.glob(f"{cluster.MARKER}*")]


@pytest.mark.slow
def test_a_worker_that_is_killed_three_times(copy, workers, apart, small, tmp_path):
    """Its process ends with it, another worker goes on from the last checkpoint, and the weights are the same."""
    pipeline = copy("base")
    plans = planned(pipeline, workers, [LONG])
    thread = threading.Thread(target=executors.run_plans, args=(plans,))
    thread.start()
    scratch, killed = scratch_of(workers) / plans[0].identity, set()
    deadline = time.monotonic() + 120
    while thread.is_alive() and len(killed) < 3 and time.monotonic() < deadline:
        for number in making(scratch):
            if number not in killed and len(killed) < 3 and (scratch / "star" / plans[0].log.stem / METRICS).exists():
                os.kill(parent_of(number), signal.SIGKILL)
                killed.add(number)
        time.sleep(0.2)
    thread.join(120)
    run = runs.require_run(plans[0].config, "sft")
    assert len(killed) == 3 and len(run.record["legs"]) >= 2 and not making(scratch)
    single = Pipeline(tmp_path / "single", small)
    overrides = [f"{key}={value}" for key, value in LONG.items()]
    assert single("pretrain") == single("sft", *overrides) == 0
    assert run.record["weights"] == runs.require_run(single.config(*overrides), "sft").record["weights"]


def making(scratch: Path) -> list[int]:
    """The numbers of the processes that make a run in a folder."""
    numbers = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if f"runs={scratch}".encode() in command:
            numbers.append(int(path.parent.name))
    return numbers


def parent_of(number: int) -> int:
    try:
        return int(Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    except OSError:
        return 0


@pytest.mark.slow
def test_a_job_that_fails_is_named_and_the_others_go_on(copy, workers, apart):
    plans = planned(copy("base"), workers, [{"sft.cue_rate": 1}, {}])
    with pytest.raises(ValueError, match=rf"1 of 2 runs failed: {socket.gethostname()}: .*\.log: minifork: leak audit"):
        executors.run_plans(plans)
    assert runs.finished(plans[1].config, "sft") and not runs.finished(plans[0].config, "sft")


@pytest.mark.slow
def test_a_parent_that_cannot_be_read_stops_no_other_run(copy, workers, apart):
    pipeline = copy("base")
    plans = planned(pipeline, workers, [{}, {"stage": "base", "pretrain.steps": 4}])
    path = runs.folder_of(plans[0].config, "base") / "ckpt.pt"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"1 of 2 runs failed: sft.*ckpt\.pt"):
        executors.run_plans(plans)
    assert runs.finished(plans[1].config, "base")


def test_clusters_that_cannot_be_used_are_refused(copy, workers, monkeypatch):
    plans = planned(copy("base"), workers, [{}])
    monkeypatch.setattr(cluster, "code_version", lambda: "of another version")
    with pytest.raises(ValueError, match="has other code of minifork; install the driver's version there"):
        executors.run_plans(plans)
    monkeypatch.setattr(cluster, "_describe_function", lambda: lambda: (None, False))
    with pytest.raises(ValueError, match="has no minifork; install"):
        executors.run_plans(plans)
    monkeypatch.setattr(cluster, "_describe_function", lambda: lambda: ("of another version", True))
    with pytest.raises(ValueError, match="has a GPU, unlike the driver; give device=cpu"):
        executors.run_plans([replace(plan, config=replace(plan.config, device="auto")) for plan in plans])
    monkeypatch.setattr(cluster, "SECONDS_FOR_A_CONNECTION", 0.5)
    nobody = replace(plans[0].config, reproduce=replace(plans[0].config.reproduce, cluster="tcp://127.0.0.1:1"))
    with pytest.raises(ValueError, match="reproduce.cluster is tcp://127.0.0.1:1: no scheduler answers"):
        executors.run_plans([replace(plans[0], config=nobody)])
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ValueError, match=r"it needs Dask; pip install 'minifork\[cluster\]'"):
        executors.run_plans(plans)


@pytest.mark.parametrize("address", ["local:0", "local:x", "local", "8786", "host:"])
def test_addresses_that_are_none(copy, capsys, address):
    assert "give the address of a Dask scheduler" in copy().refused(capsys, "study", f"reproduce.cluster={address}")


def test_a_worker_refuses_a_job_of_other_code(copy, tmp_path):
    (plan,) = study.plans(copy("base").config(), [{}], [0])
    with pytest.raises(ValueError, match=f"{socket.gethostname()} has other code of minifork"):
        cluster.make(cluster.Job(plan, {}, tmp_path, "of another version"))


def test_errors_of_workers_are_reasons(copy):
    (plan,) = study.plans(copy("base").config(), [{}], [0])
    failed, cancelled = Future(), Future()
    failed.set_exception(OSError(28, "No space\nleft"))
    cancelled.cancel()
    assert cluster.reason_of(plan, failed) == f"{plan.log.stem}: [Errno 28] No space left"
    assert cluster.reason_of(plan, cancelled) == f"{plan.log.stem}: CancelledError"


@pytest.mark.slow
def test_a_job_that_kills_its_workers_is_given_up(copy, workers):
    (plan,) = planned(copy("base"), workers, [{}])
    with cluster.connected(plan.config) as client:
        future = client.get_executor(pure=False).submit(os._exit, 1)
        assert f"on {MAX_ATTEMPTS} different workers" in cluster.reason_of(plan, future)


CHILD = """
import time
from minifork.interrupts import end_with_parent
end_with_parent()
print("started", flush=True)
time.sleep(60)
"""
PARENT_OF_CHILD = """
import os, subprocess, sys
environment = os.environ | {sys.argv[2]: str(os.getpid())}
process = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=environment, stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
process.wait()
"""


def test_a_process_ends_with_the_one_that_started_it():
    """Here the parent is killed, so it can tell nobody."""
    command = [sys.executable, "-c", PARENT_OF_CHILD, CHILD, PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        number = int(process.stdout.readline())
        assert parent_of(number) == process.pid and is_running(number)
        process.kill()
    deadline = time.monotonic() + 10
    while is_running(number) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(number)


def is_running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
