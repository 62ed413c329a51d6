"""Reading a config: the defaults, what a task's file changes, what your own file changes, then ``key=value`` overrides.

`minifork/configs/defaults.yaml` gives every key its default. A task's file beside it holds what differs for the task. A
file of your own names its task and what you change. An unknown key or a value of the wrong type is refused with the
nearest valid key. Configs that runs recorded may lack keys, or have keys that no longer exist (`from_record`).

Between a file and a Config, values are kept by dotted key (`minifork.values`).
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import yaml

from data_gen.star import Star
from data_gen.task import Task
from minifork.schema import TASKS, Config
from minifork.values import Values, expand_home, flatten, override_text, parse_overrides, typed_value, unknown_key
from minifork.values import full_key as full_key

CONFIGS = Path(__file__).parent / "configs"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the fast loader, where PyYAML has it
_type_hints = lru_cache(get_type_hints)
COMMENT_LINE = re.compile(r"( *)(\w+):[^#]*(?:#\s*(.*))?")  # groups: the indent, key and comment of a file's line


class UnknownTaskError(ValueError):
    """No task has this name."""


# reading


def load_config(source: Path | str = "star", overrides: Iterable[str] = ()) -> Config:
    """The Config of a shipped file's name or a path, after ``preset=name`` and ``section.key=value`` overrides.

    Raises ValueError naming the file or key and the way out.
    """
    words = list(overrides)
    preset_words = [text for text in words if text.startswith("preset=")]
    path = CONFIGS / f"{source}.yaml" if ships(str(source)) else expand_home(source)
    if not path.exists():
        raise ValueError(f"{source}: no such config file; give a path, or one that ships: {', '.join(TASKS)}")
    file = _read_file(path)
    shipped = _shipped_file(CONFIGS, str(file.values.get("task", "star")))
    presets = _merged(shipped.presets, file.presets)
    values = shipped.values | _preset(presets, str(file.values.get("preset", "")), source) | file.values
    for name in [text.removeprefix("preset=") for text in preset_words]:
        values |= _preset(presets, name, source) | {"preset": name}
    return with_changes(_from_values(values, source), [text for text in words if text not in preset_words])


class ConfigFile(NamedTuple):
    """A config file: its values, those of its presets, and the values of runs made before keys existed."""

    values: Values
    presets: dict[str, Values]
    before: Values


def _read_file(path: Path) -> ConfigFile:
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a config is a mapping of keys to values")
    presets = tree.pop("presets", {})
    if not isinstance(presets, dict) or not all(isinstance(preset, dict) for preset in presets.values()):
        raise ValueError(f"{path}: presets is a section of sections, name: {{keys}}")
    values = flatten(tree)
    before = {key.removesuffix(".before"): value for key, value in values.items() if key.endswith(".before")}
    values = {key.removesuffix(".default"): value for key, value in values.items() if not key.endswith(".before")}
    return ConfigFile(values, {name: flatten(preset) for name, preset in presets.items()}, before)


@lru_cache
def _shipped_file(folder: Path, task: str) -> ConfigFile:
    """The defaults together with a task's file, if that ships."""
    defaults = _read_file(folder / "defaults.yaml")
    file = _read_file(folder / f"{task}.yaml") if ships(task) else ConfigFile({}, {}, {})
    values = defaults.values | file.values | {"task": task}
    return ConfigFile(values, _merged(defaults.presets, file.presets), defaults.before | file.before)


def _merged(first: dict[str, Values], second: dict[str, Values]) -> dict[str, Values]:
    """The presets of two files; where both have one of a name, the second adds to it."""
    return first | {name: first.get(name, {}) | changes for name, changes in second.items()}


def _preset(presets: dict[str, Values], name: str, source: Path | str) -> Values:
    """The changes of a preset, none for the name ""; raises ValueError when there is none of this name."""
    if name and name not in presets:
        raise ValueError(f"{source}: no preset {name!r}; it has {', '.join(presets)}")
    return presets.get(name, {})


