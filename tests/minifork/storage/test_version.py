"""The version of the measuring code changes with every file that decides a measurement, and with no other."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minifork.storage import version

ROOT = Path(__file__).parents[3]
PACKAGES = ("data_gen", "minifork", "experiments", "examples")
MINE = """
from dataclasses import dataclass
from data_gen.star import Star
from helper import twice
from kit.inner import thrice
from minifork.cli import main
from minifork.schema import TASKS
@dataclass(frozen=True)
class Mine(Star):
    pass
"""
USERS = {  # a task and a decoder of a user's own, written as those in examples/, and what the task imports
    "mine.py": MINE,
    "helper.py": "def twice(x): return 2 * x\n",
    "kit/__init__.py": "",
    "kit/inner.py": "def thrice(x):\n    from .innermost import one\n    from . import sibling\n    return 3 * one\n",
    "kit/innermost.py": "from loose.part import one\n",
    "kit/sibling.py": "",
    "loose/part.py": "one = 1\n",  # its folder has no __init__.py
    "decoder.py": "def halved(logits, value): return logits / 2\n",
    "unrelated.py": "from mine import Mine\n",
}
DECIDE = "minifork/measure.py minifork/gpu/decode.cu minifork/settings.py data_gen/star.py data_gen/search.py".split()
STAY = "minifork/cli.py minifork/evaluate.py minifork/config.py minifork/training/loop.py data_gen/audit.py".split()
CHANGE_EVERY_FILE = '''
import json, sys
from pathlib import Path
from data_gen.star import Star
from decoder import halved
from mine import Mine
from minifork.storage import version

def versions():
    return version.measuring_version(Star(8, 2, 3)), version.measuring_version(Mine(8, 2, 3), halved)

def changed_text(path, text):
    """With another first line: of the docstring, or a comment."""
    comment = "// changed" if path.suffix == ".cu" else "# changed"
    return text.replace('"""', '"""Changed: ', 1) if text.startswith('"""') else f"{comment}\\n{text}"

root, before = Path.cwd(), versions()
assert Path(version.__file__).is_relative_to(root)
changed = [], []
for path in sorted([*root.rglob("*.py"), *root.rglob("*.cu")]):
    text = path.read_text()
    path.write_text(changed_text(path, text))
    for names, now, then in zip(changed, versions(), before):
        names += [str(path.relative_to(root))] * (now != then)
    path.write_text(text)
assert versions() == before
print(json.dumps([*changed, "torch" in sys.modules]))
'''

LOADED = """
import json, sys
import data_gen.star, minifork.measure
project = [m for name, m in sys.modules.items() if name.split(".")[0] in ("data_gen", "minifork", "experiments")]
print(json.dumps([module.__file__ for module in project]))
"""
PROGRAM = """
import json
from minifork.storage.version import measuring_version
class Task:
    pass
print(json.dumps(measuring_version(Task())))
"""


def python(folder: Path, *words: str) -> Any:
    """What a program that runs in a folder prints as JSON."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def changed(tmp_path_factory) -> tuple[set[str], set[str]]:
    """The files whose change gives another version, for a task that ships and for a user's own task and decoder."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in USERS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    shipped, own_task, torch_is_loaded = python(folder, "-c", CHANGE_EVERY_FILE)
    assert not torch_is_loaded
    return set(shipped), set(own_task)


def test_it_changes_with_what_measures_and_with_nothing_else(changed):
    """The files are those that a process has loaded once it can measure, and the kernel."""
    loaded = {str(Path(file).relative_to(ROOT)) for file in python(ROOT, "-c", LOADED)}
    assert changed[0] == loaded - {"minifork/__init__.py"} | {"minifork/gpu/decode.cu"}
    assert {*DECIDE} <= changed[0] and changed[0].isdisjoint([*STAY, *USERS])


def test_a_users_task_and_decoder_count_with_what_they_import(changed):
    """Imports in functions, relative ones and those from a folder without an __init__.py included."""
    assert changed[1] - changed[0] == {*USERS} - {"unrelated.py"}


def test_a_program_that_defines_its_task_counts(tmp_path):
    """As those in examples/ do."""
    program, versions = tmp_path / "program.py", set()
    for text in (PROGRAM, f"{PROGRAM}# changed", PROGRAM):
        program.write_text(text, encoding="utf-8")
        versions.add(python(tmp_path, str(program)))
    assert len(versions) == 2


def test_what_another_environment_installed_does_not_count(tmp_path, monkeypatch):
    """An environment may build on another one, whose packages are no code of the user's."""
    for folder in (tmp_path, tmp_path / "site-packages"):
        folder.mkdir(exist_ok=True)
        monkeypatch.syspath_prepend(folder)
    (tmp_path / "site-packages" / "theirs.py").write_text("", encoding="utf-8")
    (tmp_path / "ours.py").write_text("", encoding="utf-8")
    (tmp_path / "task_of_ours.py").write_text("import ours, theirs\n", encoding="utf-8")
    names = {path.name for path in version.measuring_files(("task_of_ours",))}
    assert {"task_of_ours.py", "ours.py"} <= names and "theirs.py" not in names
