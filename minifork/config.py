"""Reading a config: the defaults, what a task's file changes, what your own file changes, then ``key=value`` overrides.

`minifork/configs/defaults.yaml` gives every key its default; a task's file beside it holds what differs there. A file
of your own names its task and what you change. An unknown key or a value of the wrong type is refused with the nearest
valid key. Configs that runs recorded are read leniently (`from_record`), so that keys may come and go.

Between a file and a Config, values are kept by dotted key (`minifork.values`).
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from data_gen.star import Star
from data_gen.task import Task
from minifork.schema import ALIASES, TASKS, Config
from minifork.values import Values, expanded, flattened, parse_overrides, typed, unknown_key, word
from minifork.values import full_key as full_key

FOLDER = Path(__file__).parent / "configs"
FAST = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of files that ship, which tests check
SAID: set[str] = set()  # keys of recorded configs about which this process has printed a line
LINE = re.compile(r"( *)(\w+):[^#]*(?:#\s*(.*))?")  # of a config file: indent, key, comment


class UnknownTaskError(ValueError):
    """There is no task of a name here."""


# reading


def load_config(source: Path | str = "star", overrides: Iterable[str] = ()) -> Config:
    """The Config of a shipped file's name or a path, after ``preset=name`` and ``section.key=value`` overrides.

    Raises ValueError naming the file or key and the way out.
    """
    words = list(overrides)
    file, values, presets = _own_file(source)
    task = _require_task(values.get("task", "star"), file)
    defaults, shipped_presets, _ = _shipped_values(FOLDER, task)
    presets = {"": {}} | shipped_presets | {name: shipped_presets.get(name, {}) | presets[name] for name in presets}
    wanted = [values.get("preset", ""), *(word.removeprefix("preset=") for word in words if _is_preset(word))]
    if missing := [name for name in wanted if name not in [*presets]]:  # a list, as one may be a mapping
        names = ", ".join(str(name) for name in presets if name) or "none"
        raise ValueError(f"{file}: no preset {missing[0]!r}; it has {names}")
    values = defaults | presets[wanted[0]] | values
    for name in wanted[1:]:
        values |= presets[name] | {"preset": name}
    return changed(_from_values(values, file), [word for word in words if not _is_preset(word)])


def _is_preset(word: str) -> bool:
    return word.startswith("preset=")


def _own_file(source: Path | str) -> tuple[Path | str, Values, dict[str, Values]]:
    """What a config file is called in errors, its values, and those of its presets; a shipped one says its task."""
    if ships(str(source)):
        return source, {"task": str(source)}, {}
    path = expanded(source)
    try:
        tree = read_yaml(path)
    except FileNotFoundError:
        names = ", ".join(_shipped_names(FOLDER))
        raise ValueError(f"{path}: no such config file; give a path, or one that ships: {names}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a config is a mapping of keys to values")
    presets = tree.pop("presets", {})
    if not isinstance(presets, dict) or not all(isinstance(preset, dict) for preset in presets.values()):
        raise ValueError(f"{path}: presets is a section of sections, name: {{keys}}")
    return path, flattened(tree), {name: flattened(preset) for name, preset in presets.items()}


@lru_cache
def _shipped_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.yaml") if path.stem != "defaults"))


def ships(task: str) -> bool:
    """Whether a task's file ships, under this name or a later one."""
    return ALIASES.get(task, task) in _shipped_names(FOLDER)


@lru_cache
def _shipped_values(folder: Path, task: str) -> tuple[Values, dict[str, Values], Values]:
    """The defaults of a task, its presets, and what `before` gives; of a task that does not ship, what all share."""
    values: Values = {}
    presets: dict[str, Values] = {}
    for name in ("defaults", ALIASES.get(task, task)):
        if name in ("defaults", *_shipped_names(folder)):
            tree = yaml.load((folder / f"{name}.yaml").read_bytes(), Loader=FAST)
            for preset, changes in tree.pop("presets", {}).items():
                presets[preset] = presets.get(preset, {}) | flattened(changes)
            values |= flattened(tree)
    before = {key.removesuffix(".before"): value for key, value in values.items() if key.endswith(".before")}
    values = {key.removesuffix(".default"): value for key, value in values.items() if not key.endswith(".before")}
    return values | {"task": task}, presets, before


def before(task: str) -> Values:
    """By dotted key, the value that a task's run which lacks the key is read as having, where that is stated."""
    return _shipped_values(FOLDER, task)[2]


