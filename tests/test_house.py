"""The rules of the house: imports run one way, importing does nothing, few dependencies, short files and functions."""

import ast
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from tests.code_lines import code_lines

ROOT = Path(__file__).parent.parent
PACKAGES = ("data_gen", "minifork", "experiments")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAY_IMPORT = {
    "data_gen": {"data_gen", "numpy"},
    "minifork": {"minifork", "data_gen", "numpy", "torch", "einops", "tqdm", "yaml"},
    "experiments": {"experiments", "minifork", "data_gen", "numpy", "torch", "tqdm", "yaml", "matplotlib"},
}
EXTRAS = {  # not required; imported inside functions only, but in LANGUAGE, which no other module imports at its top
    "experiments/checks/bench.py": {"transformers"},
    "experiments/cluster.py": {"dask", "distributed"},
    "minifork/language/causal_lm.py": {"transformers"},
    "minifork/language/export.py": {"tokenizers", "transformers"},
    "minifork/language/gguf.py": {"transformers"},
    "minifork/language/patterns.py": {"outlines_core"},
}
LANGUAGE = [name for name, extras in EXTRAS.items() if extras & {"transformers"} and "language" in name]
RUNTIME = {"torch", "numpy", "einops", "tqdm", "pyyaml", "matplotlib"}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@lru_cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path: Path) -> str:
    """The dotted name of a module, of a package for its __init__."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULE_NAMES = {module_of(path) for path in MODULES}


def imports(path: Path) -> set[str]:
    """The full names that a module imports anywhere, functions and TYPE_CHECKING included, or names in strings."""
    names = set()
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= {node.value.split(":")[0]} & MODULE_NAMES - set(PACKAGES)
    return names


def top_packages(path: Path) -> set[str]:
    """Top-level packages a module imports, anywhere in it."""
    return {name.split(".")[0] for name in imports(path)}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes of a graph that lead back to one another, or nothing."""
    rest = dict(graph)
    while leaves := [node for node, below in rest.items() if not below & rest.keys()]:
        rest = {node: below for node, below in rest.items() if node not in leaves}
    return sorted(rest)


def test_imports_point_down():
    """No module, and no room (a folder, or a module that lies in none), imports one that leads back to it.

    A package's own __init__ is exempt, as it only re-exports lazily.
    """
    assert len(MODULES) > 15
    graph = {module_of(p): imports(p) & MODULE_NAMES - {module_of(p)} for p in MODULES if p.name != "__init__.py"}
    assert circle(graph) == []
    rooms: dict[str, set[str]] = {}
    for module, below in graph.items():
        rooms.setdefault(room_of(module), set()).update({room_of(name) for name in below} - {room_of(module)})
    assert circle(rooms) == []


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_a_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["a", "b", "c", "d"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_run_one_way(path):
    allowed = MAY_IMPORT[path.relative_to(ROOT).parts[0]] | set(sys.stdlib_module_names)
    extra = EXTRAS.get(name_of(path), set())
    assert top_packages(path) - extra <= allowed
    top = [ast.unparse(node) for node in parse(path).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    if name_of(path) not in LANGUAGE:
        assert not any(name in line for line in top for name in extra)
    if not name_of(path).startswith("minifork/language/"):
        assert not any(name.removesuffix(".py").replace("/", ".") in line for line in top for name in LANGUAGE)


def test_functions_fit_on_a_screen_and_files_are_read_in_one_sitting():
    """At most 40 lines of code, and 350 lines; tests and examples included."""
    long = []
    for path in [*MODULES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").glob("*.py")]:
        source = path.read_text(encoding="utf-8")
        lines = code_lines(source)
        long += [name_of(path)] if len(source.splitlines()) > 350 else []
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef) and len(lines & {*range(node.lineno, node.end_lineno + 1)}) > 40:
                long.append(f"{name_of(path)}: {node.name}")
    assert long == []


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_only_define(path):
    """At the top level: docstring, imports, definitions, constants; calls only in __main__.py or under a guard."""
    defining = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    for node in parse(path).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guard = ast.unparse(node.test) if isinstance(node, ast.If) else ""
        is_guarded = "__name__" in guard or guard == "TYPE_CHECKING"
        is_main = path.name == "__main__.py"
        assert isinstance(node, defining) or is_docstring or is_guarded or is_main, ast.unparse(node)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_reads_the_clock_on_the_wall(path):
    """Which may jump: seconds are differences of monotonic clocks, and no file is older or newer than another."""
    of_time = {"monotonic", "perf_counter", "sleep"}
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node.value) != "time" or node.attr in of_time, ast.unparse(node)
            assert node.attr not in ("st_mtime", "st_mtime_ns", "getmtime"), ast.unparse(node)
    assert "datetime" not in top_packages(path)


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("minifork", ["torch", "numpy", "data_gen"]),
        ("minifork.cli", ["torch", "matplotlib", "experiments"]),
        ("experiments.cli", ["torch", "matplotlib"]),
        ("minifork.listing", ["torch", "matplotlib", "experiments"]),
        ("data_gen.audit", ["torch", "minifork", "yaml"]),
    ],
)
def test_what_an_import_drags_in(module, unwanted):
    code = f"import sys, {module}; print(sorted(m for m in {unwanted} if m in sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.stdout.strip() == "[]" and process.stderr == ""


