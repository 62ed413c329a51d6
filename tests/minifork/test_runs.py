"""Runs are records: what decides their identity, the folder each has, what it started from, and what is refused."""

import dataclasses
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from minifork import config as configs
from minifork import runs
from minifork.cli import EXIT_HELD
from minifork.schema import Config
from minifork.storage import files
from tests.helpers.pipeline import SFT, Pipeline, assert_same_training, ctrl_c, edit_record, snapshot

ROOT = Path(__file__).parents[2]
RL = ["rl.updates=2", "rl.problems=8", "rl.prompts=4"]


# Identity

OTHER = {  # another legal value of the keys whose type does not give one
    "preset": "paper", "runs": "elsewhere", "name": "mine", "device": "auto", "data.branch_order": "published",
    "data.modes": "FWD,REV,SEARCH", "pretrain.optimizer": "adamw", "sft.modes": "REV,FWD", "sft.fork_rate": 0.5,
    "sft.allocation": "problem", "pretrain.muon": "torch", "sft.muon": "torch", "rl.muon": "torch", "rl.kl_form": "k3",
    "rl.reduction": "none", "rl.policy": "top_p=0.9", "rl.source": "sft",
    "sft.loss": "gem=0.7", "sft.anchor": "mask", "sft.optimizer": "muon", "rl.mode": "FWD",
    "rl.advantage": "passk", "rl.optimizer": "muon", "wise.weights": "0.5", "eval.split": "valid",
    "eval.grading": "answer", "eval.engine": "exact", "eval.policy": "top_p=0.9", "eval.stratify": "first",
    "eval.pool": 64, "reproduce.first_pair": 5,
    "reproduce.study": "frontier", "reproduce.cluster": "local:2",
}  # fmt: skip
BASE = ("task", "base_seed", "data", "walks", "model", "pretrain")
TUNED = (*BASE, "seed", "data.branch_order", "sft")
DECIDE = {"base": BASE, "sft": TUNED, "wise": (*TUNED, "wise"), "rl": (*TUNED, "rl")}


def differing(config: Config, key: str) -> tuple[Config, Config]:
    """Two configs that differ in a key and nothing else."""
    if key == "task":
        return config, dataclasses.replace(config, task="sizes")
    if key == "eval.grading":  # star has one value only
        config = configs.load_config("arith")
    if key == "sft.allocation":
        config = configs.with_changes(config, {"sft.fork_rate": 0.5})
    if key == "eval.pool":  # of a stratified decoder only
        config = configs.with_changes(config, {"eval.stratify": "first"})
    value = configs.flat_values(config)[key]
    default = {bool: lambda: not value, int: lambda: value + 1, float: lambda: value + 0.125}
    return config, configs.with_changes(config, {key: OTHER[key] if key in OTHER else default[type(value)]()})


@pytest.mark.parametrize("key", configs.keys(Config))
def test_a_stage_is_decided_by_its_keys_and_no_others(empty, key):
    one, two = differing(empty.config(), key)
    for stage in runs.STAGES:
        undeciding = ("sft.allow_leak", "data.branch_order" if stage == "base" else "")  # walks are always shuffled
        decides = bool({key, key.split(".")[0]} & {*DECIDE[stage]}) and key not in undeciding
        assert (runs.identity(one, stage) != runs.identity(two, stage)) == decides, stage
        assert (key in runs.deciding_values(one, stage)) == decides, stage
        assert (runs.folder_of(one, stage).name[-9:] != runs.folder_of(two, stage).name[-9:]) == decides, stage


def test_rl_is_decided_by_what_it_starts_from(empty):
    """From a snapshot by how that was tuned, from the base not."""
    from_snapshot, from_base = empty.config(), empty.config("rl.epoch=0")
    assert runs.identity(from_snapshot, "rl") != runs.identity(from_base, "rl")
    for config, decides in ((from_snapshot, True), (from_base, False)):
        tuned, trained = (configs.with_changes(config, {key: 0.125}) for key in ("sft.lr", "pretrain.lr"))
        assert (runs.identity(config, "rl") != runs.identity(tuned, "rl")) == decides
        assert ("sft.lr" in runs.deciding_values(config, "rl")) == decides
        assert runs.identity(config, "rl") != runs.identity(trained, "rl")


