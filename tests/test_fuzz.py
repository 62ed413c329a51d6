"""Anything may be written in a config, an override, a sweep, a claim or a result file: it is taken or refused in one
line, and never ends in another exception. Examples are drawn anew in every run unless HYPOTHESIS_PROFILE=fixed."""

import contextlib
import copy
import io
import json
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from experiments import claims, sweep
from experiments.results import load
from minifork import config as configs
from minifork.cli import main
from minifork.config import Shape, from_tree, to_tree
from minifork.policy import Policy
from minifork.rollout import rollout
from minifork.tree import Tree

CONFIGS = Path(__file__).parent.parent / "experiments" / "configs"
TREES = [to_tree(configs.load(str(path), [])) for path in sorted(CONFIGS.glob("*.yaml"))]
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


@given(st.text(max_size=60))
def test_any_text_as_a_config(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    taken_or_refused(configs.load, str(path), [])


@given(st.sampled_from(keys(TREES[0])), st.one_of(st.text(max_size=12), scalars.map(str)), st.text(max_size=8))
def test_any_override(key, value, name):
    for override in (f"{key}={value}", f"{key}.{name}={value}", f"{name}={value}", name):
        taken_or_refused(configs.load, str(CONFIGS / "star.yaml"), [override])


entries = st.lists(
    st.dictionaries(st.sampled_from([*keys(TREES[0]), "stage", "x"]), st.one_of(values, st.just("a{pair}{x}"))),
    max_size=2,
)


@given(st.one_of(entries, values))
def test_any_sweep(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "sweep.yaml"
    path.write_text(yaml.safe_dump(content))
    tree = copy.deepcopy(TREES[-1])
    tree["reproduce"]["sweep"] = str(path)
    config = from_tree(tree, "fuzzed.yaml")
    for job in taken_or_refused(sweep.read, config, range(2)) or ():
        taken_or_refused(sweep.finished, config, job)


@given(st.data())
def test_any_value_anywhere_in_the_claims(tmp_path_factory, data):
    tree = yaml.safe_load(claims.FILE.read_text())
    tree["claims"] = tree["claims"][:6]
    claim = data.draw(st.sampled_from(tree["claims"]))
    claim[data.draw(st.sampled_from([*claim, "minus", "rising", "x"]))] = data.draw(values)
    path = tmp_path_factory.getbasetemp() / "claims.yaml"
    path.write_text(yaml.safe_dump(tree))
    taken_or_refused(claims.read, path)


@given(content=st.one_of(values, st.fixed_dictionaries({"schema": st.just(3), "records": values, "checksum": scalars})))
def test_any_json_as_results(trained, tmp_path_factory, content):
    config = trained.config(f"runs={tmp_path_factory.getbasetemp() / 'fuzzed'}")
    folder = Path(config.runs) / "star"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.json").write_text(json.dumps(content))
    (folder / "eval.npz").write_bytes((trained.folder / "eval.npz").read_bytes())
    taken_or_refused(load, config)


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
    assert code in (1, 2) or "usage" in out.getvalue()
    assert "Traceback" not in err.getvalue()


@pytest.mark.parametrize("n", [1, 7, 64])
def test_rollouts_do_not_depend_on_threads(make_model, threads, n):
    """Their tokens; log-probabilities to rounding, as matrix products are cut up otherwise."""
    model = make_model(0, Shape(2, 64, 2), 12, 14)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(12, (5, 8), generator=generator)
    dfa = torch.randint(6, (5, 6, 12), generator=generator)
    dfa[:, 4:] = torch.arange(4, 6)[:, None]
    found = []
    for count in (1, 2, 3):
        threads(count)
        with torch.no_grad():
            found.append(rollout(Tree(model, model.prefill(prompts), dfa, 2, 6, Policy()), n, 1, traces=True).traces)
    for one in found[1:]:
        assert torch.equal(one.tokens, found[0].tokens) and torch.allclose(one.logp, found[0].logp, atol=1e-5)
