"""The number of cores that a process may use."""

import contextlib
import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")  # holds a container's time on all cores and the period, in microseconds


def cores() -> int:
    """The cores that this process may use: its affinity, or less where its container has a quota of time."""
    available = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):  # no container, or a quota of "max"
        quota, period = map(int, QUOTA.read_text(encoding="utf-8").split())
        available = min(available, quota / period)
    return max(1, math.ceil(available))
