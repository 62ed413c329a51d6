"""The audit passes clean data, and each kind of planted leak is caught by the check meant for it.

Statistical tests use fixed seeds. The audit's own false-alarm rate is at most 1e-3 a call by construction
(valid permutation p values, Bonferroni), which `test_false_alarms` and `test_p_values_are_uniform` confirm.
"""

from dataclasses import replace

import numpy as np
import pytest

from data_gen import audit, audit_rows, streams
from data_gen.star import Problems, Star
from data_gen.task import concatenate
from examples.new_task import Maze
from minifork import config as configs
from minifork.training import stages
from tests.helpers.stars import PLAIN, REFERENCE, examples_of, names_flagged

WIDE = Star(nodes=24, branches=3, length=5)
CLEAN = [replace(PLAIN, fork_rate=rate) for rate in (0.0, 0.25, 0.5, 0.75, 1.0)]
CLEAN += [replace(PLAIN, allocation="problem"), replace(PLAIN, fresh=True)]
CLEAN += [replace(PLAIN, fork_rate=rate, fork_in_graph=True) for rate in (0.25, 0.5)]


def swap_branches(task: Star, problems: Problems, rows: np.ndarray) -> Problems:
    """The problems, where bool[n] ``rows`` with the first decoy right: the printed edges stay the same set."""
    steps = task.length - 1
    columns = np.arange(problems.labels.shape[1])
    columns[1 : 1 + 2 * steps] = np.roll(columns[1 : 1 + 2 * steps], steps)
    return replace(problems, labels=np.where(rows[:, None], problems.labels[:, columns], problems.labels))


def train_problems(n: int, task: Star = REFERENCE) -> Problems:
    return streams.training_problems(task, 5, n)


@pytest.mark.parametrize("task", ["arith", "sizes", "star"])
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
        assert not any(c.flagged for c in checks), audit_rows.table(checks)


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
    """In few traces. An audit is a function of its arguments."""
    task = Star(16, 2, 4, branch_order="published")
    checks, repeated = (audit.audit(task, streams.sft_examples(task, PLAIN, 0, 32), 0.5, seed=3) for _ in range(2))
    assert audit_rows.table(checks) == audit_rows.table(repeated)
    # A permutation p value is never 0: the observed assignment is one of its own permutations.
    assert min(check.p for check in checks) == 1 / (1 + audit.DRAWS)
    assert "first edge order" in {check.name for check in checks if check.flagged}


@pytest.mark.parametrize("cue_rate", [0.5, 1.0])
def test_cue_is_flagged(cue_rate):
    examples = streams.sft_examples(REFERENCE, replace(PLAIN, fork_rate=1.0, cue_rate=cue_rate), 0, 400)
    assert names_flagged(REFERENCE, examples) == {"first edge position", "first edge order", "linear probe"}


def test_leaks_in_labels():
    """One token in 16 gives the branch away in the second case: only the check of label identity is sharp enough."""
    problems = train_problems(500)
    first, second = REFERENCE.children(problems).T
    goals = problems.labels[:, [3, 6]].T
    cases = [
        (first > second, {"child label order", "child label", "linear probe"}),
        (second == 8, {"child label"}),
        (goals[0] > goals[1], {"linear probe"}),
    ]
    for rows, expected in cases:
        assert names_flagged(REFERENCE, examples_of(REFERENCE, swap_branches(REFERENCE, problems, rows))) == expected


def test_leaks_in_places():
    """Leaks of the goal's edge, and of an edge between the ends, which the linear probe alone sees."""
    problems = train_problems(500)
    order = problems.order.copy()
    rows, goal_edge = np.arange(len(order)), REFERENCE.length - 2
    order[rows, np.argmax(order == goal_edge, axis=1)], order[:, -1] = order[:, -1], goal_edge
    flagged = names_flagged(REFERENCE, examples_of(REFERENCE, replace(problems, order=order)))
    assert "goal edge position" in flagged and "first edge order" not in flagged
    position, (branch, step) = np.argsort(problems.order, axis=1), np.divmod(problems.order, 3)
    order = np.where((position[:, 1] > position[:, 4])[:, None], (1 - branch) * 3 + step, problems.order)
    assert "linear probe" in names_flagged(REFERENCE, examples_of(REFERENCE, replace(problems, order=order)))


def test_held_out_problems_are_flagged():
    test_set = streams.test_problems(REFERENCE, 300)
    assert names_flagged(REFERENCE, examples_of(REFERENCE, test_set)) == {"stream", "overlap", "near repeats"}
    one = concatenate([train_problems(99), test_set[:1]])
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


def test_a_task_that_prints_no_star():
    """Branches are told by where their first token is printed; doors printed the right way round give them away."""
    task = Maze(5, 3)
    problems = streams.training_problems(task, 0, 400)
    assert not names_flagged(task, examples_of(task, problems))
    ordered = replace(problems, order=np.sort(problems.order, axis=1))
    flagged = {f"2 branches, {name}" for name in ("first place", "order of first places", "last place", "linear probe")}
    assert names_flagged(task, examples_of(task, ordered)) == flagged
    low = problems.path[:, 2] < problems.path[:, 4]
    lower = replace(problems, path=np.where(low[:, None], problems.path[:, ::-1], problems.path))
    assert names_flagged(task, examples_of(task, lower)) >= {"2 branches, token order", "2 branches, linear probe"}


def test_no_fork():
    for task, mixture in ((REFERENCE, replace(PLAIN, fork_rate=0.0, fork_in_graph=True)), (Star(16, 1, 4), PLAIN)):
        checks = audit.audit(task, streams.sft_examples(task, mixture, 0, 50), mixture.fork_rate)
        assert not any(c.flagged for c in checks)
        assert len([c.name for c in checks if c.measures == "no fork"]) >= 6 and "no fork" in audit_rows.table(checks)


def test_repeated_prompts_count_once():
    """Twenty copies of the same nine problems are nine pieces of evidence, far too few for a flag of the cue."""
    nine = REFERENCE.give_cue(train_problems(9), np.ones(9, dtype=bool))
    copies = nine[np.tile(np.arange(9), 20)]
    assert names_flagged(REFERENCE, examples_of(REFERENCE, copies)) == {"repeats"}


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


def test_the_docstring_shows_a_real_table():
    task = Star(16, 2, 4, branch_order="published")
    checks = audit.audit(task, streams.sft_examples(task, PLAIN, 0, 1000), 0.5)
    documented = [line.split() for line in audit.__doc__.splitlines() if line.endswith(("LEAK", "ok"))]
    printed = [line.split() for line in audit_rows.table(checks).splitlines()[1:]]
    # Names, verdicts and values; simulated digits may differ between BLAS builds.
    assert [(row[:2], row[-1], row[-4]) for row in documented] == [(row[:2], row[-1], row[-4]) for row in printed]
