"""Legs: the parts in which a run was trained, each by one process, with the machine and the software of each.

Other processors, numbers of threads and versions of torch add numbers in another order. So a run that continues on
another machine may end with weights that differ in the last bits.
"""

import platform
from typing import Any

import torch

from minifork.runs import processor


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


def changes_between(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The differences between two legs that may change bits, in words; now: a leg that has just begun."""
    differing = [key for key in now if key != "from" and before[key] != now[key]]
    return ", ".join(f"{key} {now[key]} instead of {before[key]}" for key in differing)
