"""The wheel holds everything: built from a copy of the project, installed elsewhere, run from another folder."""

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import SMALL

ROOT = Path(__file__).parents[1]
PARTS = ("data_gen", "minifork", "experiments", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of programs of an environment in which only the wheel is installed.

    What it requires is read from this environment: it is large, and here already.
    """
    root = tmp_path_factory.mktemp("wheel")
    source, environment = root / "source", root / "environment"
    source.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, source / part)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", root, source]
    subprocess.run(build, check=True)
    venv.create(environment, with_pip=True)
    inside = Path(sysconfig.get_path("purelib", vars={"base": str(environment)}))
    (wheel,) = root.glob("minifork-*.whl")
    install = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True)
    (inside / "here.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")  # its own .pth files are not read
    return environment / "bin"


def run(installed: Path, folder: Path, *command: str) -> str:
    """What a program of the environment prints; -I keeps this folder's own packages out."""
    words = [installed / "python", "-I", *command]
    process = subprocess.run(words, capture_output=True, text=True, cwd=folder, timeout=300)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_every_file_is_in_the_wheel(installed, tmp_path):
    """Modules, configs, studies, claims, the kernel, the report's template; results that are kept are not."""
    code = "import data_gen, minifork, experiments as e; print(*[p.__path__[0] for p in (data_gen, minifork, e)])"
    for place in map(Path, run(installed, tmp_path, "-c", code).split()):
        assert installed.parent in place.parents
        original = ROOT / place.name
        expected = {path.relative_to(original) for path in original.rglob("*") if path.is_file()}
        expected = {path for path in expected if "results" not in path.parts and path.suffix != ".pyc"}
        assert {path.relative_to(place) for path in place.rglob("*") if path.suffix not in ("", ".pyc")} == expected


def test_the_wheel_trains_measures_and_knows_its_studies(installed, tmp_path):
    program = str(installed / "minifork")
    run(installed, tmp_path, program, "pretrain", "--config", "star", *SMALL)
    assert "pass@1" in run(installed, tmp_path, program, "eval", "--config", "star", *SMALL)
    assert "study: arith" in run(installed, tmp_path, program, "config", "--config", "arith")
