"""Reading a config: the defaults, what a task's file changes, what your own file changes, then ``key=value`` overrides.

`minifork/configs/defaults.yaml` gives every key its default; a task's file beside it holds what differs there. A file
of your own names its task and what you change. An unknown key or a value of the wrong type is refused with the nearest
valid key. Configs that runs recorded are read leniently (`from_record`), so that keys may come and go.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from data_gen.star import Star
from data_gen.task import Task
from minifork.schema import TASKS, Config

FOLDER = Path(__file__).parent / "configs"
MAX_INT = 2**31  # upper limit of every integer key except seeds
SAID: set[str] = set()  # keys of recorded configs about which this process has printed a line
LINE = re.compile(r"( *)(\w+):[^#]*(?:#\s*(.*))?")  # of a config file: indent, key, comment


# reading


def load(source: Path | str = "star", overrides: Iterable[str] = ()) -> Config:
    """The Config of a shipped file's name or a path, after ``preset=name`` and ``section.key=value`` overrides.

    Raises ValueError naming the file or key and the way out.
    """
    overrides = list(overrides)
    file, tree = _own_file(source)
    task, presets = tree.get("task", "star"), tree.pop("presets", {})
    if not isinstance(task, str) or task not in TASKS:
        raise ValueError(f"{file}: task is {task!r}: the tasks are: {', '.join(TASKS)}")
    defaults, shipped_presets, _ = _shipped_tree(FOLDER, task)
    presets = {"": {}} | _merged(shipped_presets, presets)
    asked = [word.removeprefix("preset=") for word in overrides if word.startswith("preset=")]
    if missing := [name for name in (tree.get("preset", ""), *asked) if name not in [*presets]]:
        raise ValueError(f"{file}: no preset {missing[0]!r}; it has {', '.join(presets)[2:] or 'none'}")
    tree = _merged(_merged(defaults, presets[tree.get("preset", "")]), tree)
    for name in asked:
        tree = _merged(tree, presets[name] | {"preset": name})
    config = from_tree(tree, file)
    return changed(config, [word for word in overrides if not word.startswith("preset=")])


def _own_file(source: Path | str) -> tuple[Path | str, dict]:
    """What a config file is called in errors, and what it says; a shipped one says its task only."""
    if str(source) in _shipped_names(FOLDER):
        return source, {"task": str(source)}
    path = Path(source)
    try:
        tree = read_yaml(path)
    except FileNotFoundError:
        names = ", ".join(_shipped_names(FOLDER))
        raise ValueError(f"{path}: no such config file; give a path, or one that ships: {names}") from None
    presets = tree.get("presets", {}) if isinstance(tree, dict) else None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a config is a mapping of keys to values")
    if not isinstance(presets, dict) or not all(isinstance(preset, dict) for preset in presets.values()):
        raise ValueError(f"{path}: presets is a section of sections, name: {{keys}}")
    return path, tree


@lru_cache
def _shipped_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in folder.glob("*.yaml") if path.stem != "defaults"))


@lru_cache
def _shipped_tree(folder: Path, task: str) -> tuple[dict, dict, dict[str, Any]]:
    """The defaults of a task, its presets, and what `before` gives; of a task that does not ship, what all share."""
    tree, before = _plain(read_yaml(folder / "defaults.yaml"))
    if task in _shipped_names(folder):
        own, own_before = _plain(read_yaml(folder / f"{task}.yaml"))
        tree, before = _merged(tree, own), before | own_before
    presets = tree.pop("presets")
    return tree | {"task": task}, presets, before


def _plain(tree: dict, prefix: str = "") -> tuple[dict, dict[str, Any]]:
    """A tree with its {default: .., before: ..} leaves replaced by their defaults, and the latter by dotted key."""
    plain, before = {}, {}
    for name, value in tree.items():
        if isinstance(value, dict) and value.keys() == {"default", "before"}:
            before[prefix + name], value = value["before"], value["default"]
        elif isinstance(value, dict):
            value, inside = _plain(value, f"{prefix}{name}.")
            before |= inside
        plain[name] = value
    return plain, before


def before(task: str) -> dict[str, Any]:
    """By dotted key, the value that a task's run which lacks the key is read as having, where that is stated."""
    return _shipped_tree(FOLDER, task)[2]


