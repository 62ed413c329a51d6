"""Values of a config by dotted key, {"seed": 0, "sft.lr": 0.001}: how they are written, their types, names of keys."""

import contextlib
import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

Values = dict[str, Any]  # a config's values by dotted key

MAX_INT = 2**31  # upper limit of every integer key except seeds
KINDS: dict[object, str] = {  # the names of types in errors
    int: "a whole number", int | None: "a whole number or null", float: "a number", bool: "true or false",
    str: "a word",
}  # fmt: skip


def flatten(tree: dict, prefix: str = "") -> Values:
    """The leaves of a nested mapping by dotted key; an empty mapping counts as a leaf."""
    leaves: Values = {}
    for name, value in tree.items():
        is_section = isinstance(value, dict) and value
        leaves |= flatten(value, f"{prefix}{name}.") if is_section else {f"{prefix}{name}": value}
    return leaves


def parse_overrides(words: Iterable[str], valid: Mapping[str, type], source: str) -> Values:
    """The values that "key=value" words give to keys, which may be short; raises ValueError naming what is wrong."""
    values = {}
    for text in words:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: write it as key=value")
        key = full_key(name, valid, source)
        values[key] = typed_value(value if valid[key] is str else _scalar(value), valid[key], key, source)
    return values


def override_text(value: object) -> str:
    """A value as an override's text, which `parse_overrides` reads."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else f"{value}"


def full_key(name: str, valid: Iterable[str], source: str) -> str:
    """The dotted key that a name means: itself, or the one key whose last part it is.

    Raises ValueError, naming the nearest, when there is no such key or there are several.
    """
    valid = list(valid)
    candidates = [name] if name in valid else [key for key in valid if key.split(".")[-1] == name]
    if not candidates:
        raise ValueError(unknown_key(name, valid, source))
    if len(candidates) > 1:
        raise ValueError(f"{source}: {name!r} is short for {', '.join(candidates)}: write one of them in full")
    return candidates[0]


def typed_value(value: object, kind: type, key: str, source: Path | str) -> Any:
    """A key's value as its type; raises ValueError naming the source and the key for a value of another type."""
    value = value.item() if hasattr(value, "item") else value  # turns a numpy number into a Python number
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):  # YAML reads 3e-3 as text
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    kinds = (int, type(None)) if kind == int | None else (kind,)
    if type(value) not in kinds:
        raise ValueError(f"{source}: {key} must be {KINDS.get(kind, kind)}, not {value!r}")
    if type(value) is int and abs(value) >= MAX_INT and not key.endswith("seed"):
        raise ValueError(f"{source}: {key} is {value}: give less than {MAX_INT}")
    return value


def _scalar(text: str) -> Any:
    """An override's text as YAML reads it in a file; text that YAML refuses stays text."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return text


def expand_home(path: Path | str) -> Path:
    """A path that a user gave, with ~ and ~name replaced."""
    return Path(os.path.expanduser(path))


def unknown_key(key: str, valid: Iterable[str], source: Path | str) -> str:
    """The line about a key that does not exist, with the nearest one that does."""
    full = {name.split(".")[-1]: name for name in valid} | {name: name for name in valid}
    nearest = difflib.get_close_matches(key, full, n=1, cutoff=0.5)
    hint = full[nearest[0]] if nearest else f"one of {', '.join(sorted(valid))}"
    return f"{source}: unknown key {key!r}; did you mean {hint}?"
