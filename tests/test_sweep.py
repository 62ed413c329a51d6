"""Sweeps: how they expand, that finished runs are skipped, killed workers run again, and failures named."""

import json
import os
import signal
import stat
import subprocess
import sys
import time

import pytest
import yaml

from experiments import sweep
from minifork import config as configs
from minifork import runs

SEEDS = ("seed=3", "base_seed=3")


def test_expands_in_full():
    entry = {"sft.fork_rate": [0, 1], "model.width": [32, 64], "sft.fresh": True, "name": "w{model.width}-seed{pair}"}
    found = sweep.expand(entry, 3, "here")
    assert [job.overrides for job in found] == [
        (*SEEDS, f"sft.fork_rate={rate}", f"model.width={width}", "sft.fresh=true", f"name=w{width}-seed3")
        for rate in (0, 1)
        for width in (32, 64)
    ]  # fmt: skip
    assert {job.stage for job in found} == {"sft"}
    assert sweep.expand({"runs": "{runs}/x"}, 0, "here")[0].overrides[-1] == "runs=here/x"
    assert sweep.expand({"stage": "rl", "data.modulus": None}, 0, "here") == [
        sweep.Job("rl", ("seed=0", "base_seed=0", "data.modulus=null"))
    ]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("sft.fork_rate: 1", "a sweep is a list of mappings"),
        ("- sft.fork_rate", "a sweep is a list of mappings"),
        ("- {name: 'x{sed}'}", "'{sed}' is neither pair, runs nor a key of its entry"),
        ("- {stage: pretrain}", "stage is 'pretrain': choose sft, wise, rl"),
        ("- {a: [}", "not a YAML file"),
        ("- {sft.frok_rate: 1}", "entry {'sft.frok_rate': 1}: unknown key 'sft.frok_rate'"),
        ("- {sft.loss: gem=x}", "sft.loss"),
        ("- {sft.fork_rate: []}", "an empty list makes no run"),
        ("[]", "a sweep is a list of mappings"),
    ],
)
def test_malformed_sweeps_are_named(config_file, tmp_path, text, named):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="mine.yaml") as error:
        sweep.read(configs.load(config_file, [f"reproduce.sweep={path}"]), [0])
    assert named in str(error.value)


def test_runs_that_share_a_folder_are_refused(config_file, tmp_path):
    config = configs.load(config_file, [f"runs={tmp_path}"])
    jobs = [sweep.Job("sft", (*SEEDS, f"sft.lr={lr}")) for lr in (0.001, 0.002)]
    with pytest.raises(ValueError, match="two runs of a sweep share the folder .*sft-fork1-seed3"):
        sweep.sweep(config, sweep.start(config), jobs)


def test_runs_that_need_different_bases_in_one_folder_are_refused(config_file, tmp_path):
    config = configs.load(config_file, [f"runs={tmp_path}"])
    jobs = [sweep.Job("sft", (*SEEDS, f"pretrain.steps={steps}", f"name=p{steps}-seed3")) for steps in (40, 50)]
    with pytest.raises(ValueError, match="need different bases in .*base-seed3"):
        sweep.sweep(config, sweep.start(config), jobs)


def test_what_a_later_stage_would_refuse_is_refused_first(config_file, tmp_path):
    config = configs.load(config_file, [f"runs={tmp_path}", "eval.policy=nonsense"])
    with pytest.raises(ValueError, match="nonsense"):
        sweep.start(config)
    config = configs.load(config_file, [f"runs={tmp_path}"])
    with pytest.raises(ValueError, match="hinge"):
        sweep.sweep(config, sweep.start(config), [sweep.Job("sft", (*SEEDS, "sft.loss=hinge"))])


def test_an_unknown_sweep_lists_the_known(config_file):
    with pytest.raises(ValueError, match="arith, mixed, search, sensitivity, star"):
        sweep.read(configs.load(config_file, ["reproduce.sweep=stars"]), [0])


