"""The small result file of a reproduction, and the table that the README shows of it.

runs/<task>/summary.json holds means over pairs of seeds with 95 % intervals (pairs and problems resampled), and what
made them. Where a copy is kept in experiments/results/, a test holds the README's table to it.
"""

import numpy as np

from experiments.gap import DRAWS
from experiments.results import Results, complete_pairs, load
from minifork import passk, runs
from minifork.schema import Config

KS = (1, 16, 64)
NAMES = {
    "base": "base",
    "data": "FORK_RATE {rate}",
    "problem": "both modes for every problem",
    "fresh": "FORK_RATE {rate}, fresh traces every epoch",
    "cued": "FORK_RATE {rate}, branch cued",
    "data-cue0.5": "FORK_RATE {rate}, branch cued in half of the training problems",
    "data-graph": "FWD traces on graphs without a fork but for a share of {share}",
    "rationale": "rationale",
    "published": "FORK_RATE {rate}, published order",
}


def summary(config: Config) -> dict:
    """Write runs/<task>/summary.json from the last evaluation and print its table.

    train_minutes adds up the training of all runs, on one core each but for the bases.
    """
    results = load(config)
    pairs = complete_pairs(config, results)
    names = sorted({record["run"] for record in results.records})
    metas = [runs.read_json(runs.task_folder(config) / name / "meta.json", "seconds") for name in names]
    found = {
        "task": config.task,
        "sweep": config.reproduce.sweep,
        "runs": config.runs,
        **runs.made_by(config),
        "train_minutes": round(sum(meta["seconds"] for meta in metas if "weight" not in meta) / 60, 1),
        "pairs": len(pairs),
        "rows": rows(results, pairs),
    }
    runs.write_json(runs.task_folder(config) / "summary.json", found)
    print(table(found))
    return found


def rows(results: Results, pairs: list[int]) -> list[dict]:
    """The last checkpoint of every kind of run that all pairs have: pass@k and fork accuracy."""
    kinds = [("base", None, "plain")]
    tuned = {(r["variant"], r["fork_rate"], r["test_set"]) for r in results.records if r["stage"] == "sft"}
    matched = {variant for variant, _, test_set in tuned if test_set != "plain" and variant in ("cued", "published")}
    kinds += sorted(
        (variant, rate, test_set)
        for variant, rate, test_set in tuned
        if (test_set == "plain") != (variant in matched)  # these are about the test set that matches them
    )
    found = []
    for variant, rate, test_set in kinds:
        last = [results.base(pair) if rate is None else _last(results, pair, variant, rate, test_set) for pair in pairs]
        if all(last):
            found.append(_row(results, last, _name(variant, rate)))
    return found


def _last(results: Results, pair: int, variant: str, rate: float, test_set: str) -> dict | None:
    found = results.tuned(pair, variant, rate, test_set)
    return found[-1] if found else None


def _name(variant: str, rate: float | None) -> str:
    text = "" if rate is None else f"{rate:g}"
    if variant not in NAMES:
        return f"{variant}, FORK_RATE {text}"
    return NAMES[variant].format(rate=text, share=text.replace("0.", "."))


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
    low, high = passk.interval(passk.hierarchical(values, DRAWS))
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
    return " ".join(
        text.format(number).replace("0.", ".")
        for text, number in (("{:.3f}", value["mean"]), ("[{:.3f},", low), ("{:.3f}]", high))
    )
