"""What a run's record says, records that cannot be read, parents that were made anew, a full disk."""

import contextlib
import platform
import resource
import shutil
from dataclasses import asdict

import pytest
import torch

from experiments import executors, study
from minifork import runs
from minifork.config import load_config
from minifork.storage import files
from tests.helpers.pipeline import (
    SFT,
    Pipeline,
    assert_same_training,
    ctrl_c,
    edit_record,
    replace_weights,
    snapshot,
    weights_hash,
)
from tests.minifork.storage.test_files import everything

RL, HALF = ["rl", "rl.updates=2", "rl.problems=8", "rl.prompts=4"], ["wise", "wise.weights=0.5"]


@pytest.mark.parametrize("name", ["base", *SFT])
def test_what_a_record_says(trained, name):
    run, base = runs.read_run(trained.run(name)), runs.read_run(trained.run("base"))
    record, config = files.read_json(run.folder / runs.RECORD), trained.config(*SFT.get(name, []))
    assert (record["format"], record["version"]) == ("minifork-run", 2)
    assert record["stage"] == ("sft" if name in SFT else "base") and run.tags()["model.width"] == 32
    assert record["identity"] == run.identity == runs.identity(config, run.stage)
    assert run.folder.name.endswith(f"-{run.identity[:8]}")
    assert record["config"] == asdict(config) and run.config == config
    start = {"run": base.name, "file": "ckpt.pt", "weights": base.record["weights"]["ckpt.pt"]}
    assert record["parent"] == (None if name == "base" else start)
    assert {*record["weights"]} == {str(path.relative_to(run.folder)) for path in run.folder.rglob("*.pt")}
    assert all(weights_hash(run.folder / file) == digits for file, digits in record["weights"].items())
    (leg,) = record["legs"]
    assert record["complete"] is True and record["step"] == record["steps"] == (40 if name == "base" else 16)
    assert (leg["from"], leg["to"]) == (0, record["step"])


def test_legs_of_an_interrupted_run(empty, threads, capsys):
    """Each holds its steps, the machine, torch, the threads and the seconds; a change that may move bits is printed."""
    threads(2)
    with ctrl_c("before", 3):
        assert empty("pretrain") == 130
    threads(1)
    assert empty("pretrain", "--resume") == 0
    record = runs.read_run(empty.run("base")).record
    made = {
        "machine": runs.processor(),
        "architecture": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": "cpu",
        "torch": str(torch.__version__),
    }
    expected = [{"from": 0, "to": 4, "threads": 2} | made, {"from": 4, "to": 40, "threads": 1} | made]
    assert [{key: value for key, value in leg.items() if key != "seconds"} for leg in record["legs"]] == expected
    assert record["seconds"] == pytest.approx(sum(leg["seconds"] for leg in record["legs"]), abs=0.11)
    line = "goes on after step 4 of 40 with threads 1 instead of 2: weights may differ"
    assert capsys.readouterr().out.count(line) == 1


def test_a_kill_between_checkpoint_and_record_loses_no_leg(empty, monkeypatch):
    """The record is written last, so what it misses is in the checkpoint."""
    save = runs.Run.save
    with monkeypatch.context() as patch, ctrl_c("before", 3):
        patch.setattr(runs.Run, "save", lambda run, **progress: None if "legs" in progress else save(run, **progress))
        assert empty("pretrain") == 130
    assert empty("pretrain", "--resume") == 0
    assert [(leg["from"], leg["to"]) for leg in runs.read_run(empty.run("base")).record["legs"]] == [(0, 4), (4, 40)]


def test_results_name_the_device(monkeypatch):
    assert runs.made_by(load_config("star"))["device"] == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    assert runs.made_by(load_config("star"))["device"] == "a GPU"
    assert runs.made_by(load_config("star", ["device=cpu"]))["device"] == "cpu"


# Records that cannot be read

DAMAGE = {  # contents of run.json, or changes of its values, by a word of the message
    "not a JSON file": ["", '{"format": "minifork-run"', "[]", '{"format": "minifork-run", "version": 2}'],
    "move it elsewhere": [{"format": "other"}, {"version": 99}],
    "sft.lr": [{"config": {"task": "star", "sft": {"lr": "x"}}}],
    "minifork.schema.TASKS": [{"config": {"task": "chess"}}],
}


@pytest.mark.parametrize(("word", "damage"), [(word, damage) for word, listed in DAMAGE.items() for damage in listed])
def test_records_that_cannot_be_read(copy, capsys, word, damage):
    """A run that is needed names its record. A list of all runs leaves it out and says so."""
    pipeline = copy("base", "fork1")
    folder, config = pipeline.run("fork1"), pipeline.config()
    if isinstance(damage, str):
        (folder / runs.RECORD).write_text(damage, encoding="utf-8")
    else:
        edit_record(folder, **damage)
    with pytest.raises(ValueError) as error:
        runs.require_run(config, "sft")
    assert str(folder / runs.RECORD) in str(error.value) and word in str(error.value)
    capsys.readouterr()
    assert [run.stage for run in runs.all_runs(config)] == ["base"]
    assert capsys.readouterr().out.startswith(f"{folder}: left out, {folder / runs.RECORD}: ")


