"""Legs: the parts in which a run was trained, each by one process, with the machine and the software of each.

Other processors, numbers of threads and versions of torch add numbers in another order. So a run that continues on
another machine may end with weights that differ in the last bits.
"""

import platform
from typing import Any

import torch

from minifork.runs import processor

WORDS = {  # the keys of a leg that may change bits, in the words of a message
    "machine": "processor",
    "architecture": "architecture",
    "capability": "instruction set",
    "device": "device",
    "torch": "torch",
    "threads": "number of threads",
}


def new_leg(step: int, device: str) -> dict[str, Any]:
    """A leg of this process that begins after a step.

    Its keys are the step, the processor, its architecture, the instruction set that torch uses on it, the device,
    torch's version and its number of threads.
    """
    return {
        "from": step,
        "machine": processor(),
        "architecture": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": str(torch.__version__),  # a plain str, which weights_only can read
        "threads": torch.get_num_threads(),
    }


def moved(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The differences between two legs that may change bits, in words; "" when there are none."""
    differing = [key for key in WORDS if before[key] != now[key]]
    return ", ".join(f"another {WORDS[key]} ({before[key]} before, {now[key]} now)" for key in differing)
