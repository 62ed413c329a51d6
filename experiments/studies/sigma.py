"""`make sigma`: what sets sigma, the deviation of the branch logit over problems, when a model is fine-tuned on forks.

Formulas with at most three constants are fitted to log sigma of all checkpoints of a grid of runs
(experiments/studies/sigma.yaml). Each is judged on runs that were held out: all seeds and snapshots of one setting at a
time. Beside it stands how much sigma differs between seeds. A table has what else moves sigma: at test forks, which no
label explains (drift), and at training forks, which holds memorisation too.
"""

from operator import itemgetter

import numpy as np

from experiments.estimates import pairs_text, table
from experiments.results import write_result
from experiments.studies.steps import make_and_measure, print_minutes, require_fork
from experiments.study import grouped
from minifork.schema import Config
from minifork.statistics import law as laws
from minifork.training.loop import schedule
from minifork.training.stages import sft_steps

GRID = "grid: "  # the names of the grid's runs begin so
QUANTITIES = ("sigma", "kurtosis", "r", "accuracy")
# The logarithms whose linear functions, with an intercept, are fitted to log sigma.
FORMULAS: dict[str, tuple[str, ...]] = {
    "epochs": ("epochs",),
    "epochs, learning rate": ("epochs", "lr"),
    "epochs, traces": ("epochs", "traces"),
    "steps, learning rate": ("steps", "lr"),
    "sum of learning rates": ("lr_sum",),
    "sum of learning rates, traces": ("lr_sum", "traces"),
    "sum of learning rates, width": ("lr_sum", "width"),
    "sum of learning rates a trace, width": ("lr_sum_a_trace", "width"),
}


def sigma(config: Config) -> None:
    """Run what is missing, evaluate, fit; writes sigma.json and sigma-rows.json (every checkpoint) in runs/<task>/.

    Raises ValueError naming a stage that failed.
    """
    require_fork(config, "sigma")
    with print_minutes("sigma"):
        rows = checkpoint_rows(config)
        grid = [row for row in rows if row["run"].startswith(GRID) and (row["r"] or 0) >= laws.MIN_R and row["sigma"]]
        if not grid:
            raise ValueError(f"no checkpoint of the grid has sigma and an r of {laws.MIN_R} or more: nothing to fit")
        fits = [held_out_fit(grid, name) for name in FORMULAS]
        tables = {"formulas": fits, "epochs": epoch_rows(grid), "movers": mover_rows(rows, config)}
        write_result(config, "sigma", {"pairs": config.reproduce.pairs} | tables)
        write_result(config, "sigma-rows", {"rows": rows})
        print(*map(table, tables.values()), pairs_text(config.reproduce.pairs), sep="\n\n")


def checkpoint_rows(config: Config) -> list[dict]:
    """A row for every checkpoint of the study: its settings, sigma and other statistics at test and training forks."""
    (plans, results), rows = make_and_measure(config, "sigma"), []
    for plan in plans:
        for record in results.records_of(plan):
            row = {"run": plan.name, "pair": plan.config.seed} | settings(plan.config, record["epoch"])
            row |= {name: record["fork"][name] for name in QUANTITIES}
            trained = record["fork_train"] or dict.fromkeys(QUANTITIES)
            rows.append(row | {f"train_{name}": trained[name] for name in QUANTITIES})
    return rows


def settings(config: Config, epoch: int) -> dict[str, float]:
    """What formulas may use of a checkpoint. lr_sum: the learning rate summed over the steps before it."""
    steps, total = sft_steps(config, epoch), sft_steps(config, config.sft.epochs)
    lr_sum = config.sft.lr * sum(schedule(step, total, config.sft.warmup) for step in range(steps))
    return {
        "epochs": epoch,
        "traces": config.sft.traces,
        "lr": config.sft.lr,
        "width": config.model.width,
        "steps": steps,
        "lr_sum": lr_sum,
        "lr_sum_a_trace": lr_sum / config.sft.traces,
    }


def held_out_fit(rows: list[dict], name: str) -> dict:
    """A formula's constants, and the median and .9 quantile of its |log ratio| on settings that were held out.

    rows: checkpoints. Those of one setting (all seeds, all epochs) are held out together.
    """
    features = np.column_stack([np.ones(len(rows)), *(np.log([row[key] for row in rows]) for key in FORMULAS[name])])
    log_sigma, of_run = np.log([row["sigma"] for row in rows]), np.array([row["run"] for row in rows])
    errors = np.zeros(len(rows))
    for run in np.unique(of_run):
        held_out = of_run == run
        constants = np.linalg.lstsq(features[~held_out], log_sigma[~held_out])[0]
        errors[held_out] = np.abs(features[held_out] @ constants - log_sigma[held_out])
    constants = np.linalg.lstsq(features, log_sigma)[0]
    return {
        "formula": name,
        "constants": " ".join(f"{value:.3f}" for value in constants),
        "median": round(float(np.median(errors)), 4),
        "quantile_90": round(float(np.quantile(errors, 0.9)), 4),
    }


def epoch_rows(rows: list[dict]) -> list[dict]:
    """The range of sigma over all runs of the grid, by epoch, and how much pairs of seeds differ.

    between_pairs: the standard deviation of log sigma between pairs of seeds, the median over the settings that were
    run for several; None where none was.
    """
    table_rows = []
    for epoch, of_epoch in sorted(grouped(rows, itemgetter("epochs")).items()):
        by_run = grouped(of_epoch, itemgetter("run")).values()
        spread = [np.std([np.log(row["sigma"]) for row in of_run], ddof=1) for of_run in by_run if len(of_run) > 1]
        sigmas = [row["sigma"] for row in of_epoch]
        names = {"smallest": min(sigmas), "median": np.median(sigmas), "largest": max(sigmas)}
        between = round(float(np.median(spread)), 3) if spread else None
        numbers = {name: round(float(value), 2) for name, value in names.items()}
        table_rows.append({"epochs": epoch, "runs": len(of_epoch)} | numbers | {"between_pairs": between})
    return table_rows


def mover_rows(rows: list[dict], config: Config) -> list[dict]:
    """The means over pairs after the last epoch of the grid's run with the config's settings and of all other runs."""
    plain, table_rows = settings(config, 1), []
    is_plain = [all(row[key] == plain[key] for key in ("traces", "lr", "width")) for row in rows]
    movers = [row for row, default in zip(rows, is_plain, strict=True) if default or not row["run"].startswith(GRID)]
    for name, of_run in grouped(movers, itemgetter("run")).items():
        last = [row for row in of_run if row["epochs"] == of_run[-1]["epochs"]]
        means = {}
        for key in ("sigma", "train_sigma", "accuracy", "train_accuracy", "r"):
            values = [row[key] for row in last if row[key] is not None]
            means[key] = f"{np.mean(values):.3f}" if values else "-"
        table_rows.append({"run": name} | means)
    return table_rows