@pytest.mark.parametrize(("name", "commands"), [("fork1", ("sft", "rl", "wise")), ("base", ("pretrain", "sft"))])
def test_commands_on_a_record_that_cannot_be_read(trained, copy, capsys, name, commands):
    """They name it. Without the record the run is made again."""
    pipeline = copy("base", "fork1", measured=True)
    folder = pipeline.run(name)
    (folder / runs.RECORD).write_text('{"format": "minifork-run"', encoding="utf-8")
    for command in commands:
        assert f"{folder / runs.RECORD}: not a JSON file" in pipeline.refused(capsys, command)
    assert pipeline("runs") == 0 and pipeline("eval") == (1 if name == "base" else 0)  # all need their base
    assert capsys.readouterr().out.count(f"{folder}: left out, {folder / runs.RECORD}: ") == 2
    (folder / runs.RECORD).unlink()
    assert pipeline(commands[0]) == 0
    assert_same_training(folder, trained.run(name))


# Parents


def made_anew(copy, name: str, file: str) -> Pipeline:
    """A base, a tuned run, RL and a mixture, of which one was made anew on another machine."""
    pipeline = copy("base", "fork1", measured=True)
    assert pipeline(*RL) == pipeline(*HALF) == 0
    replace_weights(pipeline.run(name), file)
    return pipeline


def test_a_base_that_was_made_anew_is_named(copy, capsys):
    """By all that stands on it, studies too; runs that begin now start from the new one."""
    pipeline = made_anew(copy, "base", "ckpt.pt")
    tuned, base = pipeline.run("fork1"), pipeline.run("base") / "ckpt.pt"
    line = f"{tuned} started from other weights than {base} holds now; remove it and run it again"
    for command in (["sft"], RL, ["rl", "rl.updates=1", *RL[2:]], ["wise"], HALF):
        assert line in pipeline.refused(capsys, *command)
    with pytest.raises(ValueError, match="started from other weights than"):
        executors.run_plans(study.plans(pipeline.config(), [{}], [0]))
    assert pipeline("eval") == 0
    printed = capsys.readouterr().out
    assert all(f"{folder}: left out, {line}" in printed for folder in (tuned, pipeline.at(*RL), pipeline.at(*HALF)))
    assert {record["stage"] for record in pipeline.view()["records"]} == {"base"}
    assert pipeline("sft", "seed=1", "sft.epochs=1") == 0
    assert runs.read_run(pipeline.at("sft", "seed=1", "sft.epochs=1")).record["parent"]["weights"] == weights_hash(base)
    pipeline.run("base").rename(pipeline.folder / f"other{base.parent.name[-9:]}")  # the label is for people
    assert "started from other weights" in pipeline.refused(capsys, "sft")


@pytest.mark.parametrize(("epoch", "stale", "fresh"), [(1, RL, HALF), (4, HALF, RL)])
def test_a_snapshot_that_was_made_anew_is_named(copy, capsys, epoch, stale, fresh):
    """By those that start from it: RL from epoch 1, a mixture, which is known by the last, from epoch 4."""
    pipeline = made_anew(copy, "fork1", f"epochs/e{epoch}.pt")
    folder, start = pipeline.at(*stale), pipeline.run("fork1") / "epochs" / f"e{epoch}.pt"
    line = f"{folder} started from other weights than {start}"
    assert line in pipeline.refused(capsys, *stale)
    assert pipeline("sft") == pipeline(*fresh) == pipeline("eval") == 0
    printed = capsys.readouterr().out
    assert printed.count("left out") == 1 and f"{folder}: left out, {line}" in printed
    assert pipeline("rl", "rl.updates=1", *RL[2:]) == 0


def test_an_unfinished_run_does_not_go_on_from_another_base(copy, capsys):
    pipeline = copy("base")
    with ctrl_c("before", 6):
        assert pipeline("sft") == 130
    replace_weights(pipeline.run("base"), "ckpt.pt")
    assert "started from other weights" in pipeline.refused(capsys, "sft", "--resume")


def test_a_base_that_is_gone_is_missed_only_by_new_runs(copy, capsys):
    pipeline = copy("base", "fork1", measured=True)
    shutil.rmtree(pipeline.run("base"))
    assert pipeline("sft") == pipeline("eval") == 0
    assert "left out" not in capsys.readouterr().out
    error = pipeline.refused(capsys, "sft", "seed=1")
    assert str(pipeline.run("base")) in error and "minifork pretrain base_seed=0" in error


# A full disk


@contextlib.contextmanager
def room_for(size: int):
    """Let this process write no more than some bytes a file, which stands for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("stage", "size"), [("pretrain", 40_000), ("sft", 40_000), ("wise", 40_000), ("eval", 1_500), ("figures", 2_000)]
)
def test_a_full_disk_loses_nothing(copy, capsys, stage, size):
    """One line says so, what was there stays as it was, and with room again the command succeeds."""
    pipeline = copy(*{"pretrain": [], "sft": ["base"]}.get(stage, ["base", *SFT]), measured=True)
    overrides = ["eval.problems=48"] if stage == "eval" else []  # else nothing is missing
    before = snapshot(pipeline.root)
    with room_for(size):
        error = pipeline.refused(capsys, stage, *overrides)
    assert "cannot be saved" in error and "runs=" in error
    after = snapshot(pipeline.root)
    assert {name: after[name] for name in before} == before
    if stage == "pretrain":
        assert everything(pipeline.run("base")) <= {"run.json", "metrics.jsonl"}
    assert pipeline(stage, *overrides, *(["--resume"] if stage in ("pretrain", "sft") else [])) == 0
