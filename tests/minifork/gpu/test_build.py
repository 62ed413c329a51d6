"""Compiling the fused kernel for GPUs, and the cache of what was compiled. Nothing here needs a GPU; NVRTC is in the
extra kernel-dev, nvcc in the CUDA toolkit."""

import re
import shutil
import threading

import pytest

from minifork.gpu import build as cuda
from minifork.gpu.build import Compiler, UnavailableError
from minifork.gpu.kernel import SOURCE, Build

BUILDS = [
    Build(128, 4, 3, 20, 15, 6, 64, 1),  # the shipped star
    Build(128, 4, 3, 20, 15, 6, 64, 0),
    Build(128, 4, 3, 26, 22, 16, 16, 1),
    Build(256, 4, 4, 64, 64, 16, 64, 1),
    Build(256, 8, 8, 256, 200, 56, 64, 0),
]


def spilled_bytes(log: str) -> int:
    """Bytes of registers spilled in all functions that a compiler's log tells of."""
    return sum(int(number) for number in re.findall(r"(\d+) bytes spill (?:stores|loads)", log))


@pytest.fixture(scope="module")
def nvrtc() -> Compiler:
    try:
        compiler = cuda.find_compiler()
    except UnavailableError:
        pytest.skip("no NVRTC: install the extra kernel-dev")
    assert compiler.name.startswith("nvrtc")
    return compiler


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_compiles_without_spills(nvrtc, arch):
    for build in BUILDS:
        cubin, log = nvrtc.compile(SOURCE.read_text(), cuda.options(build, arch))
        assert cubin.startswith(b"\x7fELF") and b"tile_bytes" in cubin
        assert "bytes spill stores" in log and spilled_bytes(log) == 0, build
        assert "warning" not in log


def test_spills_are_seen(nvrtc):
    options = [*cuda.options(BUILDS[0], "sm_90"), "--maxrregcount=40"]
    options = [option for option in options if "BLOCKS_PER_SM" not in option] + ["-DBLOCKS_PER_SM=4"]
    assert spilled_bytes(nvrtc.compile(SOURCE.read_text(), options)[1]) > 0


def test_a_source_that_does_not_compile(nvrtc):
    with pytest.raises(UnavailableError, match="error"):
        nvrtc.compile("not C++", cuda.options(BUILDS[0], "sm_90"))
    with pytest.raises(UnavailableError, match="NVRTC"):
        nvrtc.compile(SOURCE.read_text(), cuda.options(BUILDS[0], "sm_1"))


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")
def test_nvcc_compiles_the_same_file():
    cubin, log = cuda._nvcc(shutil.which("nvcc")).compile(SOURCE.read_text(), cuda.options(BUILDS[0], "sm_90"))
    assert cubin.startswith(b"\x7fELF") and spilled_bytes(log) == 0


class Counting:
    """A compiler that answers at once, or slowly, and counts how often it was asked."""

    def __init__(self, wait: float = 0.0) -> None:
        self.calls, self.wait = 0, threading.Event() if wait else None
        self.seconds, self.compiler = wait, Compiler("counting 1", self.compile)

    def compile(self, source: str, options: list[str]) -> tuple[bytes, str]:
        self.calls += 1
        if self.wait:
            self.wait.wait(self.seconds)
        return f"cubin {options[-1]}".encode(), ""


def test_cache(tmp_path):
    """Compiled once; another build, architecture or compiler is another entry; a damaged entry is built anew."""
    compiler = Counting()

    def get(build=BUILDS[0], arch="sm_90", compiler=compiler.compiler):
        return cuda.compiled(build, arch, tmp_path / "cache", compiler)

    first = get()
    assert get() == first and compiler.calls == 1 and not first.tested.exists()
    first.tested.touch()
    path = first.tested.with_suffix(".cubin")
    for damaged in (b"", b"short", path.read_bytes()[:-1], b"\0" + path.read_bytes()[1:]):
        calls = compiler.calls
        path.write_bytes(damaged)
        assert get().cubin == first.cubin and compiler.calls == calls + 1
        assert not first.tested.exists()  # a new entry is tested anew
        first.tested.touch()
    calls = compiler.calls
    get(build=BUILDS[1]), get(arch="sm_80"), get(compiler=Compiler("counting 2", compiler.compile))
    assert compiler.calls == calls + 3


def test_two_at_once_compile_once(tmp_path):
    compiler = Counting(wait=0.3)
    entries = []
    jobs = [
        threading.Thread(target=lambda: entries.append(cuda.compiled(BUILDS[0], "sm_90", tmp_path, compiler.compiler)))
        for _ in range(3)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert compiler.calls == 1 and len(entries) == 3 and len({entry.cubin for entry in entries}) == 1


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    compiler = Counting()
    entry = cuda.compiled(BUILDS[0], "sm_90", tmp_path / "file", compiler.compiler)
    assert entry.cubin and entry.tested is None


def test_the_cache_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert str(cuda.cache_folder()) == "/elsewhere/minifork"
