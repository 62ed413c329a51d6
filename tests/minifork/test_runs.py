"""Runs are records: what decides their identity, the folder each has, what it started from, and what is refused."""

import dataclasses
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiments.cli import main
from minifork import config as configs
from minifork import runs
from minifork.schema import Config
from minifork.storage import files
from minifork.storage.weights import weights_hash
from tests.helpers.pipeline import SFT, Pipeline, assert_same_training, ctrl_c, edit_record, replace_weights, snapshot
from tests.minifork.storage.test_files import everything

ROOT = Path(__file__).parents[2]
ONE_CORE = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
RL = ["rl.updates=2", "rl.problems=8", "rl.prompts=4"]


@pytest.fixture
def empty(small, tmp_path) -> Pipeline:
    """A pipeline without runs."""
    return Pipeline(tmp_path / "runs", small)


def process(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """A Python script's end, with what it printed as text."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ONE_CORE)


# Identity

OTHER = {  # another legal value of the keys whose type does not give one
    "preset": "paper",
    "runs": "elsewhere",
    "name": "mine",
    "device": "auto",
    "data.branch_order": "published",
    "data.modes": "FWD,REV,SEARCH",
    "pretrain.optimizer": "adamw",
    "sft.modes": "REV,FWD",
    "sft.fork_rate": 0.5,
    "sft.allocation": "problem",
    "sft.loss": "gem=0.7",
    "sft.optimizer": "muon",
    "rl.mode": "FWD",
    "rl.advantage": "passk",
    "rl.optimizer": "muon",
    "wise.weights": "0.5",
    "eval.split": "valid",
    "eval.grading": "answer",
    "eval.engine": "exact",
    "eval.policy": "top_p=0.9",
    "eval.stratify": "first",
    "reproduce.study": "frontier",
}
BASE = ("task", "base_seed", "data", "walks", "model", "pretrain")
TUNED = (*BASE, "seed", "data.branch_order", "sft")
DECIDE = {"base": BASE, "sft": TUNED, "wise": (*TUNED, "wise"), "rl": (*TUNED, "rl")}


def differing(config: Config, key: str) -> tuple[Config, Config]:
    """Two configs that differ in a key and nothing else."""
    if key == "task":
        return config, dataclasses.replace(config, task="mixed")
    if key == "eval.grading":  # star has one value only
        config = configs.load("arith")
    if key == "sft.allocation":
        config = configs.changed(config, {"sft.fork_rate": 0.5})
    value = configs.flat(config)[key]
    default = {bool: lambda: not value, int: lambda: value + 1, float: lambda: value + 0.125}
    return config, configs.changed(config, {key: OTHER[key] if key in OTHER else default[type(value)]()})


@pytest.mark.parametrize("key", configs.keys(Config))
def test_a_stage_is_decided_by_its_keys_and_no_others(empty, key):
    one, two = differing(empty.config(), key)
    for stage in runs.STAGES:
        decides = {key, key.split(".")[0]} & {*DECIDE[stage]} and key != "sft.allow_leak"
        decides = decides and not (stage == "base" and key == "data.branch_order")  # walks are always shuffled
        assert (runs.identity(one, stage) != runs.identity(two, stage)) == bool(decides), stage
        assert (key in runs.deciding_values(one, stage)) == bool(decides), stage
        assert (runs.folder_of(one, stage).name[-9:] != runs.folder_of(two, stage).name[-9:]) == bool(decides), stage


def test_rl_is_decided_by_what_it_starts_from(empty):
    """From a snapshot by how that was tuned, from the base not."""
    from_snapshot, from_base = empty.config(), empty.config("rl.epoch=0")
    assert runs.identity(from_snapshot, "rl") != runs.identity(from_base, "rl")
    for config, decides in ((from_snapshot, True), (from_base, False)):
        tuned, trained = (configs.changed(config, {key: 0.125}) for key in ("sft.lr", "pretrain.lr"))
        assert (runs.identity(config, "rl") != runs.identity(tuned, "rl")) == decides
        assert ("sft.lr" in runs.deciding_values(config, "rl")) == decides
        assert runs.identity(config, "rl") != runs.identity(trained, "rl")


def test_stages_and_close_values_are_told_apart(empty):
    """0.5 and 0.5000001 print alike; a config's stages share most keys."""
    config = empty.config("sft.fork_rate=0.5")
    close = configs.changed(config, {"sft.fork_rate": 0.5000001})
    identities = {runs.identity(one, stage) for one in (config, close) for stage in runs.STAGES}
    assert len(identities) == 7 and all(re.fullmatch("[0-9a-f]{12}", digits) for digits in identities)
    assert runs.folder_of(config, "sft") != runs.folder_of(close, "sft")


def test_a_new_key_leaves_identities_as_they_were(empty, monkeypatch):
    """A key with the value from before it existed counts as no key at all, with another value it counts."""
    config, real = empty.config(), configs.flat
    with monkeypatch.context() as earlier:
        earlier.setattr(configs, "flat", lambda c: {k: v for k, v in real(c).items() if k != "walks.informed"})
        before = {stage: runs.identity(config, stage) for stage in runs.STAGES}
    assert all(runs.identity(config, stage) != before[stage] for stage in runs.STAGES)
    monkeypatch.setattr(configs, "before", lambda task: {"walks.informed": 0.0})
    assert {stage: runs.identity(config, stage) for stage in runs.STAGES} == before
    informed = configs.changed(config, {"walks.informed": 0.5})
    assert all(runs.identity(informed, stage) != before[stage] for stage in runs.STAGES)


def test_a_record_from_before_a_key_existed(copy, monkeypatch, capsys):
    """It is read with the value from before, which need not be the default, and is no other run for it."""
    pipeline = copy("base")
    record = files.read_json(pipeline.run("base") / runs.RECORD)
    del record["config"]["walks"]["informed"]
    monkeypatch.setattr(configs, "before", lambda task: {"walks.informed": 0.5})
    config = pipeline.config("walks.informed=0.5")
    folder = runs.folder_of(config, "base")
    assert not folder.exists()
    folder.mkdir()
    files.write_json(folder / runs.RECORD, record | {"identity": runs.identity(config, "base")})
    shutil.copy(pipeline.run("base") / runs.WEIGHTS, folder)
    assert runs.read(folder).config.walks.informed == 0.5
    assert pipeline("pretrain", "walks.informed=0.5") == 0
    assert "nothing to do" in capsys.readouterr().out


# Folders


def test_folders(empty):
    """<label>-<8 digits of the identity>; the label says the stage, FORK_RATE and seed, or what `name` says."""
    labels = {
        ("base", "base_seed=2"): "base-seed2",
        ("sft", "seed=3", "sft.fork_rate=0.25"): "sft-fork0.25-seed3",
        ("sft", "sft.fork_rate=0"): "sft-fork0-seed0",
        ("rl", "rl.mode=FWD"): "rl-fork1-seed0",
        ("wise", "wise.weights=0.5"): "wise-fork1-seed0",
        ("sft", "name=mine"): "mine",
    }
    for (stage, *overrides), label in labels.items():
        digits = runs.identity(empty.config(*overrides), stage)[:8]
        assert empty.at(stage, *overrides) == empty.root / "star" / f"{label}-{digits}"
    assert not empty.root.exists()  # asking makes nothing


@pytest.mark.parametrize("label", ["name=other", "name=sft-fork0-seed9", "name=base-00000000"])
def test_a_label_makes_no_other_run(trained, capsys, label):
    before = snapshot(trained.root)
    assert trained("pretrain", label) == trained("sft", label) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{trained.run(name)} is complete: nothing to do" for name in ("base", "fork1")
    ]
    assert snapshot(trained.root) == before


