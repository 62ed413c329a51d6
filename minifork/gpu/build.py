"""decode.cu compiled by NVRTC (or nvcc) and kept in a cache.

NVRTC comes with torch's CUDA wheels and compiles to machine code (cubin), so neither a toolkit nor a C++ compiler
is needed. A cache entry is a digest followed by the cubin: an entry that does not match its digest is built anew.
"""

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from minifork.gpu.kernel import SOURCE, Build

DIGEST = 32  # bytes of SHA-256


class UnavailableError(Exception):
    """The kernel cannot be compiled or launched here; the message says why, in one line."""


# compiling


@dataclass(frozen=True)
class Compiler:
    """A compiler by name and version; compile(source, options) returns the cubin and the compiler's log."""

    name: str
    compile: Callable[[str, list[str]], tuple[bytes, str]]


@lru_cache
def find_compiler() -> Compiler:
    """NVRTC of an installed wheel or of the system, else nvcc. Raises UnavailableError when there is neither."""
    for path in _nvrtc_paths():
        try:
            for builtins in sorted(Path(path).parent.glob("libnvrtc-builtins.so*")):
                ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)  # NVRTC looks it up by name only
            return _nvrtc(ctypes.CDLL(path))
        except OSError:
            continue
    nvcc = shutil.which("nvcc")
    if nvcc:
        return _nvcc(nvcc)
    raise UnavailableError("no NVRTC and no nvcc found (pip install nvidia-cuda-nvrtc)")


def _nvrtc_paths() -> list[str]:
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in spec.submodule_search_locations] if spec else []
    found = [str(p) for root in roots for p in sorted(root.glob("*/lib/libnvrtc.so.*")) if "alt" not in p.name]
    return [*found, "libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"]


def _nvrtc(library: ctypes.CDLL) -> Compiler:
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def text(program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        getattr(library, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw

    def compile(source: str, options: list[str]) -> tuple[bytes, str]:
        program = ctypes.c_void_p()
        library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"decode.cu", 0, None, None)
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        code = library.nvrtcCompileProgram(program, len(options), array)
        log = text(program, "ProgramLog").rstrip(b"\0").decode()
        if code:
            raise UnavailableError(f"NVRTC: {library.nvrtcGetErrorString(code).decode()}: {_first_error(log)}")
        cubin = text(program, "CUBIN")
        library.nvrtcDestroyProgram(ctypes.byref(program))
        return cubin, log

    return Compiler(f"nvrtc {major.value}.{minor.value}", compile)


def _nvcc(path: str) -> Compiler:
    version = subprocess.run([path, "--version"], capture_output=True, text=True).stdout.split("\n")[-3:]

    def compile(source: str, options: list[str]) -> tuple[bytes, str]:
        with tempfile.TemporaryDirectory() as folder:
            file, cubin = Path(folder, "decode.cu"), Path(folder, "decode.cubin")
            file.write_text(source)
            command = [path, "-cubin", *options, str(file), "-o", str(cubin)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise UnavailableError(f"nvcc: {_first_error(done.stderr)}")
            return cubin.read_bytes(), done.stderr

    return Compiler(f"nvcc {' '.join(version).strip()}", compile)


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[0] if lines else "no message")


def options(build: Build, arch: str) -> list[str]:
    """The compiler's options; arch as "sm_90".

    Products and sums are fused only where the source says so (fmad=false), so that fp32 results are those of the
    host twin. Two blocks share a multiprocessor where their registers and shared memory allow it.
    """
    together = 2 if build.bf16 and build.width < 256 else 1
    flags = [f"--gpu-architecture={arch}", "--std=c++17", "--fmad=false", "--ptxas-options=-v"]
    return [*flags, *build.defines(), f"-DBLOCKS_PER_SM={together}"]


# the cache


def cache_folder() -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/minifork, by default ~/.cache/minifork."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minifork"


@dataclass(frozen=True)
class Entry:
    """A compiled kernel: its machine code, and the file that says that it passed its self-test (None: not cached)."""

    cubin: bytes
    tested: Path | None


def compiled(build: Build, arch: str, folder: Path, compiler: Compiler | None = None) -> Entry:
    """The cubin of a build, from the cache if it is there and sound; else compiled and cached.

    Processes that want the same entry wait for the first of them. Where the folder cannot be written the cubin is
    compiled every time. Raises UnavailableError.
    """
    compiler = compiler or find_compiler()
    source = SOURCE.read_text()
    flags = options(build, arch)
    key = hashlib.sha256("\0".join([source, compiler.name, *flags]).encode()).hexdigest()[:24]
    path = folder / f"{key}.cubin"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{key}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            cubin = _read(path)
            if cubin is None:
                path.with_suffix(".tested").unlink(missing_ok=True)
                cubin = compiler.compile(source, flags)[0]
                unfinished = path.with_suffix(f".{os.getpid()}")
                unfinished.write_bytes(hashlib.sha256(cubin).digest() + cubin)
                unfinished.replace(path)
            return Entry(cubin, path.with_suffix(".tested"))
    except OSError:
        return Entry(compiler.compile(source, flags)[0], None)


def _read(path: Path) -> bytes | None:
    """The cubin of a cache entry, None if there is none or it is damaged."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    cubin = stored[DIGEST:]
    return cubin if cubin and hashlib.sha256(cubin).digest() == stored[:DIGEST] else None
