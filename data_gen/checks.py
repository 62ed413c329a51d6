"""First use: does a task contradict itself?

When a task's first problems are drawn (`data_gen.streams.problems`), a few of them are printed in two ways. Identity,
traces and automata must not depend on the print. Every trace must be accepted, must fit and must use tokens of the
vocabulary. The fork, where one is declared, must lie on a right trace.

The ValueError of a `data_gen.star.Star` whose identity is a hash of the printed order:

    Star: identity(problems) changes when reprint(problems, rng) prints a problem anew, so that one problem could be
    trained and tested on; an example problem: 2 1 1 7 3 4 2 3 2 4 SEP
"""

from functools import lru_cache

import numpy as np

from data_gen.task import PAD, Batch, MissingMemberError, P, Task
from data_gen.verifier import DFA

PROBLEMS = 8  # drawn for the checks, apart from all streams


@lru_cache
def check_task(task: Task[Batch]) -> None:
    """Raise ValueError naming the class, a member and an example problem where a task lacks or contradicts one."""
    rng = np.random.default_rng(0)
    problems, same = task.sample(rng, PROBLEMS), task.sample(np.random.default_rng(0), PROBLEMS)
    try:
        again = task.reprint(problems, rng)
        keyed = (task.prompts(problems) == task.prompts(same)).all()
        _require(keyed, task, problems, "sample(rng, n) gives other problems for the same rng")
        _check_prompts(task, problems, again)
        traces = _check_traces(task, problems, again)
        dfa = _check_automata(task, problems, again, traces)
        _check_fork(task, problems, traces, dfa)
        walks = task.walks(problems, 0.5, 0.0, rng, 1)
        fits = walks.ndim == 3 and walks.shape[:2] == (PROBLEMS, 1)
        _require(fits, task, problems, f"walks(problems, ...) has the shape {walks.shape}, not [n, count, ...]")
        _require_vocabulary(walks, PAD, task, problems, "walks(problems, ...)")
    except MissingMemberError as error:
        raise ValueError(f"{error}; {_example(task, problems, 0)}") from None


def _require(holds: bool | np.ndarray, task: Task[P], problems: P, what: str) -> None:
    """Raise ValueError unless ``holds``, a bool or bool[n, ...], naming the first problem for which it does not."""
    right = np.broadcast_to(holds, np.shape(holds) or PROBLEMS).reshape(PROBLEMS, -1).all(axis=1)
    if not right.all():
        raise ValueError(f"{type(task).__name__}: {what}; {_example(task, problems, int(np.argmin(right)))}")


def _example(task: Task[P], problems: P, row: int) -> str:
    """A problem in words, or as the arrays that it is where the task cannot print it."""
    try:
        return f"an example problem: {task.decode(task.prompts(problems)[row])}"
    except (MissingMemberError, IndexError):
        return f"an example problem: {problems[row : row + 1]}"


def _require_vocabulary(tokens: np.ndarray, least: int, task: Task[P], problems: P, what: str) -> None:
    whole = tokens.dtype == np.int64
    _require(whole, task, problems, f"{what} gives {tokens.dtype}, not int64")
    inside = (tokens >= least) & (tokens < task.vocab_size)
    _require(inside, task, problems, f"{what} gives tokens outside the vocabulary of {task.vocab_size}")


def _check_prompts(task: Task[P], problems: P, again: P) -> None:
    for batch in (problems, again):
        prompts, shape = task.prompts(batch), (PROBLEMS, task.prompt_len)
        what = f"prompts(problems) has the shape {prompts.shape}, not [n, prompt_len] = {shape}"
        _require(prompts.shape == shape, task, problems, what)
        _require_vocabulary(prompts, 0, task, batch, "prompts(problems)")
    identity = np.asarray(task.identity(problems))
    what = f"identity(problems) is {identity.dtype}{identity.shape}, not uint64[n]"
    _require(identity.dtype == np.uint64 and identity.shape == (PROBLEMS,), task, problems, what)
    what = "identity(problems) changes when reprint(problems, rng) prints a problem anew, so that one problem could be"
    _require(identity == task.identity(again), task, problems, f"{what} trained and tested on")