def test_stages_and_close_values_are_told_apart(empty):
    """0.5 and 0.5000001 print alike; a config's stages share most keys."""
    config = empty.config("sft.fork_rate=0.5")
    close = configs.with_changes(config, {"sft.fork_rate": 0.5000001})
    identities = {runs.identity(one, stage) for one in (config, close) for stage in runs.STAGES}
    assert len(identities) == 7 and all(re.fullmatch("[0-9a-f]{12}", digits) for digits in identities)
    assert runs.folder_of(config, "sft") != runs.folder_of(close, "sft")


def test_a_new_key_leaves_identities_as_they_were(empty, monkeypatch):
    """A key with the value from before it existed counts as no key at all, with another value it counts."""
    config, real, older = empty.config(), configs.flat_values, configs.before("star")
    with monkeypatch.context() as earlier:
        earlier.setattr(configs, "flat_values", lambda c: {k: v for k, v in real(c).items() if k != "walks.informed"})
        before = {stage: runs.identity(config, stage) for stage in runs.STAGES}
    assert all(runs.identity(config, stage) != before[stage] for stage in runs.STAGES)
    monkeypatch.setattr(configs, "before", lambda task: older | {"walks.informed": 0.0})
    assert {stage: runs.identity(config, stage) for stage in runs.STAGES} == before
    informed = configs.with_changes(config, {"walks.informed": 0.5})
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
    assert runs.read_run(folder).config.walks.informed == 0.5
    assert pipeline("pretrain", "walks.informed=0.5") == 0
    assert "nothing to do" in capsys.readouterr().out


# Folders


def test_folders(empty):
    """<label>-<8 digits of the identity>; the label says the stage, FORK_RATE and seed, or what `name` says."""
    labels = {
        "base base_seed=2": "base-seed2", "sft seed=3 sft.fork_rate=0.25": "sft-fork0.25-seed3",
        "sft sft.fork_rate=0": "sft-fork0-seed0", "rl rl.mode=FWD": "rl-fork1-seed0",
        "wise wise.weights=0.5": "wise-fork1-seed0", "sft name=mine": "mine",
    }  # fmt: skip
    for words, label in labels.items():
        stage, *overrides = words.split()
        digits = runs.identity(empty.config(*overrides), stage)[:8]
        assert empty.at(stage, *overrides) == empty.root / "star" / f"{label}-{digits}"
    assert not empty.root.exists()  # asking makes nothing


def test_a_label_makes_no_other_run(trained, capsys):
    before = snapshot(trained.root)
    assert trained("pretrain", "name=base-00000000") == trained("sft", "name=sft-fork0-seed9") == 0
    lines = [f"{trained.run(name)} is complete: nothing to do" for name in ("base", "fork1")]
    assert capsys.readouterr().out.splitlines() == lines
    assert snapshot(trained.root) == before


def test_a_folder_may_have_another_label(copy):
    """Its digits name the run."""
    pipeline = copy("base")
    folder = pipeline.folder / f"mine-{pipeline.run('base').name[-8:]}"
    pipeline.run("base").rename(folder)
    assert pipeline.run("base") == folder and pipeline("pretrain") == 0
    assert pipeline("sft", "sft.epochs=1") == 0
    assert runs.read_run(pipeline.at("sft", "sft.epochs=1")).record["parent"]["run"] == folder.name


def test_all_runs_may_be_moved(copy, capsys):
    """A runs folder that was moved is as good as before: no record is read for where it lies."""
    pipeline = copy("base", "fork1", measured=True)
    assert pipeline("rl", *RL) == 0
    moved = Pipeline(pipeline.root.rename(pipeline.root.parent / "moved"), pipeline.small[:-1])
    assert moved("sft") == moved("rl", *RL) == moved("wise") == moved("eval") == 0
    assert "left out" not in capsys.readouterr().out and not pipeline.root.exists()


# Making a run


HOLD = """
import sys, time
from minifork import config, runs
try:
    with runs.hold_run(config.load_config("star", sys.argv[2:]), "base", None, False) as run:
        print(run.folder, flush=True)
        time.sleep(float(sys.argv[1]))
        run.save()
except ValueError as error:
    print(error)
"""


