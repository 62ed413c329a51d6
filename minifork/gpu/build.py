"""decode.cu compiled by NVRTC and kept in a cache.

NVRTC comes with torch's CUDA wheels and compiles to machine code (cubin), so neither a toolkit nor a C++ compiler
is needed. A cache entry is a digest followed by the cubin: an entry that does not match its digest is built anew.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from minifork.gpu.kernel import SOURCE, Build, UnavailableError

DIGEST = 32  # bytes of SHA-256


@dataclass(frozen=True)
class Compiler:
    """A compiler by name and version; compile(source, options) returns the cubin and the compiler's log."""

    name: str
    compile: Callable[[str, list[str]], tuple[bytes, str]]


@lru_cache
def find_compiler() -> Compiler:
    """NVRTC of an installed wheel, or else of the system. Raises UnavailableError when there is neither."""
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    wheels = [path for folder in folders for path in sorted(folder.glob("*/lib/libnvrtc.so.*"))]
    for path in [*wheels, Path("libnvrtc.so"), Path("libnvrtc.so.13"), Path("libnvrtc.so.12")]:
        with contextlib.suppress(OSError):
            for builtins in sorted(path.parent.glob("libnvrtc-builtins.so*")):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # NVRTC looks it up by its name
            return _nvrtc(ctypes.CDLL(str(path)))
    raise UnavailableError("no NVRTC found (pip install nvidia-cuda-nvrtc)")


def _nvrtc(library: ctypes.CDLL) -> Compiler:
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def read(program: ctypes.c_void_p, output: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(library, f"nvrtcGet{output}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{output}")(program, buffer)
        return buffer.raw

    def compile(source: str, options: list[str]) -> tuple[bytes, str]:
        program = ctypes.c_void_p()
        library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"decode.cu", 0, None, None)
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        code = library.nvrtcCompileProgram(program, len(options), array)
        log = read(program, "ProgramLog").rstrip(b"\0").decode()
        if code:
            errors = [line.strip() for line in log.splitlines() if "error" in line]
            raise UnavailableError(f"NVRTC: {library.nvrtcGetErrorString(code).decode()}: {' '.join(errors[:1])}")
        cubin = read(program, "CUBIN")
        library.nvrtcDestroyProgram(ctypes.byref(program))
        return cubin, log

    return Compiler(f"nvrtc {major.value}.{minor.value}", compile)


def options(build: Build, arch: str) -> list[str]:
    """The compiler's options; arch as "sm_90".

    With fmad=false products and sums are fused only where the source says so, so fp32 results equal the host twin's.
    Two blocks share a multiprocessor if their registers and shared memory allow it.
    """
    blocks = 2 if build.bf16 and build.width < 256 else 1
    flags = [f"--gpu-architecture={arch}", "--std=c++17", "--fmad=false", "--ptxas-options=-v"]
    return [*flags, *build.defines(), f"-DBLOCKS_PER_SM={blocks}"]


def cache_folder() -> Path:
    """The folder of compiled kernels: $XDG_CACHE_HOME/minifork, by default ~/.cache/minifork."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minifork"


def compiled(build: Build, arch: str, folder: Path, compiler: Compiler | None = None) -> bytes:
    """The cubin of a build, from the cache if an undamaged one is there; else compiled and cached.

    If the folder cannot be written, the cubin is compiled in every process. Raises UnavailableError.
    """
    compiler, flags = compiler or find_compiler(), options(build, arch)
    source = SOURCE.read_text(encoding="utf-8")
    key = hashlib.sha256("\0".join([source, compiler.name, *flags]).encode()).hexdigest()[:24]
    path = folder / f"{key}.cubin"
    with contextlib.suppress(OSError):
        stored = path.read_bytes()
        if hashlib.sha256(stored[DIGEST:]).digest() == stored[:DIGEST]:
            return stored[DIGEST:]
    cubin = compiler.compile(source, flags)[0]
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(hashlib.sha256(cubin).digest() + cubin)
        unfinished.replace(path)
    return cubin
