"""All right traces of a problem, listed from its automaton."""

import numpy as np

from data_gen.task import PAD
from data_gen.verifier import DFA


def accepted_traces(dfa: DFA, longest: int, limit: int) -> np.ndarray:
    """int64[n, R, longest]: every accepted trace of at most ``longest`` tokens, PAD after its end and in unused rows.

    The traces of a problem come in the order of their length, then of their tokens. Raises ValueError naming a problem
    that has more than ``limit``.
    """
    count, fewest = len(dfa.next), dfa.shortest()
    fewest = np.where(fewest < dfa.next.shape[1], fewest, longest + 1)  # from there nothing is accepted
    problem, state, prefix = np.arange(count), np.zeros(count, dtype=np.int64), np.zeros((count, 0), dtype=np.int64)
    problems, traces = [], []
    for length in range(1, longest + 1):
        after = dfa.next[problem, state].astype(np.int64)
        row, token = (fewest[problem[:, None], after] + length <= longest).nonzero()
        problem, state, prefix = problem[row], after[row, token], np.column_stack([prefix[row], token])
        ended = state == dfa.first_outcome
        problems.append(problem[ended])
        traces.append(np.pad(prefix[ended], ((0, 0), (0, longest - length)), constant_values=PAD))
        listed = np.bincount(np.concatenate([*problems, problem[~ended]]), minlength=count)
        if listed.max(initial=0) > limit:
            raise ValueError(f"problem {listed.argmax()} has more than {limit} right traces")
        problem, state, prefix = problem[~ended], state[~ended], prefix[~ended]
    owner = np.concatenate(problems)
    order = np.argsort(owner, kind="stable")
    rank = np.arange(len(order)) - np.searchsorted(owner[order], owner[order])
    out = np.full((count, rank.max(initial=-1) + 1, longest), PAD)
    out[owner[order], rank] = np.concatenate(traces)[order]
    return out
