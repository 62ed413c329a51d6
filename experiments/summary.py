"""The small result file of a reproduction, and the table that the README shows of it.

runs/<task>/summary.json holds means over pairs of seeds with 95 % intervals (pairs and problems resampled), and what
made them. Where a copy is kept in experiments/results/, a test holds the README's table to it.
"""

import numpy as np

from experiments import study
from experiments.results import Results, load
from experiments.studies.gap import DRAWS
from minifork import runs
from minifork.schema import Config
from minifork.statistics import intervals
from minifork.storage.files import write_json

KS = (1, 16, 64)


def summary(config: Config) -> dict:
    """Write runs/<task>/summary.json from what was measured and print its table.

    train_minutes adds up the training of all runs, on one core each but for the bases.
    """
    results = load(config)
    pairs = results.complete_pairs()
    result = {
        "task": config.task,
        "study": config.reproduce.study,
        "runs": config.runs,
        **runs.made_by(config),
        "train_minutes": round(
            sum(run.record["seconds"] for run in results.runs.values() if run.stage != "wise") / 60, 1
        ),
        "pairs": len(pairs),
        "rows": rows(results, pairs),
    }
    write_json(runs.task_folder(config) / "summary.json", result)
    print(table(result))
    return result


def rows(results: Results, pairs: list[int]) -> list[dict]:
    """The last checkpoint of the base and of every run of the study that all pairs have: pass@k and fork accuracy."""
    entries = study.read(results.config.reproduce.study)
    plans = [study.plans(results.config, entries, [pair]) for pair in pairs]
    lasts = [("base", [results.base(pair) for pair in pairs])]
    for of_pairs in zip(*plans, strict=True):
        records = [results.of(plan) for plan in of_pairs]
        if all(records):
            lasts.append((of_pairs[0].name, [of_pair[-1] for of_pair in records]))
    return [_row(results, last, name) for name, last in lasts if all(last)]


def _row(results: Results, last: list[dict], name: str) -> dict:
    """One kind of run over the pairs."""
    row = {"name": name, "runs": [record["run"] for record in last], "pass_at": {}}
    for k in KS:
        solved = np.stack([results.solved(record, k) for record in last])
        row["pass_at"][str(k)] = interval(solved)
    accuracy = np.stack([results.array(record, "fork").argmax(axis=1) == 0 for record in last])
    return row | {"fork_accuracy": interval(accuracy.astype(float))}


def interval(values: np.ndarray) -> dict:
    """The mean of values [pairs, n] and its 95 % interval, pairs and problems resampled."""
    low, high = intervals.interval(intervals.hierarchical(values, DRAWS))
    return {"mean": float(values.mean()), "ci95": [float(low), float(high)]}


def signed(value: dict) -> str:
    """A mean and its interval, as differences are printed."""
    low, high = value["ci95"]
    return f"{value['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"


def table(found: dict) -> str:
    """The rows of a summary as a Markdown table."""
    lines = ["| model | pass@1 | pass@16 | pass@64 | fork accuracy |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        cells = [_cell(row["pass_at"][str(k)]) for k in KS] + [_cell(row["fork_accuracy"])]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: dict) -> str:
    low, high = value["ci95"]
    return f"{value['mean']:.3f} [{low:.3f}, {high:.3f}]".replace("0.", ".")
