"""`make competence`: two modes, neither of which is right everywhere; one a problem, or both for every problem.

The runs are those of experiments/studies/competence.yaml, with the two modes of sft.modes: FWD and CODE in the preset
competence of arith. In arXiv 2605.17026 they are answers in language and in code (GSM8K, 12,800 traces).
"""

import numpy as np

from experiments.estimates import KS, estimate_by_k, mean_text, pairs_text, probability_over_pairs, table
from experiments.results import Results, write_result
from experiments.studies.steps import make_and_measure, print_minutes
from experiments.study import Plan, by_name
from minifork.schema import Config
from minifork.statistics import passk

BINS = 10  # of the probability of the first mode


def competence(config: Config) -> None:
    """Run what is missing, evaluate, split coverage by mode; writes runs/<task>/competence.json.

    Raises ValueError naming a stage that failed.
    """
    with print_minutes("competence"):
        plans, results = make_and_measure(config, "competence")
        rows = [split_coverage(results, of_run) for of_run in by_name(plans).values()]
        print(*map(run_text, rows), pairs_text(config.reproduce.pairs), sep="\n")
        write_result(config, "competence", {"pairs": config.reproduce.pairs, "runs": rows})


def split_coverage(results: Results, plans: list[Plan]) -> dict:
    """Estimates of the last checkpoints of one run, over its pairs.

    coverage: for every k, pass@k of free samples ("free") and of each forced mode, and the four shares of
    `passk.split_by_mode` when each mode has k samples ("FWD only", "CODE only", "both", "neither"; they sum to 1).
    mode_share: the share of problems whose probability of the first mode lies in each of BINS equal bins.
    """
    modes, records = plans[0].config.sft.mode_names, [results.last_record(plan) for plan in plans]
    passes = [[results.record_pass_at_ks(record, KS, mode) for record in records] for mode in (None, *modes)]
    free, *forced = map(np.stack, passes)
    names = ("free", *modes, *(f"{mode} only" for mode in modes), "both", "neither")
    curves = dict(zip(names, [free, *forced, *passk.split_by_mode(*forced)], strict=True))
    column = results.config.data.mode_names.index(modes[0])
    p_first = np.stack([results.array(record, "modes")[:, column] for record in records])
    in_bin = np.minimum((BINS * p_first).astype(int), BINS - 1)
    return {
        "run": plans[0].name,
        "coverage": {name: estimate_by_k(probability_over_pairs, curve) for name, curve in curves.items()},
        "mode_share": [probability_over_pairs((in_bin == index).astype(float)) for index in range(BINS)],
    }


def run_text(row: dict) -> str:
    """What `split_coverage` gives of one run, in words."""
    coverage, shares = row["coverage"], " ".join(map(mean_text, row["mode_share"]))
    lines = [{row["run"]: name} | {f"k = {k}": value for k, value in by_k.items()} for name, by_k in coverage.items()]
    return f"{table(lines)}\nshare of problems by P({list(coverage)[1]}) in {BINS} equal bins: {shares}"
