"""The small result file of a reproduction, and the table that the README shows of it.

runs/<task>/summary.json holds means over pairs of seeds with 95 % intervals, and what made
them. Where a copy is kept in experiments/results/, a test holds the README's table to it.
"""

import numpy as np

from experiments import study
from experiments.estimates import KS, pairs_text, probability_over_pairs, uncertainty_text
from experiments.results import Results, load_results
from minifork import runs
from minifork.schema import Config
from minifork.storage.files import write_json


def summary(config: Config) -> dict:
    """Write runs/<task>/summary.json from what was measured and print its table.

    train_minutes adds up the training of all runs, on one core each but for the bases.
    """
    results = load_results(config)
    pairs = results.complete_pairs()
    seconds = sum(run.record["seconds"] for run in results.runs.values() if run.stage != "wise")
    result = {
        "task": config.task,
        "study": config.reproduce.study,
        "runs": config.runs,
        **runs.made_by(config),
        "train_minutes": round(seconds / 60, 1),
        "pairs": len(pairs),
        "rows": rows(results, pairs),
    }
    write_json(runs.task_folder(config) / "summary.json", result)
    print(f"{table(result)}\n{pairs_text(len(pairs))}")
    return result


def rows(results: Results, pairs: list[int]) -> list[dict]:
    """The last checkpoint of the base and of every run of the study that all pairs have: pass@k and fork accuracy."""
    entries = study.read_study(results.config.reproduce.study)
    plans = [study.plans(results.config, entries, [pair]) for pair in pairs]
    summed = [_row(results, "base", [results.base(pair) for pair in pairs])]
    for of_pairs in zip(*plans, strict=True):
        records = [results.records_of(plan) for plan in of_pairs]
        if all(records):
            summed.append(_row(results, of_pairs[0].name, [of_pair[-1] for of_pair in records]))
    return summed


def _row(results: Results, name: str, last: list[dict]) -> dict:
    """The last records of a run, one a pair."""
    solved = np.stack([results.problem_pass_at_ks(record, KS) for record in last])  # [pairs, K, n]
    row = {
        "name": name,
        "runs": [record["run"] for record in last],
        "pass_at": {str(k): probability_over_pairs(solved[:, i]) for i, k in enumerate(KS)},
        "fork_accuracy": None,
    }
    if all(record["fork"] for record in last):  # null on a task that declares no fork
        right = np.stack([results.array(record, "fork").argmax(axis=1) == 0 for record in last])
        row["fork_accuracy"] = probability_over_pairs(right.astype(float))
    return row


def table(result: dict) -> str:
    """The rows of a summary as a Markdown table."""
    lines = ["| model | pass@1 | pass@16 | pass@64 | fork accuracy |", "|---|---|---|---|---|"]
    for row in result["rows"]:
        cells = [_cell(value) for value in (*row["pass_at"].values(), row["fork_accuracy"])]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: dict | None) -> str:
    return f"{value['mean']:.3f} {uncertainty_text(value, '')}".replace("0.", ".") if value else "-"
