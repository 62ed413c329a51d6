"""The host twin: minifork/gpu/decode.cu compiled for the CPU, its threads run one after the other in a chosen order."""

import ctypes
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minifork.gpu.kernel import SOURCE, Args, Build

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
        path = self.folder / f"{abs(hash((build, self.source)))}.so"
        if not path.exists():
            command = ["g++", *FLAGS, *build.defines(), "-", "-o", str(path)]
            subprocess.run(command, input=self.source, text=True, check=True)
        return path
