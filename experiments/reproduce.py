"""Every stage of the reproduction in order; finished ones are skipped, unfinished ones resumed."""

import time

from experiments import sweep
from experiments.summary import summary
from minifork import runs
from minifork.schema import Config


def reproduce(config: Config) -> None:
    """Run the config's sweep for `reproduce.pairs` pairs of seeds, evaluate, draw, and say which claims held.

    Raises ValueError naming a stage that failed.
    """
    started = time.monotonic()
    source = sweep.start(config)
    sweep.sweep(config, source, sweep.read(config, range(config.reproduce.pairs)))
    for stage in ("eval", "figures", "claims"):
        sweep.run(source, stage)
    minutes = (time.monotonic() - started) / 60
    summary(config)
    print(f"reproduced in {minutes:.1f} minutes; figures in {runs.task_folder(config) / 'figures'}", flush=True)
