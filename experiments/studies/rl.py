"""`make contrast`: compares the coverage that RL loses on forward and on reverse traces, and under several objectives.

All runs (experiments/studies/rl.yaml) start from the fine-tuned model after epoch `rl.epoch`, as in arXiv 2605.17026.
Forward RL forces FWD, whose traces meet the fork. Reverse RL forces REV, whose traces do not. Free RL lets the model
choose its mode. Each run is measured in its own mode. `exact` follows the exact gradient of pass@k, so what it loses is
not due to sampling. Published RL is that of the first code of arXiv 2605.17026, which trains on the problems of
fine-tuning. It is run on fresh problems too. Repaired RL follows the policy gradient of pass@1 on fresh problems: no
division by the deviation or by lengths, no nucleus, the KL of whole traces.
"""

from collections.abc import Callable
from itertools import chain

import numpy as np

from experiments.estimates import (
    KS,
    difference_over_pairs,
    estimate_by_k,
    mean_over_pairs,
    pairs_text,
    probability_over_pairs,
    signed,
)
from experiments.results import Results, load_results, write_result
from experiments.studies.early_stopping import (
    RULE,
    above_curve,
    early_stopping_curve,
    gap_text,
    measure_plans,
    on_validation,
)
from experiments.studies.steps import evaluate_and_check, make_runs, print_minutes
from experiments.study import Plan, by_name
from minifork.schema import Config

FORWARD, REVERSE = "forward, GRPO", "reverse, GRPO"  # names of runs in the study
COMPARED = (  # pairs of runs whose changes of pass@k are compared
    (FORWARD, REVERSE),
    ("forward, published, sft problems", "reverse, published, sft problems"),
    ("forward, published, fresh problems", "reverse, published, fresh problems"),
    ("forward, published, sft problems", "forward, published, fresh problems"),
    ("forward, repaired", "forward, published, sft problems"),
)


def contrast(config: Config) -> None:
    """Run what is missing for `reproduce.pairs` pairs, evaluate, compare; writes runs/<task>/contrast.json.

    Raises ValueError naming a stage that failed.
    """
    with print_minutes("RL"):
        plans = make_runs(config, "rl")
        evaluate_and_check(config)
        compare_rl_runs(config, plans)


def compare_rl_runs(config: Config, plans: list[Plan]) -> None:
    """Compare the RL runs with where they started; raises ValueError when one was not measured."""
    results, of_run = load_results(config), by_name(plans)
    passes = {}  # where a run started and its snapshots, float64[pairs, 1 + snapshots, K, n] by run
    for name, runs_of_pairs in of_run.items():
        curves = [early_stopping_curve(results, plan, mode_of(plan))[:, 1:] for plan in runs_of_pairs]
        passes[name] = np.stack(curves)
    rows = [_row(name, values[:, 0], values[:, -1]) for name, values in passes.items()]
    changes = {name: values[:, -1] - values[:, 0] for name, values in passes.items()}
    differences = {f"({first}) minus ({second})": changes[first] - changes[second] for first, second in COMPARED}
    result = {
        "pairs": config.reproduce.pairs,
        "runs": rows,
        "differences": {name: estimate_by_k(mean_over_pairs, values) for name, values in differences.items()},
        "above_grpo": above_grpo(config, results, of_run),
    }
    print(contrast_text(result))
    write_result(config, "contrast", result)


def above_grpo(config: Config, results: Results, of_run: dict[str, list[Plan]]) -> dict[str, dict]:
    """The gap of every other forward run above the snapshots of forward GRPO, by name and k.

    of_run: the plans of every pair by name.
    """
    forward = {name: plans for name, plans in of_run.items() if mode_of(plans[0]) == "FWD"}
    valid = measure_plans(config, [on_validation(plan) for plan in chain(*forward.values())], FORWARD)
    grpo, measured = forward.pop(FORWARD), {config.eval: results} | valid
    return {name: above_curve(measured, plans, grpo, "FWD") for name, plans in forward.items()}


def _row(name: str, start: np.ndarray, end: np.ndarray) -> dict:
    """The passes float64[pairs, K, n] of a run where it started and at its end, and their change.

    start and end are means by k; pass_at is the end, with intervals.
    """
    means = {place: passes.mean(axis=(0, 2)).tolist() for place, passes in (("start", start), ("end", end))}
    estimates = {
        "pass_at": estimate_by_k(probability_over_pairs, end),
        "change": estimate_by_k(difference_over_pairs, end, start),
    }
    return {"run": name} | means | estimates


def mode_of(plan: Plan) -> str | None:
    """The mode that a run forces; None where it is free."""
    return None if plan.config.rl.mode == "free" else plan.config.rl.mode


def contrast_text(result: dict) -> str:
    """The result of `compare_rl_runs` in words."""
    lines = [f"{'run, in its own mode':<36}" + "".join(f"{f'pass@{k}: start, end, change':>44}" for k in KS)]
    for row in result["runs"]:
        ends = zip(row["start"], row["end"], row["change"].values(), strict=True)
        cells = [f"{start:.3f} {end:.3f} {signed(change)}" for start, end, change in ends]
        lines.append(f"{row['run']:<36}" + "".join(f"{cell:>44}" for cell in cells))
    for name, values in result["differences"].items():
        lines.append(f"{name}, change: {_by_k(values)}")
    for name, gaps in result["above_grpo"].items():
        lines.append(f"{name}: above the snapshots of {FORWARD} at no less skill: {_by_k(gaps, gap_text)}")
    return "\n".join([*lines, f"{pairs_text(result['pairs'])}; {RULE}"])


def _by_k(estimates: dict[str, dict], text: Callable[[dict], str] = signed) -> str:
    """Estimates by k in words."""
    return ", ".join(f"pass@{k} {text(value)}" for k, value in estimates.items())
