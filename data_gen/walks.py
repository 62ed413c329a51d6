"""The base corpus: random walks on the tasks' graphs, which teach how to walk and nothing about goals.

A sequence is one printed graph followed by queries until it is full. Each query is a walk from a random node
in a random mode: FWD down the edges, to a uniformly random child at the root, REV up the edges, SEARCH down
one branch after the other. Before every step the walk stops with probability ``stop``. The query names the
node the walk starts from, in the slot its mode starts from, and a random node of the graph in the other
slot, so the goal slot carries no information (but for a share ``informed`` of the walks, 0 by default, in
which it names the node where the walk ends).

The inputs of ``walk_batch(Star(nodes=8, branches=2, length=3), stop=.3, seq_len=24, seed=0, step=1, n=1)``:

    tokens  7 0 7 1 1 6 0 5   6 1  10   9 1 7  11   7 1  10   8 7 0 5  11   7
    reads   7 0 7 1 1 6 0 5 | 6 1 SEP REV 1 7 EOS | 7 1 SEP FWD 7 0 5 EOS | 7 (cut)
    loss    on                        ^^^ ^ ^ ^^^           ^^^ ^ ^ ^ ^^^
"""

from dataclasses import dataclass

import numpy as np

from data_gen import streams
from data_gen.task import PAD, Task

IGNORE = PAD


def walk_batch(
    task: Task, stop: float, seq_len: int, seed: int, step: int, n: int, informed: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, int64[n, seq_len] each, of one pretraining batch.

    Targets are the next tokens inside walks (mode to EOS) and IGNORE elsewhere: graphs and queries are
    random and hold nothing to learn. Graphs come from the walks stream. Raises ValueError for a ``stop``
    outside [0, 1) or a sequence too short for one query.
    """
    if not 0 <= stop < 1:
        raise ValueError(f"stop is {stop}: it is a probability below 1")
    if seq_len < task.prompt_len + task.trace_len:
        raise ValueError(f"seq_len is {seq_len}: one query of this task needs {task.prompt_len + task.trace_len}")
    graphs = streams.problems(task, seed, "walks", n, step)
    rng = streams.generator(seed, "walks", step, "walks")
    count = -(-(seq_len + 1 - task.graph_len) // task.shortest_query)
    queries = task.walks(graphs, stop, informed, rng, count)
    printed = task.prompts(graphs)[:, : task.graph_len]

    tokens = np.concatenate([printed, queries.reshape(n, -1)], axis=1)
    in_answer = np.arange(queries.shape[2]) >= task.prompt_len - task.graph_len
    answer = np.concatenate([np.zeros_like(printed, dtype=bool), np.tile(in_answer, (n, count))], axis=1)
    close_gaps = np.argsort(tokens == PAD, axis=1, kind="stable")[:, : seq_len + 1]
    tokens, answer = (np.take_along_axis(a, close_gaps, axis=1) for a in (tokens, answer))
    return tokens[:, :-1], np.where(answer[:, 1:], tokens[:, 1:], IGNORE)


@dataclass(frozen=True)
class Paths:
    """Random walks down from a node of a branch or up from it, [n, count] of them.

    mode: names; first: the depth they start from; steps: how many they make; nodes: int64[n, count, l], the canonical
    nodes they come to, 0 past the last.
    """

    mode: np.ndarray
    first: np.ndarray
    steps: np.ndarray
    nodes: np.ndarray


def random_paths(
    branches: int, length: int, shape: tuple[int, int], modes: tuple[str, ...], stop: float, rng: np.random.Generator
) -> Paths:
    """Random walks of the shape [n, count] on ``branches`` of ``length`` nodes, in evenly drawn ``modes``.

    FWD goes down a random branch, all others up from one. Walks start at a random depth and stop before every step
    with probability ``stop``.
    """
    mode = np.array(modes)[(rng.random(shape) * len(modes)).astype(np.int64)]
    forward = mode == "FWD"
    branch = rng.integers(branches, size=shape)
    first = rng.integers(length, size=shape)
    survived = np.cumprod(rng.random((*shape, length - 1)) >= stop, axis=2).sum(axis=2)
    steps = np.minimum(survived, np.where(forward, length - 1 - first, first))
    at = np.arange(length)
    depth = first[..., None] + np.where(forward[..., None], at, -at)
    nodes = np.where(depth == 0, 0, branch[..., None] * (length - 1) + depth)
    return Paths(mode, first, steps, np.where(at <= steps[..., None], nodes, 0))
