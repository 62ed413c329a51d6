"""The host twin: minifork/gpu/decode.cu compiled for the CPU, its threads run one after the other in a chosen order."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from minifork.gpu.kernel import SOURCE, Args, Build, UnavailableError

twin_only = pytest.mark.skipif(not shutil.which("g++"), reason="the host twin needs g++")  # without the fixture
THREADS = 256
FLAGS = ["-x", "c++", "-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w"]


@dataclass(frozen=True)
class Twin:
    """A machine (see `minifork.gpu.kernel.Machine`) that needs no GPU.

    folder: where compiled twins are kept; order: "forward", "reversed" or "shuffled"; tiles: blocks launched;
    source: the text to compile, in which tests plant errors.
    """

    folder: Path
    order: str = "forward"
    tiles: int = 2
    source: str = SOURCE.read_text(encoding="utf-8")

    def blocks(self, build: Build, work: int) -> int:
        return self.tiles

    def launch(self, build: Build, args: Args, blocks: int) -> None:
        order = np.arange(THREADS, dtype=np.int32)
        if self.order != "forward":
            order = order[::-1].copy() if self.order == "reversed" else np.random.default_rng(0).permutation(order)
        numbers = blocks * build.layers * 2 * build.rows * build.steps * build.width
        ctypes.memset(args.suffix, 0xFF, numbers * build.dtype.itemsize)  # poison: NaN where nothing was written
        library = ctypes.CDLL(str(self.compiled(build)))
        library.decode(ctypes.byref(args), blocks, order.ctypes.data_as(ctypes.c_void_p))

    def compiled(self, build: Build) -> Path:
        """The twin's library, compiled unless any test has compiled it before."""
        options = [*FLAGS, *build.defines()]
        path = self.folder / f"{hashlib.sha256(repr((options, self.source)).encode()).hexdigest()[:24]}.so"
        if not path.exists():
            unfinished = path.with_suffix(f".{os.getpid()}")
            subprocess.run(["g++", *options, "-", "-o", unfinished], input=self.source, text=True, check=True)
            unfinished.replace(path)
        return path


SHARED_KIB = {"sm_80": 163, "sm_86, sm_89, sm_120": 99, "sm_90": 227}  # that a block can have, by architecture


@dataclass(frozen=True)
class TwinGPU(Twin):
    """A twin with the rest of what `minifork.gpu.driver.GPU` has, and its refusals.

    shared_kib: shared memory that a block can have. tested: as of `GPU`.
    """

    shared_kib: int = SHARED_KIB["sm_90"]
    tested: set[Build] = field(default_factory=set)

    def rows(self, work: int) -> int:
        return 16

    def function(self, build: Build) -> None:
        """Raise UnavailableError where a block of this build does not fit."""
        needed = ctypes.c_int.in_dll(ctypes.CDLL(str(self.compiled(build))), "tile_bytes").value
        if needed > self.shared_kib * 1024:
            raise UnavailableError(f"a block needs {needed} bytes of shared memory, more than this GPU has")

    def launch(self, build: Build, args: Args, blocks: int) -> None:
        self.function(build)
        super().launch(build, args, blocks)