@pytest.mark.parametrize("name", ["mine-{}", "mine"])
def test_a_folder_may_be_renamed(copy, capsys, name):
    """Its digits give a run away, and without them its record does."""
    pipeline = copy("base")
    folder = pipeline.folder / name.format(pipeline.run("base").name[-8:])
    pipeline.run("base").rename(folder)
    assert pipeline.run("base") == folder and pipeline("pretrain") == 0
    assert pipeline("sft", "sft.epochs=1") == 0
    assert runs.read(pipeline.at("sft", "sft.epochs=1")).record["parent"]["run"] == folder.name


def test_all_runs_may_be_moved(copy, capsys):
    """A runs folder that was moved is as good as before: no record is read for where it lies."""
    pipeline = copy("base", "fork1", measured=True)
    assert pipeline("rl", *RL) == 0
    moved = Pipeline(pipeline.root.rename(pipeline.root.parent / "moved"), pipeline.small[:-1])
    assert moved("sft") == moved("rl", *RL) == moved("wise") == moved("eval") == 0
    assert "left out" not in capsys.readouterr().out and not pipeline.root.exists()


# Making a run


def holder(empty: Pipeline, *arguments: str) -> subprocess.Popen:
    """A process that holds the folder of the base that the overrides ask for."""
    script = """if True:
        import sys, time
        from minifork import config, runs
        with runs.hold(config.load("star", sys.argv[1:]), "base", None, False) as run:
            print(run.folder, flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", script, *empty.small, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_two_processes_that_want_one_run(empty, capsys):
    """The second gets the same folder, whatever it calls it, and is refused; a lock ends with a killed holder."""
    with holder(empty, "name=first") as first:
        folder = Path(first.stdout.readline().strip())
        assert folder.name.startswith("first-") and empty.run("base") == empty.at("base", "name=second") == folder
        error = empty.refused(capsys, "pretrain", "name=second")
        assert f"{folder}: another process is working on this run" in error
        assert list(empty.folder.iterdir()) == [folder] and not list(folder.iterdir())
        assert empty("pretrain", "base_seed=1") == 0  # other runs are free
        first.kill()
    assert empty("pretrain", "name=second") == 0
    assert runs.read(folder).complete and len(list(empty.folder.iterdir())) == 2


def test_two_processes_that_begin_at_once(empty):
    """One makes the run; the other is refused, or finds it made."""
    command = [sys.executable, "-m", "minifork", *empty.arguments("pretrain")]
    labelled = [[*command, f"name={name}"] for name in ("one", "two")]
    both = [subprocess.Popen(c, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=ONE_CORE) for c in labelled]
    errors = [process.communicate()[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 0], [0, 1]), errors
    assert all("another process is working on this run" in errors[i] for i in (0, 1) if codes[i])
    (folder,) = empty.folder.iterdir()
    assert runs.read(folder).complete


def test_states_of_a_run(copy):
    """New, unfinished, complete; nothing stays of a run in which nothing was written."""
    pipeline = copy("base")
    config, folder = pipeline.config(), pipeline.run("fork1")
    start = runs.require(config, "base").checkpoint(None)
    assert runs.find(config, "sft") is runs.finished(config, "sft") is None
    with runs.hold(config, "sft", start, resume=False) as run:
        assert run.folder == folder and folder.is_dir() and not run.complete and run.record["step"] == 0
    assert not folder.exists()
    with ctrl_c("before", 3):
        assert pipeline("sft") == 130
    assert runs.find(config, "sft").record["step"] == 4 and runs.finished(config, "sft") is None
    with (
        pytest.raises(ValueError, match="unfinished run; continue it with --resume"),
        runs.hold(config, "sft", start, resume=False),
    ):
        pass
    with runs.hold(config, "sft", start, resume=True) as run:
        assert run.record["step"] == 4 and run.record["parent"]["weights"] == start.weights
    assert pipeline("sft", "--resume") == 0
    assert runs.finished(config, "sft").complete
    with runs.hold(config, "sft", start, resume=False) as run:
        assert run.complete


@pytest.mark.parametrize("record", [True, False])
def test_a_run_killed_before_its_first_checkpoint_starts_anew(trained, copy, record):
    """Without --resume, and without the snapshots that it left."""
    pipeline = copy("base", "fork1")
    folder = pipeline.run("fork1")
    shutil.copy(folder / "epochs" / "e4.pt", folder / "epochs" / "e3.pt")
    (folder / runs.WEIGHTS).unlink()
    if record:
        edit_record(folder, complete=False, step=0, weights={}, legs=[])
    else:
        (folder / runs.RECORD).unlink()
    assert pipeline("sft") == 0
    assert_same_training(folder, trained.run("fork1"))


def test_a_folder_of_somebody_elses_files(copy):
    """What a run does not know stays where it is."""
    pipeline = copy("base")
    mine = pipeline.run("fork1") / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert pipeline("sft") == 0 and mine.read_text() == "mine"


def test_a_record_keeps_the_config_of_the_last_command(copy):
    """Of what decides nothing, such as the label; the run is the same."""
    pipeline = copy("base")
    with ctrl_c("before", 3):
        assert pipeline("sft", "name=mine", "save_every=5") == 130
    assert pipeline("sft", "--resume", "save_every=2", "eval.problems=32") == 0
    run = runs.read(pipeline.run("fork1"))
    assert run.name.startswith("mine-") and (run.config.name, run.config.save_every) == ("", 2)
    assert run.config == pipeline.config("save_every=2", "eval.problems=32")
    assert run.identity == runs.identity(run.config, "sft")


def test_a_finished_stage_answers_without_torch(trained):
    """Importing it takes seconds."""
    script = """if True:
        import sys
        from experiments.cli import main
        assert main(["pretrain", *sys.argv[1:]]) == main(["sft", *sys.argv[1:]]) == main(["runs", sys.argv[-1]]) == 0
        assert "torch" not in sys.modules
    """
    done = process(script, *trained.small)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is complete: nothing to do") == 2 and f"{1 + len(SFT)} runs" in done.stdout


# Records


def test_what_a_record_says(trained):
    for name in ("base", *SFT):
        run, base = runs.read(trained.run(name)), runs.read(trained.run("base"))
        record, config = files.read_json(run.folder / runs.RECORD), trained.config(*SFT.get(name, []))
        assert (record["format"], record["version"]) == (runs.FORMAT, runs.VERSION)
        assert record["identity"] == run.identity == runs.identity(config, run.stage)
        assert record["config"] == configs.to_tree(config) and run.config == config
        start = {"run": base.name, "file": "ckpt.pt", "weights": base.record["weights"]["ckpt.pt"]}
        assert record["parent"] == (None if name == "base" else start)
        assert {*record["weights"]} == {str(path.relative_to(run.folder)) for path in run.folder.rglob("*.pt")}
        assert all(weights_hash(run.folder / file) == digits for file, digits in record["weights"].items())
        (leg,) = record["legs"]
        assert (leg["from"], leg["to"], record["steps"]) == (0, record["step"], record["step"])
    tags = {name: runs.read(trained.run(name)).tags(trained.config()) for name in SFT}
    assert tags["problem"] == {"sft.fork_rate": 0.5, "sft.allocation": "problem"}
    assert tags["cued"] == {"sft.cue_rate": 1.0} and tags["fork1"] == {}
    assert runs.read(trained.run("fork1")).tags()["model.width"] == 32  # by default beside what ships


def test_legs_of_an_interrupted_run(copy, threads):
    """Each says its steps, the machine, torch, the threads and the seconds."""
    pipeline = copy()
    threads(2)
    with ctrl_c("before", 3):
        assert pipeline("pretrain") == 130
    threads(1)
    assert pipeline("pretrain", "--resume") == 0
    record = runs.read(pipeline.run("base")).record
    made = {"machine": runs.machine(), "torch": torch.__version__}
    expected = [{"from": 0, "to": 4, "threads": 2} | made, {"from": 4, "to": 40, "threads": 1} | made]
    assert [{key: value for key, value in leg.items() if key != "seconds"} for leg in record["legs"]] == expected
    assert record["seconds"] == pytest.approx(sum(leg["seconds"] for leg in record["legs"]), abs=0.11)


DAMAGE = {  # contents of run.json, or changes of what it says
    "empty": "",
    "cut": '{"format": "minifork-run"',
    "list": "[]",
    "bare": '{"format": "minifork-run", "version": 2}',
    "identity": {"identity": None},
    "stage": {"stage": "other"},
    "complete": {"complete": "yes"},
    "step": {"step": "9"},
    "steps": {"steps": None},
    "weights": {"weights": []},
    "hash": {"weights": {"ckpt.pt": 3}},
    "legs": {"legs": None},
    "parent": {"parent": "base"},
    "parent's keys": {"parent": {"run": "base"}},
    "config": {"config": 3},
    "a value": {"config": {"task": "star", "sft": {"lr": "x"}}},
    "a task": {"config": {"task": "chess"}},
    "newer": {"version": runs.VERSION + 1},
    "foreign": {"format": "other"},
    "unmarked": {"format": None},
}
WAYS_OUT = {"newer": "update this one", "foreign": "move it elsewhere", "unmarked": "move it elsewhere"}


@pytest.mark.parametrize("how", DAMAGE)
def test_records_that_cannot_be_read(copy, capsys, how):
    """The run's own command names the record and the way out, as do those that need the run; others do without it."""
    pipeline = copy("base", "fork1", "fork0.5", measured=True)
    for name, commands in (("fork1", ("sft", "rl", "wise")), ("base", ("pretrain", "sft"))):
        folder, damage = pipeline.run(name), DAMAGE[how]
        whole = (folder / runs.RECORD).read_text()
        if isinstance(damage, str):
            (folder / runs.RECORD).write_text(damage)
        else:
            edit_record(folder, **damage)
        for command in commands:
            error = pipeline.refused(capsys, command, "sft.fork_rate=1")
            assert str(folder / runs.RECORD) in error and WAYS_OUT.get(how, "remove") in error, command
        assert pipeline("runs") == 0
        assert f"{folder}: left out, {folder / runs.RECORD}: " in capsys.readouterr().out
        if name == "fork1":
            assert pipeline("eval") == 0
            assert f"{folder}: left out, {folder / runs.RECORD}: " in capsys.readouterr().out
            assert {record["run"] for record in pipeline.view()["records"]} == {
                pipeline.run(other).name for other in ("base", "fork0.5")
            }
        (folder / runs.RECORD).write_text(whole)


