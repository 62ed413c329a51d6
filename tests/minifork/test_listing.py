"""Looking at what there is: `minifork config` prints all keys, `minifork runs` lists and removes runs."""

import os
import re
import shutil
from pathlib import Path

import pytest

from experiments.cli import main
from minifork import config as configs
from minifork import runs
from minifork.schema import Config
from minifork.storage import locks
from tests.helpers.pipeline import SFT, Pipeline, ctrl_c, snapshot


def test_config_prints_every_key_with_its_comment_and_what_differs(capsys):
    """That it can be read again is tested with many configs in test_config_words."""
    changes = {"data.modulus": "null", "sft.lr": "1e-05", "sft.fresh": "true", "seed": "3", "name": "a: b # c"}
    words = ["preset=paper", *(f"{key}={value}" for key, value in changes.items())]
    assert main(["config", "--config", "arith", *words]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line and not line.endswith(":")]
    assert len(lines) == len(configs.keys(Config, task="arith"))
    assert all(re.search(r" # (\[changed, \S* ships\] )?\S{2}", line) for line in lines)
    marked = [re.match(r" *(\w+):.* # \[changed, (\S*) ships\]", line) for line in lines]
    shipped = configs.flat_values(configs.load_config("arith", ["preset=paper"]))
    expected = sorted((key.split(".")[-1], configs.override_text(shipped[key])) for key in changes)
    assert sorted(match.groups() for match in marked if match) == expected


def listed(capsys, pipeline: Pipeline, *words: str) -> tuple[dict[str, list[str]], str]:
    """The words that `minifork runs` prints about each run, by its folder's name, and its last line."""
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
    sizes = {folder.name: sum(len(content) for _, content in snapshot(folder).values()) / 1e6 for folder in folders}
    for folder in folders:
        stage, progress, megabytes, _, path, *tags = rows[folder.name]
        run = runs.read_run(folder)
        assert (stage, progress, path) == (run.stage, "complete", str(folder))
        assert ("seed=0" in tags) == (stage == "sft") and "base_seed=0" in tags and "width=32" in tags
        assert ("fresh=true" in tags) == run.config.sft.fresh
        assert float(megabytes) == pytest.approx(sizes[folder.name], abs=0.051)
    assert total == f"{len(folders)} runs, {sum(sizes.values()):.1f} MB"


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
    assert f"{pipeline.run('fork1')}: process {os.getpid()} on" in error
    assert snapshot(pipeline.root) == before
    rows, total = listed(capsys, pipeline, "fork_rate=1", "--remove")
    assert set(rows) == gone and total.startswith("2 runs, ") and total.endswith(" removed")
    rest = {path: content for path, content in before.items() if path.split("/")[1] not in gone}
    assert snapshot(pipeline.root) == rest


def test_filters_that_mean_nothing_or_too_much(trained, capsys):
    before = snapshot(trained.root)
    refused = {"frok_rate=1": "sft.fork_rate", "stages=sft": "stage", "lr=0.1": "rl.lr", "sft": "key=value"}
    for word, hint in refused.items():
        assert hint in trained.refused(capsys, "runs", "stage=base", word, "--remove")
    assert snapshot(trained.root) == before
