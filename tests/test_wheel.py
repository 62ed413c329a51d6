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


def copy_of_project(folder: Path) -> Path:
    """A folder that is made, with a copy of what a wheel is built from."""
    folder.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of programs of an environment in which only the wheel is installed.

    What it requires is read from this environment: it is large, and here already.
    """
    root = tmp_path_factory.mktemp("wheel")
    source, environment = copy_of_project(root / "source"), root / "environment"
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


def test_a_clone_does_not_hide_the_package_from_the_folder_around_it(tmp_path):
    """After `pip install -e .`. A clone is a folder called minifork, which is no package itself."""
    source, wheels = copy_of_project(tmp_path / "minifork"), tmp_path / "wheels"
    build = f"from setuptools import build_meta; build_meta.build_editable({str(wheels)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = wheels.glob("minifork-*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    code = f"import site; site.addsitedir({str(tmp_path / 'site')!r}); import minifork; print(minifork.__file__)"
    process = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert Path(process.stdout.strip()) == source / "minifork" / "__init__.py"
