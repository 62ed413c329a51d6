"""The audit passes clean data, and each kind of planted leak is caught by the check meant for it.

Statistical tests use fixed seeds. The audit's own false-alarm rate is at most 1e-3 a call by construction
(valid permutation p values, Bonferroni), which `test_false_alarms` and `test_p_values_are_uniform` confirm.
"""

from dataclasses import replace

import numpy as np
import pytest

from data_gen import audit, streams
from data_gen.star import Problems, Star
from data_gen.streams import Examples
from examples.new_task import Maze
from minifork import config as configs
from minifork.schema import TASKS
from minifork.training import stages
from tests.helpers.stars import PLAIN, REFERENCE, names_flagged

WIDE = Star(nodes=24, branches=3, length=5)
CLEAN = [replace(PLAIN, fork_rate=rate) for rate in (0.0, 0.25, 0.5, 0.75, 1.0)]
CLEAN += [replace(PLAIN, allocation="problem"), replace(PLAIN, fresh=True)]
CLEAN += [replace(PLAIN, fork_rate=rate, fork_in_graph=True) for rate in (0.25, 0.5)]
BRANCH_CHECKS = {f"first edge {what}" for what in ("position", "order")} | {"goal edge position", "linear probe"}
BRANCH_CHECKS |= {"child label order", "child label"}


def examples_of(task: Star, problems: Problems) -> Examples:
    """FWD examples of problems made by hand."""
    tokens = np.concatenate([task.prompts(problems), task.traces(problems, np.zeros(len(problems), int))], axis=1)
    return Examples(problems, np.ones(len(problems), dtype=bool), tokens)


def swap_branches(task: Star, problems: Problems, rows: np.ndarray) -> Problems:
    """Where bool[n] ``rows``, the first decoy becomes the right branch: the printed edges stay the same set."""
    steps = task.length - 1
    columns = np.arange(problems.labels.shape[1])
    columns[1 : 1 + 2 * steps] = np.roll(columns[1 : 1 + 2 * steps], steps)
    return replace(problems, labels=np.where(rows[:, None], problems.labels[:, columns], problems.labels))


def train_problems(n: int, task: Star = REFERENCE) -> Problems:
    return streams.training_problems(task, 5, n)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_shipped_sets_do_not_leak(task):
    """The data are a fixed function of the config."""
    config = configs.load_config(task)
    assert names_flagged(config.data, stages.sft_data(config, 0), config.sft.fork_rate) == set()


@pytest.mark.slow
def test_false_alarms():
    """20 audits of clean data: a correct audit fails this with probability at most 20 * 1e-3 over the seed."""
    cases = [(REFERENCE, CLEAN[seed % len(CLEAN)], 100 if seed < 14 else 32) for seed in range(18)]
    for seed, (task, mixture, n) in enumerate([*cases, (REFERENCE, PLAIN, 1000), (WIDE, PLAIN, 400)]):
        examples = streams.sft_examples(task, mixture, seed, n, epoch=seed)
        checks = audit.audit(task, examples, mixture.fork_rate, seed)
        assert not any(c.flagged for c in checks), audit.table(checks)


def test_p_values_are_uniform(monkeypatch):
    """Over 300 clean sets, the share of p <= .1 is within 4 sigma of .1 (false alarm 6 * 3e-5, one-sided above)."""
    monkeypatch.setattr(audit, "DRAWS", audit.BLOCK)
    branches, ps = audit.read_branches(REFERENCE, REFERENCE, REFERENCE.prompts(train_problems(60))), []
    for seed in range(300):
        branches = replace(branches, right=np.random.default_rng(seed).integers(2, size=60))
        ps.append([check.p for check in audit.branch_checks(branches, seed=1000 + seed)])
    share = (np.array(ps) <= 0.1).mean(axis=0)
    # Ties make discrete statistics conservative, never powerless.
    assert (share < 0.1 + 4 * np.sqrt(0.1 * 0.9 / 300)).all() and (share > 0.02).all()


def test_published_order_is_flagged():
    task = Star(16, 2, 4, branch_order="published")
    checks = audit.audit(task, streams.sft_examples(task, PLAIN, 0, 32), 0.5)
    # A permutation p value is never 0: the observed assignment is one of its own permutations.
    assert min(check.p for check in checks) == 1 / (1 + audit.DRAWS)
    assert "first edge order" in {check.name for check in checks if check.flagged}