def ships(task: str) -> bool:
    """True if the config file of a task ships."""
    return task in TASKS and (CONFIGS / f"{task}.yaml").exists()


def before(task: str) -> Values:
    """The values, by dotted key, of runs made before these keys existed.

    A key that is added to minifork later may state {default: x, before: y} in a config file. New runs have x. A run
    made before the key existed behaved as if its value were y. So

    - `from_record` reads a record that lacks the key as having y;
    - a run's identity (`minifork.runs.identity`) and the key of a measurement (`minifork.evaluation.targets.key_of`)
      leave out a key whose value is y. So a new key changes neither for older runs.
    """
    return _shipped_file(CONFIGS, task).before


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; raises ValueError naming a file that is none, OSError for one that cannot be read."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None


# changing and comparing


def with_changes(
    config: Config, changes: Iterable[str] | Mapping[str, Any], source: str = "the command line"
) -> Config:
    """A Config with changes: "key=value" words, or a mapping of dotted keys to values.

    Raises ValueError naming ``source`` and the key that does not fit.
    """
    if not isinstance(changes, Mapping):
        changes = parse_overrides(changes, keys(Config, task=config.task), source)
    task = str(changes.get("task", config.task))
    if task in TASKS and keys(Config, task=task) != keys(Config, task=config.task):
        raise ValueError(f"{source}: task is {task!r}, but the config is of {config.task}: give --config {task}")
    return _from_values(flat_values(config) | dict(changes), source) if changes else config


def task_config(name: str, task: Task, changes: Mapping[str, Any]) -> Config:
    """The shipped Config of a task's name, with its data section replaced, then changes by dotted key.

    Raises ValueError as `load_config` does.
    """
    shared = {key: value for key, value in _shipped_file(CONFIGS, name).values.items() if not key.startswith("data.")}
    modes = {} if ships(name) else {"sft.modes": task.modes}
    return _from_values(shared | modes | flatten({"data": dataclasses.asdict(task)}) | dict(changes), name)


def flat_values(config: Config) -> Values:
    """The values of a Config by dotted key."""
    return flatten(dataclasses.asdict(config))


def shipped_config(config: Config) -> Config:
    """The Config of a config's task and preset without any other change."""
    task = config.task if ships(config.task) else "star"
    has_preset = config.preset in _shipped_file(CONFIGS, task).presets
    return load_config(task, [f"preset={config.preset}"] if has_preset else [])


def tags(config: Config, study: Config | None = None) -> Values:
    """The dotted keys, with their values, in which a config differs from a study's; by default from what ships."""
    planned = flat_values(study or shipped_config(config)).items()
    return {key: value for key, value in flat_values(config).items() if (key, value) not in planned}


def arguments(config: Config) -> list[str]:
    """The options and overrides that make `load_config` give this config.

    Raises ValueError for a task that does not ship: only the process that defines it can read it.
    """
    if not ships(config.task):
        raise ValueError(f"task is {config.task!r}: a study runs only tasks that ship, such as star")
    preset = shipped_config(config).preset
    words = [f"preset={preset}"] if preset else []
    words += [f"{key}={override_text(value)}" for key, value in tags(config).items() if key != "preset"]
    return ["--config", config.task, *words]


def tag_text(tags: Mapping[str, Any]) -> str:
    """Tags as words, their keys as short as they can be: fork_rate=0.5 fresh=true."""
    leaves = [key.split(".")[-1] for key in keys(Config)]
    short = {key: key.split(".")[-1] for key in tags if leaves.count(key.split(".")[-1]) == 1}
    return " ".join(f"{short.get(key, key)}={override_text(value)}" for key, value in tags.items())


