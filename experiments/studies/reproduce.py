"""Every stage of the reproduction in order; finished ones are skipped, unfinished ones resumed."""

import time

from experiments import executors, study
from experiments.claims import claims
from experiments.figures import figures
from experiments.summary import summary
from minifork import runs
from minifork.evaluate import evaluate
from minifork.schema import Config


def run_study(config: Config) -> None:
    """Make and evaluate the runs of the config's study; raises ValueError naming a run that failed."""
    plans = study.plans(config, study.read(config.reproduce.study), range(config.reproduce.pairs))
    executors.run(plans)
    if evaluate(config):
        raise ValueError(f"{runs.task_folder(config)}: the engines disagree (see above)")


def reproduce(config: Config) -> None:
    """Run the config's study for `reproduce.pairs` pairs of seeds, evaluate, draw, and say which claims hold.

    Raises ValueError naming a stage that failed.
    """
    started = time.monotonic()
    for stage in (run_study, figures, claims, summary):
        stage(config)
    minutes = (time.monotonic() - started) / 60
    print(f"reproduced in {minutes:.1f} minutes; figures in {runs.task_folder(config) / 'figures'}", flush=True)