def _check_traces(task: Task[P], problems: P, again: P) -> np.ndarray:
    """The traces int64[modes, n, trace_len]."""
    every = []
    for index, name in enumerate(task.mode_names):
        mode = np.full(PROBLEMS, index)
        traces, what = task.traces(problems, mode), f"traces(problems, mode) in mode {name}"
        fits = traces.shape == (PROBLEMS, task.trace_len)
        _require(fits, task, problems, f"{what} has the shape {traces.shape}, but trace_len is {task.trace_len}")
        _require_vocabulary(traces, PAD, task, problems, what)
        _require(traces[:, 0] == task.mode_token(name), task, problems, f"{what} does not begin with mode_token(mode)")
        ended = np.cumsum(traces == task.eos, axis=1)
        over = (ended > 0) & (traces != task.eos)
        ends = (ended[:, -1:] == 1) & ((traces == PAD) == over)
        _require(ends, task, problems, f"{what} does not end with eos once, and PAD after it")
        same = traces == task.traces(again, mode)
        _require(same, task, problems, f"{what} changes when reprint(problems, rng) prints a problem anew")
        every.append(traces)
    return np.stack(every)


def _check_automata(task: Task[P], problems: P, again: P, traces: np.ndarray) -> DFA:
    """The automata of the problems."""
    dfa, anew = task.dfa(problems), task.dfa(again)
    fits = dfa.next.shape[::2] == (PROBLEMS, task.vocab_size)
    _require(fits, task, problems, f"dfa(problems) has tables {dfa.next.shape}, not [n, states, vocab_size]")
    for name, tokens in zip(task.mode_names, traces, strict=True):
        accepted = _states(dfa, tokens) == dfa.first_outcome
        _require(accepted, task, problems, f"dfa(problems) does not accept the trace in mode {name}")
    same = np.array([_equivalent(dfa, anew, row) for row in range(PROBLEMS)])
    _require(same, task, problems, "dfa(problems) changes when reprint(problems, rng) prints a problem anew")
    return dfa


def _states(dfa: DFA, tokens: np.ndarray) -> np.ndarray:
    """int64[n]: the state of every problem after its tokens int64[n, T], PAD past their end."""
    rows, state = np.arange(len(tokens)), np.zeros(len(tokens), dtype=np.int64)
    for token in tokens.T:
        state = np.where(token == PAD, state, dfa.next[rows, state, token])
    return state


def _equivalent(one: DFA, two: DFA, row: int) -> bool:
    """Whether two automata of a problem end every sequence of tokens in the same outcome."""
    if np.array_equal(one.next[row], two.next[row]):
        return True
    seen = np.zeros((one.next.shape[1], two.next.shape[1]), dtype=bool)
    left, right = np.zeros((2, 1), dtype=np.int64)
    while len(left):
        seen[left, right] = True
        outcomes = np.maximum(left - one.first_outcome, -1), np.maximum(right - two.first_outcome, -1)
        if not np.array_equal(*outcomes):
            return False
        reached = np.zeros_like(seen)
        reached[one.next[row, left], two.next[row, right]] = True
        left, right = np.nonzero(reached & ~seen)
    return True


def _check_fork(task: Task[P], problems: P, traces: np.ndarray, dfa: DFA) -> None:
    prefix, children = task.fork_prefix(problems), task.children(problems)
    if prefix is None or children is None:
        both = prefix is None and children is None
        _require(both, task, problems, "of fork_prefix(problems) and children(problems) it gives only one")
        return
    for name, tokens in (("fork_prefix(problems)", prefix), ("children(problems)", children)):
        fits = tokens.ndim == 2 and len(tokens) == PROBLEMS
        _require(fits, task, problems, f"{name} has the shape {tokens.shape}, not [n, ...]")
        _require_vocabulary(tokens, PAD, task, problems, name)
    right = np.concatenate([prefix, children[:, :1]], axis=1)
    on_trace = (traces[:, :, : right.shape[1]] == right).all(axis=2).any(axis=0)
    what = "no trace begins with fork_prefix(problems) and column 0 of children(problems)"
    _require(on_trace, task, problems, what)
    hopeless = dfa.shortest() > dfa.next.shape[1]
    for child in children.T[1:]:
        state = _states(dfa, np.concatenate([prefix, child[:, None]], axis=1))
        wrong = (child == PAD) | hopeless[np.arange(PROBLEMS), state]
        _require(wrong, task, problems, "dfa(problems) can still accept after a wrong one of children(problems)")
