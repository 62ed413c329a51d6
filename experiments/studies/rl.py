"""Does reinforcement learning lose coverage at forks too? Forward RL against reverse RL, and one advantage to another.

All runs (experiments/studies/rl.yaml) start from the fine-tuned model after epoch `rl.epoch`, as in arXiv 2605.17026.
Forward RL forces FWD, whose traces meet the fork; reverse RL forces REV, whose traces do not; free RL lets the model
choose its mode. Each is measured in its own mode. `exact` follows the exact gradient of pass@k, so what it loses is not
due to sampling.
"""

import numpy as np

from experiments.estimates import KS, difference_over_pairs, mean_over_pairs, pairs_text, signed
from experiments.results import load_results
from experiments.studies.early_stopping import BIAS, above_curve, curve
from experiments.studies.steps import evaluate_and_check, make_runs, timed
from experiments.study import Plan
from minifork import runs
from minifork.schema import Config
from minifork.storage.files import write_json

FORWARD, REVERSE = "forward, GRPO", "reverse, GRPO"  # as the study calls them


def contrast(config: Config) -> None:
    """Run what is missing for `reproduce.pairs` pairs, evaluate, compare; writes runs/<task>/contrast.json.

    Raises ValueError naming a stage that failed.
    """
    with timed("RL"):
        plans = make_runs(config, "rl")
        evaluate_and_check(config)
        compare(config, plans)


def compare(config: Config, plans: list[Plan]) -> None:
    """Compare the RL runs with where they started; raises ValueError when one was not measured."""
    results = load_results(config)
    curves: dict[str, np.ndarray] = {}  # [pairs, 1 + snapshots, 1 + K, n]
    for name in dict.fromkeys(plan.name for plan in plans):
        curves[name] = np.stack([curve(results, plan, mode_of(plan)) for plan in plans if plan.name == name])
    change = {name: line[:, -1] - line[:, 0] for name, line in curves.items()}
    forward = dict.fromkeys(plan.name for plan in plans if plan.config.rl.mode == "FWD" and plan.name != FORWARD)
    result = runs.made_by(config) | {
        "pairs": config.reproduce.pairs,
        "runs": [
            {
                "run": name,
                "start": line[:, 0].mean(axis=(0, 2)).tolist(),
                "end": line[:, -1].mean(axis=(0, 2)).tolist(),
                "change": {str(k): difference_over_pairs(line[:, -1, i], line[:, 0, i]) for i, k in enumerate(KS)},
            }
            for name, line in curves.items()
        ],
        "forward_minus_reverse": {
            str(k): mean_over_pairs((change[FORWARD] - change[REVERSE])[:, i]) for i, k in enumerate(KS) if k > 1
        },
        "above_grpo": {name: above_curve(curves[name][:, -1], curves[FORWARD]) for name in forward},
    }
    print(text(result))
    write_json(runs.task_folder(config) / "contrast.json", result)


def mode_of(plan: Plan) -> str | None:
    """The mode that a run forces; None where it is free."""
    return None if plan.config.rl.mode == "free" else plan.config.rl.mode


def text(result: dict) -> str:
    """The result of `compare` in words."""
    head = "".join(f"{f'pass@{k}: start, end, change':>44}" for k in KS)
    lines = [f"{'RL, in its own mode':<28}{head}"]
    for row in result["runs"]:
        ends = zip(row["start"], row["end"], row["change"].values(), strict=True)
        cells = [f"{start:.3f} {end:.3f} {signed(change)}" for start, end, change in ends]
        lines.append(f"{row['run']:<28}" + "".join(f"{cell:>44}" for cell in cells))
    for k, value in result["forward_minus_reverse"].items():
        lines.append(f"forward minus reverse, change of pass@{k}: {signed(value)}")
    for name, by_k in result["above_grpo"].items():
        above = ", ".join(f"pass@{k} {signed(value)}" for k, value in by_k.items())
        lines.append(f"{name}, above forward GRPO's snapshots at no less pass@1: {above}")
    return "\n".join([*lines, f"{pairs_text(result['pairs'])}; {BIAS}"])