def holder(empty: Pipeline, seconds: float, *arguments: str) -> subprocess.Popen:
    """A process that holds the folder of a base for some seconds and leaves a record there."""
    command = [sys.executable, "-c", HOLD, str(seconds), *empty.small, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_two_processes_that_want_one_run(empty, capsys):
    """The second gets the same folder, whatever it calls it, and is refused; a lock ends with a killed holder."""
    with holder(empty, 60, "name=first") as first:
        folder = Path(first.stdout.readline().strip())
        assert folder.name.startswith("first-") and empty.run("base") == empty.at("base", "name=second") == folder
        assert empty("pretrain", "name=second") == EXIT_HELD
        line = f"minifork: {folder}: process {first.pid} on {socket.gethostname()} is working here; wait until it has"
        assert capsys.readouterr().err.startswith(line)
        assert list(empty.folder.iterdir()) == [folder] and [path.name for path in folder.iterdir()] == [".lock"]
        assert empty("pretrain", "base_seed=1") == 0  # other runs are free
        first.kill()
    assert empty("pretrain", "name=second") == 0
    assert runs.read_run(folder).complete and len(list(empty.folder.iterdir())) == 2


def test_two_processes_that_begin_at_once(empty):
    """Both get one folder; if they meet there, one is refused."""
    processes = [holder(empty, 0.2, f"name={name}") for name in ("one", "two")]
    lines = [process.communicate()[0].strip() for process in processes]
    (folder,) = empty.folder.iterdir()
    lines.remove(str(folder))
    assert lines[0] == str(folder) or lines[0].endswith("is working here; wait until it has finished this run")


def test_states_of_a_run(copy):
    """New, unfinished, complete; nothing stays of a run in which nothing was written."""
    pipeline = copy("base")
    config, folder = pipeline.config(), pipeline.run("fork1")
    start = runs.require_run(config, "base").checkpoint(None)
    assert runs.find_run(config, "sft") is runs.finished(config, "sft") is None
    with runs.hold_run(config, "sft", start, resume=False) as run:
        assert run.folder == folder and folder.is_dir() and not run.complete and run.record["step"] == 0
    assert not folder.exists()
    with ctrl_c("before", 3):
        assert pipeline("sft") == 130
    assert runs.find_run(config, "sft").record["step"] == 4 and runs.finished(config, "sft") is None
    with pytest.raises(ValueError, match="unfinished run; continue it with --resume"):
        runs.hold_run(config, "sft", start, resume=False).__enter__()
    with runs.hold_run(config, "sft", start, resume=True) as run:
        assert run.record["step"] == 4 and run.record["parent"]["weights"] == start.weights_hash
    assert pipeline("sft", "--resume") == 0
    assert runs.finished(config, "sft").complete
    with runs.hold_run(config, "sft", start, resume=False) as run:
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


def test_other_files_in_a_folder_stay(copy):
    pipeline = copy("base")
    notes = pipeline.run("fork1") / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine", encoding="utf-8")
    assert pipeline("sft") == 0 and notes.read_text(encoding="utf-8") == "mine"
    assert runs.read_run(notes.parent).complete


def test_a_record_keeps_the_config_of_the_last_command(copy):
    """Of what decides nothing, such as the label; the run is the same."""
    pipeline = copy("base")
    with ctrl_c("before", 3):
        assert pipeline("sft", "name=mine", "save_every=5") == 130
    assert pipeline("sft", "--resume", "save_every=2", "eval.problems=32") == 0
    run = runs.read_run(pipeline.run("fork1"))
    assert run.name.startswith("mine-") and (run.config.name, run.config.save_every) == ("", 2)
    assert run.config == pipeline.config("save_every=2", "eval.problems=32")
    assert run.identity == runs.identity(run.config, "sft")


def test_a_finished_stage_answers_without_torch(trained):
    """Importing it takes seconds; --help does without numpy too."""
    script = """if True:
        import contextlib, sys
        from experiments.cli import main
        with contextlib.suppress(SystemExit):
            main(["--help"])
        assert "numpy" not in sys.modules and "yaml" not in sys.modules
        assert main(["pretrain", *sys.argv[1:]]) == main(["sft", *sys.argv[1:]]) == main(["runs", sys.argv[-1]]) == 0
        assert "torch" not in sys.modules
    """
    command = [sys.executable, "-c", script, *trained.small]
    process = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("is complete: nothing to do") == 2 and f"{1 + len(SFT)} runs" in process.stdout


@pytest.mark.parametrize("changes", [{"config": None}, {"parent": None}, {"weights": None}, {"weights": {}}], ids=str)
def test_an_edited_record_is_left_out_by_name(copy, capsys, changes):
    pipeline = copy("base", "fork1")
    edit_record(pipeline.run("fork1"), **changes)
    assert pipeline("eval") == 0
    assert "run.json: edited, its config, parent or weights are missing" in capsys.readouterr().out
