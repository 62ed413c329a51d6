"""Streams of problems and mixtures of traces: pure, nested, disjoint, with exact shares.

Statistical tests use fixed seeds and |z| < 4.5, a false-alarm rate of 7e-6 for each statistic.
"""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_gen import streams
from data_gen.star import Star
from data_gen.streams import Mixture
from tests.helpers.stars import PLAIN, REFERENCE, TINY, Graph, Z, assert_refused, grade, hypothesis_settings, z_score


def test_streams_docstring():
    examples = streams.sft_examples(TINY, PLAIN, seed=0, n=2)
    assert examples.tokens.tolist() == [
        [2, 1, 1, 7, 3, 4, 2, 3, 2, 4, 10, 8, 2, 3, 4, 11],
        [2, 0, 4, 7, 4, 2, 7, 3, 4, 0, 10, 9, 0, 2, 4, 11],
    ]


@hypothesis_settings
@given(st.integers(0, 2**40), st.sampled_from(list(streams.QUARTERS)), st.integers(0, 1000), st.integers(1, 300))
def test_streams_are_pure_and_nested(seed, stream, step, n):
    long = TINY.prompts(streams.problems(TINY, seed, stream, n + 40, step))
    short = streams.problems(TINY, seed, stream, n, step)
    assert (long[:n] == TINY.prompts(short)).all()
    assert (streams.quarter_of(TINY.identity(short)) == streams.QUARTERS[stream]).all()


@hypothesis_settings
@given(st.integers(0, 2**40), st.sampled_from(list(streams.QUARTERS)), st.integers(0, 1000), st.integers(1, 300))
def test_distinct_problems_are_the_first_of_each(seed, stream, step, n):
    """Nested, without repeats, in the order in which they are drawn."""
    short = streams.distinct_problems(TINY, seed, stream, n, step)
    long = streams.distinct_problems(TINY, seed, stream, n + 40, step)
    identities = TINY.identity(short).tolist()
    assert len(short) == n == len(set(identities)) and identities == TINY.identity(long)[:n].tolist()
    raw = TINY.identity(streams.problems(TINY, seed, stream, 3 * n, step)).tolist()
    assert identities[: len(set(raw))] == list(dict.fromkeys(raw))[:n]


