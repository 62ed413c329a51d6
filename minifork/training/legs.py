"""Legs: a leg is one process's part of a run's training, with the machine and the software that it ran on.

Other processors, numbers of threads and versions of torch add numbers in another order. So a run that continues on
another machine may end with weights that differ in the last bits.
"""

import platform
from typing import Any

import torch

from minifork.runs import processor


def new_leg(step: int, device: str) -> dict[str, Any]:
    """The leg of this process, which begins after a step.

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


def changes_between(last: dict[str, Any], new: dict[str, Any]) -> str:
    """The differences in words between the last leg and a new one that may change bits; "" when there are none."""
    differing = [key for key in new if key != "from" and last[key] != new[key]]
    return ", ".join(f"{key} {new[key]} instead of {last[key]}" for key in differing)
