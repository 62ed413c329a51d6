"""The configuration: what is shipped loads, what is wrong is refused in one line that names it."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from minifork import config as configs
from minifork.schema import Config

FOLDER = Path(__file__).parent.parent / "experiments" / "configs"
SHIPPED = sorted(FOLDER.glob("*.yaml"))


def leaves(tree: dict, prefix: str = "") -> list[str]:
    """Dotted leaf keys of a mapping, in order."""
    found = []
    for name, value in tree.items():
        found += leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return found


@pytest.fixture
def edited(tmp_path, config_file):
    """A function that writes a copy of the shipped config with the text after "  key:" of a section replaced."""

    def edit(section: str, key: str, line: str) -> Path:
        head, start, tail = Path(config_file).read_text().partition(f"{section}:\n")
        tail, edits = re.subn(rf"^(  {key}:) *\S+", line, tail, count=1, flags=re.MULTILINE)
        assert start and edits == 1
        path = tmp_path / "edited.yaml"
        path.write_text(head + start + tail)
        return path

    return edit


def refused(path, *overrides: str) -> str:
    """The message of the ValueError, which must be one line."""
    with pytest.raises(ValueError) as error:
        configs.load(path, list(overrides))
    assert "\n" not in str(error.value)
    return str(error.value)


# What is shipped


def test_a_config_is_shipped():
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_configs(path):
    config = configs.load(path, [])
    tree = yaml.safe_load(path.read_text())
    presets = tree.pop("presets")
    assert configs.to_tree(config) == tree
    assert set(presets) >= {"small", "paper"}
    for name in presets:
        changed = configs.load(path, [f"preset={name}"])
        assert changed != config and changed.runs != config.runs
        assert configs.load(path, [f"preset={name}", "seed=7", "sft.lr=0.5"]).sft.lr == 0.5
    assert "no preset 'huge'" in refused(path, "preset=huge")
    assert sorted(leaves(tree)) == sorted(configs.keys(Config, task=tree["task"]))
    assert config.context >= config.data.prompt_len + config.data.trace_len


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_key_is_commented(path):
    """On its own line, or on the line above when that holds nothing else."""
    above, bare = "", []
    for line in path.read_text().split("\npresets:")[0].splitlines():
        code, _, comment = line.partition("#")
        if code.strip() and code.strip()[-1] != ":":
            if not comment.strip() and not above.strip().startswith("#"):
                bare.append(line.strip())
        above = line
    assert not bare


def test_tree_round_trip(config_file):
    config = configs.load(config_file, ["data.nodes=9", "sft.fresh=true", "name=x"])
    again = configs.from_tree(yaml.safe_load(yaml.safe_dump(configs.to_tree(config))), "here")
    assert again == config


# Overrides


def test_overrides_change_only_what_they_name(config_file):
    plain = configs.to_tree(configs.load(config_file, []))
    changed = configs.to_tree(configs.load(config_file, ["sft.fork_rate=0.5", "seed=3", "runs=elsewhere/deep"]))
    assert configs.differences(plain, changed) == [
        "runs: runs -> elsewhere/deep",
        "seed: 0 -> 3",
        "sft.fork_rate: 1.0 -> 0.5",
    ]


@pytest.mark.parametrize(
    ("text", "value"), [("3e-3", 3e-3), ("1", 1.0), (".5", 0.5), ("1E-2", 1e-2), ("0.25", 0.25), ("1_0", 10.0)]
)
def test_floats(config_file, edited, text, value):
    from_line = configs.load(config_file, [f"sft.lr={text}"]).sft.lr
    from_file = configs.load(edited("sft", "lr", rf"\1 {text}"), []).sft.lr
    assert from_line == from_file == value and type(from_line) is type(from_file) is float


def test_words_stay_words(config_file):
    for word in ("true", "12", "null", "1e3", "a: b", "[x"):
        assert configs.load(config_file, [f"name={word}"]).name == word
    assert configs.load(config_file, ["name="]).name == ""
    assert configs.load(config_file, ["runs=a=b"]).runs == "a=b"


def test_the_last_override_wins(config_file):
    assert configs.load(config_file, ["seed=1", "seed=2"]).seed == 2


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
def test_wrong_types(config_file, override, need):
    assert need in refused(config_file, override)


def test_wrong_types_in_a_file(edited):
    assert "pretrain.steps must be a whole number, not True" in refused(edited("pretrain", "steps", r"\1 true"))
    assert "data.branch_order must be a word, not 3" in refused(edited("data", "branch_order", r"\1 3"))
    assert "sft.allow_leak must be true or false, not 0" in refused(edited("sft", "allow_leak", r"\1 0"))


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("sft.frok_rate=1", "sft.fork_rate"),
        ("fork_rate=1", "sft.fork_rate"),
        ("model.widht=1", "model.width"),
        ("seeed=1", "seed"),
        ("stop=.3", "walks.stop"),
        ("data.stop=.3", "walks.stop"),
        ("sft.epoch=3", "sft.epochs"),
    ],
)
def test_unknown_keys_get_a_suggestion(config_file, override, suggestion):
    message = refused(config_file, override)
    key = override.partition("=")[0]
    assert repr(key) in message and f"did you mean {suggestion}?" in message


def test_hopeless_keys_get_the_list(config_file):
    message = refused(config_file, "xyzzy=1")
    assert "unknown key 'xyzzy'" in message and all(key in message for key in configs.keys(Config))


def test_a_section_is_no_key(config_file):
    assert "unknown key 'model'" in refused(config_file, "model=3")


def test_an_override_needs_an_equals_sign(config_file):
    assert "write an override as key=value" in refused(config_file, "seed")


def test_unknown_and_missing_keys_in_a_file(edited):
    message = refused(edited("model", "heads", "  head: 2"))
    assert "edited.yaml" in message and "'model.head'" in message and "model.heads" in message
    message = refused(edited("model", "heads", "  # heads: 2"))
    assert "edited.yaml" in message and "missing key model.heads" in message


# Sections and files that are none


def test_a_value_where_a_section_is_due(tmp_path, config_file):
    tree = yaml.safe_load(Path(config_file).read_text())
    path = tmp_path / "flat.yaml"
    for value in (3, None, [1], "words"):
        path.write_text(yaml.safe_dump({**tree, "model": value}))
        assert "model is a section" in refused(path)


@pytest.mark.parametrize("value", [3, None, [1], "words"])
def test_an_override_into_a_section_that_is_none(tmp_path, config_file, value):
    tree = yaml.safe_load(Path(config_file).read_text())
    path = tmp_path / "flat.yaml"
    path.write_text(yaml.safe_dump({**tree, "model": value}))
    assert "model" in refused(path, "model.width=64")


def test_a_missing_section_is_missing_whatever_overrides_say(tmp_path, config_file):
    tree = yaml.safe_load(Path(config_file).read_text())
    del tree["model"]
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert "missing key model" in refused(path)
    assert "missing key model" in refused(path, "model.layers=1", "model.width=8", "model.heads=1")


@pytest.mark.parametrize("content", [b"", b"- 1\n- 2\n", b"just words", b"a: [", b"a: b: c", b"\xff\xfe\x00", b"\t- x"])
def test_files_that_are_no_config(tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    assert str(path) in refused(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("presets: 5", "presets is a section"),
        ("presets: {odd: 3}", "presets is a section"),
        ("task: [star]", "task is"),
    ],
)
def test_sections_of_another_shape(tmp_path, config_file, text, named):
    path = tmp_path / "odd.yaml"
    tree = yaml.safe_load(Path(config_file).read_text()) | yaml.safe_load(text)
    path.write_text(yaml.safe_dump(tree))
    assert named in refused(path)
    assert "odd.yaml" in refused(path, "preset=odd")


@pytest.mark.parametrize("value", ["2026-99-99", "0b_", "9" * 5000, "[" * 2000, "!!int", "!!bool x"])
def test_what_yaml_chokes_on(tmp_path, config_file, value):
    assert "seed must be a whole number" in refused(config_file, f"seed={value}")[:200]
    path = tmp_path / "odd.yaml"
    path.write_text(Path(config_file).read_text().replace("\nseed: 0", f"\nseed: {value}"))
    assert "odd.yaml: not a YAML file" in refused(path)[:1000]


def test_a_missing_file(tmp_path):
    message = refused(tmp_path / "none.yaml")
    assert "none.yaml" in message and "experiments/configs/star.yaml" in message


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
        ("rl.start=a/b", ["rl.start is"]),
        ("eval.rollouts=2000000000", ["eval.rollouts is 2000000000", "10^9"]),
        ("save_every=0", ["save_every is 0"]),
        ("name=a/b", ["name is 'a/b'"]),
        ("name=..", ["name is '..'"]),
        ("name=eval.json", ["name is 'eval.json'"]),
        ("name=x.next", ["name is 'x.next'"]),
        ("reproduce.pairs=0", ["reproduce.pairs is 0"]),
        ("runs=a\nb", ["runs is 'a\\nb'"]),
        (f"model.width={10**18}", ["model.width is 1000000000000000000", "less than 2147483648"]),
        ("wise.weights=0.1234567,0.1234568", ["wise.weights is", "different shares"]),
    ],
)
def test_values_outside_their_range(config_file, override, needs):
    message = refused(config_file, override)
    assert all(need in message for need in needs)


@pytest.mark.parametrize("section", ["pretrain", "sft"])
@pytest.mark.parametrize(
    "value", ["lr=0", "lr=nan", "muon_lr=-1", "warmup=1.1", "weight_decay=-1", "clip=0", "batch=0"]
)
def test_optimizer_errors_name_the_section(config_file, section, value):
    """There are two optimizer sections: "batch is 0" alone does not say which to correct."""
    assert f"{section}.{value.partition('=')[0]}" in refused(config_file, f"{section}.{value}")


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
def test_whatever_a_stage_would_refuse_is_refused_at_load(config_file, override):
    """Before any folder is made or any step trained."""
    assert override.partition("=")[0] in refused(config_file, override)


def test_numbers_are_decimal(config_file):
    """In YAML 1.1, 010 is eight and 1:30 ninety."""
    config = configs.load(config_file, ["seed=010", "sft.lr=1e-3"])
    assert config.seed == 10 and config.sft.lr == 0.001


def test_a_key_written_twice(tmp_path, config_file):
    path = tmp_path / "twice.yaml"
    path.write_text(Path(config_file).read_text().replace("\nseed: 0", "\nseed: 1\nseed: 0"))
    assert "twice.yaml: not a YAML file: seed is written twice" in refused(path)


def test_aliases_are_not_read(tmp_path, config_file):
    """A few hundred bytes of them can be gigabytes, or a mapping that holds itself."""
    path = tmp_path / "alias.yaml"
    path.write_text(Path(config_file).read_text() + "\n  loop: &loop {sft: *loop}\n")
    assert "alias.yaml: not a YAML file: aliases are not read" in refused(path, "preset=loop")


def test_errors_name_where_the_value_stands(tmp_path, config_file):
    path = tmp_path / "mine.yaml"
    path.write_text(Path(config_file).read_text().replace("\nseed: 0", "\nseed: -2"))
    assert refused(path).startswith(f"{path}: seed is -2")
    assert refused(config_file, "seed=-2").startswith("the command line: seed is -2")


def test_combinations_that_make_no_sense(config_file):
    search = ["data.modes=FWD,REV,SEARCH", "rl.advantage=exact"]
    assert "SEARCH has several" in refused(config_file, *search)
    assert "eval.strata is 99" in refused(config_file, "eval.stratify=first", "eval.strata=99")
    assert "fork_rate=0.5" in refused(config_file, "sft.allocation=problem")
    assert "sft.fork_rate=1" in refused(config_file, "sft.cue_rate=0.5", "sft.fork_rate=0.5")


# Helpers other modules rely on


def test_fingerprint():
    assert configs.fingerprint({"a": 1, "b": [2.0]}) == configs.fingerprint({"b": [2.0], "a": 1})
    assert configs.fingerprint({"a": 1}) != configs.fingerprint({"a": 2})
    assert len(configs.fingerprint({})) == 12


def test_differences_name_nested_keys():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 3}
    assert configs.differences(old, new) == ["a.c: 2 -> 5", "d: 3 -> None", "e: None -> 3"]
    assert configs.differences(old, old) == []


def test_configs_are_frozen(config_file):
    config = configs.load(config_file, [])
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.sft.epochs = 4
