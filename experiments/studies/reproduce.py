"""Every stage of the reproduction in order; finished ones are skipped, unfinished ones resumed."""

from experiments.figures import figures
from experiments.studies.steps import evaluate_and_check, make_runs, print_minutes
from experiments.summary import write_summary
from experiments.verdicts import claims
from minifork import runs
from minifork.schema import Config


def run_study(config: Config) -> None:
    """Make and evaluate the runs of the config's study; raises ValueError naming a run that failed."""
    make_runs(config, config.reproduce.study)
    evaluate_and_check(config)


def reproduce(config: Config) -> None:
    """Run the config's study for `reproduce.pairs` pairs of seeds, evaluate, draw, and print which claims hold.

    Raises ValueError naming a stage that failed.
    """
    with print_minutes(f"reproduced, figures in {runs.task_folder(config) / 'figures'}"):
        for stage in (run_study, figures, claims, write_summary):
            stage(config)
