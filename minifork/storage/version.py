"""The version of the measuring code: a hash of every file that decides what a measurement gives, and of no other.

The files are `minifork.measure` and all that it imports, directly or not, inside functions too; the kernel's CUDA
sources; and, where they are somebody's own, the modules of the task and of the decoder, with what they import.
"""

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from minifork.storage.files import digest

ROOT = "minifork.measure"
PUBLIC = "minifork"  # minifork/__init__.py does not count: it re-exports lazily and decides nothing
STANDARD = tuple({str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib")})
INSTALLED = {"site-packages", "dist-packages"}  # names of folders that hold installed packages


def measuring_version(*parts: object) -> str:
    """Twelve hex digits for the code that measures; ``parts`` are a task and the functions of a decoder."""
    modules = sorted({part.__module__ for part in parts} | {ROOT, "data_gen"})
    return digest(b"".join(path.read_bytes() for path in sorted(measuring_files(tuple(modules)))))


@lru_cache
def measuring_files(modules: tuple[str, ...]) -> frozenset[Path]:
    """The files of modules and all that they import from outside the standard library and installed packages."""
    packages = {module.split(".")[0] for module in modules}
    files, waiting, seen = set(), list(modules), {PUBLIC}
    while waiting:
        module = waiting.pop()
        package = module.split(".")[0]
        if module in seen or not (package in packages or _is_local(package)):
            continue
        seen.add(module)
        if path := _source(module):
            files.add(path)
            names = set(_imported(ast.parse(path.read_text(encoding="utf-8")), module, path.name == "__init__.py"))
            # What measures is found from ROOT, whatever else of minifork a task imports.
            waiting += [name for name in names if package == "minifork" or name.split(".")[0] != "minifork"]
    return frozenset(files | set(Path(__file__).parents[1].rglob("*.cu")))


@lru_cache
def _is_local(package: str) -> bool:
    """True if a package is neither of the standard library nor installed."""
    places = _places(package)
    return any(not str(place).startswith(STANDARD) and not INSTALLED & {*place.parts} for place in places)


@lru_cache
def _places(package: str) -> list[Path]:
    """The folders of a top-level package, or the file of a module; empty when there is none."""
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # a program, __main__, has no spec
        spec = None
    if spec and spec.submodule_search_locations:
        return [Path(place).resolve() for place in spec.submodule_search_locations]
    file = spec.origin if spec and spec.has_location else getattr(sys.modules.get(package), "__file__", None)
    return [Path(file).resolve()] if file else []


def _source(module: str) -> Path | None:
    """The Python file of a module, None for one that has none; imports nothing."""
    package, *inner = module.split(".")
    for place in _places(package):
        path = place.joinpath(*inner)
        for candidate in (path, path / "__init__.py", path.with_name(f"{path.name}.py")):
            if candidate.suffix == ".py" and candidate.is_file():
                return candidate
    return None


def _imported(tree: ast.Module, module: str, is_package: bool) -> Iterator[str]:
    """The names of all modules that a module may import; `from a import b` may mean a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from _with_parents(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level + is_package or None] if node.level else []
            name = ".".join([*above, *filter(None, [node.module])])
            yield from _with_parents([name, *(f"{name}.{alias.name}" for alias in node.names)])


def _with_parents(names: Iterable[str]) -> Iterator[str]:
    """Names of modules, and of the packages around them, whose __init__ is imported too."""
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[: i + 1]) for i in range(len(parts)))
