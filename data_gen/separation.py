"""What training problems share with held-out ones and with each other: rows of the audit.

Streams are kept apart by `Task.identity`. These rows compare what is printed, so they also see a task whose identity is
wrong. A row is a name, what it measures, the value, what chance gives, and the p value of the difference.
"""

import math

import numpy as np

from data_gen import streams
from data_gen.streams import Examples
from data_gen.task import PAD, Batch, Task

HELD_OUT = 1_000  # problems of the valid and of the test stream that are compared with the training set
Row = tuple[str, str, float, float, float]


def separation_rows(task: Task[Batch], examples: Examples, seed: int, draws: int) -> list[Row]:
    """Whether the problems keep to the train stream, and what they share; where chance plays no part p is 1 or 0.

    seed, draws: of the simulated null of `near_repeats`.
    """
    outside = int((streams.stream_of(task, examples.problems) != streams.STREAMS["train"]).sum())
    held_out = [streams.distinct_problems(task, 0, name, HELD_OUT) for name in ("valid", "test")]
    graphs = graphs_as_read(task, examples.tokens[:, : task.prompt_len])
    shared = len({*graphs} & {graph for problems in held_out for graph in _as_read_both_ways(task, problems)})
    modes = examples.tokens[:, task.prompt_len].tolist()
    repeats = len(graphs) - len({*zip(graphs, modes, strict=True)})
    return [
        ("stream", "problems outside the train stream", outside, 0.0, float(outside == 0)),
        ("overlap", "graphs shared with valid or test", shared, 0.0, float(shared == 0)),
        ("repeats", "graphs again in the same mode", repeats, 0.0, float(repeats == 0)),
        near_repeats(task, examples.problems, held_out, seed, draws),
    ]


def graphs_as_read(task: Task[Batch], prompts: np.ndarray) -> list[bytes]:
    """What each of the prompts int64[n, P] shows: its start and its edges, in an order of their own.

    The start counts, as problems without a fork can differ in it alone. A task that prints no graph shows the prompt.
    """
    try:
        parent, child, extra, query = task.read_graph(prompts)
    except ValueError:
        return [prompt.tobytes() for prompt in prompts]
    edges = np.concatenate([parent[..., None], child[..., None], extra], axis=2)
    rows = zip(query[:, :1], edges, strict=True)
    return [start.tobytes() + graph[np.lexsort(graph.T[::-1])].tobytes() for start, graph in rows]


def _as_read_both_ways(task: Task[Batch], problems: Batch) -> list[bytes]:
    """The graphs of problems as read, with a fork and, where the task has such graphs, without."""
    graphs = graphs_as_read(task, task.prompts(problems))
    try:
        without = task.remove_fork(problems, np.zeros(len(problems), dtype=bool))
    except ValueError:
        return graphs
    return graphs + graphs_as_read(task, task.prompts(without))


def near_repeats(task: Task[Batch], trained: Batch, held_out: list[Batch], seed: int, draws: int) -> Row:
    """Does training answer held-out forks? Counts queries that were seen there with the right or with a wrong branch.

    The query of a star is start and goal. A branch is given by its first token. Null hypothesis: of the branches of a
    held-out problem each is the right one with equal probability, whichever were seen.
    """
    name, answers = "near repeats", task.children(trained)
    branches = [children for problems in held_out if (children := task.children(problems)) is not None]
    if answers is None or not branches:
        return name, "no fork declared", math.nan, math.nan, 1.0
    trained_on = {*zip(_queries(task, trained), answers[:, 0].tolist(), strict=True)}
    queries = [query for problems in held_out for query in _queries(task, problems)]
    rows = zip(queries, np.concatenate(branches).tolist(), strict=True)
    seen = np.array([[(query, child) in trained_on for child in children] for query, children in rows])
    if not seen.any():
        return name, "none seen in training", math.nan, math.nan, 1.0
    right, total = int(seen[:, 0].sum()), int(seen.sum())
    share, problems = np.unique(seen.sum(axis=1) / (np.concatenate(branches) != PAD).sum(axis=1), return_counts=True)
    rng, chance = np.random.default_rng(seed), float(share @ problems)
    simulated = rng.binomial(problems, share, size=(draws, len(share))).sum(axis=1)
    exceed = int((np.abs(simulated - chance) >= abs(right - chance) - 1e-9).sum())
    return name, f"right ones of {total} seen branches", right / total, chance / total, (1 + exceed) / (1 + draws)


def _queries(task: Task[Batch], problems: Batch) -> list[bytes]:
    """What prompts ask after the graphs that they print."""
    return [query.tobytes() for query in task.prompts(problems)[:, task.graph_len :]]
