"""Arithmetic chains against graphs and sums rebuilt from the tokens by plain Python.

Statistical tests have fixed seeds and |z| < 4.5 (false alarms 7e-6 each, a dozen of them).
"""

import itertools
import os
from dataclasses import replace

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from data_gen import arith, streams, walks
from data_gen.arith import Arith
from data_gen.streams import Mixture
from data_gen.task import PAD
from tests.helpers import stars
from tests.helpers.stars import PLAIN, Z, assert_refused, hypothesis_settings, names_flagged, verdict, z_score

TINY = Arith(8, 2, 2, 7, modes="FWD,REV,RAT,NAME,CODE")


@st.composite
def tasks(draw) -> Arith:
    branches, length = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    modes = draw(st.sampled_from(["FWD", "FWD,REV", "FWD,REV,RAT", "FWD,RAT", "NAME,FWD", "FWD,CODE,REV"]))
    modulus, order = draw(st.sampled_from([2, 7, 23, None])), draw(st.sampled_from(["shuffled", "published"]))
    return Arith(branches * length + 1 + draw(st.integers(0, 3)), branches, length, modulus, order, modes)


class Sheet:
    """The knowledge of a reader of the prompt: who follows whom, by adding what; premise, its value, target."""

    def __init__(self, task: Arith, prompt):
        self.task, tokens = task, [int(t) for t in prompt]
        assert len(tokens) == task.prompt_len and tokens[-1] == task.sep
        self.premise, self.value, self.target = tokens[-4], tokens[-3] - task.labels, tokens[-2]
        triples = [tokens[i : i + 3] for i in range(0, task.graph_len, 3)]
        self.came_from = {child: (parent, const - task.labels) for parent, child, const in triples}
        self.modes = {task.mode_token(mode): mode for mode in task.mode_names}
        self.right = {token: self.right_trace(mode) for token, mode in self.modes.items()}

    def way(self) -> list[tuple[int, int]]:
        """(node, constant added to get there) from the premise to the target, found backwards."""
        node, steps = self.target, []
        while node != self.premise:
            parent, const = self.came_from[node]
            steps.append((node, const))
            node = parent
        return steps[::-1]

    def reduce(self, value: int) -> int:
        return self.task.labels + (value % self.task.modulus if self.task.modulus else value)

    def right_trace(self, mode: str) -> list[int]:
        way, premise = self.way(), self.task.labels + self.value
        nodes, consts = [self.premise, *(node for node, _ in way)], [const for _, const in way]
        labels = [self.task.labels + const for const in consts]
        forward = [self.reduce(total) for total in itertools.accumulate(consts, initial=self.value)][1:]
        backward = [self.reduce(total) for total in itertools.accumulate(consts[::-1])]
        steps = [premise, *itertools.chain(*zip(nodes[1:], labels, forward, strict=True))]
        home = itertools.chain(*zip(nodes[-2::-1], labels[::-1], backward, strict=True))
        looked_up = itertools.chain(*zip(nodes[-2::-1], labels[::-1], strict=True))
        bodies = {
            "FWD": [self.premise, *steps],
            "RAT": [*nodes[::-1], *steps],
            "NAME": [*nodes[1:2], self.premise, *steps],
            "REV": [self.target, *home, premise, self.reduce(self.value + sum(consts))],
            "CODE": [self.target, *looked_up, premise, self.reduce(self.value + sum(consts))],
        }
        return [self.task.mode_token(mode), *bodies[mode], self.task.eos]

    def grade(self, answer: list[int]) -> str:
        """An independent grader: what was due where the answer first differs from the right trace of its mode?"""
        task, right = self.task, self.right.get(answer[0])
        if right is None:
            return "malformed"
        # Mode, fork, query, value, node, constant, sum.
        openings = {"FWD": "mqv", "RAT": "mq" + "n" * task.length + "v", "NAME": "mfqv"}
        mode = self.modes[answer[0]]
        opening = openings.get(mode, "mq")
        kinds = opening + ("nc" if mode == "CODE" else "ncs") * task.length + "vs"
        if answer == right[: len(answer)]:
            return "accept" if len(answer) == len(right) else "live"
        place = len(os.path.commonprefix([answer, right]))
        token, due = answer[place], right[place]
        if token == task.eos or token >= task.sep:
            return "early_stop" if token == task.eos else "malformed"
        if due == task.eos or (token < task.labels) != (due < task.labels):
            return "too_long" if due == task.eos else "malformed"
        at_fork = kinds[place] == "f" or place == len(opening) and opening[-1] == "v"
        if at_fork and self.came_from.get(token, [None])[0] == self.premise:
            return "wrong_branch"
        return {"q": "wrong_query", "v": "wrong_query", "s": "arithmetic"}.get(kinds[place], "look_up")


def test_docstrings():
    """Wrong sums are arithmetic, and wrong constants are look-ups."""
    problems = streams.problems(TINY, 0, "train", 1)
    assert TINY.decode(TINY.prompts(problems)[0]) == "c b 2 b h 1 d e 1 c d 4 c 1 e SEP"
    texts = "FWD c 1 d 4 5 e 1 6 EOS,REV e d 1 1 c 4 5 1 6 EOS,RAT e d c 1 d 4 5 e 1 6 EOS,NAME d c 1 d 4 5 e 1 6 EOS"
    texts += ",CODE e d 1 c 4 1 6 EOS"
    for mode, text in enumerate(texts.split(",")):
        trace = TINY.traces(problems, np.array([mode]))[0]
        assert TINY.decode(trace[trace != PAD]) == text
        assert text in arith.__doc__.replace("  ", " ").replace("  ", " ")
    dfa, token = TINY.dfa(problems), {word: token for token, word in TINY.words.items()}
    cases = "FWD c 1 d 4 6 arithmetic,FWD c 1 d 3 look_up,FWD c 1 b wrong_branch,FWD c 1 h look_up,REV e c look_up"
    for *answer, end in map(str.split, f"{cases},FWD c 2 wrong_query,REV d wrong_query".split(",")):
        assert verdict(dfa, 0, [token[word] for word in answer]) == end


