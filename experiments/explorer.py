"""The data of the report's explorer: the traces that every snapshot would generate on a few problems."""

import numpy as np
import torch

from data_gen.task import Batch, Task
from experiments import study
from experiments.curves import exact_curve, has_fork, law_curve
from experiments.results import Results
from minifork import measure
from minifork.decoding import policy
from minifork.decoding.traces import TraceTree
from minifork.measuring.problems import ProblemSet, evaluation_problems, problem_set
from minifork.schema import Config

MAX_PROBLEMS = 24
KS = [2**i for i in range(11)]  # of the curves
MIN_PROBABILITY = 0.01  # less probable prefixes are not shown
LIVE = -1  # the outcome of a prefix that goes on


def explorer(config: Config, results: Results, pair: int) -> dict:
    """Problems, and the snapshots of every run of the study: branch probabilities, p, and a tree a problem.

    Left out are runs at FORK_RATE 0, runs about another test set than the plain one, and runs with random prefixes,
    whose problems have several prompts. Raises ValueError for a task without a fork.
    """
    task = config.data
    problems = evaluation_problems(task, config.eval)[:MAX_PROBLEMS]
    tensors, run_data = problem_set(task, problems, "cpu", config.eval.grading), []
    for plan in study.plans(config, study.read_study(config.reproduce.study), [pair]):
        sft, records = plan.config.sft, results.records_of(plan)
        tuned = plan.stage != "base" and sft.fork_rate
        if plan.test_set == "plain" and tuned and not sft.prefix and records:
            snapshots = [_snapshot(config, tensors, results, record) for record in [results.base(pair), *records]]
            run_data.append({"name": plan.name, "snapshots": snapshots})
    branches = tensors.at_fork()[1].tolist()
    return {
        "problems": [_problem(task, problems[i : i + 1], tokens) for i, tokens in enumerate(branches)],
        "runs": run_data,
        "words": [task.decode(np.array([token])) for token in range(task.vocab_size)],
        "outcomes": list(tensors.outcome_names),
    }


def _problem(task: Task, problem: Batch, tokens: list[int]) -> dict:
    """The graph of a problem: its prompt, and its branches that begin with ``tokens``, the right one first.

    A branch is a tree: [node, the other tokens of the edge to it, its branches], all as tokens. On a graph without a
    fork there is only the right branch.
    """
    prompts = task.prompts(problem)
    *edges, (start, goal) = (array[0].tolist() for array in task.read_graph(prompts))
    children: dict[int, list] = {parent: [] for parent in edges[0]}
    for parent, child, extra in zip(*edges, strict=True):
        children[parent].append((child, extra))

    def branch(node: int, extra: list[int]) -> list:
        return [node, extra, [branch(*child) for child in children.get(node, [])]]

    # PAD and branches at other nodes are no children of the start.
    branches = [branch(*child) for token in tokens for child in children[start] if child[0] == token]
    return {"prompt": task.decode(prompts[0]), "start": start, "goal": goal, "branches": branches}


@torch.no_grad()
def _snapshot(config: Config, problems: ProblemSet, results: Results, record: dict) -> dict:
    """The page's data of one checkpoint: for every problem p, branch probabilities in thousandths, and its tree."""
    model = results.runs[record["run"]].model(record["epoch"])
    tree = measure.trace_tree(model, problems, policy.parse_policy(config.eval.policy), config.eval.max_tokens)
    return {
        "epoch": record["epoch"] or 0,
        "p": [float(f"{value:.6g}") for value in results.problem_p(record)[: len(tree)].tolist()],
        "fork": np.rint(1000 * measure.branch_probabilities(model, problems)).astype(int).tolist(),
        "curve": _curve(results, record),
        "trees": unfold(tree),
    }


def _curve(results: Results, record: dict) -> dict:
    """pass@k of a checkpoint: exact and, in the law's scope, the law's with its sigma.

    Given FWD at KS. Where a task has no FWD it is that of free samples, at the k that were measured.
    """
    if not has_fork(record):
        passed = record["pass_at"]
        return {"ks": [*map(int, passed)], "given": "over all problems", "exact": [*passed.values()], "law": None}
    exact, law = exact_curve(results, record, KS), law_curve(results, record, KS)
    curve = {"ks": KS, "given": "given FWD", "exact": exact.round(4).tolist(), "law": None}
    return curve if law is None else curve | {"law": law[0].round(4).tolist(), "sigma": law[1]}


@torch.no_grad()
def unfold(tree: TraceTree, min_share: float = MIN_PROBABILITY) -> list[list[list[int]]]:
    """The prefixes of every problem that the model generates with probability >= ``min_share``, in order of length.

    Each is [parent, token, thousandths, outcome]: its parent's index in the list (-1 for the first token), and the
    outcome it ended in (LIVE if it goes on). `decoding.traces.step_every_token` cannot be used here: it drops the
    prefixes that ended, and the page shows them.
    """
    trees: list[list[list[int]]] = [[] for _ in range(len(tree))]
    rows, state, logits = tree.start_rows(1.0, tree.zero_totals(torch.float64))
    mass, parents = torch.ones(len(rows), dtype=torch.float64), [-1] * len(rows)
    while len(rows):
        p = torch.softmax(tree.policy_logits(logits, rows.problem).double(), dim=-1) * mass[:, None]
        row, token = (p >= min_share).nonzero(as_tuple=True)
        next_state = tree.step(rows.problem[row], state[row], token, rows.length + 1)
        outcome = torch.where(next_state >= tree.first_outcome, next_state - tree.first_outcome, LIVE)
        indices = []
        for r, t, o in zip(row.tolist(), token.tolist(), outcome.tolist(), strict=True):
            nodes = trees[int(rows.problem[r])]
            indices.append(len(nodes))
            nodes.append([parents[r], t, round(1000 * float(p[r, t])), o])
        live = (outcome == LIVE).nonzero()[:, 0]
        parents = [indices[i] for i in live.tolist()]
        mass, state = p[row[live], token[live]], next_state[live]
        rows = rows.take(row[live])
        if len(rows):
            logits = tree.model.decode(token[live], rows)
    return trees
