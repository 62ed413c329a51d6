"""The base corpus: random walks on the tasks' graphs, which teach how to walk and nothing about goals.

A sequence is one printed graph followed by queries until it is full. Each query is a walk from a random node
in a random mode: FWD down the edges, to a uniformly random child at the root, REV up the edges, SEARCH down
one branch after the other. Before every step the walk stops with probability ``stop``. The query has two slots:
FWD and SEARCH start from the first, REV from the second. One slot names the node where the walk starts. The
other names a random node of the graph, so it says nothing about the walk. In a share ``informed`` of the walks,
0 by default, it names the node where the walk ends instead.

The inputs of ``walk_batch(Star(nodes=8, branches=2, length=3), stop=.3, seq_len=24, seed=0, step=1, n=1)``:

    tokens  7 0 7 1 1 6 0 5   6 1  10   9 1 7  11   7 1  10   8 7 0 5  11   7
    reads   7 0 7 1 1 6 0 5 | 6 1 SEP REV 1 7 EOS | 7 1 SEP FWD 7 0 5 EOS | 7 (cut)
    loss    on                        ^^^ ^ ^ ^^^           ^^^ ^ ^ ^ ^^^
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from data_gen import streams
from data_gen.task import PAD, Task

IGNORE = PAD


def walk_batch(
    task: Task, stop: float, seq_len: int, seed: int, step: int, n: int, informed: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, int64[n, seq_len] each, of one pretraining batch.

    Targets are the next tokens inside walks (mode to EOS) and IGNORE elsewhere: graphs and queries are
    random and hold nothing to learn. Graphs come from the walks stream. stop: a probability below 1, as in
    `Task.walks`. seq_len: at least one prompt and trace of the task.
    """
    graphs = streams.problems(task, seed, "walks", n, step)
    rng = streams.generator(seed, "walks", step, "walks")
    count = -(-(seq_len + 1 - task.graph_len) // task.shortest_query)
    queries = task.walks(graphs, stop, informed, rng, count)
    tokens = np.concatenate([task.prompts(graphs)[:, : task.graph_len], queries.reshape(n, -1)], axis=1)
    in_walk = np.arange(queries.shape[2]) >= task.prompt_len - task.graph_len
    learned = np.concatenate([np.zeros(task.graph_len, dtype=bool), np.tile(in_walk, count)])
    targets = np.where(learned, tokens, IGNORE)
    close_gaps = np.argsort(tokens == PAD, axis=1, kind="stable")[:, : seq_len + 1]
    tokens, targets = (np.take_along_axis(array, close_gaps, axis=1) for array in (tokens, targets))
    return tokens[:, :-1], targets[:, 1:]


@dataclass(frozen=True)
class Paths:
    """Random walks down from a node of a branch or up from it, as arrays [n, count].

    mode_name: of each walk; first: the depth where it starts; steps: how many it makes; nodes: int64[n, count, l], the
    canonical nodes on it, 0 after its end.
    """

    mode_name: np.ndarray
    first: np.ndarray
    steps: np.ndarray
    nodes: np.ndarray


def random_paths(
    branches: int, length: int, shape: tuple[int, int], modes: tuple[str, ...], stop: float, rng: Generator
) -> Paths:
    """Random walks of the shape [n, count] on ``branches`` of ``length`` nodes, in evenly drawn ``modes``.

    FWD goes down a random branch, all others up from one. Walks start at a random depth and stop before every step
    with probability ``stop``.
    """
    mode_name = np.array(modes)[(rng.random(shape) * len(modes)).astype(np.int64)]
    forward = mode_name == "FWD"
    branch = rng.integers(branches, size=shape)
    first = rng.integers(length, size=shape)
    survived = np.cumprod(rng.random((*shape, length - 1)) >= stop, axis=2).sum(axis=2)
    steps = np.minimum(survived, np.where(forward, length - 1 - first, first))
    at = np.arange(length)
    depth = first[..., None] + np.where(forward[..., None], at, -at)
    nodes = np.where(depth == 0, 0, branch[..., None] * (length - 1) + depth)
    return Paths(mode_name, first, steps, np.where(at <= steps[..., None], nodes, 0))