def test_importing_everything_prints_and_writes_nothing(tmp_path):
    """The modules for language models are imported where their extra is installed."""
    paths = [path for path in MODULES if path.name != "__main__.py"]
    if importlib.util.find_spec("transformers") is None:
        paths = [path for path in paths if path.parent.name != "language"]
    names = [module_of(path) for path in paths]
    command = [sys.executable, "-c", "import " + ", ".join(names)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


FUNCTION_WORDS = set(
    "found own kept of known told begun some other others made alone coming said asked given alike apart held won lost "
    "wanted what where which again same such both few many most near far here drawn taken spoken solved".split()
)
FLAGS = {"again"}  # variables called as the flag of a command


def bound_names(path: Path) -> Iterator[tuple[int, str]]:
    """The variables, parameters and functions that a module defines, with their lines.

    Fields of classes are left out: some have the name of a key in a file.
    """
    nodes = [*ast.walk(parse(path))]
    fields = {id(field.target) for node in nodes if isinstance(node, ast.ClassDef) for field in node.body
              if isinstance(field, ast.AnnAssign)}  # fmt: skip
    for node in nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and id(node) not in fields:
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.lineno, node.name


def test_nothing_is_called_by_a_function_word():
    """A name says what a thing is: not `found`, `other` or `given`."""
    unwanted = FUNCTION_WORDS - FLAGS
    misnamed = [f"{name_of(path)}:{line}: {name}" for path in MODULES for line, name in bound_names(path)
             if name.strip("_").lower() in unwanted]  # fmt: skip
    assert misnamed == []


def setup_argument(name: str) -> Any:
    """An argument that setup.py gives to setup()."""
    call = parse(ROOT / "setup.py").body[-1].value
    return ast.literal_eval(next(keyword.value for keyword in call.keywords if keyword.arg == name))


@pytest.mark.parametrize("package", PACKAGES)
def test_what_code_reads_is_installed_with_it(package):
    """Configs, studies, claims, the kernel and the report's template; not the results that are kept."""
    files = [path for path in (ROOT / package).rglob("*.*") if path.suffix not in (".py", ".pyc")]
    patterns = setup_argument("package_data").get(package, [])
    shipped = [path for pattern in patterns for path in (ROOT / package).glob(pattern)]
    assert sorted(shipped) == sorted(path for path in files if "results" not in path.parts)


def test_every_runtime_dependency_is_used_and_pinned():
    required = setup_argument("install_requires")
    assert {re.split(r"[<>=!~ ;\[]", requirement)[0].lower() for requirement in required} == RUNTIME
    used = set().union(*(top_packages(path) for path in MODULES))
    ours = {*sys.stdlib_module_names, *PACKAGES}.union(*EXTRAS.values())
    assert {"pyyaml" if name == "yaml" else name for name in used} - ours == RUNTIME
    pinned = re.findall(r"^([\w-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8").lower(), re.MULTILINE)
    assert RUNTIME | {"pytest", "hypothesis", "ruff"} <= {*pinned}