def test_the_way_out_of_a_damaged_record(trained, copy, capsys):
    """Doing what the line says makes the run again."""
    pipeline = copy("base", "fork1")
    record = pipeline.run("fork1") / runs.RECORD
    record.write_text("")
    assert "remove it and run its stage again" in pipeline.refused(capsys, "sft")
    record.unlink()
    assert pipeline("sft") == 0
    assert_same_training(record.parent, trained.run("fork1"))


# Parents


def made_anew(copy, name: str, file: str) -> Pipeline:
    """A base, a tuned run, RL and a mixture, of which one was made anew on another machine."""
    pipeline = copy("base", "fork1", measured=True)
    assert pipeline("rl", *RL) == pipeline("wise", "wise.weights=0.5") == 0
    replace_weights(pipeline.run(name), file)
    return pipeline


def test_a_base_that_was_made_anew_is_named(copy, capsys):
    """By all that stands on it; runs that begin now start from the new one."""
    pipeline = made_anew(copy, "base", "ckpt.pt")
    tuned, base = pipeline.run("fork1"), pipeline.run("base") / "ckpt.pt"
    line = f"{tuned} started from other weights than {base} holds now; remove it and run it again"
    for command in (["sft"], ["sft", "--resume"], ["rl", *RL], ["rl", "rl.updates=1", *RL[1:]], ["wise"]):
        assert line in pipeline.refused(capsys, *command)
    assert pipeline("eval") == 0
    printed = capsys.readouterr().out
    folders = [tuned, pipeline.at("rl", *RL), pipeline.at("wise", "wise.weights=0.5")]
    assert all(f"{folder}: left out, {line}" in printed for folder in folders)
    assert {record["stage"] for record in pipeline.view()["records"]} == {"base"}
    assert pipeline("sft", "seed=1", "sft.epochs=1") == 0
    assert runs.read(pipeline.at("sft", "seed=1", "sft.epochs=1")).record["parent"]["weights"] == weights_hash(base)


