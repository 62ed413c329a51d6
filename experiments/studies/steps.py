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
    plans = study.plans(config, study.read_study(name), range(config.reproduce.pairs))
    for line in mixed_bases(config, plans):
        print(line, flush=True)
    executors.run_plans(plans)
    return plans


def mixed_bases(config: Config, plans: list[Plan]) -> list[str]:
    """Lines that say where bases of two implementations of Muon meet, in a study or in the folder of its runs."""
    kinds = {plan.config.pretrain.muon for plan in plans}
    lines = [f"this study compares bases of pretrain.muon={' and '.join(sorted(kinds))}"] if len(kinds) > 1 else []
    others = [run for run in runs.all_runs(config) if run.config.pretrain.muon not in kinds]
    if others:
        value = others[0].config.pretrain.muon
        lines.append(
            f"{runs.task_folder(config)}: {len(others)} runs are of bases that another Muon made; this study "
            f"makes its own and leaves them out (pretrain.muon={value} goes on with them)"
        )
    return lines


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
