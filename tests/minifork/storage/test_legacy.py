"""Runs of version 0.1 are read: their folders hold meta.json and config.yaml, as that version wrote them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from experiments.cli import main
from minifork import config as configs
from minifork import runs
from minifork.storage import files
from minifork.storage.weights import load_weights, weights_hash
from tests.helpers.pipeline import Pipeline, ctrl_c, logged_steps, snapshot

RL = ["rl.updates=2", "rl.problems=8", "rl.prompts=4"]
MADE = {  # what 0.1 called a run, and how today's command line asks for it
    "base-seed0": ("base",),
    "sft-fork1-seed0": ("sft",),
    "rl-grpo-free-fork1-epoch1-seed0": ("rl", *RL),
    "started-seed0": ("rl", "rl.epoch=2", *RL),
    "rl-grpo-free-fork1-epoch0-seed0": ("rl", "rl.epoch=0", *RL),
    "sft-fork1-seed0-wise0.5": ("wise", "wise.weights=0.5"),
    "sft-fork1-seed0-wise0.25-early2": ("wise", "wise.weights=0.25", "wise.early=2"),
}


def age(folder: Path, name: str, **rl: str | int) -> Path:
    """Make a folder what 0.1 left of the same run, which it called ``name``; returns where it is then."""
    run, old = runs.read_run(folder), folder.parent / name
    config, record = configs.to_tree(run.config), run.record
    del config["preset"]
    config["name"] = name if name == "started-seed0" else ""
    config["reproduce"] = {"sweep": "star", "pairs": 1, "workers": 0}
    config["rl"] = {"start": ""} | config["rl"]
    leg = {key: record["legs"][-1][key] for key in ("machine", "torch", "threads")} if record["legs"] else {}
    meta = {"schema": 1, "stage": run.stage, "name": name, "variant": "not read", "task": "star"}
    meta |= {"seed": None if run.stage == "base" else 0, "base_seed": 0, "config_hash": "not read", **leg}
    if run.stage == "sft":
        start = {"base": "base-seed0", "start_hash": record["parent"]["weights"], "fork_rate": 1.0}
        meta |= start | {"data_hash": record["data_hash"], "epochs": 4}
    if run.stage == "rl":
        parent = "sft-fork1-seed0" if run.config.rl.epoch else "base-seed0"
        meta |= {"fork_rate": 1.0, "start": f"{parent}/{record['parent']['file']}"}
        meta["start_hash"] = record["parent"]["weights"]
    meta |= {key: record[key] for key in ("step", "seconds", "steps", "complete")}
    if name == "started-seed0":  # 0.1 took the seed and the sizes of the run that is named, not those given here
        config["rl"]["start"], config["sft"]["epochs"], config["sft"]["lr"] = "sft-fork1-seed0", 8, 0.5
    if run.stage == "wise":  # it was called a run like the one it is a mixture of
        tuned = json.loads((folder.parent / "sft-fork1-seed0" / "meta.json").read_text(encoding="utf-8"))
        meta = tuned | {"name": name, "weight": float(config["wise"]["weights"]), "early": config["wise"]["early"]}
        meta |= {"tuned": "sft-fork1-seed0", "tuned_hash": record["parent"]["weights"]}
        config["wise"] = {"weights": "0.25,0.5,0.75", "early": 0}
    for path in folder.glob("ckpt.pt"):
        saved = load_weights(path)
        torch.save({key: value for key, value in saved.items() if key != "snapshots"}, path)
    (folder / "run.json").unlink()
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    (folder / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
    return folder.rename(old)


@pytest.fixture(scope="module")
def today(trained, tmp_path_factory, small):
    """Every kind of run as this version makes and measures it, and what was measured of them."""
    pipeline = Pipeline(tmp_path_factory.mktemp("legacy") / "runs", small)
    for name in ("base", "fork1"):
        shutil.copytree(trained.run(name), pipeline.folder / trained.run(name).name)
    for stage, *overrides in list(MADE.values())[2:]:
        assert pipeline(runs.COMMANDS[stage], *overrides) == 0
    assert pipeline("eval") == 0
    return pipeline


@pytest.fixture
def old(today, tmp_path, small) -> Pipeline:
    """The same runs in the folders of 0.1, with what this version measured of them."""
    pipeline = Pipeline(tmp_path / "runs", small)
    shutil.copytree(today.folder, pipeline.folder)
    for name, asked in MADE.items():
        age(pipeline.at(*asked), name)
    return pipeline


def test_what_a_run_was_is_what_it_is(today, old):
    """Its identity, config, parent, epochs and hashes are those of the same run of today."""
    read = {run.name: run for run in runs.all_runs(old.config())}
    assert read.keys() == MADE.keys()
    for name, asked in MADE.items():
        run, same = read[name], runs.read_run(today.at(*asked))
        assert old.at(*asked) == run.folder
        assert (run.identity, run.stage, run.complete, run.epochs) == (same.identity, same.stage, True, same.epochs)
        assert run.values == same.values and run.tags() == same.tags()
        assert {c.epoch: c.weights for c in run.checkpoints()} == {c.epoch: c.weights for c in same.checkpoints()}
        if same.record["parent"]:
            parents = {today.at(*made).name: old_name for old_name, made in MADE.items()}
            assert run.record["parent"] == same.record["parent"] | {"run": parents[same.record["parent"]["run"]]}


def by_checkpoint(pipeline: Pipeline) -> dict[str, dict]:
    """The records in eval.json by identity and epoch, without the names of the folders."""
    records = pipeline.view()["records"]
    return {f"{r['identity']} {r['epoch']}": {key: r[key] for key in r if key != "run"} for r in records}


def test_finished_stages_are_complete(today, old, capsys):
    """No command does anything, none says what an old file leaves open, and what was measured stays valid."""
    before = snapshot(old.root)
    for stage, *overrides in MADE.values():
        assert old(runs.COMMANDS[stage], *overrides) == 0
    printed = capsys.readouterr().out
    assert printed.count("nothing to do") == 5 and "ignored" not in printed
    assert main(["runs", f"runs={old.root}", "stage=wise"]) == 0
    printed = capsys.readouterr().out
    names = [name for name, (stage, *_) in MADE.items() if stage == "wise"]
    assert all(f"{old.folder / name}  " in printed for name in names) and "2 runs, " in printed
    assert "weights=0.5" in printed and "weights=0.25 early=2" in printed
    assert snapshot(old.root) == before
    assert old("eval") == 0
    printed = capsys.readouterr().out
    assert "0 of them not measured yet" in printed and "left out" not in printed
    assert by_checkpoint(old) == by_checkpoint(today) and len(by_checkpoint(old)) == 1 + 3 + 3 * 2 + 3 + 1


def test_old_runs_are_measured_and_judged(today, old, capsys):
    for folder in old.folder.glob("*/eval"):
        shutil.rmtree(folder)
    assert old("eval") == old("claims") == 0
    assert "claims hold on 1 pair of seeds" in capsys.readouterr().out
    assert by_checkpoint(old) == by_checkpoint(today)


def test_new_runs_start_from_old_ones(old):
    """Their records name the folder and the weights."""
    short = ["seed=1", "sft.epochs=1"]
    assert old("sft", *short) == old("rl", *short, *RL) == old("wise", "wise.weights=0.75") == 0
    parents = [("base-seed0", "ckpt.pt"), ("sft-fork1-seed0", "epochs/e4.pt")]
    for run, (name, file) in zip((old.at("sft", *short), old.at("wise", "wise.weights=0.75")), parents, strict=True):
        parent = {"run": name, "file": file, "weights": weights_hash(old.folder / name / file)}
        assert runs.read_run(run).record["parent"] == parent


@pytest.mark.parametrize(("name", "asked", "step"), [("base-seed0", ("base",), 10), ("sft-fork1-seed0", ("sft",), 6)])
def test_unfinished_runs_go_on(trained, copy, capsys, name, asked, step):
    """To the same weights, in their folder, which has a record then."""
    pipeline, command = copy("base"), runs.COMMANDS[asked[0]]
    reference = trained.run("base" if name == "base-seed0" else "fork1")
    if name == "base-seed0":
        shutil.rmtree(pipeline.run("base"))
    with ctrl_c("before", step):
        assert pipeline(command) == 130
    for folder in (pipeline.run("base"), pipeline.run("fork1")):
        if folder.exists():
            age(folder, "base-seed0" if folder == pipeline.run("base") else name)
    assert "unfinished run; continue it with --resume" in pipeline.refused(capsys, command)
    assert pipeline(command, "--resume") == 0
    assert runs.find(pipeline.config(), asked[0]).folder == pipeline.folder / name
    for path in reference.rglob("*.pt"):
        assert weights_hash(pipeline.folder / name / path.relative_to(reference)) == weights_hash(path), path
    assert logged_steps(pipeline.folder / name) == logged_steps(reference)
    assert [leg["from"] for leg in runs.find(pipeline.config(), asked[0]).record["legs"]] == [0, step + 1]
    assert pipeline("eval") == 0 and "left out" not in capsys.readouterr().out


def test_a_start_that_was_made_anew_is_named(old, capsys):
    """By the hash that 0.1 wrote."""
    base = old.folder / "base-seed0" / "ckpt.pt"
    saved = load_weights(base)
    saved["model"]["head.weight"] *= 1.001
    torch.save(saved, base)
    line = f"{old.folder / 'sft-fork1-seed0'} started from other weights than {base}"
    assert line in old.refused(capsys, "sft") and line in old.refused(capsys, "rl", *RL)
    assert old("eval") == 0
    assert capsys.readouterr().out.count("started from other weights") == len(MADE) - 1


@pytest.mark.parametrize("start", ["a run of another seed", "a mixture"])
def test_rl_from_a_start_that_has_no_words_today(old, capsys, start):
    """No config of this version asks for it, so it is named and never taken for a run that one does ask for."""
    folder = old.folder / "started-seed0"
    config = configs.read_yaml(folder / "config.yaml")
    if start == "a mixture":
        config["rl"]["start"] = "sft-fork1-seed0-wise0.5"
        mixed = weights_hash(old.folder / config["rl"]["start"] / "epochs" / "e2.pt")
        meta = {"start": f"{config['rl']['start']}/epochs/e2.pt", "start_hash": mixed}
        files.write_json(folder / "meta.json", files.read_json(folder / "meta.json") | meta)
    else:
        config["seed"] = 1
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert old("eval") == 0
    assert f"{folder}: left out" in capsys.readouterr().out
    assert not old.at("rl", f"seed={config['seed']}", "rl.epoch=2", *RL).exists()


def test_a_limit_that_came_later(old, capsys):
    """What a command of 0.1 said of a study decides nothing and refuses nothing: it knew no largest number of pairs."""
    path = old.folder / "base-seed0" / "config.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("pairs: 1\n", "pairs: 10\n"), encoding="utf-8")
    assert old("pretrain") == 0
    assert "base-seed0 is complete: nothing to do" in capsys.readouterr().out


DAMAGE = {  # contents of a file, None for none, or changes of what it says
    "meta.json": ["", "[]", "{}", '{"schema": 1, "stage": "base", "complete": true}', {"stage": "other"},
                  {"step": None}, {"weight": "x"}, {"tuned": None}],
    "config.yaml": [None, "", "a: [", "- 1", "task: star\n", "task: chess\nrl: {}\n", {"sft": 3}, {"reproduce": 3}],
}  # fmt: skip


def damage_file(path: Path, damage: str | dict | None) -> None:
    if damage is None:
        path.unlink()
    elif isinstance(damage, dict):  # JSON is YAML
        path.write_text(json.dumps(yaml.safe_load(path.read_text(encoding="utf-8")) | damage), encoding="utf-8")
    else:
        path.write_text(damage, encoding="utf-8")


@pytest.mark.parametrize(("file", "damage"), [(file, damage) for file, listed in DAMAGE.items() for damage in listed])
def test_damaged_runs_are_named(old, capsys, file, damage):
    """In one line each, and left out; a study's section decides nothing."""
    path = old.folder / "sft-fork1-seed0-wise0.5" / file
    damage_file(path, damage)
    lost = 0 if damage == {"reproduce": 3} else 1
    assert len(runs.all_runs(old.config())) == len(MADE) - lost
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == lost
    assert all(line.startswith(f"{path.parent}: left out, {path.parent}") for line in lines), lines


@pytest.mark.parametrize("damage", DAMAGE["config.yaml"][:5])
def test_a_damaged_start_is_named(old, capsys, damage):
    """For RL too, whose config left out what the run that it started from had."""
    damage_file(old.folder / "sft-fork1-seed0" / "config.yaml", damage)
    assert len(runs.all_runs(old.config())) == len(MADE) - 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [str(old.folder / n) for n in ("sft-fork1-seed0", "started-seed0")]
    assert all("sft-fork1-seed0" in line.partition("left out, ")[2] for line in lines), lines
