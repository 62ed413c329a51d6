"""The small result file of a reproduction, and its table for the README.

runs/<task>/summary.json holds means over pairs of seeds with 95 % intervals, and what made them. A test compares the
README's tables with the copies in experiments/results/.
"""

from dataclasses import replace

import numpy as np

from experiments import study
from experiments.estimates import KS, estimate_by_k, estimate_text, pairs_text, probability_over_pairs
from experiments.results import Results, load_results
from minifork import runs
from minifork.schema import Config
from minifork.storage.files import write_sealed_json


def write_summary(config: Config) -> None:
    """Write runs/<task>/summary.json from what was measured and print its table."""
    results = load_results(config)
    pairs = results.complete_pairs()
    rows = summary_rows(results, pairs)
    result = {
        "task": config.task,
        "study": config.reproduce.study,
        "runs": config.runs,
        **runs.made_by(config),
        "train_minutes": results.train_minutes,
        "pairs": len(pairs),
        "rows": rows,
    }
    write_sealed_json(runs.task_folder(config) / "summary.json", result)
    print(f"{summary_table(rows)}\n{pairs_text(len(pairs))}")


def summary_rows(results: Results, pairs: list[int]) -> list[dict]:
    """The last checkpoint of the base and of every run of the study that all pairs have: pass@k and fork accuracy."""
    entries = study.read_study(results.config.reproduce.study)
    rows = [_row(results, "base", [results.base(pair) for pair in pairs])]
    plans = study.plans(results.config, entries, pairs)
    for of_run in study.grouped(plans, without_seeds).values():
        records = [results.records_of(plan) for plan in of_run]
        if len(of_run) == len(pairs) and all(of_pair and results.is_last(of_pair[-1]) for of_pair in records):
            rows.append(_row(results, of_run[0].name, [of_pair[-1] for of_pair in records]))
    return rows


def without_seeds(plan: study.Plan) -> study.Plan:
    """A plan with the seeds 0, which the plans of a run for other pairs have in common."""
    return replace(plan, config=replace(plan.config, seed=0, base_seed=0))


def _row(results: Results, name: str, records: list[dict]) -> dict:
    """The row of a run, from its last record of every pair. fork_accuracy is null on a task that declares no fork."""
    passes, accuracy = np.stack([results.record_pass_at_ks(record, KS) for record in records]), None
    if all(record["fork"] for record in records):
        right = np.stack([results.array(record, "fork").argmax(axis=1) == 0 for record in records])
        accuracy = probability_over_pairs(right.astype(float))
    return {
        "name": name,
        "runs": [record["run"] for record in records],
        "pass_at": estimate_by_k(probability_over_pairs, passes),
        "fork_accuracy": accuracy,
    }


def summary_table(rows: list[dict]) -> str:
    """The rows of a summary as a Markdown table."""
    lines = ["| model | pass@1 | pass@16 | pass@64 | fork accuracy |", "|---|---|---|---|---|"]
    for row in rows:
        estimates = (*row["pass_at"].values(), row["fork_accuracy"])
        cells = [estimate_text(estimate).replace("0.", ".") if estimate else "-" for estimate in estimates]
        lines.append(f"| {row['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)
