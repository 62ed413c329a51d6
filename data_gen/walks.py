"""The base corpus: random walks on star graphs, which teach how to walk and nothing about goals.

A sequence is one printed graph followed by queries until it is full. Each query is a walk from a random
node (any depth of any branch, so the root as often as any other depth): FWD down the edges, to a uniformly
random child at the root, or REV up the edges; the mode is a fair coin. Before every step the walk stops
with probability ``stop``. The query names the node the walk starts from, in the slot its mode starts from,
and a random node of the graph in the other slot, so the goal slot carries no information.

The inputs of ``walk_batch(Star(nodes=8, branches=2, length=3), stop=.3, seq_len=24, seed=0, step=1, n=1)``:

    tokens  7 0 7 1 1 6 0 5   6 1  10   9 1 7  11   7 1  10   8 7 0 5  11   7
    reads   7 0 7 1 1 6 0 5 | 6 1 SEP REV 1 7 EOS | 7 1 SEP FWD 7 0 5 EOS | 7 (cut)
    loss    on                        ^^^ ^ ^ ^^^           ^^^ ^ ^ ^ ^^^
"""

import numpy as np

from data_gen import star, streams
from data_gen.star import Star

IGNORE = -1


def walk_batch(task: Star, stop: float, seq_len: int, seed: int, step: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets, int64[n, seq_len] each, of one pretraining batch.

    Targets are the next tokens inside walks (mode to EOS) and IGNORE elsewhere: graphs and queries are
    random and hold nothing to learn. Graphs come from the walks stream. Raises ValueError for a ``stop``
    outside [0, 1) or a sequence too short for one query.
    """
    if not 0 <= stop < 1:
        raise ValueError(f"walks.stop is {stop}: it is a probability below 1")
    if seq_len < task.prompt_len + task.trace_len:
        raise ValueError(f"walks.seq_len is {seq_len}: one query of this task needs {task.prompt_len + task.trace_len}")
    graphs = streams.problems(task, seed, "walks", n, step)
    rng = streams.generator(seed, "walks", step, "walks")
    shortest_query = 3 + len(("mode", "node", "EOS"))
    count = -(-(seq_len + 1 - 2 * task.edges) // shortest_query)
    queries, kept = _queries(task, stop, graphs.labels, rng, count)
    edges = star.edge_list(task, graphs).reshape(n, -1)

    tokens = np.concatenate([edges, queries.reshape(n, -1)], axis=1)
    kept = np.concatenate([np.ones_like(edges, dtype=bool), kept.reshape(n, -1)], axis=1)
    answer = np.concatenate(
        [np.zeros_like(edges, dtype=bool), np.tile(np.arange(queries.shape[2]) >= 3, (n, count))], axis=1
    )
    close_gaps = np.argsort(~kept, axis=1, kind="stable")[:, : seq_len + 1]
    tokens, answer = (np.take_along_axis(a, close_gaps, axis=1) for a in (tokens, answer))
    return tokens[:, :-1], np.where(answer[:, 1:], tokens[:, 1:], IGNORE)


def _queries(
    task: Star, stop: float, labels: np.ndarray, rng: np.random.Generator, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` queries a graph, int64[n, count, 3 + trace_len] with gaps, and the bool mask of no gap.

    A walk is laid out in canonical numbers: along the root-to-leaf path of its branch it goes from depth
    ``first`` in steps of +1 (FWD) or -1 (REV).
    """
    shape = (len(labels), count)
    forward = rng.random(shape) < 0.5
    branch = rng.integers(task.branches, size=shape)
    first = rng.integers(task.length, size=shape)
    steps_left = np.where(forward, task.length - 1 - first, first)
    survived = np.cumprod(rng.random((*shape, task.length - 1)) >= stop, axis=2).sum(axis=2)
    steps = np.minimum(survived, steps_left)[..., None]

    at = np.arange(task.length)
    along = first[..., None] + np.where(forward[..., None], at, -at)
    canonical = np.where(along == 0, 0, branch[..., None] * (task.length - 1) + along)
    canonical = np.where(at <= steps, canonical, 0)
    rows = np.arange(len(labels))[:, None]
    walk = labels[rows[..., None], canonical]
    origin = walk[..., 0]
    other = labels[rows, rng.integers(task.graph_nodes, size=shape)]

    head = [np.where(forward, origin, other), np.where(forward, other, origin), np.full(shape, task.sep)]
    mode = np.where(forward, task.fwd, task.rev)
    queries = np.stack([*head, mode, *np.moveaxis(walk, 2, 0), np.full(shape, task.eos)], axis=2)
    kept = np.ones(queries.shape, dtype=bool)
    kept[:, :, 4 : 4 + task.length] = at <= steps
    return queries, kept


def pass_at_1(task: Star, stop: float) -> float:
    """Closed form of an ideal base model's pass@1 on a forked star.

    Both modes survive l-1 stopping chances; FWD also has to guess the branch:
    ``(1 - stop)^(l-1) * (1/d + 1) / 2``.
    """
    return (1 - stop) ** (task.length - 1) * (1 / task.branches + 1) / 2
