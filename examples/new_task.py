"""Add a task: mazes on a grid. You stand in the middle of a corridor; which way is the goal?

Every door opens one way, away from the start. Cells have random names. A prompt prints the doors in random order, then
start and goal. Run ``.venv/bin/python examples/new_task.py``. On a grid of side 3, with one door from start to goal:

    4 1  4 5   4 5 SEP | FWD 4 5 EOS     both 1 and 5 lie behind a door of 4: the fork
                       | REV 5 4 EOS     one door leads to 5, so there is no fork
"""

import sys
from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from data_gen.task import PAD, Batch, Task, hashed
from data_gen.verifier import DFA, add_chain, blank_tables
from experiments.cli import main
from minifork.schema import TASKS

OUTCOMES = ("accept", "malformed", "wrong_branch", "no_door", "too_long")


@dataclass(frozen=True)
class Mazes(Batch):
    """path: int64[n, 2 steps + 1], names of cells from the dead end to the goal; order: int64[n, 2 steps], of doors."""

    path: np.ndarray
    order: np.ndarray


@dataclass(frozen=True)
class Maze(Task[Mazes]):
    """Mazes of side x side cells, the start ``steps`` doors from the goal and from the dead end."""

    side: int
    steps: int

    cells = property(lambda self: self.side**2)
    sep = property(lambda self: self.cells)
    eos = property(lambda self: self.cells + 1)
    vocab_size = property(lambda self: self.cells + 4)
    graph_len = property(lambda self: 4 * self.steps)  # a sequence of walks prints a maze once
    prompt_len = property(lambda self: self.graph_len + 3)
    trace_len = property(lambda self: self.steps + 3)

    def mode_token(self, mode_name: str) -> int:
        return self.cells + 2 + ("FWD", "REV").index(mode_name)

    def sample(self, rng: Generator, n: int) -> Mazes:
        """Walks on the grid that never visit a cell twice. Names of cells are random: places would tell the way."""
        paths, names = np.empty((0, 2 * self.steps + 1), dtype=int), np.argsort(rng.random((n, self.cells)), axis=1)
        while len(paths) < n:
            cell = rng.integers(self.side, size=(32 * n, 1, 2))
            moves = rng.choice([[0, 1], [1, 0], [0, -1], [-1, 0]], size=(32 * n, 2 * self.steps))
            walk = np.concatenate([cell, cell + moves.cumsum(axis=1)], axis=1)
            path = walk @ [self.side, 1]
            new = (np.diff(np.sort(path, axis=1), axis=1) > 0).all(axis=1)
            paths = np.concatenate([paths, path[new & ((walk >= 0) & (walk < self.side)).all(axis=(1, 2))]])
        return Mazes(np.take_along_axis(names, paths[:n], axis=1), np.argsort(rng.random((n, 2 * self.steps)), axis=1))

    def doors(self, problems: Mazes) -> np.ndarray:
        """int64[n, 2 steps, 2], from the dead end to the goal: the cell before a door and the one behind it."""
        path, middle = problems.path, self.steps
        before = np.concatenate([path[:, 1 : middle + 1], path[:, middle:-1]], axis=1)
        return np.stack([before, np.delete(path, middle, axis=1)], axis=2)

    def prompts(self, problems: Mazes) -> np.ndarray:
        doors = np.take_along_axis(self.doors(problems), problems.order[..., None], axis=1).reshape(len(problems), -1)
        return np.column_stack([doors, problems.path[:, [self.steps, -1]], np.full(len(doors), self.sep)])

    def reprint(self, problems: Mazes, rng: Generator) -> Mazes:
        return replace(problems, order=rng.permuted(problems.order, axis=1))

    def identity(self, problems: Mazes) -> np.ndarray:
        return hashed(np.sort(self.doors(problems) @ [self.cells, 1], axis=1))

    def traces(self, problems: Mazes, mode_index: np.ndarray) -> np.ndarray:
        way = np.where(mode_index[:, None], problems.path[:, : self.steps - 1 : -1], problems.path[:, self.steps :])
        return np.column_stack([self.eos + 1 + mode_index, way, np.full(len(way), self.eos)])

    def dfa(self, problems: Mazes) -> DFA:
        """One trace a mode is right."""
        table = blank_tables(len(problems), 1 + 2 * (self.trace_len - 1), self.vocab_size, OUTCOMES)
        for mode in (0, 1):
            errors = np.full((len(problems), self.trace_len, self.vocab_size), OUTCOMES.index("no_door"))
            if mode == 0:
                errors[np.arange(len(problems)), 2, problems.path[:, self.steps - 1]] = OUTCOMES.index("wrong_branch")
            trace = self.traces(problems, np.full(len(problems), mode))
            add_chain(table, 1 + mode * (self.trace_len - 1), trace, errors, OUTCOMES)
        return DFA(table, OUTCOMES)

    def fork_prefix(self, problems: Mazes) -> np.ndarray:
        return self.traces(problems, np.zeros(len(problems), dtype=np.int64))[:, :2]

    def children(self, problems: Mazes) -> np.ndarray:
        return problems.path[:, [self.steps + 1, self.steps - 1]]

    def walks(self, problems: Mazes, stop: float, informed: float, rng: Generator, count: int) -> np.ndarray:
        """From a random cell, FWD through doors or REV back to the start; the query names a random cell as well."""
        shape, rows, steps = (len(problems), count), np.arange(len(problems))[:, None], self.steps
        mode, side, depth = (rng.integers(high, size=shape) for high in (2, 2, steps + 1))
        survived = np.cumprod(rng.random((*shape, steps)) >= stop, axis=2).sum(axis=2)
        length = np.minimum(survived, np.where(mode == 0, steps - depth, depth))[..., None]
        at = np.minimum(np.arange(steps + 1), length)
        depths = depth[..., None] + np.where(mode[..., None] == 0, at, -at)
        walk = problems.path[rows[..., None], steps + np.where(side[..., None] == 0, depths, -depths)]
        other = problems.path[rows, rng.integers(2 * steps + 1, size=shape)]
        query = [np.where(mode == 0, walk[..., 0], other), np.where(mode == 0, other, walk[..., 0])]
        head = np.stack([*query, np.full(shape, self.sep), self.eos + 1 + mode], axis=2)
        walk[np.arange(steps + 1) > length] = PAD
        return np.concatenate([head, walk, np.full((*shape, 1), self.eos)], axis=2)


if __name__ == "__main__":
    TASKS["maze"] = Maze  # in this process only: the subprocesses of a study do not know it
    options = ["--config", __file__.replace(".py", ".yaml"), *sys.argv[1:]]
    commands = (["pretrain"], ["sft", "sft.fork_rate=1"], ["sft", "sft.fork_rate=0"], ["eval"])
    sys.exit(max(main([*command[:1], *options, *command[1:]]) for command in commands))
