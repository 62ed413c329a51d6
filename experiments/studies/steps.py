"""The steps that studies share: make the runs that are missing, evaluate them, say how long it took."""

import contextlib
import time
from collections.abc import Callable, Iterator

from experiments import executors, study
from experiments.study import Plan
from minifork import runs
from minifork.evaluate import evaluate
from minifork.runs import Checkpoint
from minifork.schema import Config


def make_runs(config: Config, name: str) -> list[Plan]:
    """Make what is missing of a study for `reproduce.pairs` pairs of seeds; raises ValueError naming runs that fail."""
    plans = study.plans(config, study.read(name), range(config.reproduce.pairs))
    executors.run(plans)
    return plans


def evaluate_and_check(config: Config, wanted: Callable[[Checkpoint], bool] = lambda _: True) -> None:
    """Measure what is missing of the wanted checkpoints; raises ValueError when another engine disagrees."""
    if evaluate(config, wanted):
        raise ValueError(f"{runs.task_folder(config)}: the engines disagree (see above)")


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how many minutes the block took."""
    started = time.monotonic()
    yield
    print(f"{what}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
