"""Checks of the audit that compare training problems with held-out ones and with each other.

Streams are kept apart by `Task.identity`. These rows compare what is printed, so they also see a task whose identity is
wrong.
"""

import numpy as np

from data_gen import streams
from data_gen.audit_rows import Check
from data_gen.streams import Examples
from data_gen.task import PAD, Batch, Task, concatenate

HELD_OUT = 1_000  # problems of the valid and of the test stream that are compared with the training set


def separation_checks(task: Task[Batch], examples: Examples, seed: int, draws: int) -> list[Check]:
    """Checks that problems keep to the train stream and share nothing. A check without chance has p = 1 or 0.

    seed, draws: of the simulated null of `near_repeats`.
    """
    quarters = streams.quarter_of(task.identity(examples.problems))
    held_out = [streams.distinct_problems(task, 0, name, HELD_OUT) for name in ("valid", "test")]
    graphs = graphs_as_read(task, examples.tokens[:, : task.prompt_len])
    held_out_graphs = {graph for problems in held_out for graph in _as_read_both_ways(task, problems)}
    modes = examples.mode_index.tolist()
    counts = [
        ("stream", "problems outside the train stream", int((quarters != streams.QUARTERS["train"]).sum())),
        ("overlap", "graphs shared with valid or test", len({*graphs} & held_out_graphs)),
        ("repeats", "graphs again in the same mode", len(graphs) - len({*zip(graphs, modes, strict=True)})),
    ]
    checks = [Check(name, measures, count, 0.0, float(count == 0)) for name, measures, count in counts]
    return [*checks, near_repeats(task, examples.problems, held_out, seed, draws)]


def graphs_as_read(task: Task[Batch], prompts: np.ndarray) -> list[bytes]:
    """The start and the sorted edges that each of the prompts int64[n, P] shows.

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
    """The graphs of problems as read: with a fork, and without one if the task has such graphs."""
    graphs = graphs_as_read(task, task.prompts(problems))
    try:
        without = task.remove_fork(problems, keep=np.zeros(len(problems), dtype=bool))
    except ValueError:
        return graphs
    return graphs + graphs_as_read(task, task.prompts(without))


def near_repeats(task: Task[Batch], trained: Batch, held_out: list[Batch], seed: int, draws: int) -> Check:
    """Does training answer held-out forks? Counts held-out branches that training shows as the answer to their query.

    The query of a star is start and goal, and the first token of a branch stands for it. Null hypothesis: each branch
    of a held-out problem is the right one with equal probability, whichever branches training shows.
    """
    answers, tested = task.children(trained), concatenate(held_out)
    branches = task.children(tested)
    if answers is None or branches is None:
        return Check("near repeats", "no fork declared")
    trained_on = {*zip(_queries(task, trained), answers[:, 0].tolist(), strict=True)}
    rows = zip(_queries(task, tested), branches.tolist(), strict=True)
    seen = np.array([[(query, child) in trained_on for child in children] for query, children in rows])
    if not seen.any():
        return Check("near repeats", "none seen in training")
    right, total = int(seen[:, 0].sum()), int(seen.sum())
    share, problems = np.unique(seen.sum(axis=1) / (branches != PAD).sum(axis=1), return_counts=True)
    chance = float(share @ problems)
    simulated = np.random.default_rng(seed).binomial(problems, share, size=(draws, len(share))).sum(axis=1)
    p = (1 + int((np.abs(simulated - chance) >= abs(right - chance) - 1e-9).sum())) / (1 + draws)
    return Check("near repeats", f"right ones of {total} seen branches", right / total, chance / total, p)


def _queries(task: Task[Batch], problems: Batch) -> list[bytes]:
    """The queries of prompts, which follow the printed graphs."""
    return [query.tobytes() for query in task.prompts(problems)[:, task.graph_len :]]
