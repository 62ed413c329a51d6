"""Anything may be written in a config, an override, a study, a claim, a run's record or a measurement: it is taken or
refused in one line, and never ends in another exception."""

import contextlib
import copy as copies
import io
import json
import os
import shutil
from unittest import mock

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from experiments import claims, study
from experiments.cli import main
from experiments.results import load_results
from minifork import config as configs
from minifork import evaluate, listing, runs
from minifork.config import from_tree, to_tree
from minifork.storage import files
from tests.helpers.pipeline import BASE

TREES = [to_tree(configs.load_config(name)) for name in ("arith", "sizes", "star")]
fuzz = settings(max_examples=100, deadline=None, derandomize=True, database=None)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12),
    st.sampled_from(["0", "-1", "1e999", "nan", "inf", "2x7,3x5", "FWD,FWD", "FWD", "../x", "a=1", "\n", "{"]),
)  # fmt: skip
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def keys(tree: dict, prefix: str = "") -> list[str]:
    """Dotted keys of a mapping, sections included."""
    names = []
    for name, value in tree.items():
        names += [prefix + name, *(keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [])]
    return names


def taken_or_refused(function, *arguments) -> object:
    """The result, or None where it is refused: by a ValueError or an OSError of one line, by nothing else."""
    try:
        return function(*arguments)
    except (ValueError, OSError) as error:
        assert str(error).strip() and "\n" not in str(error), repr(str(error))
        return None


def spoil(tree: dict, data) -> None:
    """Put any values at one or two places of a mapping."""
    names = st.one_of(st.sampled_from([*tree]), st.sampled_from(keys(tree)))
    for key in data.draw(st.lists(names, min_size=1, max_size=2)):
        *sections, name = key.split(".")
        at = tree
        for section in sections:
            at = at.get(section) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at[name] = data.draw(values)


@fuzz
@given(st.sampled_from(range(len(TREES))), st.data())
def test_any_value_anywhere_in_a_config(index, data):
    tree = copies.deepcopy(TREES[index])
    spoil(tree, data)
    config = taken_or_refused(from_tree, tree, "fuzzed.yaml")
    if config is not None:
        assert to_tree(from_tree(to_tree(config), "again")) == to_tree(config)


@fuzz
@given(st.text(max_size=60))
def test_any_text_as_a_config(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    taken_or_refused(configs.load_config, str(path), [])


@fuzz
@given(st.sampled_from(keys(TREES[-1])), st.one_of(st.text(max_size=12), scalars.map(str)), st.text(max_size=8))
def test_any_override(key, value, name):
    for override in (f"{key}={value}", f"{key}.{name}={value}", f"{name}={value}", name):
        taken_or_refused(configs.load_config, "star", [override])


entries = st.lists(
    st.dictionaries(
        st.sampled_from([*keys(TREES[-1]), *study.WORDS, "x"]),
        st.one_of(values, st.sampled_from(["x4", "/4", "a {seed} {x}", "rl", "wise"])),
        max_size=4,
    ),
    max_size=2,
)


@fuzz
@given(st.one_of(entries, values))
@example([{"task": {}}])
def test_any_study(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "study.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    config = configs.load_config("star", [f"reproduce.study={path}", f"runs={path.parent / 'none'}"])
    taken_or_refused(lambda: [plan.command for plan in study.plans(config, study.read_study(str(path)), range(2))])


@fuzz
@given(st.data())
def test_any_value_anywhere_in_the_claims(tmp_path_factory, data):
    tree = yaml.safe_load(claims.FILE.read_text(encoding="utf-8"))
    tree["claims"] = tree["claims"][:2]
    claim = data.draw(st.sampled_from(tree["claims"]))
    claim[data.draw(st.sampled_from([*claim, "minus", "rising", "x"]))] = data.draw(values)
    path = tmp_path_factory.getbasetemp() / "claims.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    taken_or_refused(claims.read_claims, path)


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    """A config whose runs are copies of the base, which was measured, and a fine-tuning, which was not."""
    root = tmp_path_factory.mktemp("measured")
    shutil.copytree(trained.run(BASE), root / "star" / trained.run(BASE).name)
    shutil.copytree(trained.run("fork1"), root / "star" / trained.run("fork1").name, ignore=lambda *_: ["eval"])
    return trained.config(f"runs={root}")


@contextlib.contextmanager
def spoilt(path, content, data):
    """A JSON file with other content, or where that is None with other values in it, for as long as the block lasts.

    Its checksum, if it has one, is right, as someone might write it who edits it, unless what was measured is changed.
    """
    before = path.read_bytes()
    tree, original = json.loads(before), json.loads(before)
    if content is None:
        spoil(tree, data)
        content = tree
        if "checksum" in original and tree.get("record") == original["record"]:
            tree["checksum"] = files.fingerprint({key: value for key, value in tree.items() if key != "checksum"})
    try:
        path.write_text(json.dumps(content), encoding="utf-8")
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        path.write_bytes(before)


changes = st.one_of(st.none(), st.none(), values)


@fuzz
@given(changes, st.data(), st.sampled_from(["base", "sft"]))
def test_any_value_anywhere_in_a_record(measured, content, data, stage):
    with spoilt(runs.folder_of(measured, stage) / runs.RECORD, content, data):
        taken_or_refused(listing.list_runs, measured, [], False)
        taken_or_refused(load_results, measured)
        taken_or_refused(runs.finished, measured, "sft")


@fuzz
@given(changes, st.data(), st.booleans())
def test_any_value_anywhere_in_a_measurement(measured, content, data, of_this_version):
    (path,) = runs.folder_of(measured, "base").glob("eval/*.json")
    version = evaluate._version if of_this_version else lambda *_: "another"
    with spoilt(path, content, data), mock.patch("minifork.evaluate._version", version):
        results = taken_or_refused(load_results, measured)
    assert results is None or results.records[0]["current"] == of_this_version


WORDS = ["sft", "eval", "claims", "config", "runs", "--config", "--resume", "--debug", "star", "x=1", "seed=1"]


@fuzz
@given(st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=8)), max_size=4))
def test_any_command_line(tmp_path_factory, words):
    """Where no run is: done, or refused in one `minifork: ...` line (code 1), or argparse's usage (2, 0 for help)."""
    if "--debug" in words:
        return  # asks for the traceback
    out, err, before = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(tmp_path_factory.mktemp("empty"))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as stopped:
            code = stopped.code
        finally:
            os.chdir(before)
    said = err.getvalue()
    assert code == 2 or (code == 1 and said.startswith("minifork: ") and said.count("\n") == 1) or not said