def test_a_snapshot_that_was_made_anew_is_named(copy, capsys):
    """By those that start from it: RL from epoch 1, but no mixture, which is known by the last."""
    pipeline = made_anew(copy, "fork1", "epochs/e1.pt")
    line = f"{pipeline.at('rl', *RL)} started from other weights than {pipeline.run('fork1') / 'epochs' / 'e1.pt'}"
    assert line in pipeline.refused(capsys, "rl", *RL)
    assert pipeline("sft") == pipeline("wise", "wise.weights=0.5") == pipeline("eval") == 0
    assert capsys.readouterr().out.count("left out") == 1
    assert pipeline("rl", "rl.updates=1", *RL[1:]) == 0


def test_a_base_that_was_made_anew_under_another_name_is_named(copy, capsys):
    """The label is for people: what a run started from is known by what it is."""
    pipeline = copy("base", "fork1")
    base = pipeline.run("base")
    base.rename(base.parent / f"other{base.name[-9:]}")
    assert pipeline("sft") == 0
    replace_weights(pipeline.run("base"), "ckpt.pt")
    assert "started from other weights" in pipeline.refused(capsys, "sft")


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


# Removal


def test_runs_are_removed(copy, capsys):
    """Those that the filters name and no other, and none that a process works on."""
    pipeline = copy("base", "fork1", "fresh")
    run, command = runs.read(pipeline.run("fresh")), ["runs", "--remove", f"runs={pipeline.root}", "sft.fresh=true"]
    with files.locked(run.folder):
        assert main(command) == 1
    assert f"{run.folder}: a process is working on this run; it stays" in capsys.readouterr().err
    assert run.folder.exists()
    assert main(command) == 0
    assert "1 runs, " in capsys.readouterr().out
    assert {path.name for path in pipeline.folder.iterdir()} == {pipeline.run(name).name for name in ("base", "fork1")}