@pytest.mark.parametrize("cue_rate", [0.5, 1.0])
def test_cue_is_flagged(cue_rate):
    examples = streams.sft_examples(REFERENCE, replace(PLAIN, fork_rate=1.0, cue_rate=cue_rate), 0, 400)
    assert names_flagged(REFERENCE, examples) == {"first edge position", "first edge order", "linear probe"}


def test_leak_in_label_order():
    problems = train_problems(300)
    left, right = REFERENCE.children(problems).T
    flagged = names_flagged(REFERENCE, examples_of(REFERENCE, swap_branches(REFERENCE, problems, left > right)))
    assert flagged == {"child label order", "child label", "linear probe"}


def test_leak_in_label_identity():
    """One token in 16 gives the branch away: only the check of label identity is sharp enough."""
    problems = train_problems(500)
    rows = REFERENCE.children(problems)[:, 1] == 8
    assert names_flagged(REFERENCE, examples_of(REFERENCE, swap_branches(REFERENCE, problems, rows))) == {"child label"}


def test_leak_in_goal_edge():
    problems = train_problems(300)
    order = problems.order.copy()
    rows, goal_edge = np.arange(len(order)), REFERENCE.length - 2
    at = np.argmax(order == goal_edge, axis=1)
    order[rows, at], order[:, -1] = order[:, -1], goal_edge
    flagged = names_flagged(REFERENCE, examples_of(REFERENCE, replace(problems, order=order)))
    assert "goal edge position" in flagged and "first edge order" not in flagged


def test_leaks_between_the_ends_are_left_to_the_probe():
    problems = train_problems(500)
    position = np.argsort(problems.order, axis=1)
    later = position[:, 1] > position[:, 4]
    branch, step = np.divmod(problems.order, 3)
    order = np.where(later[:, None], (1 - branch) * 3 + step, problems.order)
    assert "linear probe" in names_flagged(REFERENCE, examples_of(REFERENCE, replace(problems, order=order)))
    higher_goal = problems.labels[:, 3] > problems.labels[:, 6]
    swapped = examples_of(REFERENCE, swap_branches(REFERENCE, problems, higher_goal))
    assert names_flagged(REFERENCE, swapped) == {"linear probe"}


def test_held_out_problems_are_flagged():
    test_set = streams.test_problems(REFERENCE, 300)
    assert names_flagged(REFERENCE, examples_of(REFERENCE, test_set)) == {"stream", "overlap", "near repeats"}
    mixed = [train_problems(99), test_set[:1]]
    one = Problems(*(np.concatenate([getattr(p, k) for p in mixed]) for k in ("labels", "order", "forked")))
    assert names_flagged(REFERENCE, examples_of(REFERENCE, one)) == {"stream", "overlap"}


def test_wrong_share_is_flagged():
    examples = streams.sft_examples(REFERENCE, CLEAN[1], 0, 200)
    assert names_flagged(REFERENCE, examples, 0.26) == {"fork share"}
    in_graph = streams.sft_examples(REFERENCE, CLEAN[-2], 0, 200)
    assert names_flagged(REFERENCE, in_graph, 1.0) == {"fork share"}


def test_all_modes_for_every_problem():
    """With three modes the share of the first is a third, however the config rounds it and whatever is left over."""
    three = Star(nodes=12, branches=2, length=3, modes="FWD,REV,SEARCH")
    for rate in (0.333, 0.33):
        mixture = replace(PLAIN, modes=three.modes, fork_rate=rate, allocation="problem")
        for n in (100, 1000):
            assert names_flagged(three, streams.sft_examples(three, mixture, 0, n), mixture.first_share) == set()


def test_many_branches(monkeypatch):
    monkeypatch.setattr(audit, "DRAWS", audit.BLOCK)
    wide = Star(nodes=400, branches=300, length=2)
    checks = audit.audit(wide, streams.sft_examples(wide, CLEAN[4], 0, 10), 1.0)
    assert {check.name for check in checks} >= BRANCH_CHECKS and all(0 < check.p <= 1 for check in checks)


def test_a_task_that_prints_no_star():
    """Branches are told by where their first token is printed; doors printed the right way round give them away."""
    task = Maze(5, 3)
    problems = streams.training_problems(task, 0, 400)
    checks = audit.audit(task, examples_of(task, problems), 1.0)
    assert not any(check.flagged for check in checks) and len(checks) == 11
    ordered = replace(problems, order=np.sort(problems.order, axis=1))
    flagged = set("first place,order of first places,last place,linear probe".split(","))
    assert names_flagged(task, examples_of(task, ordered)) == {f"2 branches, {name}" for name in flagged}
    low = problems.path[:, 2] < problems.path[:, 4]
    lower = replace(problems, path=np.where(low[:, None], problems.path[:, ::-1], problems.path))
    assert names_flagged(task, examples_of(task, lower)) >= {"2 branches, token order", "2 branches, linear probe"}


