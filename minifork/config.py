"""Reading a config: one complete YAML file, then ``key=value`` overrides.

There are no defaults in code: the YAML file names and explains every key, and an unknown key, a missing
key or a value of the wrong type is refused with the nearest valid key.
"""

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from data_gen.star import Star
from minifork.schema import TASKS, Config

LARGEST = 2**31  # of all whole numbers but seeds


def load(path: Path | str, overrides: list[str]) -> Config:
    """Read a YAML file, apply ``preset=name`` and then ``section.key=value`` overrides, check everything.

    Raises ValueError naming the file or key and the way out.
    """
    path = Path(path)
    try:
        tree = read_yaml(path)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such config file; the shipped one is experiments/configs/star.yaml") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: a config is a mapping of keys to values")
    presets = tree.pop("presets", None) or {}
    if not isinstance(presets, dict) or not all(isinstance(preset, dict) for preset in presets.values()):
        raise ValueError(f"{path}: presets is a section of sections, name: {{keys}}")
    for name in [override.removeprefix("preset=") for override in overrides if override.startswith("preset=")]:
        if name not in presets:
            raise ValueError(f"{path}: no preset {name!r}; it has {', '.join(map(str, presets)) or 'none'}")
        tree = _merged(tree, presets[name])
    config = from_tree(tree, path)
    return changed(config, [override for override in overrides if not override.startswith("preset=")])


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


def changed(config: Config, overrides: Iterable[str], source: str = "the command line") -> Config:
    """A Config with overrides, which stand in ``source``; raises ValueError as `load` does."""
    return _overridden(to_tree(config), list(overrides), source)


def _overridden(tree: dict, overrides: list[str], source: str) -> Config:
    """The Config of a nested mapping, which is changed, after overrides."""
    known = keys(Config, task=tree["task"])
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"{override!r}: write an override as key=value")
        if key not in known:
            raise ValueError(_unknown(key, known, source))
        if key == "task" and text in TASKS and keys(Config, task=text) != known:
            raise ValueError(f"{source}: task is {text!r}, but the config is of {tree['task']}: give another file")
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node[section]
        node[leaf] = _scalar(text, known[key])
    return from_tree(tree, source)


def _merged(tree: dict, changes: dict) -> dict:
    """A nested mapping with another one's values in place of its own."""
    both = {name: _merged(tree[name], value) if isinstance(value, dict) and isinstance(tree.get(name), dict) else value
            for name, value in changes.items()}  # fmt: skip
    return tree | both


def from_tree(tree: dict, source: Path | str) -> Config:
    """The Config of a nested mapping; ``source`` is named in errors."""
    if not isinstance(tree, dict):
        raise ValueError(f"{source}: a config is a mapping of keys to values")
    if tree.get("task") not in [*TASKS]:  # a list, as what was written need not be hashable
        raise ValueError(f"{source}: task is {tree.get('task')!r}: the tasks are: {', '.join(TASKS)}")
    return _build(Config, tree, "", source, tree["task"])


def to_tree(config: Config) -> dict:
    """The nested mapping of a Config."""
    return dataclasses.asdict(config)


def keys(schema: type, prefix: str = "", task: str = "star") -> dict[str, type]:
    """Every dotted leaf key of a dataclass and its type, with the data section of a task."""
    found: dict[str, type] = {}
    for name, kind in _hints(schema, task).items():
        if dataclasses.is_dataclass(kind):
            found |= keys(kind, f"{prefix}{name}.", task)
        else:
            found[prefix + name] = kind
    return found


def fingerprint(tree: Any) -> str:
    """Twelve hex digits of a JSON-able value, equal for equal values."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """The dotted keys in which two nested mappings differ, each as "key: old -> new"."""
    found = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found.append(f"{prefix}{name}: {before} -> {after}")
    return found


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
        raise ValueError(f"{source}: missing key {missing[0]}; every key must be given")
    values = {}
    for name in names:
        kind, value = hints[name], tree[name]
        if dataclasses.is_dataclass(kind):
            values[name] = _build(kind, value, f"{prefix}{name}.", source, task)
        else:
            values[name] = _typed(value, kind, f"{prefix}{name}", source)
    try:
        return schema(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _typed(value: Any, kind: type, key: str, source: Path | str) -> Any:
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 3e-3 as a string
        except (ValueError, OverflowError):
            pass
    if kind == int | None:
        if value is None or type(value) is int:
            return value
        raise ValueError(f"{source}: {key} must be a whole number or null, not {value!r}")
    if kind is int and type(value) is int and abs(value) >= LARGEST and not key.endswith("seed"):
        raise ValueError(f"{source}: {key} is {value}: give less than {LARGEST}")
    if type(value) is not kind:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
        raise ValueError(f"{source}: {key} must be {words[kind]}, not {value!r}")
    return value


def _scalar(text: str, kind: type) -> Any:
    """What an override's text says, decimal where it is a number; words stay words, for `_typed` to refuse."""
    try:
        if kind is bool:
            return yaml.safe_load(text)
        if kind == int | None and text == "null":
            return None
        return text if kind is str else float(text) if kind is float else int(text)
    except Exception:  # as in `read_yaml`
        return text


def _unknown(key: str, known: dict[str, type], source: Path | str) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.9)
    leaf = [k for k in known if k.split(".")[-1] == key.split(".")[-1]]
    far = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = (near or leaf or far or ["one of " + ", ".join(sorted(known))])[0]
    return f"{source}: unknown key {key!r}; did you mean {hint}?"
