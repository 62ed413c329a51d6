"""The configuration: what is shipped loads, what is wrong is refused in one line that names it."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.new_task import Ordered
from experiments.cli import main
from minifork import config as configs
from minifork.cli import parser
from minifork.schema import TASKS, Config

SHIPPED = sorted(path.stem for path in configs.FOLDER.glob("*.yaml") if path.stem != "defaults")
hypothesis_settings = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def leaves_of(name: str) -> dict:
    """The dotted keys of a shipped file with their values, presets apart."""
    tree = yaml.safe_load((configs.FOLDER / f"{name}.yaml").read_text())
    return configs.flattened({key: value for key, value in tree.items() if key != "presets"})


@pytest.fixture
def file(tmp_path):
    """A function that writes a config file with a text or bytes in it."""

    def write(content: str | bytes, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the folder of shipped configs, which is read in its place."""
    copy = shutil.copytree(configs.FOLDER, tmp_path / "configs")
    monkeypatch.setattr(configs, "FOLDER", copy)
    return copy


def refused(source, *overrides: str) -> str:
    """The message of the ValueError, which must be one line."""
    with pytest.raises(ValueError) as error:
        configs.load(source, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


# What is shipped


def test_a_file_is_shipped_for_every_task():
    assert SHIPPED == sorted(TASKS)


@pytest.mark.parametrize("task", SHIPPED)
def test_every_key_has_one_default(task):
    """Those of the data section are in the task's file, all others in defaults.yaml."""
    keys = set(configs.keys(Config, task=task))
    data = {key for key in keys if key.startswith("data.")}
    assert set(leaves_of("defaults")) == keys - data
    assert {key for key in leaves_of(task) if key.startswith("data.")} == data
    values = leaves_of("defaults") | leaves_of(task)
    assert configs.flat(configs.load(task)) == values


@pytest.mark.parametrize("task", SHIPPED)
def test_a_task_file_holds_what_differs(task):
    defaults = leaves_of("defaults")
    rest = {key: value for key, value in leaves_of(task).items() if key != "task" and not key.startswith("data.")}
    assert not [key for key, value in rest.items() if defaults[key] == value]


@pytest.mark.parametrize("name", ["defaults", *SHIPPED])
def test_every_default_is_commented(name):
    section, bare = "", []
    for line in (configs.FOLDER / f"{name}.yaml").read_text().split("\npresets:")[0].splitlines():
        code, _, comment = line.partition("#")
        section = section if code.startswith(" ") else code.strip().rstrip(":")
        is_default = name == "defaults" or section == "data"
        if is_default and code.strip() and not code.strip().endswith(":") and not comment.strip():
            bare.append(line)
    assert not bare


@pytest.mark.parametrize("task", SHIPPED)
def test_presets(task):
    plain = configs.load(task)
    presets = configs._shipped_tree(configs.FOLDER, task)[1]
    assert set(presets) >= {"small", "paper"}
    for name in presets:
        config = configs.load(task, [f"preset={name}"])
        assert config.preset == name and config.runs != plain.runs
        assert configs.load(task, ["sft.lr=0.5", f"preset={name}", "seed=7"]).sft.lr == 0.5  # overrides come on top
        assert config.context >= config.data.prompt_len + config.data.trace_len
    assert len({configs.load(task, [f"preset={name}"]).runs for name in presets}) == len(presets)
    assert "no preset 'huge'" in refused(task, "preset=huge")


def test_a_shipped_config_is_there_in_every_folder(tmp_path, monkeypatch, capsys):
    plain = configs.load("star")
    assert configs.load(configs.FOLDER / "star.yaml") == plain  # a path works too
    monkeypatch.chdir(tmp_path)
    assert configs.load("star") == plain
    assert main(["config", "--config", "mixed"]) == 0 and "task: mixed" in capsys.readouterr().out


def test_a_missing_file(tmp_path):
    message = refused(tmp_path / "none.yaml")
    assert "none.yaml" in message and "arith, mixed, star" in message
    assert "defaults: no such config file" in refused("defaults")


# A file of your own


def test_a_file_holds_differences_only(file):
    path = file("task: arith\nsft: {fork_rate: 0.5}\npresets:\n  mine: {seed: 4}\n  small: {seed: 5}\n")
    assert configs.load(path) == configs.load("arith", ["sft.fork_rate=0.5"])
    mine, small = (configs.load(path, [f"preset={name}"]) for name in ("mine", "small"))
    assert (mine.seed, mine.runs) == (4, "runs") and (small.seed, small.runs) == (5, "runs/small")
    assert configs.load(path, ["preset=mine", "seed=6"]).seed == 6
    assert configs.load(file("seed: 3")) == configs.load("star", ["seed=3"])


def test_a_file_may_ask_for_a_preset(file):
    """What else it says comes on top, as it does on the command line."""
    config = configs.load(file("preset: small\nsft: {epochs: 3}"))
    assert config == configs.load("star", ["preset=small", "sft.epochs=3"])


def test_wrong_keys_and_types_in_a_file(file):
    message = refused(file("model: {head: 2}"))
    assert "mine.yaml" in message and "'model.head'" in message and "did you mean model.heads?" in message
    assert "pretrain.steps must be a whole number, not True" in refused(file("pretrain: {steps: true}"))
    assert "data.branch_order must be a word, not 3" in refused(file("data: {branch_order: 3}"))
    assert "sft.allow_leak must be true or false, not 0" in refused(file("sft: {allow_leak: 0}"))


@pytest.mark.parametrize("value", ["3", "null", "[1]", "words"])
def test_a_value_where_a_section_is_due(file, value):
    path = file(f"model: {value}")
    assert "model is a section" in refused(path)
    assert "model is a section" in refused(path, "model.width=64")


@pytest.mark.parametrize("content", [b"", b"- 1\n- 2\n", b"just words", b"a: [", b"a: b: c", b"\xff\xfe\x00", b"\t- x"])
def test_files_that_are_no_config(file, content):
    path = file(content)
    assert str(path) in refused(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("presets: 5", "presets is a section"),
        ("presets: {odd: 3}", "presets is a section"),
        ("task: [star]", "task is"),
        ("task: maze", "task is 'maze'"),
        ("preset: huge", "no preset 'huge'"),
        ("preset: [small]", "preset"),
    ],
)
def test_sections_of_another_shape(file, text, named):
    path = file(text)
    assert named in refused(path) and "mine.yaml" in refused(path, "preset=odd")