class _Loader(yaml.SafeLoader):
    """YAML in which no key is written twice, and no alias makes much of little."""

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

    Raises ValueError as `load` does.
    """
    valid = keys(Config, task=config.task)
    if not isinstance(changes, Mapping):
        changes = parsed(changes, valid, source)
    for key, value in changes.items():
        if key not in valid:
            raise ValueError(_unknown(key, valid, source))
        if key == "task" and value in [*TASKS] and keys(Config, task=value) != valid:
            raise ValueError(f"{source}: task is {value!r}, but the config is of {config.task}: give another file")
    return from_tree(_with(to_tree(config), changes), source) if changes else config


def of_task(name: str, task: Task, changes: Mapping[str, Any]) -> Config:
    """What ships for a task of this name, with its data section replaced and then changes by dotted key.

    Raises ValueError as `load` does.
    """
    tree = _shipped_tree(FOLDER, name)[0] | {"data": dataclasses.asdict(task)}
    return from_tree(_with(tree, changes), name)


def _with(tree: dict, changes: Mapping[str, Any]) -> dict:
    """A nested mapping with other values at dotted keys."""
    for key, value in changes.items():
        *sections, leaf = key.split(".")
        inner: dict = {leaf: value}
        for section in reversed(sections):
            inner = {section: inner}
        tree = _merged(tree, inner)
    return tree


def parsed(words: Iterable[str], valid: dict[str, type], source: str) -> dict[str, Any]:
    """The values that "key=value" words give to keys, which may be short; raises ValueError naming what is wrong."""
    values = {}
    for text in words:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: write it as key=value")
        key = full_key(name, valid, source)
        values[key] = typed(_scalar(value, valid[key]), valid[key], key, source)
    return values


def _merged(tree: dict, changes: dict) -> dict:
    """A nested mapping with another one's values in place of its own."""
    both = dict(tree)
    for name, value in changes.items():
        nested = isinstance(value, dict) and isinstance(tree.get(name), dict)
        both[name] = _merged(tree[name], value) if nested else value
    return both


def to_tree(config: Config) -> dict:
    """The nested mapping of a Config."""
    return dataclasses.asdict(config)


def flat(config: Config) -> dict[str, Any]:
    """The values of a Config by dotted key."""
    return flattened(to_tree(config))


def flattened(tree: dict, prefix: str = "") -> dict[str, Any]:
    """The leaves of a nested mapping by dotted key."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + str(name): value}
    return leaves


def shipped(config: Config) -> Config:
    """What a config's task and preset give without any other change."""
    return _shipped(FOLDER, config.task if config.task in _shipped_names(FOLDER) else "star", config.preset)


@lru_cache
def _shipped(folder: Path, task: str, preset: str) -> Config:
    return load(task, [f"preset={preset}"] if preset in _shipped_tree(folder, task)[1] else [])


def tags(config: Config, study: Config | None = None) -> dict[str, Any]:
    """The dotted keys, with their values, in which a config differs from a study's; by default from what ships."""
    planned = flat(study or shipped(config))
    return {key: value for key, value in flat(config).items() if planned.get(key, ...) != value}


def arguments(config: Config) -> list[str]:
    """The options and overrides that make `load` give this config.

    Raises ValueError for a task that does not ship: only the process that defines it can read it.
    """
    if config.task not in _shipped_names(FOLDER):
        raise ValueError(f"task is {config.task!r}: a study runs tasks that ship: {', '.join(_shipped_names(FOLDER))}")
    planned = shipped(config)
    words = [f"preset={planned.preset}"] if planned.preset else []
    words += [f"{key}={word(value)}" for key, value in tags(config).items() if key != "preset"]
    return ["--config", config.task, *words]