def config_as_yaml(config: Config) -> str:
    """A config as YAML that can be read again. Every key has its comment, a changed one the shipped value too."""
    comments, standard = _comments(config.task), flat_values(shipped_config(config))
    lines: list[str] = []
    for key, value in flat_values(config).items():
        section, _, leaf = key.rpartition(".")
        if section and f"{section}:" not in lines:
            lines += ["", f"{section}:"]
        indent = "  " if section else ""
        text = f"{indent}{leaf}: {yaml.safe_dump(value, width=math.inf).splitlines()[0]}"
        mark = "" if (key, value) in standard.items() else f"[changed, {override_text(standard.get(key))} ships] "
        lines.append(f"{text:<27} # {mark}{comments.get(key, '')}".rstrip(" #"))
    return "\n".join(lines)


def _comments(task: str) -> dict[str, str]:
    """The comments of all keys in the shipped files."""
    comments: dict[str, str] = {}
    section = ""
    files = [CONFIGS / f"{name}.yaml" for name in ("defaults", task if ships(task) else "star")]
    for line in "\n".join(path.read_text(encoding="utf-8") for path in files).splitlines():
        if match := COMMENT_LINE.fullmatch(line):
            indent, key, comment = match.groups()
            section = section if indent else key
            comments.setdefault(f"{section}.{key}" if indent else key, comment or "")
    return comments


# checking


def from_record(tree: dict, source: Path | str) -> Config:
    """The Config that a run recorded.

    A key that the record lacks has the value from before the key existed, or else its default. A key that no longer
    exists is ignored. Raises ValueError naming ``source`` and the key that does not fit.
    """
    recorded = flatten(tree)
    task = str(recorded.get("task", "star"))
    valid = keys(Config, task=task)
    values = _shipped_file(CONFIGS, task).values | before(task) | recorded
    return _from_values({key: value for key, value in values.items() if key in valid}, source)


def keys(schema: type, prefix: str = "", task: str = "star") -> dict[str, type]:
    """Every dotted leaf key of a dataclass and its type, with the data section of a task."""
    leaves: dict[str, type] = {}
    for name, kind in _hints(schema, task).items():
        leaves |= keys(kind, f"{prefix}{name}.", task) if dataclasses.is_dataclass(kind) else {prefix + name: kind}
    return leaves


def _hints(schema: type, task: str) -> dict[str, type]:
    """The fields of a schema and their types; the type of Config.data is the task's."""
    hints = _type_hints(schema)
    return hints | {"data": TASKS.get(task, Star)} if schema is Config else hints


def _from_values(values: Values, source: Path | str) -> Config:
    """The Config of values by dotted key; raises ValueError naming the first that is unknown, missing or wrong."""
    task = str(values.get("task"))
    if task not in TASKS:
        raise UnknownTaskError(f"{source}: task is {task!r}: the tasks are: {', '.join(TASKS)}")
    kinds = keys(Config, task=task)
    sections = {key.split(".")[0] for key in kinds if "." in key}
    for key, value in values.items():
        if key in sections and value != {}:
            raise ValueError(f"{source}: {key} is a section, give its keys below it")
        if key not in kinds and key not in sections:
            raise ValueError(unknown_key(key, kinds, source))
    if missing := [key for key in kinds if key not in values]:
        raise ValueError(f"{source}: missing key {missing[0]}, which has no default")
    checked = {key: typed_value(values[key], kind, key, source) for key, kind in kinds.items()}
    return _build(Config, checked, "", source, task)


def _build(schema: type, values: Values, prefix: str, source: Path | str, task: str) -> Any:
    """A dataclass, and those inside it, from values of the right types."""
    fields = {}
    for name, kind in _hints(schema, task).items():
        key = f"{prefix}{name}"
        fields[name] = _build(kind, values, f"{key}.", source, task) if dataclasses.is_dataclass(kind) else values[key]
    try:
        return schema(**fields)
    except ValueError as error:  # the message begins with a key without its section
        message = re.sub(rf"^({'|'.join(fields)})\b", rf"{prefix}\1", str(error))
        raise ValueError(f"{source}: {message}") from None
