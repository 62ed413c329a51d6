"""What a result says of how it was made: the command, the config, the machine."""

import platform
import shlex
import sys
from pathlib import Path

from minifork import config as configs
from minifork.schema import Config
from minifork.storage import files


def processor() -> str:
    """The processor's name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        names = [line.split(":", 1)[1] for line in text.splitlines() if "model name" in line]
    except OSError:
        names = []
    return names[0].strip() if names else platform.processor() or platform.machine()


def instruction_sets() -> list[str]:
    """Those of the processor's instruction sets that decide how fast it multiplies matrices."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        flags = set()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16") if name in flags]


def made_by(config: Config) -> dict[str, str]:
    """What a result file says of how it was made: this process's command, the config's hash, the machine."""
    command = shlex.join(["minifork", *sys.argv[1:]])
    return {"command": command, "config_hash": files.fingerprint(configs.to_tree(config)), "machine": processor()}