@pytest.mark.parametrize("value", ["2026-99-99", "0b_", "9" * 5000, "[" * 2000, "!!int", "!!bool x"])
def test_what_yaml_chokes_on(file, value):
    assert "seed must be a whole number" in refused("star", f"seed={value}")[:200]
    assert "mine.yaml: not a YAML file" in refused(file(f"seed: {value}"))[:1000]


def test_a_key_written_twice(file):
    assert "mine.yaml: not a YAML file: seed is written twice" in refused(file("seed: 1\nseed: 0"))


def test_aliases_are_not_read(file):
    """A few hundred bytes of them can be gigabytes, or a mapping that holds itself."""
    assert "mine.yaml: not a YAML file: aliases are not read" in refused(file("presets:\n  loop: &loop {sft: *loop}"))


def test_errors_name_where_the_value_stands(file):
    path = file("seed: -2")
    assert refused(path).startswith(f"{path}: seed is -2")
    assert refused("star", "seed=-2").startswith("the command line: seed is -2")


# Overrides


def test_overrides_change_only_what_they_name():
    changed = configs.load("star", ["sft.fork_rate=0.5", "seed=3", "runs=elsewhere/deep"])
    differing = {"runs": "elsewhere/deep", "seed": 3, "sft.fork_rate": 0.5}
    assert configs.flat(changed) == configs.flat(configs.load("star")) | differing


@pytest.mark.parametrize(
    ("text", "value"), [("3e-3", 3e-3), ("1", 1.0), (".5", 0.5), ("1E-2", 1e-2), ("0.25", 0.25), ("1_0", 10.0)]
)
def test_floats(file, text, value):
    for config in (configs.load("star", [f"sft.lr={text}"]), configs.load(file(f"sft: {{lr: {text}}}"))):
        assert config.sft.lr == value and type(config.sft.lr) is float


def test_words_stay_words():
    for word in ("true", "12", "null", "1e3", "a: b", "[x", "a=b", ""):
        assert configs.load("star", [f"name={word}"]).name == word


def test_keys_may_be_short():
    assert configs.load("star", ["fork_rate=0.5", "stop=.2"]) == configs.load(
        "star", ["sft.fork_rate=0.5", "walks.stop=.2"]
    )
    assert "'lr' is short for pretrain.lr, sft.lr, rl.lr" in refused("star", "lr=0.1")


def test_the_last_override_wins():
    assert configs.load("star", ["seed=1", "seed=2"]).seed == 2


def test_numbers_are_decimal():
    """In YAML 1.1, 010 is eight and 1:30 ninety."""
    assert configs.load("star", ["seed=010"]).seed == 10