def word(value: Any) -> str:
    """A value as an override's text, which `parsed` reads."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else f"{value}"


def full_key(name: str, valid: Iterable[str], source: str) -> str:
    """The dotted key that a name means: itself, or the one key whose last part it is.

    Raises ValueError, naming the nearest, when there is no such key or there are several.
    """
    valid = list(valid)
    candidates = [key for key in valid if key == name] or [key for key in valid if key.split(".")[-1] == name]
    if not candidates:
        raise ValueError(_unknown(name, valid, source))
    if len(candidates) > 1:
        raise ValueError(f"{source}: {name!r} is short for {', '.join(candidates)}: write the one that is meant")
    return candidates[0]


def tag_text(tags: Mapping[str, Any]) -> str:
    """Tags as words, their keys as short as they can be: fork_rate=0.5 fresh=true."""
    leaves = [key.split(".")[-1] for key in keys(Config)]
    short = {key: key.split(".")[-1] for key in tags if leaves.count(key.split(".")[-1]) == 1}
    return " ".join(f"{short.get(key, key)}={word(value)}" for key, value in tags.items())


def described(config: Config) -> str:
    """A config as YAML that can be read again, with the comment of every key; changes say what ships instead."""
    comments, changes, lines = _comments(config.task), tags(config), []
    section = ""
    for key, value in flat(config).items():
        *sections, leaf = key.split(".")
        if sections and sections[0] != section:
            section = sections[0]
            lines += ["", f"{section}:"]
        text = f"{'  ' * len(sections)}{leaf}: {yaml.safe_dump(value, width=math.inf).splitlines()[0]}"
        standard = flat(shipped(config)).get(key)
        mark = f"[changed, {word(standard)} ships] " if key in changes else ""
        lines.append(f"{text:<27} # {mark}{comments.get(key, '')}".rstrip(" #"))
    return "\n".join(lines)


def _comments(task: str) -> dict[str, str]:
    """What the shipped files say of every key."""
    comments: dict[str, str] = {}
    for name in ("defaults", task if task in _shipped_names(FOLDER) else "star"):
        section = ""
        for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines():
            if match := LINE.fullmatch(line):
                indent, key, comment = match.groups()
                section = section if indent else key
                comments.setdefault(f"{section}.{key}" if indent else key, comment or "")
    return comments


# checking


def from_tree(tree: dict, source: Path | str) -> Config:
    """The Config of a nested mapping with every key; ``source`` is named in errors."""
    if not isinstance(tree, dict):
        raise ValueError(f"{source}: a config is a mapping of keys to values")
    if tree.get("task") not in [*TASKS]:  # a list, as what was written need not be hashable
        raise ValueError(f"{source}: task is {tree.get('task')!r}: the tasks are: {', '.join(TASKS)}")
    return _build(Config, tree, "", source, tree["task"])


def from_record(tree: Any, source: Path | str) -> Config:
    """The Config that a run recorded: a key it lacks has the value from before the key existed, or else its default.

    A key that no longer exists is ignored, with a printed line. Raises ValueError as `from_tree` does.
    """
    recorded = flattened(tree) if isinstance(tree, dict) else {}
    task = str(recorded.get("task", "star"))
    defaults = _shipped_tree(FOLDER, task)[0]
    valid = keys(Config, task=task)
    for key in recorded.keys() - valid.keys():
        _say_once(key, f"{source}: {key} no longer exists and is ignored")
    values = flattened(defaults) | before(task) | recorded
    complete: dict = {}
    for key in valid.keys() & values.keys():
        section, _, leaf = key.rpartition(".")
        (complete.setdefault(section, {}) if section else complete)[leaf] = values[key]
    return from_tree(complete, source)


def _say_once(key: str, line: str) -> None:
    """Print a line unless this process has printed one about the key."""
    if key not in SAID:
        SAID.add(key)
        print(line, flush=True)


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


def _build(schema: type, tree: Any, prefix: str, source: Path | str, task: str) -> Any:
    if not isinstance(tree, dict):
        raise ValueError(f"{source}: {prefix.rstrip('.')} is a section, give its keys below it")
    hints = _hints(schema, task)
    names = [field.name for field in dataclasses.fields(schema)]
    for name in tree:
        if name not in names:
            raise ValueError(_unknown(f"{prefix}{name}", keys(Config, task=task), source))
    missing = [f"{prefix}{name}" for name in names if name not in tree]
    if missing:
        raise ValueError(f"{source}: missing key {missing[0]}, which has no default")
    values = {}
    for name in names:
        kind, value = hints[name], tree[name]
        if dataclasses.is_dataclass(kind):
            values[name] = _build(kind, value, f"{prefix}{name}.", source, task)
        else:
            values[name] = typed(value, kind, f"{prefix}{name}", source)
    try:
        return schema(**values)
    except ValueError as error:
        fields = rf"(?<![\w.])({'|'.join(names)})(?= is |=)"  # what dataclasses outside minifork call their keys
        message = re.sub(fields, rf"{prefix}\1", str(error))
        raise ValueError(f"{source}: {message}") from None


def typed(value: Any, kind: type, key: str, source: Path | str) -> Any:
    """A key's value as its type; raises ValueError naming the source and the key when it is of another."""
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 3e-3 as a string
        except (ValueError, OverflowError):
            pass
    if kind == int | None:
        if value is None or type(value) is int:
            return value
        raise ValueError(f"{source}: {key} must be a whole number or null, not {value!r}")
    if kind is int and type(value) is int and abs(value) >= MAX_INT and not key.endswith("seed"):
        raise ValueError(f"{source}: {key} is {value}: give less than {MAX_INT}")
    if type(value) is not kind:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
        raise ValueError(f"{source}: {key} must be {words[kind]}, not {value!r}")
    return value


def _scalar(text: str, kind: type) -> Any:
    """What an override's text says, decimal where it is a number; words stay words, for `typed` to refuse."""
    try:
        if kind is bool:
            return yaml.safe_load(text)
        if kind == int | None and text == "null":
            return None
        return text if kind is str else float(text) if kind is float else int(text)
    except Exception:  # as in `read_yaml`
        return text


def _unknown(key: str, valid: Iterable[str], source: Path | str) -> str:
    valid = list(valid)
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.9)
    leaf = [k for k in valid if k.split(".")[-1] == key.split(".")[-1]]
    far = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    leaves = {k.split(".")[-1]: k for k in valid}
    alike = [leaves[name] for name in difflib.get_close_matches(key, leaves, n=1, cutoff=0.75)]
    hint = (near or leaf or alike or far or ["one of " + ", ".join(sorted(valid))])[0]
    return f"{source}: unknown key {key!r}; did you mean {hint}?"
