"""Looking at what there is: the resolved config with its comments, and the runs of a task."""

from minifork import config as configs
from minifork import runs
from minifork.schema import Config


def print_config(config: Config) -> None:
    """Print every key with its value, its comment, and where it differs from what ships."""
    print(configs.config_as_yaml(config))


def list_runs(config: Config, filters: list[str], remove: bool) -> None:
    """Print the runs of the config's task that have the values of ``filters``, "key=value" each; then remove them
    if ``remove``.

    Raises ValueError for a key that does not exist, and for a run that a process is working on.
    """
    kinds = configs.keys(Config, task=config.task)
    valid = {key: kinds[key] for stage in runs.STAGES for key in runs.deciding_values(config, stage)} | {"stage": str}
    values = configs.parse_overrides(filters, valid, "the command line")
    chosen = [run for run in runs.all_runs(config) if values.items() <= (run.values | {"stage": run.stage}).items()]
    total = 0.0
    for run in chosen:
        size = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file()) / 1e6
        total += size
        seeds = {name: run.values[name] for name in runs.SEEDS if name in run.values}
        progress = "complete" if run.complete else f"{run.record['step']}/{run.record['steps']}"
        tags = configs.tag_text(seeds | run.tags(config))
        print(f"{run.stage:<5}{progress:>12}{size:>9.1f} MB  {run.folder}  {tags}")
    if remove:
        for run in chosen:
            runs.remove_run(run)
    print(f"{len(chosen)} runs, {total:.1f} MB{' removed' if remove else ''}")