@pytest.mark.parametrize("name", [path.stem for path in sweep.FOLDER.glob("*.yaml")])
def test_shipped_sweeps_plan_different_runs(name, config_file):
    task, preset = {"search": ("star", ["preset=search"]), "sensitivity": ("star", [])}.get(name, (name, []))
    config = configs.load(config_file.replace("star", task), [*preset, f"reproduce.sweep={name}"])
    jobs = sweep.read(config, range(2))
    folders = [runs.run_folder(configs.changed(config, job.overrides), job.stage) for job in jobs]
    assert len(set(folders)) == len(folders) >= 4


@pytest.fixture
def planned(copy):
    """A pipeline with a base, its config file, and two jobs."""
    pipeline = copy("base-seed0")
    config = pipeline.config()
    jobs = [
        sweep.Job("sft", ("seed=0", "base_seed=0", f"sft.fork_rate={rate}", "sft.fork_in_graph=true"))
        for rate in (0.5, 1)
    ]
    return pipeline, config, sweep.start(config), jobs


def test_runs_and_skips(planned, capsys, monkeypatch):
    pipeline, config, source, jobs = planned
    sweep.sweep(config, source, jobs)
    assert "[2/2]" in capsys.readouterr().out
    folders = [pipeline.folder / f"sft-fork{rate}-graph-seed0" for rate in ("0.5", "1")]
    assert all(runs.is_complete(folder) for folder in folders)
    assert all("16 steps in" in (pipeline.folder / "logs" / f"{f.name}.log").read_text() for f in folders)
    before = [(folder / "ckpt.pt").stat().st_mtime_ns for folder in folders]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a finished run was started again"))
    sweep.sweep(config, source, jobs)
    assert before == [(folder / "ckpt.pt").stat().st_mtime_ns for folder in folders]


def test_a_run_that_is_planned_twice_is_made_once(planned, capsys):
    """However it is written: two processes in one folder would refuse each other."""
    _, config, source, jobs = planned
    again = sweep.Job("sft", (*jobs[0].overrides, f"sft.epochs={config.sft.epochs}"))
    sweep.sweep(config, source, [jobs[0], again])
    assert "[1/1]" in capsys.readouterr().out


def test_a_killed_worker_is_run_again(planned, tmp_path, monkeypatch):
    """The first two starts die by SIGKILL; the run is whole in the end."""
    pipeline, config, source, jobs = planned
    wrapper, count = tmp_path / "python", tmp_path / "starts"
    wrapper.write_text(
        f'#!/bin/sh\necho x >> {count}\n[ $(wc -l < {count}) -le 2 ] && kill -9 $$\nexec {sys.executable} "$@"\n'
    )
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(wrapper))
    sweep.sweep(config, source, jobs[:1])
    assert runs.is_complete(pipeline.folder / "sft-fork0.5-graph-seed0") and len(count.read_text().split()) == 3


def test_failures_are_named_and_the_others_finish(planned):
    pipeline, config, source, jobs = planned
    (pipeline.folder / "bad").mkdir()
    (pipeline.folder / "bad" / "meta.json").write_text(json.dumps({"stage": "rl"}))
    bad = sweep.Job("sft", (*jobs[0].overrides, "name=bad"))
    with pytest.raises(ValueError, match=r"1 of 2 runs failed: .*logs/bad\.log: minifork: .*another stage"):
        sweep.side_by_side(config, source, [bad, jobs[1]])
    assert runs.is_complete(pipeline.folder / "sft-fork1-graph-seed0")


@pytest.mark.parametrize("run", ["base-seed0", "sft-fork1-seed0"])
def test_interrupting_a_sweep_saves(copy, tmp_path, run):
    """Ctrl-C, in a base on all cores and in a run beside others: exit code 130, what was done is saved."""
    base = run == "base-seed0"
    pipeline = copy() if base else copy("base-seed0")
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump([{"sft.fork_rate": 1, "sft.epochs": 400}]))
    long = ["pretrain.steps=4000"] if base else []
    source = sweep.start(pipeline.config(f"reproduce.sweep={mine}", "save_every=10000", *long))
    command = [sys.executable, "-m", "minifork", "reproduce", "--config", str(source)]
    with subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        metrics = pipeline.folder / run / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not metrics.exists() or not metrics.read_text():
            assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        errors = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "Traceback" not in errors, errors
    meta = runs.read_json(pipeline.folder / run / "meta.json")
    assert 0 < meta["step"] < meta["steps"] and not meta["complete"]
