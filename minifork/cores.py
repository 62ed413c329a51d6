"""How many cores a process may use."""

import math
import os
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def cores() -> int:
    """The cores that this process may use: its affinity, or less where a control group of it has a quota of time."""
    return max(1, math.ceil(min(len(os.sched_getaffinity(0)), *map(_quota, _groups()))))


def _groups() -> list[Path]:
    """The folders of the control groups that this process is in, of version 2 and of 1, their parents included."""
    folders = [ROOT, ROOT / "cpu"]
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "" or "cpu" in controllers.split(","):
            root = ROOT if controllers == "" else ROOT / "cpu"
            group = root / path.lstrip("/")
            folders += [group, *(parent for parent in group.parents if root in parent.parents)]
    return folders


def _quota(group: Path) -> float:
    """The cores' worth of time that a control group has; infinite where it does not say."""
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        else:
            files = (group / f"cpu.cfs_{what}_us" for what in ("quota", "period"))
            quota, period = (file.read_text(encoding="utf-8") for file in files)
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # "max" is no number
        return math.inf
