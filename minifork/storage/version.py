"""The version of the measuring code: a hash of every file that decides what a measurement gives, and of no other.

The files are `minifork.measure` and all that it imports, directly or not, inside functions too; the kernel's CUDA
sources; and, where they are somebody's own, the modules of the task and of the decoder, with what they import.
"""

import ast
import importlib.util
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from importlib.machinery import ModuleSpec
from pathlib import Path

from minifork.storage.files import digest

ROOT = "minifork.measure"
FOLDERS = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
INSTALLED = tuple({str(Path(folder).resolve()) for folder in FOLDERS})


def measuring_version(*parts: object) -> str:
    """Twelve hex digits for the code that measures; ``parts`` are a task and the functions of a decoder."""
    modules = sorted({_module_of(part) for part in parts} | {ROOT, "data_gen"})
    return digest(b"".join(path.read_bytes() for path in sorted(measuring_files(tuple(modules)))))


def _module_of(part: object) -> str:
    return part.__module__ if isinstance(part, Callable) else type(part).__module__


@lru_cache
def measuring_files(modules: tuple[str, ...]) -> frozenset[Path]:
    """The files of modules and all that they import from outside the standard library and installed packages."""
    packages = {module.split(".")[0] for module in modules}
    files, waiting = set(), list(modules)
    while waiting:
        module = waiting.pop()
        path = _source(module) if module.split(".")[0] in packages or _is_local(module.split(".")[0]) else None
        if path is not None and path not in files:
            files.add(path)
            names = set(_imported(ast.parse(path.read_text(encoding="utf-8")), module, path.name == "__init__.py"))
            if module.split(".")[0] != "minifork":  # what measures is found from ROOT, whatever else a task imports
                names = {name for name in names if name.split(".")[0] != "minifork"}
            waiting += names
    return frozenset(files | set(Path(__file__).parents[1].rglob("*.cu")))


@lru_cache
def _is_local(package: str) -> bool:
    """Whether a package is neither of the standard library nor installed."""
    places = [_source(package), *_folders(package)]
    return any(place is not None and not str(place).startswith(INSTALLED) for place in places)


def _source(module: str) -> Path | None:
    """The Python file of a module, None for one that has none; imports nothing."""
    package, *inside = module.split(".")
    if path := getattr(sys.modules.get(module), "__file__", None):
        pass
    elif inside:
        stems = [folder.joinpath(*inside) for folder in _folders(package)]
        candidates = [path for stem in stems for path in (stem.with_suffix(".py"), stem / "__init__.py")]
        path = next((path for path in candidates if path.exists()), None)
    elif spec := _spec(package):
        path = spec.origin if spec.has_location else None
    return Path(path).resolve() if path and str(path).endswith(".py") else None


def _folders(package: str) -> list[Path]:
    """The folders that a package's modules lie in, also where it has no __init__.py."""
    spec = _spec(package)
    return [Path(folder).resolve() for folder in (spec.submodule_search_locations if spec else None) or ()]


def _spec(package: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(package)
    except ValueError:  # __main__ has none
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