@pytest.mark.parametrize(
    ("override", "need"),
    [
        ("seed=true", "seed must be a whole number, not 'true'"),
        ("seed=1.0", "seed must be a whole number"),
        ("seed=one", "seed must be a whole number, not 'one'"),
        ("seed=", "seed must be a whole number"),
        ("sft.fresh=1", "sft.fresh must be true or false, not 1"),
        ("sft.fresh=maybe", "sft.fresh must be true or false"),
        ("sft.lr=true", "sft.lr must be a number, not 'true'"),
        ("sft.lr=fast", "sft.lr must be a number, not 'fast'"),
        ("sft.lr=[1]", "sft.lr must be a number"),
        ("model.width={a: 1}", "model.width must be a whole number"),
        ("sft.lr={", "sft.lr must be a number, not '{'"),
    ],
)
def test_wrong_types(override, need):
    assert need in refused("star", override)


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("sft.frok_rate=1", "sft.fork_rate"),
        ("model.widht=1", "model.width"),
        ("seeed=1", "seed"),
        ("data.stop=.3", "walks.stop"),
        ("sft.epoch=3", "sft.epochs"),
    ],
)
def test_unknown_keys_get_a_suggestion(override, suggestion):
    message = refused("star", override)
    key = override.partition("=")[0]
    assert repr(key) in message and f"did you mean {suggestion}?" in message


def test_hopeless_keys_get_the_list():
    message = refused("star", "xyzzy=1")
    assert "unknown key 'xyzzy'" in message and all(key in message for key in configs.keys(Config))


def test_what_is_no_override():
    assert "unknown key 'model'" in refused("star", "model=3")
    assert "'seed': write it as key=value" in refused("star", "seed")


def test_changes_in_a_mapping():
    config = configs.load("star")
    changes = {"sft.fork_rate": 0.5, "seed": 2}
    assert configs.changed(config, changes) == configs.changed(config, ["sft.fork_rate=0.5", "seed=2"]) != config
    with pytest.raises(ValueError, match="this study: unknown key 'sft.forks'"):
        configs.changed(config, {"sft.forks": 1}, "this study")
    with pytest.raises(ValueError, match="this study: seed must be a whole number, not '2'"):
        configs.changed(config, {"seed": "2"}, "this study")


# Values outside their range


@pytest.mark.parametrize(
    ("override", "needs"),
    [
        ("sft.fork_rate=1.5", ["sft.fork_rate is 1.5", "[0, 1]"]),
        ("sft.fork_rate=-0.1", ["sft.fork_rate is -0.1"]),
        ("sft.fork_rate=nan", ["sft.fork_rate is nan"]),
        ("sft.cue_rate=2", ["sft.cue_rate is 2"]),
        ("data.nodes=6", ["data.nodes is 6", "2 branches of length 4", "at least 7", "branches*(length-1)+1"]),
        ("data.branches=8", ["data.nodes is 16", "8 branches of length 4", "at least 25"]),
        ("data.length=1", ["data.length is 1"]),
        ("data.branch_order=sorted", ["data.branch_order is 'sorted'", "published"]),
        ("sft.allocation=both", ["sft.allocation is 'both'"]),
        ("model.heads=3", ["model.width is 128", "model.heads (3)"]),
        ("model.layers=0", ["model.layers is 0"]),
        ("model.width=-128", ["model.width is -128"]),
        ("pretrain.steps=0", ["pretrain.steps is 0"]),
        ("sft.epochs=0", ["sft.epochs is 0"]),
        ("sft.traces=0", ["sft.traces is 0"]),
        ("eval.check_problems=1001", ["eval.check_problems is 1001", "1000"]),
        ("eval.max_k=0", ["eval.max_k is 0"]),
        ("task=maze", ["task is 'maze'", "star", "arith"]),
        ("task=arith", ["the command line", "task is 'arith'", "the config is of star"]),
        ("eval.grading=answer", ["eval.grading", "steps"]),
        ("sft.modes=FWD,SEARCH", ["sft.modes", "FWD,REV"]),
        ("walks.informed=1.5", ["walks.informed is 1.5"]),
        ("seed=-1", ["seed is -1"]),
        ("seed=1:30", ["seed must be a whole number"]),
        (f"base_seed={2**64}", ["base_seed is", "2^63"]),
        ("runs=", ["runs is ''"]),
        ("eval.rollouts=2000000000", ["eval.rollouts is 2000000000", "10^9"]),
        ("save_every=0", ["save_every is 0"]),
        ("name=a/b", ["name is 'a/b'"]),
        ("name=..", ["name is '..'"]),
        ("name=a\nb", ["name is 'a\\nb'"]),
        ("name=\udcff", ["name is '\\udcff'"]),
        ("runs=a\nb", ["runs is 'a\\nb'"]),
        ("reproduce.pairs=0", ["reproduce.pairs is 0"]),
        ("reproduce.pairs=6", ["reproduce.pairs is 6", "confirmation"]),
        (f"model.width={10**18}", ["model.width is 1000000000000000000", "less than 2147483648"]),
    ],
)
def test_values_outside_their_range(override, needs):
    message = refused("star", override)
    assert all(need in message for need in needs)


