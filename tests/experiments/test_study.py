"""Studies: the notation, that shipped ones can be planned, that runs are made once, and that failures are named."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from experiments import executors, jobs, study
from experiments.cli import main
from experiments.studies import steps
from minifork import config as configs
from minifork import runs
from minifork.cli import EXIT_HELD
from minifork.storage import files, locks
from tests.helpers.pipeline import Pipeline, assert_same_training, logged_steps
from tests.helpers.starts import Starts

GRAPHS = {"sft.fork_in_graph": True, "sft.fork_rate": [0.5, 1]}  # two runs that `trained` lacks
SHIPPED = {  # the tasks of each study, with a preset after a colon
    "star": "star star:small star:paper",
    "arith": "arith arith:small arith:paper",
    "sizes": "sizes sizes:small",
    "search": "star:search",
    "openers": "openers openers:small openers:paper",
    "rationale": "star:rationale",
    "layers": "layers layers:small",
    "law": "star",
    "sigma": "star",
    "competence": "arith:competence",
    "demo": "star:demo",
    "frontier": "star star:small star:search arith arith:small sizes",
    **dict.fromkeys(("sensitivity", "rl", "rl_lab", "stops", "anchoring", "flips", "spread"), "star star:small"),
}


def test_notation():
    """Pairs, then entries, then the product of values, the last fastest; names are filled in."""
    entries = [
        {"as": "w{model.width} r{sft.fork_rate} {sft.fresh}", "model.width": [32, 64], "sft.fork_rate": [0.25, 1],
         "sft.fresh": True, "data.branch_order": "published", "test_set": "published"},
        {"stage": "rl", "rl.epoch": 2, "choose": "rl.epoch"},
    ]  # fmt: skip
    plans = study.plans(configs.load_config("star"), entries, [3, 4])
    first = [f"w{width} r{rate} true" for width in (32, 64) for rate in ("0.25", "1")]
    assert [plan.name for plan in plans] == [*first, "rl"] * 2
    assert [(plan.config.seed, plan.config.base_seed) for plan in plans] == [(3, 3)] * 5 + [(4, 4)] * 5
    assert {(plan.stage, plan.test_set, plan.choose) for plan in plans[:4]} == {("sft", "published", "")}
    rl = plans[4]
    assert (rl.stage, rl.test_set, rl.value, rl.config.rl.epoch) == ("rl", "plain", 2, 2)
    assert rl.identity == runs.identity(rl.config, "rl") != plans[9].identity
    changes = configs.tags(plans[0].config)
    keys = {"model.width": 32, "sft.fork_rate": 0.25, "sft.fresh": True, "data.branch_order": "published"}
    assert changes == keys | {"seed": 3, "base_seed": 3}


def test_multiples_of_the_config():
    config = configs.load_config("star", ["sft.traces=200", "sft.epochs=6"])
    plans = study.plans(config, [{"sft.traces": ["x4", "/4", 100], "sft.epochs": "/4"}, {"sft.epochs": "/100"}], [0])
    assert [plan.config.sft.traces for plan in plans] == [800, 50, 100, 200]
    assert [plan.config.sft.epochs for plan in plans] == [1] * 4


@pytest.mark.parametrize(("task", "names"), [("star", ["FWD"]), ("arith", ["FWD", "RAT"])])
def test_entries_need_their_mode(task, names):
    entries = [{"as": mode, "needs": mode} for mode in ("FWD", "RAT", "SEARCH")]
    assert [plan.name for plan in study.plans(configs.load_config(task), entries, [0])] == names


def test_an_entry_may_be_run_for_fewer_pairs():
    entries = [{"as": "all"}, {"as": "the first two", "pairs": 2}]
    plans = study.plans(configs.load_config("star"), entries, range(3))
    assert [(plan.name, plan.config.seed) for plan in plans if plan.name != "all"] == [
        ("the first two", 0),
        ("the first two", 1),
    ]
    assert len(plans) == 5


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({"pairs": 0}, "pairs is 0: it is an integer of 1 or more"),
        ({"pairs": True}, "pairs is True"),
        ({"sft.fork_rate": []}, "an empty list makes no run"),
        ({"seed": [1, 2]}, "seeds are those of the pair"),
        ({"sft.frok_rate": 1}, "unknown key 'sft.frok_rate'; did you mean sft.fork_rate?"),
        ({"stage": "pretrain"}, "stage is 'pretrain': choose base, sft, wise, rl"),
        ({"needs": ["RAT"]}, "needs must be words"),
        ({"as": "x{sed}"}, "'{sed}' is no key of the config"),
        ({"choose": "sft.lss", "sft.loss": ["gem=0.5", "gem=0.7"]}, "sft.lss"),
        ({"sft.loss": "hinge"}, "sft.loss 'hinge' does not exist"),
        ({"eval.policy": ["temperature=2", "nonsense"]}, "nonsense"),
        ({"stage": "rl", "rl.policy": "top_p=2"}, "rl.policy: policy top_p is 2"),
        ({"stage": "rl", "rl.source": "sft"}, "rl.problems is 1600: rl.source=sft, and fine-tuning has 1000 distinct"),
        ({"stage": "rl", "rl.epoch": 3}, "rl.epoch is 3: there are weights of 0, 1, 2, 4, 8, 16, 32, 64"),
        ({"stage": "wise", "wise.weights": "0.5", "wise.early": 64}, "wise.early is 64: give one of 0, 1, 2, 4, 8"),
        ({"stage": "wise", "wise.weights": "0.25,0.5"}, "a run has one share"),
        ({"sft.lr": "x4"}, "sft.lr must be a number, not 'x4'"),
        ({"sft.epochs": "/0"}, "/0"),
        ({"pairs": [1, 2]}, r"pairs is [1, 2]: it is an integer"),
        ({"pairs": []}, r"pairs is []: it is an integer"),
        ({"test_set": "cue1"}, "test_set is 'cue1': such a run has plain"),
        ({"preset": "small"}, "preset applies on the command line only"),
    ],
)
def test_what_cannot_be_run_is_refused_with_its_entry(entry, error):
    """At once, not hours later."""
    with pytest.raises(ValueError) as refusal:
        study.plans(configs.load_config("star"), [{}, entry], [0])
    assert error in str(refusal.value) and f"entry {entry}" in str(refusal.value)


@pytest.mark.parametrize("text", ["sft.fork_rate: 1", "- sft.fork_rate", "[]", "- {a: [}", "- {a: 1, 0.5}", None])
def test_files_that_hold_no_study_are_named(tmp_path, text):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"mine\.yaml: (a study is a list|not a YAML file|0.5 is no key|no such study; .* arith)"
    ):
        study.read_study(str(path))


@pytest.mark.parametrize("name", sorted(path.stem for path in study.STUDIES.glob("*.yaml")))
def test_shipped_studies_can_be_planned(name):
    """Runs differ, but for decoders on one and data that decide no base; commands read back as the same configs."""
    for task, _, preset in (words.partition(":") for words in SHIPPED[name].split()):
        config = configs.load_config(task, [f"preset={preset}"] if preset else [])
        plans = study.plans(config, study.read_study(name), [1])
        assert len({(plan.identity, plan.config.data, plan.config.eval) for plan in plans}) == len(plans) >= 1
        for plan in plans:
            _, source, *words = configs.arguments(plan.config)
            assert configs.load_config(source, words) == plan.config
            values = {other.value for other in plans if other.name == plan.name and other.choose}
            assert bool(plan.choose) == (len(values) > 1)


def test_pairs_that_nobody_has_looked_at_are_refused(capsys):
    for command in ("study", "reproduce", "frontier", "contrast", "sensitivity"):
        assert main([command, "reproduce.pairs=6"]) == 1 and "reproduce.pairs is 6" in capsys.readouterr().err


# running


def test_reserved_pairs_are_for_a_confirmation(copy, monkeypatch):
    with pytest.raises(
        ValueError, match="pair 5 with eval.split=test: pairs 5 to 9 and the split confirm go together; see"
    ):
        executors.run_plans(study.plans(copy().config(), [{}], [4, 5]))
    with pytest.raises(ValueError, match="pair 4 with eval.split=confirm"):
        executors.run_plans(study.plans(copy().config("eval.split=confirm"), [{}], [4]))
    config = configs.load_config("star", ["preset=confirm"])
    assert [*config.reproduce.seeds] == [5, 6, 7, 8, 9] and config.eval.split == "confirm"
    plans = study.plans(config, [{"pairs": 2}], config.reproduce.seeds)
    assert [plan.config.seed for plan in plans] == [5, 6]
    starts = Starts(monkeypatch, lambda command: 0)
    executors.run_plans(study.plans(copy().config("eval.split=confirm"), [{}], [5]))
    assert starts.commands == ["pretrain", "sft"]


def test_what_runs_start_from_is_made_once_and_first(copy, monkeypatch):
    starts = Starts(monkeypatch, lambda command: 0)
    entries = [
        {"stage": "rl", "rl.mode": ["FWD", "free"]},
        {"stage": "wise", "wise.weights": ["0.25", "0.5"]},
        {"sft.fork_rate": [0.5, 1]},
        {"eval.policy": ["temperature=1", "temperature=2"]},  # decoders on a run that is there already
        {"stage": "rl", "rl.epoch": 0},
    ]
    executors.run_plans(study.plans(copy().config("reproduce.workers=1"), entries, [0, 1]))
    assert starts.commands[:2] == ["pretrain"] * 2 and starts.threads[:2] == [os.environ.get("OMP_NUM_THREADS")] * 2
    assert sorted(starts.commands[2:]) == ["rl"] * 6 + ["sft"] * 4 + ["wise"] * 4 and starts.threads[2:] == ["1"] * 14
    assert {*starts.commands[2:8]} == {"sft", "rl"}  # RL from a base waits for no fine-tuning


def test_on_a_gpu_bases_run_side_by_side(copy, monkeypatch):
    monkeypatch.setattr(executors, "pick_device", lambda config: "cuda")
    starts = Starts(monkeypatch, lambda command: 0)
    executors.run_plans(study.plans(copy().config(), [{}], [0, 1]))
    assert sorted(starts.commands) == ["pretrain"] * 2 + ["sft"] * 2 and starts.threads == ["1"] * 4


@pytest.mark.parametrize(
    ("stage", "code", "error"),
    [("pretrain", 1, ValueError), ("pretrain", 130, KeyboardInterrupt), ("sft", -2, KeyboardInterrupt)],
)
def test_a_base_that_fails_and_ctrl_c_stop_the_study(copy, monkeypatch, stage, code, error):
    starts = Starts(monkeypatch, lambda command: code if command[0] == stage else 0)
    with pytest.raises(error, match="failed .see above.: -m minifork pretrain --resume" if code == 1 else None):
        executors.run_plans(study.plans(copy().config("reproduce.workers=1"), [{}, {"stage": "rl"}], [0, 1]))
    assert starts.commands[-1] == stage and "rl" not in starts.commands


@pytest.mark.slow
def test_killed_runs_are_repeated_and_finished_ones_skipped(copy, small, tmp_path, capsys, monkeypatch):
    """The first two starts die by SIGKILL. In the end both runs are whole, with the weights of an undisturbed one."""
    wrapper, count = tmp_path / "python", tmp_path / "starts"
    claim = f"mkdir {tmp_path}/first 2>/dev/null || mkdir {tmp_path}/second 2>/dev/null"  # succeeds twice in all
    script = f'#!/bin/sh\necho x >> {count}\n{claim} && kill -9 $$\nexec {sys.executable} "$@"\n'
    wrapper.write_text(script, encoding="utf-8")
    wrapper.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(wrapper))
    plans = study.plans(copy("base").config("reproduce.workers=2"), [GRAPHS], [0])
    executors.run_plans(plans)
    assert "[2/2]" in capsys.readouterr().out and len(count.read_text(encoding="utf-8").split()) == 4
    assert all("16 steps in" in plan.log.read_text(encoding="utf-8") for plan in plans)
    executors.run_plans(plans)
    assert len(count.read_text(encoding="utf-8").split()) == 4
    single = Pipeline(tmp_path / "alone", small)
    assert single("pretrain") == single("sft", "sft.fork_in_graph=true") == 0
    folder = runs.require_run(plans[1].config, "sft").folder
    assert_same_training(folder, single.at("sft", "sft.fork_in_graph=true"))


def test_failures_are_named_after_all_others(copy, monkeypatch):
    Starts(monkeypatch)
    leaking, *plans = study.plans(copy("base").config(), [{"sft.cue_rate": 1}, GRAPHS], [0])
    with pytest.raises(ValueError, match=r"1 of 2 runs failed: .*logs/sft-fork1-seed0-\w+\.log: minifork: leak audit"):
        executors.run_plans([leaking, plans[1]])
    assert runs.finished(plans[1].config, "sft") and not runs.finished(leaking.config, "sft")


def test_a_failure_is_reported_with_its_own_error(copy, monkeypatch):
    """Not with a warning, nor with what another process wrote to the same log."""
    (plan,) = study.plans(copy("base").config(), [{}], [0])

    def fail(command: list[str]) -> int:
        print("minifork: the disk is full\na warning", file=sys.stderr)
        with plan.log.open("a", encoding="utf-8") as log:
            log.write("minifork: of another process\n")
        return 1

    Starts(monkeypatch, fail)
    with pytest.raises(ValueError, match="minifork: the disk is full$"):
        executors.run_plans([plan])
    lines = plan.log.read_text(encoding="utf-8").splitlines()
    assert sorted(lines) == ["a warning", "minifork: of another process", "minifork: the disk is full"]
    for code, reason in {-9: "killed by signal 9, 5 times", 2: "exit code 2, no output"}.items():
        Starts(monkeypatch, lambda command, code=code: code)
        with pytest.raises(ValueError, match=reason):
            executors.run_plans([plan])


@pytest.mark.parametrize("stage", ["base", "sft"])
def test_a_run_that_another_process_makes_is_waited_for(copy, trained, monkeypatch, capsys, stage):
    """And started only if it is not complete then."""
    pipeline = copy() if stage == "base" else copy("base")
    (plan,) = study.plans(pipeline.config(), [{"stage": stage}], [0])
    starts, folder = Starts(monkeypatch, lambda command: 0), pipeline.at(stage)
    waiting = threading.Thread(target=executors.run_plans, args=([plan],))
    with locks.locked(folder):
        waiting.start()
        waiting.join(0.6)
        assert waiting.is_alive()
        shutil.copytree(trained.at(stage), folder, dirs_exist_ok=True)
    waiting.join(30)
    line = f"{folder}: process {os.getpid()} on {socket.gethostname()} is working here; waiting until it has finished"
    assert not waiting.is_alive() and not starts.commands and capsys.readouterr().out.count(line) == 1


def test_an_interrupted_run_keeps_its_errors(copy, monkeypatch):
    (plan,) = study.plans(copy("base").config(), [{}], [0])

    def interrupt(command: list[str]) -> int:
        print("minifork: interrupted", file=sys.stderr)
        return 130

    Starts(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        executors.run_plans([plan])
    assert "minifork: interrupted" in plan.log.read_text(encoding="utf-8")


def test_a_run_that_another_process_began_first_is_asked_for_again(copy, monkeypatch):
    codes = iter([EXIT_HELD, EXIT_HELD, 0])
    starts = Starts(monkeypatch, lambda command: next(codes))
    executors.run_plans(study.plans(copy("base").config(), [{}], [0]))
    assert starts.commands == ["sft"] * 3


@pytest.mark.slow
def test_two_sweeps_on_one_folder_make_each_run_once(empty, tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("- {sft.fork_rate: [0.5, 1], sft.epochs: 10}\n", encoding="utf-8")
    command = [sys.executable, "-m", "experiments", *empty.arguments("study", f"reproduce.study={mine}")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    printed = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], printed
    assert "is working here; wait" in "".join(printed)
    made = runs.all_runs(empty.config())
    assert len(made) == 3 and all(run.complete and len(run.record["legs"]) == 1 for run in made)
    assert all(len({*logged_steps(run.folder)}) == len(logged_steps(run.folder)) for run in made)


def test_the_command_evaluates_what_it_made(copy, tmp_path, capsys, monkeypatch):
    pipeline, mine = copy("base", "fork0.5", "fork1", measured=True), tmp_path / "mine.yaml"
    mine.write_text("- {sft.fork_rate: [0.5, 1]}\n", encoding="utf-8")
    starts = Starts(monkeypatch)
    assert pipeline("study", f"reproduce.study={mine}") == 0 and not starts.commands
    names = {pipeline.run(name).name for name in ("base", "fork0.5", "fork1")}
    assert {record["run"] for record in pipeline.view()["records"]} == names
    monkeypatch.setattr(steps, "evaluate", lambda *_: 1)
    assert "the engines disagree" in pipeline.refused(capsys, "study", f"reproduce.study={mine}")


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("base", signal.SIGINT),
        ("sft", signal.SIGINT),
        ("sft", signal.SIGTERM),
        pytest.param("base", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("sft", signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_saves(copy, tmp_path, stage, number):
    """In a base on all cores and in a run beside others: exit code 130, what was done is saved, nobody goes on.

    Ctrl-C comes to all processes of a terminal, the others to the first of them alone.
    """
    pipeline, mine = copy("base") if stage == "sft" else copy(), tmp_path / "mine.yaml"
    mine.write_text("- {sft.fork_rate: 1, sft.epochs: 400}\n", encoding="utf-8")
    steps = ["pretrain.steps=4000"] if stage == "base" else []
    config = pipeline.config(f"reproduce.study={mine}", "save_every=10000", *steps)
    command = [sys.executable, "-m", "experiments", "study", *configs.arguments(config)]
    folder = pipeline.at(stage, "sft.epochs=400", *steps)
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | jobs.ONE_CORE, start_new_session=True, **pipes) as process:
        metrics, deadline = folder / "metrics.jsonl", time.monotonic() + 120
        while not metrics.exists() or not metrics.read_text(encoding="utf-8"):
            assert time.monotonic() < deadline and process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        errors = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "Traceback" not in errors, errors
    record = files.read_json(folder / runs.RECORD)
    assert 0 < record["step"] < record["steps"] and not record["complete"]
    with locks.locked(folder, wait=False):  # its process has ended
        assert logged_steps(folder)[-1] <= record["step"]
