"""Compiling the fused kernel for GPUs, and the cache of what was compiled.

Nothing here needs a GPU; NVRTC is in the extra kernel-dev.
"""

import re

import pytest

from minifork.gpu import build as cuda
from minifork.gpu.build import Compiler
from minifork.gpu.kernel import SOURCE, Build, UnavailableError

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


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "builds"), [("sm_90", BUILDS), ("sm_80", BUILDS[:2])])
def test_compiles_without_spills(nvrtc, arch, builds):
    for build in builds:
        cubin, log = nvrtc.compile(SOURCE.read_text(encoding="utf-8"), cuda.options(build, arch))
        assert cubin.startswith(b"\x7fELF") and b"tile_bytes" in cubin
        assert "bytes spill stores" in log and spilled_bytes(log) == 0, build
        assert "warning" not in log


def test_spills_are_seen(nvrtc):
    options = [*cuda.options(BUILDS[0], "sm_90"), "--maxrregcount=40"]
    options = [option for option in options if "BLOCKS_PER_SM" not in option] + ["-DBLOCKS_PER_SM=4"]
    assert spilled_bytes(nvrtc.compile(SOURCE.read_text(encoding="utf-8"), options)[1]) > 0


def test_a_source_that_does_not_compile(nvrtc):
    with pytest.raises(UnavailableError, match="NVRTC: .*error"):
        nvrtc.compile("not C++", cuda.options(BUILDS[0], "sm_90"))


def test_cache(tmp_path):
    """Compiled once; another build, architecture or compiler is another entry; a damaged entry is built anew."""
    calls = []

    def get(build=BUILDS[0], arch="sm_90", name="counting 1", folder=tmp_path / "cache"):
        """The calls of the compiler that an answer takes."""
        before = len(calls)
        compiler = Compiler(name, lambda source, options: (calls.append(1), (f"cubin {options}".encode(), ""))[1])
        assert cuda.compiled(build, arch, folder, compiler).startswith(b"cubin")
        return len(calls) - before

    assert [get(), get()] == [1, 0]
    (path,) = (tmp_path / "cache").iterdir()
    for damaged in (b"", b"short", path.read_bytes()[:-1], b"\0" + path.read_bytes()[1:]):
        path.write_bytes(damaged)
        assert [get(), get()] == [1, 0]
    assert get(build=BUILDS[1]) == get(arch="sm_80") == get(name="counting 2") == 1
    assert [get(folder=path), get(folder=path)] == [1, 1]  # a folder that cannot be written