@hypothesis_settings
@given(tasks(), st.integers(0, 2**32))
def test_one_trace_a_mode_is_accepted(task, seed):
    """It is written anew from the prompt's tokens alone. A plain grader tells the outcome of every wrong token."""
    problems = task.sample(np.random.default_rng(seed), 2)
    prompts, dfa = task.prompts(problems), task.dfa(problems)
    for (index, mode), i in itertools.product(enumerate(task.mode_names), range(2)):
        sheet, trace = Sheet(task, prompts[i]), task.traces(problems[i : i + 1], np.array([index]))[0]
        right = sheet.right_trace(mode)
        assert trace[: len(right)].tolist() == right and (trace[len(right) :] == PAD).all()
        assert verdict(dfa, i, right) == "accept" and len(right) <= len(trace) == task.trace_len
    stars.assert_graded(dfa, 0, task.vocab_size, Sheet(task, prompts[0]).grade)


@hypothesis_settings
@given(tasks(), st.integers(0, 2**32), st.data())
def test_answer_grading_sees_the_last_token_only(task, seed, data):
    problems = task.sample(np.random.default_rng(seed), 1)
    sheet, dfa = Sheet(task, task.prompts(problems)[0]), task.answer_dfa(problems)
    answer = sheet.reduce(sheet.value + sum(const for _, const in sheet.way()))
    inner = st.integers(0, task.vocab_size - 1).filter(lambda t: t != task.eos)
    body, mode = data.draw(st.lists(inner, max_size=6)), task.mode_token(task.mode_names[0])
    assert verdict(dfa, 0, [mode, *body]) == "live"
    expected = "accept" if body[-1:] == [answer] else "wrong_answer"
    assert verdict(dfa, 0, [mode, *body, task.eos]) == expected
    assert verdict(dfa, 0, [task.eos]) == verdict(dfa, 0, [task.sep]) == "malformed"
    assert verdict(dfa, 0, sheet.right_trace(task.mode_names[0])) == "accept"


def test_problems_are_uniform():
    """Constants, premises and the place of the right chain are uniform."""
    problems = streams.problems(TINY, 0, "train", 4000)
    for values, low in ((problems.constant.ravel(), 1), (problems.value, 0)):
        counts = np.bincount(values, minlength=7)[low:]
        assert all(abs(z_score(count, len(values), 1 / (7 - low))) < Z for count in counts)
    plain = Arith(21, 2, 10, None).sample(np.random.default_rng(0), 500)
    assert (plain.constant.min(), plain.constant.max(), plain.value.min(), plain.value.max()) == (1, 20, 1, 20)


@hypothesis_settings
@given(tasks(), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 1.0]), st.integers(0, 99))
def test_walks_follow_and_add_up(task, stop, informed, seed):
    """Each walk is read with its graph in hand: right steps, right sums, ends where it must."""
    seq_len = 3 * (task.prompt_len + task.trace_len)
    try:
        inputs, targets = walks.walk_batch(task, stop, seq_len, seed, 0, 4, informed)
    except ValueError:  # too few graphs for the stream
        assume(False)
    for row, expected in zip(inputs.tolist(), targets, strict=True):
        cuts = np.flatnonzero(np.array(row) == task.eos) + 1
        for start, end in itertools.pairwise([task.graph_len, *cuts]):
            premise, value, target, sep, mode, *body, _ = query = row[start:end]
            assert (expected[start : start + 3] == PAD).all() and (expected[start + 3 : end - 1] == query[4:]).all()
            assert value >= task.labels
            name = next(name for name in task.mode_names if mode == task.mode_token(name))
            forward, width = name == "FWD", 2 if name == "CODE" else 3  # tokens of a step
            # Back at a root, whose value the walk adds at the end.
            home = not forward and (min(body[-2:]) >= task.labels if name == "CODE" else len(body) % 3 == 0)
            steps = body[2:] if forward else body[1 : len(body) - 2 * home]
            last = steps[-width] if steps else body[0]
            ends = (premise, value, last) if forward else (premise if home else last, value, target)
            sheet = Sheet(task, [*row[: task.graph_len], *ends, sep])
            right, came_from = sheet.right_trace(name), sheet.came_from
            assert [mode, *body] == (right[:-1] if forward or home else right[:-3])
            if forward:
                assert not informed or target == last
            else:
                assert home == (last not in came_from and premise not in came_from)
            assert stop or last not in ([parent for parent, _ in came_from.values()] if forward else came_from)


def test_the_audit_passes_and_flags_arithmetic():
    task = Arith(12, 2, 3, 11, modes="FWD,REV,RAT")
    rationale, published = Mixture("RAT", 1.0, 0.0, False, "data", False), replace(task, branch_order="published")
    assert not names_flagged(task, streams.sft_examples(task, PLAIN, 0, 400), 0.5)
    assert not names_flagged(task, streams.sft_examples(task, rationale, 0, 400), 1.0, mode_name="RAT")
    flagged = names_flagged(published, streams.sft_examples(published, PLAIN, 0, 400), 0.5)
    assert flagged >= {"first edge position", "linear probe"}


def test_arith_names_the_key():
    right = {"labels": 12, "branches": 2, "length": 3, "modulus": 11}
    keys = "branches=0 length=0 labels=6 modulus=1 modulus=12 modulus=1000003 branch_order=sorted"
    assert_refused(Arith, right, f"{keys} modes=FWD,SEARCH modes=FWD,FWD modes=REV")
