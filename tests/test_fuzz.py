"""Anything may be written in a config, an override, a sweep, a claim or a result file: it is taken or refused in one
line, and never ends in another exception."""

import contextlib
import copy
import io
import json
from pathlib import Path

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import claims, sweep
from experiments.results import load
from minifork import config as configs
from minifork import records, runs
from minifork.cli import main
from minifork.config import from_tree, to_tree

CONFIGS = Path(__file__).parent.parent / "experiments" / "configs"
TREES = [to_tree(configs.load(str(path), [])) for path in sorted(CONFIGS.glob("*.yaml"))]
fuzz = settings(max_examples=100, deadline=None, derandomize=True, database=None)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12),
    st.sampled_from(["0", "-1", "1e999", "nan", "inf", "2x7,3x5", "FWD,FWD", "FWD", "../x", "a=1", "\n", "{"]),
)  # fmt: skip
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))


def keys(tree: dict, prefix: str = "") -> list[str]:
    """Dotted keys of a mapping, sections included."""
    found = []
    for name, value in tree.items():
        found += [prefix + name, *(keys(value, f"{prefix}{name}.") if isinstance(value, dict) else [])]
    return found


def taken_or_refused(function, *arguments) -> object:
    """The result, or None where it is refused: by a ValueError or an OSError of one line, by nothing else."""
    try:
        return function(*arguments)
    except (ValueError, OSError) as error:
        assert str(error).strip() and "\n" not in str(error), repr(str(error))
        return None


@fuzz
@given(st.sampled_from(range(len(TREES))), st.data())
def test_any_value_anywhere_in_a_config(index, data):
    tree = copy.deepcopy(TREES[index])
    for key in data.draw(st.lists(st.sampled_from(keys(tree)), min_size=1, max_size=2)):
        *sections, name = key.split(".")
        at = tree
        for section in sections:
            at = at.get(section) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at[name] = data.draw(values)
    config = taken_or_refused(from_tree, tree, "fuzzed.yaml")
    if config is not None:
        assert to_tree(from_tree(to_tree(config), "again")) == to_tree(config)


@fuzz
@given(st.text(max_size=60))
def test_any_text_as_a_config(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    taken_or_refused(configs.load, str(path), [])


@fuzz
@given(st.sampled_from(keys(TREES[-1])), st.one_of(st.text(max_size=12), scalars.map(str)), st.text(max_size=8))
def test_any_override(key, value, name):
    for override in (f"{key}={value}", f"{key}.{name}={value}", f"{name}={value}", name):
        taken_or_refused(configs.load, str(CONFIGS / "star.yaml"), [override])


entries = st.lists(
    st.dictionaries(st.sampled_from([*keys(TREES[-1]), "stage", "x"]), st.one_of(values, st.just("a{pair}{x}"))),
    max_size=2,
)


@fuzz
@given(st.one_of(entries, values))
def test_any_sweep(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    tree = copy.deepcopy(TREES[-1])
    tree["reproduce"]["sweep"] = str(path)
    config = from_tree(tree, "fuzzed.yaml")
    for job in taken_or_refused(sweep.read, config, range(2)) or ():
        taken_or_refused(sweep.finished, config, job)


@fuzz
@given(st.data())
def test_any_value_anywhere_in_the_claims(tmp_path_factory, data):
    tree = yaml.safe_load(claims.FILE.read_text())
    tree["claims"] = tree["claims"][:6]
    claim = data.draw(st.sampled_from(tree["claims"]))
    claim[data.draw(st.sampled_from([*claim, "minus", "rising", "x"]))] = data.draw(values)
    path = tmp_path_factory.getbasetemp() / "claims.yaml"
    path.write_text(yaml.safe_dump(tree))
    taken_or_refused(claims.read, path)


parts = {"schema": st.just(records.SCHEMA), "records": values, "settings": scalars, "n_problems": scalars}


@fuzz
@given(content=st.one_of(values, st.fixed_dictionaries(parts, optional={"npz_hash": scalars, "checks": values})))
def test_any_json_as_results(trained, tmp_path_factory, content):
    """Also with the right checksum, as someone might write it who edits a result."""
    config = trained.config(f"runs={tmp_path_factory.getbasetemp() / 'fuzzed'}")
    folder = Path(config.runs) / "star"
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict) and "schema" in content:
        content["npz_hash"] = runs.digest((trained.folder / "eval.npz").read_bytes())
        content["checksum"] = configs.fingerprint(content)
    (folder / "eval.json").write_text(json.dumps(content))
    (folder / "eval.npz").write_bytes((trained.folder / "eval.npz").read_bytes())
    taken_or_refused(load, config)


@fuzz
@given(st.lists(st.one_of(st.sampled_from(["pretrain", "sft", "eval", "--config", "--resume", "--debug", "x=1"]),
                          st.text(max_size=8)), max_size=4))  # fmt: skip
def test_any_command_line(words):
    """Exit code 1 or argparse's 2 (0 for help), one `minifork: ...` line or argparse's usage."""
    if "--debug" in words:
        return  # asks for the traceback
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as stopped:
            code = stopped.code
    said = err.getvalue()
    assert code == 2 or (code == 1 and said.startswith("minifork: ") and said.count("\n") == 1) or not said
