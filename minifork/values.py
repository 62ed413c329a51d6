"""Values of a config by dotted key, {"seed": 0, "sft.lr": 0.001}: how they are written, their types, names of keys."""

import contextlib
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

Values = dict[str, Any]  # by dotted key

MAX_INT = 2**31  # upper limit of every integer key except seeds
KINDS: dict[object, str] = {  # what an error calls a key's type
    int: "a whole number", int | None: "a whole number or null", float: "a number", bool: "true or false",
    str: "a word",
}  # fmt: skip


def flattened(tree: dict, prefix: str = "") -> Values:
    """The leaves of a nested mapping by dotted key; an empty mapping is one."""
    leaves: Values = {}
    for name, value in tree.items():
        inner = isinstance(value, dict) and value
        leaves |= flattened(value, f"{prefix}{name}.") if inner else {f"{prefix}{name}": value}
    return leaves


def parse_overrides(words: Iterable[str], valid: Mapping[str, type], source: str) -> Values:
    """The values that "key=value" words give to keys, which may be short; raises ValueError naming what is wrong."""
    values = {}
    for text in words:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"{text!r}: write it as key=value")
        key = full_key(name, valid, source)
        values[key] = typed(_scalar(value, valid[key]), valid[key], key, source)
    return values


def word(value: object) -> str:
    """A value as an override's text, which `parse_overrides` reads."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else f"{value}"


def full_key(name: str, valid: Iterable[str], source: str) -> str:
    """The dotted key that a name means: itself, or the one key whose last part it is.

    Raises ValueError, naming the nearest, when there is no such key or there are several.
    """
    valid = list(valid)
    candidates = [key for key in valid if key == name] or [key for key in valid if key.split(".")[-1] == name]
    if not candidates:
        raise ValueError(unknown_key(name, valid, source))
    if len(candidates) > 1:
        raise ValueError(f"{source}: {name!r} is short for {', '.join(candidates)}: write the one that is meant")
    return candidates[0]


def typed(value: object, kind: type, key: str, source: Path | str) -> Any:
    """A key's value as its type; raises ValueError naming the source and the key when it is of another."""
    value = value.item() if hasattr(value, "item") else value  # of numpy
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(str(value).replace("_", "x"))  # YAML reads 3e-3 as a string, Python 1_0 as 10
    kinds = (int, type(None)) if kind == int | None else (kind,)
    if type(value) not in kinds:
        raise ValueError(f"{source}: {key} must be {KINDS.get(kind, kind)}, not {value!r}")
    if type(value) is int and abs(value) >= MAX_INT and not key.endswith("seed"):
        raise ValueError(f"{source}: {key} is {value}: give less than {MAX_INT}")
    return value


def _scalar(text: str, kind: type) -> Any:
    """What an override's text says, decimal where it is a number; words stay words, for `typed` to refuse."""
    if kind in (float, str):
        return text
    try:
        if text == "null" and kind is not int:
            return None
        return yaml.safe_load(text) if kind is bool else int(text.replace("_", "x"))
    except Exception:  # as in `minifork.config.read_yaml`
        return text


def expanded(path: Path | str) -> Path:
    """A path that a user gave, with ~ and ~name replaced; raises ValueError when there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path} is in a home that is not known here: write it out") from None


def unknown_key(key: str, valid: Iterable[str], source: Path | str) -> str:
    """The line about a key that does not exist, with the one that it was probably meant to be."""
    valid = list(valid)
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.9)
    leaf = [k for k in valid if k.split(".")[-1] == key.split(".")[-1]]
    far = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    leaves = {k.split(".")[-1]: k for k in valid}
    alike = [leaves[name] for name in difflib.get_close_matches(key, leaves, n=1, cutoff=0.75)]
    hint = (near or leaf or alike or far or ["one of " + ", ".join(sorted(valid))])[0]
    return f"{source}: unknown key {key!r}; did you mean {hint}?"
