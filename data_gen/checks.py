"""Checks at first use: does a task contradict itself?

`data_gen.streams.problems` calls `check_task` before it draws the first problems of a task. It prints a few problems in
two ways. Identity and automata must not depend on the print. Every trace must be accepted, must fit and must use tokens
of the vocabulary. The fork, if one is declared, must lie on a right trace.

The ValueError of a `data_gen.star.Star` whose identity is a hash of the printed order:

    Star: identity(problems) changes when reprint(problems, rng) prints a problem anew, so that one problem could be
    trained and tested on; an example problem: 2 1 1 7 3 4 2 3 2 4 SEP
"""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from data_gen.task import PAD, Batch, Task
from data_gen.verifier import DFA

PROBLEMS = 8  # drawn for the checks, apart from all streams
Requirement = tuple[bool | np.ndarray, str]  # True if it holds, a bool or bool[n, ...], and the error if not


@lru_cache
def check_task(task: Task[Batch]) -> None:
    """Raise ValueError naming the class, a member and an example problem if a task contradicts itself."""
    problems = task.sample(np.random.default_rng(0), PROBLEMS)
    for holds, wrong in _requirements(task, problems):
        right = np.broadcast_to(holds, np.shape(holds) or PROBLEMS).reshape(PROBLEMS, -1).all(axis=1)
        if not right.all():
            example = task.decode(task.prompts(problems)[np.argmin(right)])
            raise ValueError(f"{type(task).__name__}: {wrong}; an example problem: {example}")


def _requirements(task: Task[Batch], problems: Batch) -> Iterator[Requirement]:
    """All requirements. Each may rely on those before it."""
    prompts, reprinted = task.prompts(problems), task.reprint(problems, np.random.default_rng(1))
    yield from _tokens(task, "prompts(problems)", prompts, (PROBLEMS, task.prompt_len))
    yield prompts >= 0, "prompts(problems) gives negative tokens"
    resampled = task.prompts(task.sample(np.random.default_rng(0), PROBLEMS))
    yield prompts == resampled, "sample(rng, n) gives other problems for the same rng"
    identity, changes = task.identity(problems), "changes when reprint(problems, rng) prints a problem anew"
    is_hash = identity.dtype == np.uint64 and identity.shape == (PROBLEMS,)
    yield is_hash, f"identity(problems) is {identity.dtype}{list(identity.shape)}, not uint64[n]"
    one_stream = identity == task.identity(reprinted)
    yield one_stream, f"identity(problems) {changes}, so that one problem could be trained and tested on"
    traces = {name: task.traces(problems, np.full(PROBLEMS, index)) for index, name in enumerate(task.mode_names)}
    for name, trace in traces.items():
        yield from _trace(task, name, trace)
    dfa, dfa_reprinted = task.dfa(problems), task.dfa(reprinted)
    has_tables = dfa.next.shape[::2] == (PROBLEMS, task.vocab_size)
    yield has_tables, f"dfa(problems) has tables {list(dfa.next.shape)}, not [n, states, {task.vocab_size}]"
    for name, trace in traces.items():
        yield _ends(dfa, trace) == dfa.first_outcome, f"dfa(problems) does not accept the trace in mode {name}"
        accepted = _ends(dfa_reprinted, trace) == dfa_reprinted.first_outcome
        yield accepted, f"dfa(problems) or traces(problems, mode_index) in mode {name} {changes}"
    yield from _fork(task, problems, [*traces.values()], dfa)
    walks = task.walks(problems, 0.5, 0.0, np.random.default_rng(1), 1)
    yield from _tokens(task, "walks(problems, ...)", walks, (PROBLEMS, 1))


def _tokens(task: Task[Batch], name: str, tokens: np.ndarray, shape: tuple[int, ...]) -> Iterator[Requirement]:
    """Tokens are int64, their shape begins with ``shape``, and the vocabulary has them."""
    fits = tokens.dtype == np.int64 and tokens.shape[: len(shape)] == shape
    yield fits, f"{name} gives {tokens.dtype}{list(tokens.shape)}, not int64{list(shape)}"
    inside = (tokens >= PAD) & (tokens < task.vocab_size)
    yield inside, f"{name} gives tokens outside the vocabulary of {task.vocab_size}"


def _trace(task: Task[Batch], mode_name: str, trace: np.ndarray) -> Iterator[Requirement]:
    """The traces of one mode, int64[n, trace_len], begin with their mode and end with one EOS."""
    name, is_eos = f"traces(problems, mode_index) in mode {mode_name}", trace == task.eos
    yield from _tokens(task, name, trace, (PROBLEMS, task.trace_len))
    if mode_name in task.first_tokens:
        yield trace[:, 0] == task.mode_token(mode_name), f"{name} does not begin with mode_token(mode_name)"
    else:
        yield np.isin(trace[:, 0], [*task.first_tokens.values()]), f"{name} does not begin with one of first_tokens"
    after_eos = np.cumsum(is_eos, axis=1) > is_eos
    ends = is_eos.any(axis=1, keepdims=True) & (after_eos == (trace == PAD))
    yield ends, f"{name} does not end with eos once, and PAD after it"


def _fork(task: Task[Batch], problems: Batch, traces: list[np.ndarray], dfa: DFA) -> Iterator[Requirement]:
    """The fork lies on a right trace, and the wrong branches lead nowhere.

    If traces do not write their mode, their first token is left out, and a wrong branch may be that of a SEARCH.
    """
    prefix, children = task.fork_prefix(problems), task.children(problems)
    unwritten = tuple(task.first_tokens) != task.mode_names
    if prefix is None or children is None:
        yield prefix is children, "of fork_prefix(problems) and children(problems) it gives only one"
    else:
        yield from _tokens(task, "fork_prefix(problems)", prefix, (PROBLEMS,))
        yield from _tokens(task, "children(problems)", children, (PROBLEMS,))
        right = np.column_stack([prefix, children[:, 0]])
        on_trace = [(trace[:, : right.shape[1]] == right)[:, int(unwritten) :].all(axis=1) for trace in traces]
        yield np.any(on_trace, axis=0), "no trace begins with fork_prefix(problems) and column 0 of children(problems)"
    for prefix, children, right in () if unwritten else task.decision_points(problems):
        for child, is_right in zip(children.T, right.T, strict=True):
            steps = dfa.shortest()[np.arange(PROBLEMS), _ends(dfa, np.column_stack([prefix, child]))]
            dead_end = (child == PAD) | (steps > dfa.next.shape[1])
            yield is_right | dead_end, "dfa(problems) can still accept after a wrong one of children(problems)"
            yield dead_end != is_right, "dfa(problems) accepts nothing after a right one of decision_points(problems)"


def _ends(dfa: DFA, tokens: np.ndarray) -> np.ndarray:
    """int64[n]: the state of every problem after its tokens int64[n, T], PAD left out."""
    return np.array([dfa.run(problem, row[row != PAD]) for problem, row in enumerate(tokens)])
