"""Legs: the parts in which a run was trained, each by one process, and what it ran on.

Other processors, numbers of threads and versions of torch add numbers in another order. So a run that goes on elsewhere
ends with weights whose last bits may differ from those of a run that stayed.
"""

import platform
from typing import Any

import torch

from minifork.runs import processor

WORDS = {  # what may move bits, in the words of a message
    "machine": "processor",
    "architecture": "architecture",
    "capability": "instruction set",
    "device": "device",
    "torch": "torch",
    "threads": "number of threads",
}


def new_leg(step: int, device: str) -> dict[str, Any]:
    """A leg of this process that begins after a step: the processor, its architecture and the instruction set that
    torch uses on it, the device that it trains on, torch's version and its number of threads."""
    return {
        "from": step,
        "machine": processor(),
        "architecture": platform.processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": str(torch.__version__),  # a plain word, which can be read without executing anything
        "threads": torch.get_num_threads(),
    }


def moved(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two legs that may move bits, in words; what the first does not say is left out."""
    differing = [key for key in WORDS if before.get(key) is not None and before[key] != now[key]]
    return ", ".join(f"another {WORDS[key]} ({before[key]} before, {now[key]} now)" for key in differing)
