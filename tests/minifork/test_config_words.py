"""From a config to words and back: arguments of a command, tags, short keys, what `minifork config` prints.

And any text: a config file or an override is taken or refused in one line, and never ends in another exception.
"""

import json
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minifork import cli
from minifork import config as configs
from minifork.schema import TASKS, Config

fuzz = settings(max_examples=60, deadline=None, derandomize=True, database=None)
CHOICES = {
    "task": ["star"], "preset": [""], "device": ["auto", "cpu"], "data.branch_order": ["shuffled", "published"],
    "data.modes": ["FWD,REV", "REV,FWD"], "data.modulus": [None, 7], "data.sizes": ["2x3,3x2"],
    "pretrain.optimizer": ["adamw", "muon"], "sft.modes": ["FWD", "REV,FWD"], "sft.allocation": ["problem"],
    "rl.mode": ["FWD"], "rl.advantage": ["passk", "passk_sampled", "exact"], "rl.kl_form": ["k3"],
    "rl.reduction": ["token_mean"], "rl.source": ["sft"], "wise.weights": ["0.5", "0,1"],
    "eval.split": ["valid"], "eval.grading": ["answer"], "eval.engine": ["split"], "eval.stratify": ["fork"],
}  # fmt: skip
VALUES = {
    float: st.floats(0, 2) | st.sampled_from([1e-5, 1e22, float("inf")]),
    int: st.integers(0, 2000) | st.integers(0, 2**31 - 1),
    bool: st.booleans(),
    str: st.text(max_size=20),
}


@st.composite
def changed_configs(draw) -> Config:
    """A config of some task and preset after a few changes that are legal."""
    task = draw(st.sampled_from([*TASKS]))
    config = configs.load_config(task, draw(st.sampled_from([[], ["preset=small"], ["preset=paper"]])))
    kinds = configs.keys(Config, task=task)
    for key in draw(st.lists(st.sampled_from(sorted(kinds.keys() - {"task"})), max_size=8)):
        value = draw(st.sampled_from(CHOICES[key]) if key in CHOICES else VALUES[kinds[key]])
        try:
            config = configs.with_changes(config, {key: value})
        except ValueError:
            continue
    return config


@fuzz
@given(changed_configs())
def test_every_config_can_be_asked_for(tmp_path_factory, config):
    """By the words of a command line, by a file with what `minifork config` prints, and by a run's record."""
    options = cli.parser().parse_args(["config", *configs.arguments(config)])
    assert configs.load_config(options.config, options.overrides) == config
    path = tmp_path_factory.getbasetemp() / "printed.yaml"
    path.write_text(configs.config_as_yaml(config), encoding="utf-8")
    assert configs.load_config(path) == config
    assert configs.from_record(json.loads(json.dumps(asdict(config))), "run.json") == config


def taken_or_refused(source: str, *overrides: str) -> None:
    try:
        configs.load_config(source, overrides)
    except (ValueError, OSError) as error:
        assert str(error).strip() and "\n" not in str(error), repr(str(error))


@fuzz
@given(st.text(max_size=60) | st.sampled_from(sorted(configs.keys(Config))).map(lambda key: f"{key}: 1"))
def test_any_text_as_a_config(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    taken_or_refused(str(path))


@fuzz
@given(st.sampled_from(sorted(configs.keys(Config))), st.text(max_size=12) | st.floats().map(str), st.text(max_size=8))
def test_any_override(key, value, name):
    for override in (f"{key}={value}", f"{key}.{name}={value}", f"{name}={value}", name):
        taken_or_refused("star", override)


def test_tags():
    study = configs.load_config("star", ["preset=small", "sft.epochs=4"])
    assert configs.tags(configs.load_config("star", ["preset=small"])) == {}  # a preset is no difference
    assert configs.tags(study) == {"sft.epochs": 4}
    differing = {"seed": 1, "sft.fork_rate": 0.5, "sft.fresh": True, "sft.lr": 0.5}
    changed = configs.with_changes(study, differing)
    assert configs.tags(changed, study) == differing and configs.tags(study, study) == {}
    text = configs.tag_text(configs.tags(changed, study))
    assert {*text.split()} == {"seed=1", "fork_rate=0.5", "fresh=true", "sft.lr=0.5"}  # lr alone would be ambiguous


def test_flags_may_stand_between_overrides(capsys):
    """As in make's ARGS, where targets add words on both sides."""
    options = cli.parse_arguments(cli.COMMANDS, ["sft", "--resume", "seed=1", "--resume", "name=", "sft.epochs=2"])
    assert (options.resume, options.overrides) == (True, ["seed=1", "name=", "sft.epochs=2"])
    with pytest.raises(SystemExit):
        cli.parse_arguments(cli.COMMANDS, ["sft", "seed=1", "--resme", "name="])
    assert "unrecognized arguments: --resme" in capsys.readouterr().err
