"""Every stage of the reproduction in order; finished ones are skipped, unfinished ones resumed."""

import time

from experiments.claims import claims
from experiments.figures import figures
from experiments.study import study
from experiments.summary import summary
from minifork import runs
from minifork.schema import Config


def reproduce(config: Config) -> None:
    """Run the config's study for `reproduce.pairs` pairs of seeds, evaluate, draw, and say which claims hold.

    Raises ValueError naming a stage that failed.
    """
    started = time.monotonic()
    for stage in (study, figures, claims, summary):
        stage(config)
    minutes = (time.monotonic() - started) / 60
    print(f"reproduced in {minutes:.1f} minutes; figures in {runs.task_folder(config) / 'figures'}", flush=True)