@pytest.mark.parametrize("section", ["pretrain", "sft"])
@pytest.mark.parametrize(
    "value", ["lr=0", "lr=nan", "muon_lr=-1", "warmup=1.1", "weight_decay=-1", "clip=0", "batch=0"]
)
def test_optimizer_errors_name_the_section(section, value):
    """There are two optimizer sections: "batch is 0" alone does not say which to correct."""
    assert f"{section}.{value.partition('=')[0]}" in refused("star", f"{section}.{value}")


@pytest.mark.parametrize(
    "override",
    [
        "walks.stop=1",
        "walks.stop=-0.1",
        "walks.stop=nan",
        "walks.seq_len=20",
        "device=tpu",
        "sft.lr=inf",
        "sft.clip=nan",
    ],
)
def test_whatever_a_stage_would_refuse_is_refused_at_load(override):
    """Before any folder is made or any step trained."""
    assert override.partition("=")[0] in refused("star", override)


def test_combinations_that_make_no_sense():
    search = ["data.modes=FWD,REV,SEARCH", "rl.advantage=exact"]
    assert "SEARCH has several" in refused("star", *search)
    assert "eval.strata is 99" in refused("star", "eval.stratify=first", "eval.strata=99")
    assert "fork_rate=0.5" in refused("star", "sft.allocation=problem")
    assert "sft.fork_rate=1" in refused("star", "sft.cue_rate=0.5", "sft.fork_rate=0.5")


# What runs recorded


def test_a_record_that_lacks_keys():
    """They have the default of the record's own task."""
    tree = configs.to_tree(configs.load("arith", ["seed=3"]))
    assert tree["walks"].pop("seq_len") == 80 and tree.pop("save_every") and tree.pop("rl")
    assert configs.from_record(tree, "run.json") == configs.load("arith", ["seed=3"])
    assert configs.from_record({}, "run.json") == configs.load("star")


def test_a_record_with_keys_that_are_gone(capsys):
    """Each is named in one line, however many runs have it."""
    config, gone = configs.load("star", ["seed=3"]), {"sft": {"tail": 1}, "old": {"a": 1, "b": 2}}
    configs.SAID.clear()
    for _ in range(2):
        assert configs.from_record(configs._merged(configs.to_tree(config), gone), "run.json") == config
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == [
        f"run.json: {key} no longer exists and is ignored" for key in ("old.a", "old.b", "sft.tail")
    ]


@pytest.mark.parametrize(
    ("tree", "named"), [({"seed": "x"}, "seed must"), ({"task": "maze"}, "task is 'maze'"), ({"task": [1]}, "task is")]
)
def test_a_record_that_cannot_be_read(tree, named):
    with pytest.raises(ValueError, match=f"run.json: {named}"):
        configs.from_record(tree, "run.json")


@pytest.mark.parametrize(("name", "key"), [("defaults", "sft.prefix"), ("star", "data.nodes")])
def test_a_default_that_runs_before_it_did_not_have(folder, name, key):
    """A new run has the default; a run without the key is read as having what it had."""
    path, (section, leaf) = folder / f"{name}.yaml", key.split(".")
    text, edits = re.subn(rf"^  {leaf}: \w+", f"  {leaf}: {{default: 9, before: 8}}", path.read_text(), flags=re.M)
    path.write_text(text)
    assert edits == 1
    config = configs.load("star")
    assert configs.flat(config)[key] == 9 and not configs.tags(config)
    tree = configs.to_tree(config)
    assert configs.flat(configs.from_record(tree, "run.json"))[key] == 9
    del tree[section][leaf]
    assert configs.flat(configs.from_record(tree, "run.json"))[key] == 8


def test_a_task_that_does_not_ship(folder, monkeypatch):
    """Its data section has no defaults; reading it leaves those of other tasks alone."""
    monkeypatch.setitem(TASKS, "ordered", Ordered)
    with pytest.raises(ValueError, match="run.json: missing key data"):
        configs.from_record({"task": "ordered"}, "run.json")
    config = configs.load("star", ["task=ordered", "seed=2"])
    assert configs.from_record(configs.to_tree(config), "run.json") == config
    with pytest.raises(ValueError, match="task is 'ordered': a study runs tasks that ship"):
        configs.arguments(config)
    assert [configs.load(task, ["preset=small"]).runs for task in SHIPPED] == ["runs/small"] * len(SHIPPED)


