"""Runs outlive changes of the config: without any key, or with one that is gone, a record is read as what it was.

All is at its default here, in a copy of the shipped configs in which the defaults are tiny.
"""

import contextlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.cli import main
from minifork import config as configs
from minifork import runs
from minifork.evaluation.files import row_of
from minifork.evaluation.targets import find_targets, load_evaluation
from minifork.schema import Config
from minifork.storage import files
from tests.conftest import SMALL

KEYS = sorted(configs.keys(Config))
PARTS = {"even": KEYS[::2], "odd": KEYS[1::2], "all": KEYS}
GONE = {"gone": 1, "sft": {"gone": "a word"}, "gone_section": {"one": 1, "two": [2]}}
RESULTS = ("eval.json", "claims-star.json", "report.html")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Iterator[Path]:
    """The folder of a base and two fine-tunings, with what was measured and said of them."""
    root = tmp_path_factory.mktemp("robust")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "CONFIGS", tiny_configs(root / "configs"))
        patch.chdir(root)
        commands = ["pretrain", "sft", "sft sft.fork_rate=0.5", "eval", "claims", "report"]
        assert [main(command.split()) for command in commands] == [0] * len(commands)
        config = configs.load_config()
        assert all(runs.require_run(config, stage).config == config for stage in ("base", "sft"))
        yield root / "runs" / "star"


def without_before(tree: Any) -> Any:
    """A config file in which keys with a value from before they existed have their default alone."""
    if not isinstance(tree, dict):
        return tree
    return tree["default"] if "before" in tree else {key: without_before(value) for key, value in tree.items()}


def tiny_configs(folder: Path) -> Path:
    """A copy of the shipped configs with the values of SMALL as defaults."""
    shutil.copytree(configs.CONFIGS, folder)
    for word in SMALL:
        key, _, value = word.partition("=")
        *sections, leaf = key.split(".")
        path = folder / ("star.yaml" if sections == ["data"] else "defaults.yaml")
        tree = without_before(yaml.safe_load(path.read_text(encoding="utf-8")))
        (tree[sections[0]] if sections else tree)[leaf] = yaml.safe_load(value)
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


@contextlib.contextmanager
def edited_records(without: Iterable[str] = (), more: dict | None = None) -> Iterator[None]:
    """The records of the base and the plain fine-tuning with config keys taken out or put in, put right again."""
    paths = [runs.folder_of(configs.load_config(), stage) / runs.RECORD for stage in ("base", "sft")]
    before = {path: path.read_text(encoding="utf-8") for path in paths}
    for path in paths:
        record = files.read_json(path)
        for key in without:
            *sections, leaf = key.split(".")
            del (record["config"][sections[0]] if sections else record["config"])[leaf]
        for name, value in (more or {}).items():
            record["config"][name] = record["config"].get(name, {}) | value if isinstance(value, dict) else value
        files.write_json(path, record)
    try:
        yield
    finally:
        for path, text in before.items():
            path.write_text(text, encoding="utf-8")


def check_recognised(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Both runs are read as the defaults' own, finished ones, and everything that was measured of them is there."""
    config = configs.load_config()
    for stage in ("base", "sft"):
        run = runs.read_run(runs.folder_of(config, stage))
        assert run.config == config and run.identity == runs.identity(run.config, stage)
        assert runs.find_run(config, stage) == runs.finished(config, stage) == run
        capsys.readouterr()
        assert main([runs.COMMAND_OF_STAGE[stage]]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == f"{run.folder} is complete: nothing to do"
    targets, left_out = find_targets(config)
    evaluations = [load_evaluation(config, target) for target in targets]
    assert not left_out and all(one.current for one in evaluations)
    assert [row_of(config, one) for one in evaluations] == files.read_json(folder / "eval.json")["records"]


@pytest.mark.parametrize("part", PARTS)
def test_without_keys(folder, capsys, part):
    with edited_records(PARTS[part]):
        check_recognised(folder, capsys)


def test_with_keys_that_are_gone(folder, capsys):
    with edited_records(more=GONE):
        check_recognised(folder, capsys)


def test_results_are_the_same(folder, capsys):
    """Evaluating measures nothing, and the claims and the report are those of whole records."""
    before = {name: (folder / name).read_bytes() for name in RESULTS}
    for name in RESULTS:
        (folder / name).unlink()
    with edited_records(KEYS, GONE):
        capsys.readouterr()
        assert main(["eval"]) == 0 and ", 0 of them not measured yet" in capsys.readouterr().out
        assert main(["claims"]) == main(["report"]) == 0
    assert {name: (folder / name).read_bytes() for name in RESULTS} == before


def test_a_fine_tuning_of_such_a_base(folder):
    """It has the weights that it has of a whole record."""
    config, weights = configs.load_config(overrides=["seed=1"]), []
    for missing in ([], KEYS):
        with edited_records(missing):
            assert main(["sft", "seed=1"]) == 0
        run = runs.require_run(config, "sft")
        weights.append(run.record["weights"])
        runs.remove_run(run)
    assert weights[0] == weights[1] and len(weights[0]) == 4
