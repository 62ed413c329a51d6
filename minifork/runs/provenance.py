"""The provenance that result files record: the command, the config, the machine, the device, the version."""

import platform
import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import minifork
from minifork.schema import Config
from minifork.storage import files

# Instruction sets that speed up matrix products, as Linux names them.
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def _cpuinfo() -> str:
    """Linux's description of the processors."""
    return Path("/proc/cpuinfo").read_text(encoding="utf-8")


def processor() -> str:
    """The processor's name."""
    names = [line.split(":", 1)[1] for line in _cpuinfo().splitlines() if "model name" in line]
    return names[0].strip() if names else platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Those of INSTRUCTION_SETS that the processor has."""
    flags = set(_cpuinfo().split())
    return [name for name in INSTRUCTION_SETS if name in flags]


def made_by(config: Config) -> dict[str, str]:
    """What made a result, as result files record it. Raises ValueError when the config's device is missing."""
    from minifork.models import device_name, pick_device  # needs torch, which takes seconds to import

    return made_with(files.fingerprint(asdict(config))) | {"device": device_name(pick_device(config))}


def made_with(config_hash: str) -> dict[str, str]:
    """This process's command, a config's hash, the machine and the version of minifork."""
    return {
        "command": command_line(),
        "config_hash": config_hash,
        "machine": processor(),
        "version": minifork.__version__,
    }


def command_line() -> str:
    """This process's command."""
    return shlex.join(["minifork", *sys.argv[1:]])