@pytest.mark.parametrize(("task", "graphs"), [(TINY, 8 * 7 * 6 * 5 * 4 // 2), (Star(8, 2, 2), 8 * 7 * 6 // 2)])
def test_a_stream_that_is_exhausted_gives_all_it_holds(task, graphs):
    """d = 2: labels of the places in order, of which half give the same graph."""
    _, train, _, test = held = [len(streams.distinct_problems(task, 0, stream, 5000)) for stream in streams.QUARTERS]
    assert sum(held) == graphs
    assert len(streams.test_problems(task, 5000, forked=False)) == test
    assert len(streams.test_problems(task, 5000, cue_rate=0.5)) == test
    with pytest.raises(ValueError, match=f"nodes is 8: the train stream holds {train} different problems, and 5000"):
        streams.sft_examples(task, PLAIN, 0, 5000)


def test_streams_differ_and_are_disjoint():
    prompts, identities = [], {}
    for seed in range(3):
        for stream in streams.QUARTERS:
            problems = streams.distinct_problems(TINY, seed, stream, 400, step=seed)
            prompts.append(TINY.prompts(problems).tobytes())
            identities.setdefault(stream, set()).update(TINY.identity(problems).tolist())
    assert sum(map(len, identities.values())) == len(set().union(*identities.values()))
    prompts += [TINY.prompts(streams.problems(TINY, 0, "train", 400, step)).tobytes() for step in range(3)]
    assert len(set(prompts)) == len(prompts)


def test_confirm_has_new_problems_of_the_test_quarter():
    """None of the first 1,000 of test; a task that has no others is named."""
    confirm = REFERENCE.identity(streams.test_problems(REFERENCE, 1000, stream="confirm"))
    tested = REFERENCE.identity(streams.test_problems(REFERENCE, 1000))
    assert (streams.quarter_of(confirm) == streams.QUARTERS["test"]).all() and len(set(confirm)) == 1000
    assert not set(confirm) & set(tested)
    small = Star(9, 2, 3)
    exhausted, left = (small.identity(streams.distinct_problems(small, 0, name, 5000)) for name in ("test", "confirm"))
    assert len(exhausted) > 1500 and {*exhausted[1000:]} == {*left}
    with pytest.raises(ValueError, match="nodes is 8: too few graphs to fill the confirm stream"):
        streams.problems(Star(8, 2, 2), 0, "confirm", 1)


def test_streams_share_the_graphs_evenly():
    identities = REFERENCE.identity(REFERENCE.sample(np.random.default_rng(1), 8000))
    counts = np.bincount(streams.quarter_of(identities), minlength=4)
    assert all(abs(z_score(count, 8000, 0.25)) < Z for count in counts)


@hypothesis_settings
@given(st.integers(1, 200), st.integers(0, 20), st.booleans(), st.booleans(), st.integers(0, 99))
def test_fork_shares_are_exact(n, twentieths, in_graph, fresh, seed):
    rate = twentieths / 20
    mixture = replace(PLAIN, fork_rate=rate, fork_in_graph=in_graph, fresh=fresh)
    examples = streams.sft_examples(TINY, mixture, seed, n, epoch=3)
    crossing = 0
    for row, forward in zip(examples.tokens, examples.mode_index == 0, strict=True):
        graph = Graph(TINY, row[: TINY.prompt_len])
        answer = row[TINY.prompt_len :].tolist()
        assert grade(TINY, graph, answer) == "accept"
        assert (answer[0] == TINY.fwd) == forward
        crossing += forward and len(graph.children[graph.start]) == 2
    assert crossing == round(rate * n) and abs(crossing - rate * n) <= 0.5 + 1e-9


def test_epochs_repeat_unless_fresh():
    def tokens(fresh: bool, epoch: int, seed: int = 0) -> bytes:
        return streams.sft_examples(TINY, replace(PLAIN, fresh=fresh), seed, 50, epoch).tokens.tobytes()

    assert tokens(False, 0) == tokens(False, 7) == tokens(True, 0)
    assert len({tokens(True, epoch) for epoch in range(4)} | {tokens(False, 0, seed=1)}) == 5


def test_cue_rate_is_a_share_of_the_same_problems():
    """About half of the uncued problems print the right first edge first by chance."""
    uncued, cued = (streams.test_problems(REFERENCE, 1000, cue_rate=rate) for rate in (0.0, 1.0))
    assert (REFERENCE.identity(uncued) == REFERENCE.identity(cued)).all()
    half = streams.sft_examples(REFERENCE, replace(PLAIN, fork_rate=1.0, cue_rate=0.5), 0, 2000).problems
    places = (np.argsort(problems.order, axis=1) for problems in (uncued, cued, half))
    right_first = [int((place[:, 0] < place[:, 3]).sum()) for place in places]
    assert right_first[1] == 1000 and abs(z_score(right_first[0], 1000, 0.5)) < Z
    assert abs(z_score(right_first[2] - 1000, 1000, 0.5)) < Z


def test_mixture_names_the_key():
    assert_refused(Mixture, vars(PLAIN), "fork_rate=1.5 fork_rate=.nan cue_rate=-0.1 allocation=both")
    assert_refused(Mixture, vars(PLAIN), "cue_rate=0.5", ": it needs fork_rate=1")
    for change in ({"fork_rate": 0.25}, {"fork_in_graph": True}):
        assert_refused(Mixture, vars(PLAIN) | change, "allocation=problem", ".* fork_in_graph=false")


def test_data_hash_sees_values_shape_and_type():
    a = np.arange(6)
    hashes = [streams.data_hash(array) for array in (a, a.reshape(2, 3), a.astype(np.int32), a[::-1])]
    assert len(set(hashes)) == len(hashes) and all(len(h) == 12 for h in hashes)
    assert streams.data_hash(a) == streams.data_hash(np.arange(12)[::2] // 2)
