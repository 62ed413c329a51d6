"""Looking at what there is: `minifork config` prints all keys, `minifork runs` lists and removes runs."""

import os
import re
import shutil
import socket
from pathlib import Path

import pytest

from experiments.cli import main
from minifork import config as configs
from minifork import runs
from minifork.schema import Config
from minifork.storage import locks
from tests.helpers.pipeline import SFT, Pipeline, ctrl_c, snapshot

LONG = "runs=/somewhere/far/away/where/results/are/kept"


PRINTED = [
    "star",
    "sizes,preset=small",
    "star,preset=small,sft.epochs=4",
    "arith,preset=paper,data.modulus=null,sft.lr=1e-5,sft.fresh=true,seed=3",
    f"star,name=a: b # c,{LONG},eval.policy=temperature=0.7,top_k=3,top_p=0.95",
]


@pytest.mark.parametrize("words", PRINTED)
def test_config_prints_what_can_be_read_again(tmp_path, capsys, words):
    task, *overrides = re.split(r",(?!top_)", words)
    config = configs.load_config(task, overrides)
    assert main(["config", "--config", task, *overrides]) == 0
    printed = capsys.readouterr().out
    path = tmp_path / "again.yaml"
    path.write_text(printed, encoding="utf-8")
    assert configs.load_config(path) == config
    lines = [line for line in printed.splitlines() if line and not line.endswith(":")]
    assert len(lines) == len(configs.keys(Config, task=task))
    assert all(re.search(r" # (\[changed, \S* ships\] )?\S{2}", line) for line in lines)  # a comment for every key
    shipped = configs.flat(configs.load_config(task, [word for word in overrides if word.startswith("preset=")]))
    marks = re.findall(r"^ *(\w+):.* # \[changed, (\S*) ships\]", printed, re.MULTILINE)
    changed = [word.partition("=")[0] for word in overrides if not word.startswith("preset=")]
    assert sorted(marks) == sorted((key.split(".")[-1], configs.word(shipped[key])) for key in changed)


def listed(capsys, pipeline: Pipeline, *words: str) -> tuple[dict[str, list[str]], str]:
    """What `minifork runs` says of each run, in words by its folder's name, and its last line."""
    capsys.readouterr()
    assert main(["runs", f"runs={pipeline.root}", *words]) == 0
    *lines, total = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if " MB " in line]
    return {Path(words[4]).name: words for words in rows}, total


FILTERS = {
    "": ["base", *SFT],
    "stage=base": ["base"],
    "fork_rate=1": ["fork1", "fresh", "cued"],  # a base has no such key
    "sft.fork_rate=0.5": ["fork0.5", "problem"],
    "fork_rate=0.5 allocation=data": ["fork0.5"],
    "fresh=true stage=sft width=32": ["fresh"],
    "base_seed=0 fork_rate=0.25": [],
}


@pytest.mark.parametrize("filters", FILTERS)
def test_runs_are_listed_by_filters(trained, capsys, filters):
    rows, total = listed(capsys, trained, *filters.split())
    folders = [trained.run(name) for name in FILTERS[filters]]
    assert set(rows) == {folder.name for folder in folders}
    size = 0
    for folder in folders:
        stage, progress, megabytes, _, path, *tags = rows[folder.name]
        run = runs.read_run(folder)
        assert (stage, progress, path) == (run.stage, "complete", str(folder))
        assert ("seed=0" in tags) == (stage == "sft") and "base_seed=0" in tags and "width=32" in tags
        assert ("fresh=true" in tags) == run.config.sft.fresh
        of_folder = sum(len(content) for _, content in snapshot(folder).values())
        assert float(megabytes) == pytest.approx(of_folder / 1e6, abs=0.051)
        size += of_folder
    assert total == f"{len(folders)} runs, {size / 1e6:.1f} MB"


def test_unfinished_runs_show_how_far_they_are(empty, capsys):
    with ctrl_c("before", 5):
        assert empty("pretrain") == 130
    (words,) = listed(capsys, empty)[0].values()
    assert words[:2] == ["base", "6/40"]


def test_what_is_listed_is_removed_and_nothing_else(copy, capsys):
    """Nor a run that a process works on."""
    pipeline = copy("base", "fork0.5", "fork1", "fresh")
    damaged = shutil.copytree(pipeline.run("fork1"), pipeline.folder / "mine")
    (damaged / runs.RECORD).write_text("{", encoding="utf-8")
    before = snapshot(pipeline.root)
    gone = {pipeline.run(name).name for name in ("fork1", "fresh")}
    with locks.locked(pipeline.run("fork1")):
        error = pipeline.refused(capsys, "runs", "fork_rate=1", "fresh=false", "--remove")
    assert f"{pipeline.run('fork1')}: process {os.getpid()} on {socket.gethostname()} is working here; the run" in error
    assert snapshot(pipeline.root) == before
    rows, total = listed(capsys, pipeline, "fork_rate=1", "--remove")
    assert set(rows) == gone and total.startswith("2 runs, ") and total.endswith(" removed")
    rest = {path: content for path, content in before.items() if path.split("/")[1] not in gone}
    assert snapshot(pipeline.root) == rest


REFUSED = {
    "frok_rate=1": "unknown key 'frok_rate'; did you mean sft.fork_rate?",
    "stages=sft": "unknown key 'stages'; did you mean stage?",
    "lr=0.1": "'lr' is short for pretrain.lr, sft.lr, rl.lr",
    "epochs=many": "sft.epochs must be a whole number",
    "sft": "write it as key=value",
}


def test_filters_that_mean_nothing_or_too_much(trained, capsys):
    before = snapshot(trained.root)
    for word, named in REFUSED.items():
        assert named in trained.refused(capsys, "runs", "stage=base", word, "--remove")
    assert snapshot(trained.root) == before
