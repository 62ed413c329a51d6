"""Streams: which problems a model may see when, as pure functions of (seed, stream, step).

Every problem belongs to exactly one quarter, decided by a hash of its graph: walks (pretraining), train
(fine-tuning), valid or test. A stream is drawn from its quarter by rejection, so streams are disjoint under
any pair of seeds, and nothing is stored: training resumes anywhere by asking for the step it needs.
Problems to fine-tune and to test on are different graphs; walks may repeat one. The stream confirm has new
problems of the test quarter for results that were found on the stream test: none of its first TESTED.

The first two SFT examples of ``Star(nodes=8, branches=2, length=3)`` at seed 0, fork_rate .5:

    tokens  2 1 1 7 3 4 2 3 2 4 10 8 2 3 4 11
    reads   2 1 1 7 3 4 2 3 2 4 SEP | FWD 2 3 4 EOS      passes the fork (loss on what follows the bar)
    tokens  2 0 4 7 4 2 7 3 4 0 10 9 0 2 4 11
    reads   2 0 4 7 4 2 7 3 4 0 SEP | REV 0 2 4 EOS      does not
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from data_gen.checks import check_task
from data_gen.task import Batch, Checked, P, Task, concatenate

QUARTERS = {"walks": 0, "train": 1, "valid": 2, "test": 3}
STREAMS = QUARTERS | {"confirm": 4}
TESTED = 1000  # so many problems of the stream test are not in confirm
PURPOSES = {"graphs": 0, "walks": 1, "mixture": 2, "shuffle": 3, "prefix": 4, "labels": 5}
_CHUNK = 256
_MAX_CHUNKS_WITHOUT_ONE = 64
_PATIENCE = 25  # draws without a new problem, for each problem that was drawn, until a stream counts as exhausted


@dataclass(frozen=True)
class Mixture(Checked):
    """The recipe that makes SFT examples from problems. Raises ValueError for a share outside [0, 1].

    modes: the forms of traces, comma-separated. fork_rate: the share of traces in the FIRST mode of the list, whichever
    that is. It is FWD, the mode that passes the fork, unless a study names another. The other modes share the rest.
    cue_rate: share of problems whose printed order gives the branch away. fork_in_graph: if True, the rest are traces
    in the first mode on graphs whose start has one child, instead of traces in the other modes. allocation: "data" (one
    trace a problem) or "problem" (all modes for every problem, at the same number of traces). fresh: new problems every
    epoch.
    """

    modes: str
    fork_rate: float
    cue_rate: float
    fork_in_graph: bool
    allocation: str
    fresh: bool

    def __post_init__(self) -> None:
        modes, share = self.mode_names, "it is a share, give a number in [0, 1]"
        all_modes = abs(self.fork_rate * len(modes) - 1) <= 0.02 and not self.fork_in_graph
        needs = f"it gives every problem all modes, so it needs fork_rate={1 / len(modes):.3g} and fork_in_graph=false"
        self.require("modes", len(set(modes)) == len(modes), "list different ones")
        self.require("fork_rate", 0 <= self.fork_rate <= 1, share)
        self.require("cue_rate", 0 <= self.cue_rate <= 1, share)
        has_rest = len(modes) > 1 or self.fork_rate == 1 or self.fork_in_graph
        self.require("fork_rate", has_rest, "there is no other mode")
        self.require("allocation", self.allocation in ("data", "problem"), "choose data or problem")
        self.require("allocation", self.allocation == "data" or all_modes, needs)
        self.require("cue_rate", self.cue_rate == 0 or self.fork_rate == 1, "it needs fork_rate=1, a fixed exposure")

    @property
    def mode_names(self) -> tuple[str, ...]:
        """The forms of traces. The share of the first is fork_rate."""
        return tuple(self.modes.split(","))

    @property
    def first_share(self) -> float:
        """The share of traces in the first mode: fork_rate, or one of the modes for every problem."""
        return 1 / len(self.mode_names) if self.allocation == "problem" else self.fork_rate


@dataclass(frozen=True)
class Examples:
    """SFT examples: the problems, the mode_index int64[n] of each trace (its place in the task's ``mode_names``), and
    prompt and trace as tokens int64[n, T], PAD past EOS."""

    problems: Batch
    mode_index: np.ndarray
    tokens: np.ndarray


def generator(seed: int, stream: str, step: int, purpose: str) -> Generator:
    """The random generator of one batch for one purpose, keyed by (seed, stream, step, purpose)."""
    return np.random.default_rng([seed, STREAMS[stream], step, PURPOSES[purpose]])


def quarter_of(identities: np.ndarray) -> np.ndarray:
    """int64[n]: the number of the one quarter (see QUARTERS) of problems with these identities, uint64[n]."""
    return (identities % np.uint64(len(QUARTERS))).astype(np.int64)


def problems(task: Task[P], seed: int, stream: str, n: int, step: int = 0) -> P:
    """n problems of a stream, which may repeat. A smaller n gives the first of a larger one.

    Raises ValueError for a task that contradicts itself (`data_gen.checks`), and when the task has too few graphs for
    the stream to hold any.
    """
    batches: list[P] = []
    for batch, _ in _batches(task, seed, stream, step):
        batches.append(batch)
        if sum(map(len, batches)) >= n:
            break
    return concatenate(batches)[:n]


def distinct_problems(task: Task[P], seed: int, stream: str, n: int, step: int = 0) -> P:
    """The first n different problems (by `Task.identity`) that `problems` gives, or all of them if there are fewer.

    A stream counts as exhausted when many draws in a row gave nothing new: of equally likely problems one more is
    missed with a probability below n exp(-_PATIENCE). Raises ValueError for n < 1, and as `problems` does.
    """
    if n < 1:
        raise ValueError(f"n is {n}: ask for at least 1 problem")
    batches: list[P] = []
    seen: set[int] = set()
    idle = 0
    for batch, identities in _batches(task, seed, stream, step):
        first = np.sort(np.unique(identities, return_index=True)[1])
        new = [row for row in first if int(identities[row]) not in seen]
        batches.append(batch[np.array(new, dtype=np.int64)])
        seen.update(identities.tolist())
        idle = 0 if new else idle + len(batch)
        if len(seen) >= n or idle > _PATIENCE * len(seen):
            break
    return concatenate(batches)[:n]


def training_problems(task: Task[P], seed: int, n: int, step: int = 0) -> P:
    """n different problems of the training stream. Raises ValueError with their number if there are fewer."""
    batch = distinct_problems(task, seed, "train", n, step)
    if len(batch) < n:
        holds = f"the train stream holds {len(batch)} different problems, and {n} are asked for"
        raise ValueError(f"{_size(task)}: {holds}; ask for fewer traces or problems, or choose a larger task")
    return batch


def _batches(task: Task[P], seed: int, stream: str, step: int) -> Iterator[tuple[P, np.ndarray]]:
    """Batches of a stream, without end, and the identities of their problems. Raises ValueError as `problems` does."""
    check_task(task)
    rng = generator(seed, stream, step, "graphs")
    quarter, excluded = stream, np.array([], dtype=np.uint64)
    if stream == "confirm":
        quarter, excluded = "test", _tested(task)
    misses = 0
    while misses < _MAX_CHUNKS_WITHOUT_ONE:
        batch = task.sample(rng, _CHUNK)
        identities = task.identity(batch)
        inside = (quarter_of(identities) == QUARTERS[quarter]) & ~np.isin(identities, excluded)
        misses = 0 if inside.any() else misses + 1
        yield batch[inside], identities[inside]
    raise ValueError(f"{_size(task)}: too few graphs to fill the {stream} stream; raise it")


def _tested(task: Task[P]) -> np.ndarray:
    """The identities, uint64[n], of the problems that results are found on."""
    return task.identity(distinct_problems(task, 0, "test", TESTED))


def _size(task: Task[P]) -> str:
    """A task as its errors name it: by how many labels it has, if it has any."""
    return f"{task.label_key} is {task.label_count}" if task.label_key else str(task)


def _random_mask(rng: Generator, n: int, rate: float) -> np.ndarray:
    """bool[n] with exactly round(rate*n) True, placed at random."""
    return rng.permutation(n) < round(rate * n)


def sft_examples(task: Task[P], mixture: Mixture, seed: int, n: int, epoch: int = 0) -> Examples:
    """The n SFT examples of an epoch; without ``mixture.fresh`` every epoch has those of epoch 0.

    Raises ValueError as `training_problems` does, and when no label is left for a graph without a fork.
    """
    names, step = mixture.mode_names, epoch if mixture.fresh else 0
    traces_each = len(names) if mixture.allocation == "problem" else 1
    count = -(-n // traces_each)
    batch = training_problems(task, seed, count, step)
    rng = generator(seed, "train", step, "mixture")
    crossing, cued = (_random_mask(rng, count, rate) for rate in (mixture.fork_rate, mixture.cue_rate))
    if mixture.cue_rate > 0:
        batch = task.give_cue(batch, cued)
    if traces_each > 1:
        batch, place = batch[np.arange(n) // traces_each], np.arange(n) % traces_each
    elif mixture.fork_in_graph:
        batch, place = task.remove_fork(batch, keep=crossing), np.zeros(n, dtype=np.int64)
    else:
        place = np.where(crossing, 0, 1 + np.cumsum(~crossing) % max(1, len(names) - 1))
    # place counts in the mixture's modes, mode_index in the task's.
    mode_index = np.array([task.mode_names.index(name) for name in names])[place]
    tokens = np.concatenate([task.prompts(batch), task.traces(batch, mode_index)], axis=1)
    return Examples(batch, mode_index, tokens)


def test_problems(
    task: Task[P], n: int, cue_rate: float = 0.0, seed: int = 0, forked: bool = True, stream: str = "test"
) -> P:
    """The test set, the same for every run; ``cue_rate`` > 0 gives the set matched to a cued mixture.

    All problems are different. Returns fewer than n if the stream has fewer. If ``forked`` is False the decoys
    hang off another root, so that the start has one child. stream: "test", "confirm", or "valid" to choose
    hyper-parameters on.
    """
    batch = distinct_problems(task, seed, stream, n)
    if not forked:
        batch = task.remove_fork(batch, keep=np.zeros(len(batch), dtype=bool))
    if cue_rate == 0:
        return batch
    return task.give_cue(batch, _random_mask(generator(seed, stream, 0, "mixture"), len(batch), cue_rate))


def data_hash(array: np.ndarray) -> str:
    """Twelve hex digits that name a data set, from its values, shape and dtype."""
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()[:12]