def _decimal(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int | float:
    """A number; raises ValueError for what YAML 1.1 reads otherwise than it looks, such as 0x10 and 1:30."""
    text = str(loader.construct_scalar(node))
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if re.search(r"[:_xob]", text):
        raise ValueError(f"{text} is written as no decimal number{node.start_mark}")
    return loader.construct_yaml_float(node)


class _Loader(yaml.SafeLoader):
    """YAML in which no key is written twice, no alias makes much of little, and numbers are decimal."""

    yaml_constructors = yaml.SafeLoader.yaml_constructors | dict.fromkeys(
        ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"), _decimal
    )

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ValueError(f"aliases are not read; write it out{self.peek_event().start_mark}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        written = [key.value for key, _ in node.value]
        twice = [name for name in written if written.count(name) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is written twice{node.start_mark}")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds; raises ValueError naming it when it is none, OSError when it cannot be read."""
    content = path.read_bytes()
    try:
        return yaml.load(content.decode(), Loader=_Loader)
    except Exception as error:  # PyYAML lets Python's own errors through, say for 2026-99-99 or !!int
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a YAML file: {reason}") from None


# changing and comparing


def changed(config: Config, changes: Iterable[str] | Mapping[str, Any], source: str = "the command line") -> Config:
    """A Config with changes, which stand in ``source``: "key=value" words, or a mapping of dotted keys to values.

    Raises ValueError as `load_config` does.
    """
    valid = keys(Config, task=config.task)
    if not isinstance(changes, Mapping):
        changes = parse_overrides(changes, valid, source)
    if unknown := [key for key in changes if key not in valid]:
        raise ValueError(unknown_key(unknown[0], valid, source))
    task = changes.get("task")
    if task in [*TASKS] and keys(Config, task=task) != valid:
        raise ValueError(f"{source}: task is {task!r}, but the config is of {config.task}: give --config {task}")
    return _from_values(flat(config) | dict(changes), source) if changes else config


def of_task(name: str, task: Task, changes: Mapping[str, Any]) -> Config:
    """What ships for a task of this name, with its data section replaced and then changes by dotted key.

    Raises ValueError as `load_config` does.
    """
    shared = {key: value for key, value in _shipped_values(FOLDER, name)[0].items() if not key.startswith("data.")}
    modes = {} if ships(name) else {"sft.modes": task.modes}
    return _from_values(shared | modes | flattened({"data": dataclasses.asdict(task)}) | dict(changes), name)


def to_tree(config: Config) -> dict[str, Any]:
    """The nested mapping of a Config."""
    return dataclasses.asdict(config)


def flat(config: Config) -> Values:
    """The values of a Config by dotted key."""
    return flattened(to_tree(config))


def shipped(config: Config) -> Config:
    """What a config's task and preset give without any other change."""
    return _shipped(FOLDER, config.task if ships(config.task) else "star", config.preset)


@lru_cache
def _shipped(folder: Path, task: str, preset: str) -> Config:
    return load_config(task, [f"preset={preset}"] if preset in _shipped_values(folder, task)[1] else [])


def tags(config: Config, study: Config | None = None) -> Values:
    """The dotted keys, with their values, in which a config differs from a study's; by default from what ships."""
    planned = flat(study or shipped(config))
    return {key: value for key, value in flat(config).items() if planned.get(key, ...) != value}


def arguments(config: Config) -> list[str]:
    """The options and overrides that make `load_config` give this config.

    Raises ValueError for a task that does not ship: only the process that defines it can read it.
    """
    if not ships(config.task):
        raise ValueError(f"task is {config.task!r}: a study runs tasks that ship: {', '.join(_shipped_names(FOLDER))}")
    preset = shipped(config).preset
    words = [f"preset={preset}"] if preset else []
    words += [f"{key}={word(value)}" for key, value in tags(config).items() if key != "preset"]
    return ["--config", config.task, *words]


def tag_text(tags: Mapping[str, Any]) -> str:
    """Tags as words, their keys as short as they can be: fork_rate=0.5 fresh=true."""
    leaves = [key.split(".")[-1] for key in keys(Config)]
    short = {key: key.split(".")[-1] for key in tags if leaves.count(key.split(".")[-1]) == 1}
    return " ".join(f"{short.get(key, key)}={word(value)}" for key, value in tags.items())


def described(config: Config) -> str:
    """A config as YAML that can be read again, with the comment of every key; changes say what ships instead."""
    comments, standard, lines, last = _comments(config.task), flat(shipped(config)), [], ""
    for key, value in flat(config).items():
        section, _, leaf = key.rpartition(".")
        if section != last:
            lines += ["", f"{section}:"]
        last, indent = section, "  " if section else ""
        text = f"{indent}{leaf}: {yaml.safe_dump(value, width=math.inf).splitlines()[0]}"
        mark = "" if standard.get(key, ...) == value else f"[changed, {word(standard.get(key))} ships] "
        lines.append(f"{text:<27} # {mark}{comments.get(key, '')}".rstrip(" #"))
    return "\n".join(lines)


def _comments(task: str) -> dict[str, str]:
    """What the shipped files say of every key."""
    comments: dict[str, str] = {}
    for name in ("defaults", ALIASES.get(task, task) if ships(task) else "star"):
        section = ""
        for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
            if match := LINE.fullmatch(line):
                indent, key, comment = match.groups()
                section = section if indent else key
                comments.setdefault(f"{section}.{key}" if indent else key, comment or "")
    return comments


# checking


def from_tree(tree: object, source: Path | str) -> Config:
    """The Config of a nested mapping with every key; ``source`` is named in errors."""
    if not isinstance(tree, dict):
        raise ValueError(f"{source}: a config is a mapping of keys to values")
    return _from_values(flattened(tree), source)


def from_record(tree: object, source: Path | str) -> Config:
    """The Config that a run recorded: a key it lacks has the value from before the key existed, or else its default.

    A key that no longer exists is ignored, with a printed line. Raises ValueError as `from_tree` does.
    """
    recorded = flattened(tree) if isinstance(tree, dict) else {}
    task = str(recorded.get("task", "star"))
    valid = keys(Config, task=task)
    for key in sorted(recorded.keys() - valid.keys() - SAID):
        SAID.add(key)
        print(f"{source}: {key} no longer exists and is ignored", flush=True)
    values = _shipped_values(FOLDER, task)[0] | before(task) | recorded
    return _from_values({key: value for key, value in values.items() if key in valid}, source)


def keys(schema: type, prefix: str = "", task: str = "star") -> dict[str, type]:
    """Every dotted leaf key of a dataclass and its type, with the data section of a task."""
    leaves: dict[str, type] = {}
    for name, kind in _hints(schema, task).items():
        leaves |= keys(kind, f"{prefix}{name}.", task) if dataclasses.is_dataclass(kind) else {prefix + name: kind}
    return leaves


def _hints(schema: type, task: str) -> dict[str, type]:
    """The fields of a schema and their types; the type of Config.data is the task's."""
    hints = get_type_hints(schema)
    return hints | {"data": TASKS.get(task, Star)} if schema is Config else hints


def _require_task(task: object, source: Path | str) -> str:
    """A task's name; raises ValueError when there is no such task."""
    if not isinstance(task, str) or task not in TASKS:
        raise UnknownTaskError(f"{source}: task is {task!r}: the tasks are: {', '.join(TASKS)}")
    return task


def _from_values(values: Values, source: Path | str) -> Config:
    """The Config of values by dotted key; raises ValueError naming the first that is unknown, missing or wrong."""
    task = _require_task(values.get("task"), source)
    kinds = keys(Config, task=task)
    sections = {name for name, kind in _hints(Config, task).items() if dataclasses.is_dataclass(kind)}
    for key, value in values.items():
        if key in sections and value != {}:
            raise ValueError(f"{source}: {key} is a section, give its keys below it")
        if key not in kinds and key not in sections:
            raise ValueError(unknown_key(key, kinds, source))
    if missing := [key for key in kinds if key not in values]:
        raise ValueError(f"{source}: missing key {missing[0]}, which has no default")
    checked = {key: typed(values[key], kind, key, source) for key, kind in kinds.items()}
    return _build(Config, checked, "", source, task)


def _build(schema: type, values: Values, prefix: str, source: Path | str, task: str) -> Any:
    """A dataclass, and those inside it, from values of the right types."""
    arguments = {}
    for name, kind in _hints(schema, task).items():
        key = f"{prefix}{name}"
        inner = dataclasses.is_dataclass(kind)
        arguments[name] = _build(kind, values, f"{key}.", source, task) if inner else values[key]
    try:
        return schema(**arguments)
    except ValueError as error:
        bare = rf"(?<![\w.])({'|'.join(arguments)})(?= is |=)"  # sections do not know what they are called here
        message = re.sub(bare, rf"{prefix}\1", str(error))
        raise ValueError(f"{source}: {message}") from None
