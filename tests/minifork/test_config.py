"""The configuration: what ships loads, what is wrong is refused in one line that names it."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import yaml

import minifork as mf
from data_gen.star import Star
from experiments import study
from minifork import config as configs
from minifork.schema import TASKS, Config

SHIPPED = sorted(path.stem for path in configs.CONFIGS.glob("*.yaml") if path.stem != "defaults")


@dataclasses.dataclass(frozen=True)
class Ordered(Star):
    """A task of a user's own."""


def leaves_of(name: str) -> dict:
    """The dotted keys of a shipped file with their values, presets apart."""
    tree = yaml.safe_load((configs.CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))
    return configs.flatten({key: value for key, value in tree.items() if key != "presets"})


@pytest.fixture
def file(tmp_path):
    """A function that writes a config file."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refused(source, *overrides: str) -> str:
    """The message of the ValueError, which must be one line."""
    with pytest.raises(ValueError) as error:
        configs.load_config(source, overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


# What is shipped


def test_a_file_ships_for_every_task():
    assert SHIPPED == sorted(TASKS)


@pytest.mark.parametrize("task", SHIPPED)
def test_every_key_has_one_default(task):
    """Those of the data section are in the task's file, all others in defaults.yaml; a task's file repeats none."""
    keys, defaults, differing = set(configs.keys(Config, task=task)), leaves_of("defaults"), leaves_of(task)
    data = {key for key in keys if key.startswith("data.")}
    defaults = {key.removesuffix(".default"): defaults[key] for key in defaults if not key.endswith(".before")}
    assert set(defaults) == keys - data and {key for key in differing if key.startswith("data.")} == data
    assert configs.flat_values(configs.load_config(task)) == defaults | differing
    assert not [key for key in differing.keys() - data - {"task"} if defaults[key] == differing[key]]


@pytest.mark.parametrize("task", SHIPPED)
def test_every_default_is_commented(task):
    assert all(configs._comments(task).get(key) for key in configs.keys(Config, task=task))


@pytest.mark.parametrize("task", SHIPPED)
def test_presets(task):
    presets = configs._shipped_file(configs.CONFIGS, task).presets
    assert set(presets) >= {"small", "paper"}
    assert all(configs.load_config(task, [f"preset={name}"]).preset == name for name in presets)
    assert configs.load_config(task, ["sft.lr=0.5", "preset=paper"]).sft.lr == 0.5  # overrides come on top
    published = configs.load_config(task, ["preset=paper"]).rl
    assert (published.kl_form, published.reduction, published.source) == ("k3", "token_mean", "sft")
    assert published.updates == 1600 and published.policy == "top_p=0.999"
    folders = {configs.load_config(task, [f"preset={name}"]).runs for name in ["", *presets]}
    assert len(folders) == 1 + len(presets)
    assert "no preset 'huge'" in refused(task, "preset=huge")


def test_a_shipped_config_loads_from_every_folder(tmp_path, monkeypatch):
    plain = configs.load_config("star")
    assert configs.load_config(configs.CONFIGS / "star.yaml") == plain  # a path works too
    monkeypatch.chdir(tmp_path)
    assert configs.load_config("star") == plain
    message = refused(tmp_path / "none.yaml")
    assert "none.yaml" in message and "star, sizes, arith" in message


# A file of your own


def test_a_file_holds_differences_only(file):
    path = file("task: arith\nsft: {fork_rate: 0.5}\nmodel: {}\npresets:\n  mine: {seed: 4}\n  small: {seed: 5}\n")
    assert configs.load_config(path) == configs.load_config("arith", ["sft.fork_rate=0.5"])
    mine, small = (configs.load_config(path, [f"preset={name}"]) for name in ("mine", "small"))
    assert (mine.seed, mine.runs) == (4, "runs") and (small.seed, small.runs) == (5, "runs/small")
    assert configs.load_config(path, ["preset=mine", "seed=6"]).seed == 6
    assert configs.load_config(file("seed: 3")) == configs.load_config("star", ["seed=3"])
    on_top = configs.load_config(file("preset: small\nsft: {epochs: 3}"))
    assert on_top == configs.load_config("star", ["preset=small", "sft.epochs=3"])


WRONG_FILES = {
    "model: {head: 2}": "unknown key 'model.head'; did you mean model.heads?",
    "pretrain: {steps: true}": "pretrain.steps must be a whole number, not True",
    "data: {branch_order: 3}": "data.branch_order must be a word, not 3",
    "sft: {allow_leak: 0}": "sft.allow_leak must be true or false, not 0",
    "seed: -2": "seed is -2",
    **dict.fromkeys(("model: 3", "model: null"), "model is a section"),
    **dict.fromkeys((b"", b"- 1\n- 2\n", b"just words"), "a config is a mapping"),
    **dict.fromkeys((b"a: [", b"a: b: c", b"\xff\xfe\x00", b"\t- x", b"seed: 2026-99-99"), "not a YAML file"),
    **dict.fromkeys(("presets: 5", "presets: {odd: 3}"), "presets is a section"),
    **dict.fromkeys(("task: [star]", "task: maze"), "task is"),
    **dict.fromkeys(("preset: huge", "preset: [small]"), "no preset"),
}


@pytest.mark.parametrize(("content", "part"), WRONG_FILES.items())
def test_files_that_are_wrong(file, content, part):
    path = file(content)
    assert refused(path, "model.width=64").startswith(f"{path}: ") and part in refused(path)


def test_home_is_not_a_folder_called_tilde(file, monkeypatch, tmp_path):
    """In every path that a user gives: results, a config, a study, a run."""
    monkeypatch.setenv("HOME", str(tmp_path))
    file("seed: 3")
    assert configs.load_config("star", ["runs=~/x"]).runs == str(tmp_path / "x")
    assert configs.load_config("~/mine.yaml").seed == 3 and study.path_of("~/one.yaml") == tmp_path / "one.yaml"
    with pytest.raises(ValueError, match=str(tmp_path / "gone")):
        mf.load("~/gone")


# Overrides


def test_overrides_change_only_what_they_name():
    changed = configs.load_config("star", ["sft.fork_rate=0.5", "seed=1", "seed=3", "runs=elsewhere/deep"])
    differing = {"runs": "elsewhere/deep", "seed": 3, "sft.fork_rate": 0.5}
    assert configs.flat_values(changed) == configs.flat_values(configs.load_config("star")) | differing
    short = configs.load_config("star", ["fork_rate=0.5", "stop=.2"])
    assert short == configs.load_config("star", ["sft.fork_rate=0.5", "walks.stop=.2"])


@pytest.mark.parametrize("text", ["3e-3", "1", ".5"])
def test_floats_are_read_as_python_reads_them(file, text):
    for config in (configs.load_config("star", [f"sft.lr={text}"]), configs.load_config(file(f"sft: {{lr: {text}}}"))):
        assert config.sft.lr == float(text) and type(config.sft.lr) is float


def test_words_stay_words():
    for word in ("true", "12", "null", "1e3", "a: b", "[x", "a=b", ""):
        assert configs.load_config("star", [f"name={word}"]).name == word


KEYS_THAT_ARE_NONE = {
    "sft.frok_rate=1": "unknown key 'sft.frok_rate'; did you mean sft.fork_rate?",
    "model.widht=1": "did you mean model.width?",
    "seeed=1": "did you mean seed?",
    "data.stop=.3": "did you mean walks.stop?",
    "sft.epoch=3": "did you mean sft.epochs?",
    "seed": "'seed': write it as key=value",
    "lr=0.1": "'lr' is short for pretrain.lr, sft.lr, rl.lr: write one of them",
    "task=maze": "task is 'maze': the tasks are: star, sizes, arith",
    "task=arith": "task is 'arith', but the config is of star",
}


@pytest.mark.parametrize("word", KEYS_THAT_ARE_NONE)
def test_keys_that_are_none(word):
    assert KEYS_THAT_ARE_NONE[word] in refused("star", word)


WRONG_VALUES = """
    seed=true seed=1.0 seed= seed=[ seed=-1 seed=99999999999999999999 model.width={a:1} model.width=4000000000
    sft.fresh=maybe sft.fresh=1 sft.lr=true sft.lr=fast sft.lr=[1] sft.lr={ sft.lr=inf sft.clip=nan sft.fork_rate=-0.1
    sft.fork_rate=1.5 sft.fork_rate=nan sft.cue_rate=2 sft.epochs=0 sft.modes=FWD,SEARCH sft.allocation=both
    sft.allocation=problem sft.traces=31 sft.prefix=17 data.length=1 data.nodes=6 data.branch_order=sorted
    model.layers=0 model.width=-128 pretrain.steps=0 walks.stop=1 walks.stop=-0.1 walks.stop=nan walks.informed=1.5
    walks.seq_len=20 eval.max_k=0 eval.budget=0 eval.rollouts=0 eval.rollouts=2000000000 eval.strata=0 eval.engine=fast
    eval.max_k=63 eval.pool=-1 eval.pool=64 eval.check_problems=1001 eval.grading=answer eval.stratify=second rl.group=1
    rl.updates=0 rl.kl=-1 rl.mode=SEARCH rl.advantage=ppo rl.prompts=1601 wise.weights=1.5 save_every=0
    reproduce.pairs=0 reproduce.pairs=6 device=tpu runs= name=a/b name=..
""".split()
WRONG_TOGETHER = [  # the error names the first key
    "data.nodes=16 data.branches=8", "model.width=128 model.heads=3", "eval.rollouts=63 eval.max_k=64",
    "eval.engine=split eval.stratify=first", "eval.strata=99 eval.stratify=first",
    "eval.pool=63 eval.max_k=64 eval.stratify=first", "eval.pool=4 eval.max_k=2 eval.strata=8 eval.stratify=first",
    "rl.k=4 rl.advantage=passk", "rl.k=3 rl.advantage=passk_sampled", "rl.k=4 rl.advantage=passk_sampled",
    "sft.cue_rate=0.5 sft.fork_rate=0.5",
]  # fmt: skip
WRONG_OPTIM = "lr=0 muon_lr=-1 warmup=1.1 weight_decay=-1 clip=0 optimizer=sgd".split()
WRONG_TOGETHER += [f"{section}.{word}" for section in ("pretrain", "sft", "rl") for word in WRONG_OPTIM]


@pytest.mark.parametrize("text", [*WRONG_VALUES, *WRONG_TOGETHER])
def test_wrong_values_are_refused_at_load(text):
    """Before any folder is made or any step trained, by the full name of the key."""
    key = text.partition("=")[0]
    assert re.match(rf"the command line: {key}( is |=| must be )", refused("star", *text.split()))


@pytest.mark.parametrize("key", ["runs", "name"])
def test_names_are_one_line(key):
    assert f"{key} is 'a\\nb'" in refused("star", f"{key}=a\nb")


def test_hopeless_keys_get_the_list():
    message = refused("star", "xyzzy=1")
    assert "unknown key 'xyzzy'" in message and all(key in message for key in configs.keys(Config))


def test_changes_in_a_mapping():
    config = configs.load_config("star")
    changes = {"sft.fork_rate": 0.5, "seed": 2}
    assert (
        configs.with_changes(config, changes) == configs.with_changes(config, ["sft.fork_rate=0.5", "seed=2"]) != config
    )
    with pytest.raises(ValueError, match="this study: unknown key 'sft.forks'"):
        configs.with_changes(config, {"sft.forks": 1}, "this study")
    with pytest.raises(ValueError, match="this study: seed must be a whole number, not '2'"):
        configs.with_changes(config, {"seed": "2"}, "this study")


# What runs recorded


def test_records_that_lack_keys_or_have_others():
    """A key that a record lacks has the default of its task; one that is gone is ignored."""
    tree = dataclasses.asdict(configs.load_config("arith", ["seed=3"]))
    assert tree["walks"].pop("seq_len") == 80 and tree.pop("save_every") and tree.pop("rl")
    gone = {"sft": tree["sft"] | {"tail": 1}, "old": {"a": 1, "b": 2}}
    expected = configs.load_config("arith", ["seed=3", "rl.muon=torch", "rl.kl_form=k3"])  # as before these keys
    assert configs.from_record(tree | gone, "run.json") == expected
    assert configs.from_record({}, "run.json") == configs.with_changes(
        configs.load_config("star"), configs.before("star")
    )


@pytest.mark.parametrize(("tree", "part"), [({"seed": "x"}, "seed must"), ({"task": "maze"}, "task is 'maze'")])
def test_a_record_that_cannot_be_read(tree, part):
    with pytest.raises(ValueError, match=f"run.json: {part}"):
        configs.from_record(tree, "run.json")


@pytest.mark.parametrize(("name", "key"), [("defaults", "sft.prefix"), ("star", "data.nodes")])
def test_a_default_that_runs_before_it_did_not_have(tmp_path, monkeypatch, name, key):
    """A new run has the default; a run without the key is read as having the value from before."""
    monkeypatch.setattr(configs, "CONFIGS", shutil.copytree(configs.CONFIGS, tmp_path / "configs"))
    path, (section, leaf) = configs.CONFIGS / f"{name}.yaml", key.split(".")
    text = path.read_text(encoding="utf-8")
    text, edits = re.subn(rf"^  {leaf}: \w+", f"  {leaf}: {{default: 9, before: 8}}", text, flags=re.M)
    path.write_text(text, encoding="utf-8")
    assert edits == 1
    config = configs.load_config("star")
    assert configs.flat_values(config)[key] == 9 and not configs.tags(config)
    tree = dataclasses.asdict(config)
    assert configs.flat_values(configs.from_record(tree, "run.json"))[key] == 9
    del tree[section][leaf]
    assert configs.flat_values(configs.from_record(tree, "run.json"))[key] == 8


def test_a_task_that_does_not_ship(monkeypatch):
    """Its data section has no defaults."""
    monkeypatch.setitem(TASKS, "ordered", Ordered)
    with pytest.raises(ValueError, match="run.json: missing key data"):
        configs.from_record({"task": "ordered"}, "run.json")
    config = configs.load_config("star", ["task=ordered", "seed=2"])
    assert configs.from_record(dataclasses.asdict(config), "run.json") == config
    with pytest.raises(ValueError, match="task is 'ordered': a study runs only tasks that ship"):
        configs.arguments(config)
