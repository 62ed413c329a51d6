"""Leaks between training and held-out problems that go past `data_gen.streams` are seen by the rows meant for them.

Where chance plays a part, the audit's false-alarm rate is at most 1e-3 a call.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from data_gen import audit, streams
from data_gen.separation import near_repeats
from data_gen.star import Problems, Star
from data_gen.streams import Examples
from data_gen.task import concatenate, hashed
from examples.new_task import Maze
from tests.helpers.stars import PLAIN, REFERENCE, TINY, examples_of, names_flagged

FORWARD = replace(PLAIN, fork_rate=1.0)


@dataclass(frozen=True)
class Careless(Star):
    """A star whose identity also depends on the printed order, so that one graph falls into several streams."""

    def identity(self, problems: Problems) -> np.ndarray:
        return hashed(self.prompts(problems))

    def reprint(self, problems: Problems, rng: np.random.Generator) -> Problems:
        return problems


@dataclass(frozen=True)
class Fixed(Star):
    """A star whose right branch is a function of start, goal and the first node of the branch."""

    def sample(self, rng: np.random.Generator, n: int) -> Problems:
        problems = super().sample(rng, 8 * n)
        path = self.path(problems)
        return problems[hashed(path[:, [0, 1, -1]]) % np.uint64(2) == 0][:n]


def test_an_identity_of_the_print_is_seen():
    task = Careless(8, 2, 3)
    examples = streams.sft_examples(task, FORWARD, 0, 300)
    assert names_flagged(task, examples, 1.0) == {"overlap", "repeats"}


def test_test_graphs_without_their_fork_are_seen():
    problems = REFERENCE.remove_fork(streams.test_problems(REFERENCE, 40), np.zeros(40, dtype=bool))
    assert names_flagged(REFERENCE, examples_of(REFERENCE, problems), 0.0) >= {"stream", "overlap"}


def test_a_reprinted_repeat_is_seen():
    """The second print of a graph is no second problem; both modes of one problem are no repeat."""
    problems = streams.training_problems(REFERENCE, 0, 40)
    reprinted = concatenate([problems, REFERENCE.reprint(problems[:1], np.random.default_rng(0))])
    assert names_flagged(REFERENCE, examples_of(REFERENCE, reprinted), 1.0) == {"repeats"}
    examples = streams.sft_examples(REFERENCE, replace(PLAIN, allocation="problem"), 0, 80)
    assert names_flagged(REFERENCE, examples, 0.5) == set()


def test_a_branch_that_the_query_decides_is_seen():
    """Graphs differ and nothing in a prompt tells the branches apart, but what was trained on does."""
    task = Fixed(8, 2, 3)
    examples = streams.sft_examples(task, FORWARD, 0, 300)
    assert names_flagged(task, examples, 1.0) == {"near repeats"}


def test_near_repeats_by_hand():
    """Three held-out problems whose query was trained on: two with the right branch, one with the wrong one."""
    trained = TINY.sample(np.random.default_rng(0), 3)
    wrong = trained.labels[:, [0, 3, 2, 1, 4, 5]]  # the same goal, reached through the other branch's first node
    held_out = replace(trained, labels=np.concatenate([trained.labels[:2], wrong[2:]]))
    check = near_repeats(TINY, trained, [held_out], 0, 20_000)
    assert (check.measures, check.value, check.chance) == ("right ones of 3 seen branches", 2 / 3, 0.5)
    assert check.p == 1.0  # nobody can be surprised by two of three
    check = near_repeats(TINY, trained, [trained], 0, 20_000)
    assert check.value == 1.0 and check.p == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_graphs_without_a_fork_that_share_their_edges(seed):
    """In a small task many do: one problem's root of decoys is the start of another. False alarm 1e-2."""
    examples = streams.sft_examples(TINY, replace(PLAIN, fork_rate=0.1, fork_in_graph=True), seed, 200)
    assert names_flagged(TINY, examples, 0.1) == set()


@pytest.mark.parametrize("seed", range(4))
def test_clean_data_are_clean_however_small_the_task(seed):
    """At this size most traces of the test set stand in the training set too, and tell nothing. False alarm 1e-2."""
    examples = streams.sft_examples(TINY, PLAIN, seed, 600)
    checks = {check.name: check for check in audit.audit(TINY, examples, 0.5, seed)}
    assert not any(check.flagged for check in checks.values())
    assert int(checks["near repeats"].measures.split()[3]) > 1000


def test_a_task_without_a_graph_of_edges():
    """Its prompts are compared as they are."""
    task = Maze(5, 3)
    examples = streams.sft_examples(task, PLAIN, 0, 50)
    assert names_flagged(task, examples, 0.5) == set()
    doubled = Examples(examples.problems[[0, 0]], examples.mode_index[[0, 0]], examples.tokens[[0, 0]])
    assert "repeats" in names_flagged(task, doubled, float(examples.mode_index[0] == 0))