# From a config to words and back

CHOICES = {
    "task": ["star"],
    "preset": [""],
    "device": ["auto", "cpu"],
    "data.branch_order": ["shuffled", "published"],
    "data.modes": ["FWD,REV", "REV,FWD"],
    "data.modulus": [None, 7],
    "data.sizes": ["2x3,3x2"],
    "pretrain.optimizer": ["adamw", "muon"],
    "sft.modes": ["FWD", "REV,FWD"],
    "sft.allocation": ["problem"],
    "rl.mode": ["FWD"],
    "rl.advantage": ["passk", "exact"],
    "wise.weights": ["0.5", "0,1"],
    "eval.split": ["valid"],
    "eval.grading": ["answer"],
    "eval.engine": ["split"],
    "eval.stratify": ["fork"],
}
VALUES = {
    float: st.floats(0, 2) | st.sampled_from([1e-5, 1e22, float("inf")]),
    int: st.integers(0, 2000) | st.integers(0, 2**31 - 1),
    bool: st.booleans(),
    str: st.text(max_size=20),
}


@st.composite
def changed_configs(draw) -> Config:
    """A config of some task and preset after a few changes that are legal."""
    task = draw(st.sampled_from(SHIPPED))
    config = configs.load(task, draw(st.sampled_from([[], ["preset=small"], ["preset=paper"]])))
    kinds = configs.keys(Config, task=task)
    for key in draw(st.lists(st.sampled_from(sorted(kinds)), max_size=8)):
        value = draw(st.sampled_from(CHOICES[key]) if key in CHOICES else VALUES[kinds[key]])
        try:
            config = configs.changed(config, {key: value})
        except ValueError:
            continue
    return config


@hypothesis_settings
@given(changed_configs())
def test_every_config_can_be_asked_for(tmp_path_factory, config):
    """By the words of a command line, by a file with what `minifork config` prints, and by a run's record."""
    options = parser().parse_args(["config", *configs.arguments(config)])
    assert configs.load(options.config, options.overrides) == config
    path = tmp_path_factory.getbasetemp() / "printed.yaml"
    path.write_text(configs.described(config))
    assert configs.load(path) == config
    assert configs.from_record(json.loads(json.dumps(configs.to_tree(config))), "run.json") == config


def test_changed_configs_are_of_all_kinds():
    """The strategy above reaches every key."""
    kinds = {key: kind for task in SHIPPED for key, kind in configs.keys(Config, task=task).items()}
    assert all(key in CHOICES or kind in VALUES for key, kind in kinds.items()) and not CHOICES.keys() - kinds.keys()


def test_tags():
    study = configs.load("star", ["preset=small", "sft.epochs=4"])
    assert configs.tags(configs.load("star", ["preset=small"])) == {}  # a preset is no difference
    assert configs.tags(study) == {"sft.epochs": 4}
    changed = configs.changed(study, {"sft.fork_rate": 0.5, "sft.fresh": True, "seed": 1, "sft.lr": 0.5})
    differing = {"seed": 1, "sft.fork_rate": 0.5, "sft.fresh": True, "sft.lr": 0.5}
    assert configs.tags(changed, study) == differing and configs.tags(study, study) == {}
    text = configs.tag_text(configs.tags(changed, study))
    assert {*text.split()} == {"seed=1", "fork_rate=0.5", "fresh=true", "sft.lr=0.5"}  # lr alone would be ambiguous


@pytest.mark.parametrize(
    ("name", "key"), [("fork_rate", "sft.fork_rate"), ("sft.lr", "sft.lr"), ("seed", "seed"), ("nodes", "data.nodes")]
)
def test_short_names_of_keys(name, key):
    assert configs.full_key(name, configs.keys(Config), "here") == key


def test_short_names_that_mean_nothing_or_too_much():
    for name, message in (
        ("lr", "here: 'lr' is short for pretrain.lr, sft.lr, rl.lr: write the one that is meant"),
        ("frok_rate", "here: unknown key 'frok_rate'; did you mean sft.fork_rate?"),
    ):
        with pytest.raises(ValueError) as error:
            configs.full_key(name, configs.keys(Config), "here")
        assert str(error.value) == message


def test_configs_are_frozen():
    config = configs.load("star")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sft.epochs = 4
