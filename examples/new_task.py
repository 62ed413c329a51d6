"""Add a task: stars whose right branch begins with the lowest label, so the fork can be read off after all.

The leak audit notices, training says so, and nothing is lost:

    .venv/bin/python examples/new_task.py
"""

import sys
from dataclasses import dataclass

import numpy as np

from data_gen.star import Problems, Star
from minifork.cli import main
from minifork.schema import TASKS


@dataclass(frozen=True)
class Ordered(Star):
    """A star with its branches swapped so that the right one's first node has the lowest label of all first nodes."""

    def sample(self, rng: np.random.Generator, n: int) -> Problems:
        drawn, steps, rows = super().sample(rng, n), self.length - 1, np.arange(n)[:, None]
        lowest = self.children(drawn).argmin(axis=1)[:, None]
        right, other = 1 + np.arange(steps), 1 + lowest * steps + np.arange(steps)
        labels = drawn.labels.copy()
        labels[rows, right], labels[rows, other] = drawn.labels[rows, other], drawn.labels[rows, right]
        return Problems(labels, drawn.order, drawn.forked)


if __name__ == "__main__":
    TASKS["ordered"] = Ordered
    config = ["task=ordered", *sys.argv[1:]]
    leak = ["sft.fork_rate=1", "sft.allow_leak=true"]
    sys.exit(main(["pretrain", *config]) or main(["sft", *config, *leak]) or main(["eval", *config]))
