"""Openers: their table, the draw, the walks, and the automaton against a reader of graphs in plain Python.

Statistical tests have fixed seeds. Each chi-square has 3 degrees of freedom and must be below 26 (false alarms 1e-5).
"""

from functools import partial

import numpy as np
import pytest

from data_gen import audit, streams
from data_gen.openers import Openers, partings
from data_gen.star import Star
from data_gen.streams import Mixture
from data_gen.task import PAD
from minifork import config as configs
from tests.data_gen.test_search import read_search
from tests.helpers.stars import Graph, assert_graded, grade, verdict

CHI2_LIMIT = 26
TABLES = {
    "FWD,SEARCH": "FWD 0.45 0.45 0.05 0.05, SEARCH 0.05 0.05 0.45 0.45",
    "REV,FWD": "FWD 0.7 0.3, REV 0 1",
    "FWD,REV,SEARCH": "SEARCH 1 0 0, FWD .5 .25 .25, REV 0 .5 .5",
}
TASK = Openers(12, 2, 4, modes="FWD,SEARCH", openers=TABLES["FWD,SEARCH"])


def read(task: Openers, graph: Graph, answer) -> str:
    """An independent reader of traces: after any opener, those of REV begin at the goal and all others at the start."""
    if len(answer) < 2:
        return "live" if not answer or answer[0] >= task.vocab_size - task.table.shape[1] else "malformed"
    if answer[1] == graph.goal and "REV" in task.modes:
        return grade(task, graph, [task.rev, *answer[1:]])
    return read_search(task, graph, answer) if "SEARCH" in task.modes else grade(task, graph, [task.fwd, *answer[1:]])


@pytest.mark.parametrize("modes", TABLES)
@pytest.mark.parametrize("forked", [True, False])
def test_any_opener_and_the_trace_of_any_mode(modes, forked):
    task = Openers(12, 2, 4, modes=modes, openers=TABLES[modes])
    problems = task.remove_fork(streams.problems(task, 0, "test", 50), np.full(50, forked))
    dfa, prompts = task.dfa(problems), task.prompts(problems)
    for index in range(len(task.mode_names)):
        traces = task.traces(problems, np.full(50, index))
        for i, trace in enumerate(traces):
            trace = trace[trace != PAD].tolist()
            reader = partial(read, task, Graph(task, prompts[i]))
            for opener in task.first_tokens.values():
                assert verdict(dfa, i, [opener, *trace[1:]]) == "accept" == reader([opener, *trace[1:]])
            if i < 3:
                assert_graded(dfa, i, task.vocab_size, reader)


@pytest.mark.parametrize("modes", TABLES)
def test_only_the_first_token_differs_from_a_star(modes):
    """Traces and walks are those of the star, but for the opener. A problem printed anew keeps its opener."""
    task, star = Openers(12, 2, 4, modes=modes, openers=TABLES[modes]), Star(12, 2, 4, modes=modes)
    problems, mode = streams.problems(star, 0, "train", 90), np.arange(90) % len(star.mode_names)
    traces = task.traces(problems, mode)
    assert (traces[:, 1:] == star.traces(problems, mode)[:, 1:]).all()
    assert np.array_equal(traces, task.traces(task.reprint(problems, np.random.default_rng(1)), mode))
    assert (task.table[mode, traces[:, 0] - star.vocab_size] > 0).all()
    walks, plain = (each.walks(problems, 0.2, 0.1, np.random.default_rng(0), 3) for each in (task, star))
    assert (np.delete(walks, 3, axis=2) == np.delete(plain, 3, axis=2)).all()
    assert np.isin(walks[:, :, 3], list(task.first_tokens.values())).all()
    assert task.vocab_size == star.vocab_size + task.table.shape[1] and task.decode(traces[0, :1]) in "ABCD"


@pytest.mark.parametrize("modes", TABLES)
def test_traces_cross_the_fork_whatever_their_opener(modes):
    """Those of FWD and SEARCH on graphs with a fork."""
    task = Openers(12, 2, 4, modes=modes, openers=TABLES[modes])
    forked, mode = np.arange(200) % 2 == 0, np.arange(200) // 2 % len(task.mode_names)
    problems = task.remove_fork(streams.problems(task, 0, "train", 200), forked)
    traces = task.traces(problems, mode)
    through_fork = np.array([task.mode_names[index] != "REV" for index in mode])
    assert len(np.unique(traces[:, 0])) > 1
    assert (task.crosses(problems, traces) == (forked & through_fork)).all()