# A full disk

FILL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from experiments.cli import main
sys.exit(main(sys.argv[2:]))
"""


def fails_on_a_full_disk(limit: int, pipeline: Pipeline, *command: str) -> str:
    """The line of a command that fails as it may write no more than ``limit`` bytes a file."""
    failed = process(FILL, str(limit), *pipeline.arguments(*command))
    assert failed.returncode == 1, failed.stderr
    assert failed.stderr.startswith("minifork: ") and failed.stderr.count("\n") == 1, failed.stderr
    assert "cannot be saved" in failed.stderr and "runs=" in failed.stderr
    return failed.stderr


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
def test_a_full_disk_is_one_line(empty):
    """A process that may write no more than 40 kB a file, less than a checkpoint, stands for a full disk."""
    assert "ckpt.pt" in fails_on_a_full_disk(40_000, empty, "pretrain")
    assert everything(empty.run("base")) <= {"run.json", "metrics.jsonl"}
    assert empty("pretrain") == 0


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
@pytest.mark.parametrize(
    ("stage", "limit"), [("sft", 40_000), ("wise", 40_000), ("eval", 1_500), ("figures", 2_000), ("report", 20_000)]
)
def test_a_full_disk_loses_nothing(copy, stage, limit):
    """What was there stays as it was, and with room again the command succeeds."""
    pipeline = copy("base", *([] if stage == "sft" else SFT), measured=True)
    overrides = ["eval.problems=48"] if stage == "eval" else []  # else nothing is missing
    before = snapshot(pipeline.folder)
    fails_on_a_full_disk(limit, pipeline, stage, *overrides)
    after = snapshot(pipeline.folder)
    assert {name: after[name] for name in before} == before
    assert pipeline(stage, *overrides, *(["--resume"] if stage == "sft" else [])) == 0
