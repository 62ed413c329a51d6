"""The compiled kernel on a GPU: loaded and launched through the CUDA driver."""

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from minifork.gpu.build import cache_folder, compiled
from minifork.gpu.kernel import TILES, Args, Build, UnavailableError

THREADS = 256  # of a block
SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES


@dataclass
class GPU:
    """A machine (see `minifork.gpu.kernel.Machine`): one CUDA device. Raises UnavailableError when it is too old.

    folder: the cache of compiled kernels. tested: the builds that passed their self-test in this process.
    """

    device: torch.device
    folder: Path = field(default_factory=cache_folder)
    tested: set[Build] = field(default_factory=set)

    def __post_init__(self) -> None:
        major, minor = torch.cuda.get_device_capability(self.device)
        if major < 8:
            raise UnavailableError(f"compute capability {major}.{minor} (it needs 8.0)")
        self.arch = f"sm_{major}{minor}"
        self.processors = torch.cuda.get_device_properties(self.device).multi_processor_count
        self.loaded = dict[Build, _Function]()
        self.driver = ctypes.CDLL("libcuda.so.1")

    def rows(self, work: int) -> int:
        """The largest tile that still gives every multiprocessor a block."""
        return next((rows for rows in TILES if work >= rows * self.processors), TILES[-1])

    def blocks(self, build: Build, work: int) -> int:
        resident = self.function(build).resident * self.processors
        return max(1, min(resident, -(-work // build.rows)))

    def launch(self, build: Build, args: Args, blocks: int) -> None:
        function = self.function(build)
        with torch.cuda.device(self.device):
            stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
            pointers = (ctypes.c_void_p * 1)(ctypes.cast(ctypes.byref(args), ctypes.c_void_p))
            sizes = blocks, 1, 1, THREADS, 1, 1, function.shared
            self._check(self.driver.cuLaunchKernel(function.handle, *sizes, stream, pointers, None))

    def function(self, build: Build) -> "_Function":
        """The loaded kernel; compiled and loaded at the first call."""
        if build not in self.loaded:
            torch.zeros(1, device=self.device)  # makes torch's context the current one
            cubin = compiled(build, self.arch, self.folder)
            with torch.cuda.device(self.device):
                self.loaded[build] = self._load(cubin)
        return self.loaded[build]

    def _load(self, cubin: bytes) -> "_Function":
        module, handle, address, size = (ctypes.c_void_p() for _ in range(4))
        shared, resident = ctypes.c_int(), ctypes.c_int()
        driver, ref = self.driver, ctypes.byref
        self._check(driver.cuModuleLoadData(ref(module), cubin))
        self._check(driver.cuModuleGetFunction(ref(handle), module, b"decode"))
        self._check(driver.cuModuleGetGlobal_v2(ref(address), ref(size), module, b"tile_bytes"))
        self._check(driver.cuMemcpyDtoH_v2(ref(shared), address, ctypes.c_size_t(4)))
        self._check(driver.cuFuncSetAttribute(handle, SHARED_BYTES, shared))
        occupancy = driver.cuOccupancyMaxActiveBlocksPerMultiprocessor
        self._check(occupancy(ref(resident), handle, THREADS, ctypes.c_size_t(shared.value)))
        if resident.value < 1:
            raise UnavailableError(f"a block needs {shared.value} bytes of shared memory, more than this GPU has")
        return _Function(handle, shared.value, resident.value)

    def _check(self, code: int) -> None:
        if code:
            text = ctypes.c_char_p()
            self.driver.cuGetErrorString(code, ctypes.byref(text))
            raise UnavailableError(f"CUDA driver: {(text.value or b'').decode() or code}")


class _Function(NamedTuple):
    """A loaded kernel: its handle, bytes of shared memory, blocks that a multiprocessor holds."""

    handle: ctypes.c_void_p
    shared: int
    resident: int