def test_no_fork():
    for task, mixture in ((REFERENCE, replace(PLAIN, fork_rate=0.0, fork_in_graph=True)), (Star(16, 1, 4), PLAIN)):
        checks = audit.audit(task, streams.sft_examples(task, mixture, 0, 50), mixture.fork_rate)
        assert not any(c.flagged for c in checks)
        assert {c.name for c in checks if c.measures == "no fork"} >= BRANCH_CHECKS
        assert "no fork" in audit.table(checks)


def test_repeated_prompts_count_once():
    """Twenty copies of the same nine problems are nine pieces of evidence, far too few for a flag of the cue."""
    nine = REFERENCE.give_cue(train_problems(9), np.ones(9, dtype=bool))
    copies = nine[np.tile(np.arange(9), 20)]
    assert names_flagged(REFERENCE, examples_of(REFERENCE, copies)) == {"repeats"}


def test_reads_the_tokens_not_the_canonical_numbers():
    problems = train_problems(50, WIDE)
    branches = audit.read_branches(WIDE, WIDE, WIDE.prompts(problems))
    rows = np.arange(50)
    assert (branches.node[rows, branches.right] == WIDE.path(problems)[:, 1:]).all()
    assert (np.diff(branches.position[:, :, 0], axis=1) > 0).all()
    edges = WIDE.edge_list(problems)
    assert (edges[rows[:, None, None], branches.position, 1] == branches.node).all()


def test_refuses_a_broken_prompt():
    examples = streams.sft_examples(REFERENCE, CLEAN[4], 0, 20)
    examples.tokens[3, 2 * REFERENCE.edges + 1] = examples.tokens[3, 2 * REFERENCE.edges]
    with pytest.raises(ValueError, match="one ends in the goal"):
        audit.audit(REFERENCE, examples, 1.0)


def test_chi_square_by_hand():
    """Two problems, both branches of class 0 and 1; right ones of class 0, 0: z^2 = (2 - 1)^2 / .5 for each class."""
    one_hot = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], dtype=np.float32)
    observed = audit._chosen_sum(one_hot, np.array([[0, 1], [0, 0]], dtype=np.uint8))
    assert audit.chi_square(one_hot, observed).tolist() == [4.0, 0.0]


def test_probe_equals_a_plain_refit():
    """The shared hat matrix gives what refitting every fold by least squares gives."""
    branches = audit.read_branches(WIDE, WIDE, WIDE.prompts(train_problems(81, WIDE)))
    x = audit.probe_features(branches)
    right = np.random.default_rng(0).integers(3, size=(5, 81), dtype=np.uint8)
    for r, accuracy in zip(right, audit.held_out_accuracy(x, right), strict=True):
        hits = 0
        for fit in (np.arange(81) % 2 == 0, np.arange(81) % 2 == 1):
            rows = x[fit].reshape(-1, x.shape[2]).astype(np.float64)
            target = (np.arange(3) == r[fit][:, None]).reshape(-1) - 1 / 3
            ridge = np.sqrt(1 + audit.RIDGE * len(rows)) * np.eye(x.shape[2])
            padded = np.concatenate([target, np.zeros(len(ridge))])
            weights = np.linalg.lstsq(np.concatenate([rows, ridge]), padded, rcond=None)[0]
            hits += ((x[~fit] @ weights).argmax(axis=1) == r[~fit]).sum()
        assert accuracy == pytest.approx(hits / 81)


def test_table_and_determinism():
    examples = streams.sft_examples(REFERENCE, PLAIN, 0, 64)
    first, second = (audit.table(audit.audit(REFERENCE, examples, 0.5, seed=3)) for _ in range(2))
    assert first == second
    assert [line[-2:] for line in first.splitlines()[1:]] == ["ok"] * (len(BRANCH_CHECKS) + 5)


def test_the_docstring_shows_a_real_table():
    task = Star(16, 2, 4, branch_order="published")
    checks = audit.audit(task, streams.sft_examples(task, PLAIN, 0, 1000), 0.5)
    documented = [line.split() for line in audit.__doc__.splitlines() if line.endswith(("LEAK", "ok"))]
    printed = [line.split() for line in audit.table(checks).splitlines()[1:]]
    # Names, verdicts and values; simulated digits may differ between BLAS builds.
    assert [(row[:2], row[-1], row[-4]) for row in documented] == [(row[:2], row[-1], row[-4]) for row in printed]
