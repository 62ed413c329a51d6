"""Streams: which problems a model may see when, as pure functions of (seed, stream, step).

Every problem belongs to exactly one stream, decided by a hash of its graph: walks (pretraining), train
(fine-tuning), valid or test, a quarter of all graphs each. A stream is drawn by rejection, so streams are
disjoint under any pair of seeds, and nothing is stored: training resumes anywhere by asking for the step
it needs.

The first two SFT examples of ``Star(nodes=8, branches=2, length=3)`` at seed 0, fork_rate .5:

    tokens  2 1 1 7 3 4 2 3 2 4 10 8 2 3 4 11
    reads   2 1 1 7 3 4 2 3 2 4 SEP | FWD 2 3 4 EOS      passes the fork (loss on what follows the bar)
    tokens  2 0 4 7 4 2 7 3 4 0 10 9 0 2 4 11
    reads   2 0 4 7 4 2 7 3 4 0 SEP | REV 0 2 4 EOS      does not
"""

import hashlib
from dataclasses import dataclass

import numpy as np

from data_gen import star
from data_gen.star import Problems, Star

STREAMS = {"walks": 0, "train": 1, "valid": 2, "test": 3}
PURPOSES = {"graphs": 0, "walks": 1, "mixture": 2, "shuffle": 3}
_CHUNK = 256
_MAX_CHUNKS_WITHOUT_ONE = 64


@dataclass(frozen=True)
class Mixture:
    """How SFT examples are made from problems. Raises ValueError for a share outside [0, 1].

    fork_rate: share of traces that pass the fork; cue_rate: share of problems whose printed order gives
    the branch away; fork_in_graph: what the other traces are, REV traces (False) or FWD traces on
    graphs whose start has one child (True); allocation: "data" (one trace a problem) or "problem" (both
    modes for every problem, at the same number of traces); fresh: new problems every epoch.
    """

    fork_rate: float
    cue_rate: float
    fork_in_graph: bool
    allocation: str
    fresh: bool

    def __post_init__(self) -> None:
        for name in ("fork_rate", "cue_rate"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"sft.{name} is {value}: it is a share, give a number in [0, 1]")
        if self.allocation not in ("data", "problem"):
            raise ValueError(f"sft.allocation is {self.allocation!r}: choose data or problem")
        if self.allocation == "problem" and (self.fork_rate != 0.5 or self.fork_in_graph):
            raise ValueError(
                "sft.allocation=problem gives every problem both modes: it needs "
                "sft.fork_rate=0.5 and sft.fork_in_graph=false"
            )
        if self.cue_rate > 0 and self.fork_rate < 1:
            raise ValueError("sft.cue_rate needs sft.fork_rate=1: the cue is studied at fixed exposure")


@dataclass(frozen=True)
class Examples:
    """SFT examples: the problems, bool[n] ``forward`` (the mode of each trace), int64[n, T] tokens."""

    problems: Problems
    forward: np.ndarray
    tokens: np.ndarray


def generator(seed: int, stream: str, step: int, purpose: str) -> np.random.Generator:
    """The random generator of one batch for one purpose, keyed by (seed, stream, step, purpose)."""
    return np.random.default_rng([seed, STREAMS[stream], step, PURPOSES[purpose]])


def stream_of(task: Star, problems: Problems) -> np.ndarray:
    """int64[n]: the number of the one stream (see STREAMS) each problem belongs to."""
    return (star.identity(task, problems) % np.uint64(len(STREAMS))).astype(np.int64)


def problems(task: Star, seed: int, stream: str, n: int, step: int = 0) -> Problems:
    """n problems of a stream; a smaller n gives the first of a larger one.

    Raises ValueError for n < 1, and when the task has too few graphs for the stream to hold any.
    """
    if n < 1:
        raise ValueError(f"n is {n}: ask for at least 1 problem")
    rng = generator(seed, stream, step, "graphs")
    kept, count, misses = [], 0, 0
    while count < n:
        batch = star.sample(task, rng, _CHUNK)
        batch = batch[stream_of(task, batch) == STREAMS[stream]]
        kept.append(batch)
        count += len(batch)
        misses = 0 if len(batch) else misses + 1
        if misses == _MAX_CHUNKS_WITHOUT_ONE:
            raise ValueError(f"data.nodes is {task.nodes}: too few graphs to fill the {stream} stream; raise it")
    return _concatenate(kept)[slice(n)]


def _concatenate(parts: list[Problems]) -> Problems:
    return Problems(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("labels", "order", "forked")))


def _share(rng: np.random.Generator, n: int, rate: float) -> np.ndarray:
    """bool[n] with exactly round(rate*n) True, placed at random."""
    return rng.permutation(n) < round(rate * n)


def sft_examples(task: Star, mixture: Mixture, seed: int, n: int, epoch: int = 0) -> Examples:
    """The n SFT examples of an epoch; without ``mixture.fresh`` every epoch has those of epoch 0."""
    step = epoch if mixture.fresh else 0
    count = (n + 1) // 2 if mixture.allocation == "problem" else n
    drawn = problems(task, seed, "train", count, step)
    rng = generator(seed, "train", step, "mixture")
    crossing = _share(rng, count, mixture.fork_rate)
    drawn = star.give_cue(task, drawn, _share(rng, count, mixture.cue_rate))
    forward = crossing
    if mixture.fork_in_graph:
        drawn, forward = star.hang_off(task, drawn, crossing), np.ones(count, dtype=bool)
    if mixture.allocation == "problem":
        drawn = drawn[np.repeat(np.arange(count), 2)[:n]]
        forward = np.arange(n) % 2 == 0
    tokens = np.concatenate([star.prompts(task, drawn), star.traces(task, drawn, forward)], axis=1)
    return Examples(drawn, forward, tokens)


def test_problems(task: Star, n: int, cue_rate: float = 0.0, seed: int = 0) -> Problems:
    """The test set, the same for every run; ``cue_rate`` > 0 gives the set matched to a cued mixture."""
    drawn = problems(task, seed, "test", n)
    return star.give_cue(task, drawn, _share(generator(seed, "test", 0, "mixture"), n, cue_rate))


def data_hash(*arrays: np.ndarray) -> str:
    """Twelve hex digits that name a data set."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:12]