def chi2(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_openers_are_drawn_by_the_table_and_say_nothing_else():
    """Nor the branch that a SEARCH tries first, nor the printed order; openers of walks are uniform in every mode."""
    n, openers = 4000, 4
    problems = streams.problems(TASK, 0, "train", n)
    for mode, row in enumerate(TASK.table):
        drawn = TASK.traces(problems, np.full(n, mode))[:, 0] - Star.vocab_size.fget(TASK)
        assert chi2(np.bincount(drawn, minlength=openers), n * row) < CHI2_LIMIT
        for half in (TASK.search_order(problems)[:, 0] == 0, problems.order[:, 0] % 2 == 0):
            counts = np.stack([np.bincount(drawn[rows], minlength=openers) for rows in (half, ~half)])
            assert chi2(counts, np.outer(counts.sum(axis=1), counts.sum(axis=0)) / n) < CHI2_LIMIT
    star = Star(12, 2, 4, modes=TASK.modes)
    walks, plain = (each.walks(problems, 0.2, 0.1, np.random.default_rng(0), 1)[:, 0, 3] for each in (TASK, star))
    for mode in np.unique(plain):
        counts = np.bincount(walks[plain == mode] - star.vocab_size, minlength=openers)
        assert chi2(counts, np.full(openers, counts.sum() / openers)) < CHI2_LIMIT


WRONG = {
    "FWD .5 .5": "give one row for each of FWD, REV",
    "FWD .5 .5, SEARCH .5 .5": "give one row for each of FWD, REV",
    "FWD .5 .5, REV .5 .5, FWD .5 .5": "give one row for each of",
    "FWD .5 .6, REV .5 .5": "the row of FWD sums to 1.1, not 1",
    "FWD .5 .5, REV .5 .49999": "the row of REV sums to 0.99999, not 1",
    "FWD 1.1 -.1, REV .5 .5": "it has a number that is no probability",
    "FWD nan 1, REV .5 .5": "it has a number that is no probability",
    "FWD 1, REV .5 .5": "rows have 1 and 2 numbers, give all equally many",
    "FWD, REV": "the row of FWD sums to 0",
    "FWD a b, REV .5 .5": "write a mode and its numbers",
    "": "write a mode and its numbers",
    f"FWD 1{' 0' * 26}, REV 1{' 0' * 26}": "27 openers need as many letters, and there are only 26",
}


@pytest.mark.parametrize("table", WRONG)
def test_wrong_tables_are_refused(table):
    with pytest.raises(ValueError, match=WRONG[table]) as error:
        configs.load_config("openers", [f"data.openers={table}"])
    assert str(error.value).startswith(f"the command line: data.openers is {table!r}: ")


def test_rl_forces_openers():
    assert configs.load_config("openers", ["rl.mode=C"]).rl.mode == "C"
    with pytest.raises(ValueError, match="rl.mode is 'FWD': choose free, A, B, C, D"):
        configs.load_config("openers", ["rl.mode=FWD"])


def test_fork_synonyms_and_partings():
    """The fork comes after the first opener of FWD. Modes part from FWD at the start, or at the end of a decoy."""
    task = Openers(12, 2, 4, modes="FWD,REV,SEARCH", openers="FWD .1 .5 .2 .2, REV .3 .1 .3 .3, SEARCH .2 .4 .2 .2")
    problems = streams.problems(task, 0, "test", 20)
    assert task.synonyms == [("C", "D")] and TASK.synonyms == [("A", "B"), ("C", "D")]
    assert (task.fork_prefix(problems) == [[task.first_tokens["B"], start] for start in problems.labels[:, 0]]).all()
    places, dfa = partings(task, problems), task.dfa(problems)
    assert list(places) == ["REV", "SEARCH"]
    for i, prompt in enumerate(task.prompts(problems)):
        graph, (rest, tokens) = Graph(task, prompt), (array[i].tolist() for array in places["SEARCH"])
        assert rest[0] == graph.start and len(rest) == 4 and rest[-1] != graph.goal
        assert all(edge in graph.edges for edge in zip(rest, rest[1:], strict=False)) and rest[-1] not in graph.children
        assert [verdict(dfa, i, [task.vocab_size - 1, *rest, token]) for token in tokens] == ["wrong_branch", "live"]
        assert places["REV"][1][i].tolist() == [graph.start, graph.goal] and places["REV"][0].shape == (20, 0)


def test_one_problem_in_two_modes_is_no_repeat():
    """Both traces of a problem may begin with the same opener."""
    mixture = Mixture("FWD,SEARCH", 0.5, 0.0, False, "problem", False)
    examples = streams.sft_examples(TASK, mixture, 0, 200)
    openers = examples.tokens[:, TASK.prompt_len].reshape(-1, 2)
    assert (openers[:, 0] == openers[:, 1]).any()
    checks = {check.name: check for check in audit.audit(TASK, examples, 0.5)}
    assert checks["repeats"].value == 0 and not any(check.flagged for check in checks.values())


def test_a_task_whose_traces_lack_an_opener_is_refused():
    task = type("Wrong", (Openers,), {"traces": Star.traces})(8, 2, 3)
    with pytest.raises(ValueError, match="does not begin with one of first_tokens"):
        streams.problems(task, 0, "train", 1)
