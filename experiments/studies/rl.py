"""Does reinforcement learning lose coverage at forks too? Forward RL against reverse RL, and one advantage to another.

All runs (experiments/studies/rl.yaml) start from the fine-tuned model after epoch `rl.epoch`, as in arXiv 2605.17026.
Forward RL forces FWD, whose traces meet the fork; reverse RL forces REV, whose traces do not; free RL lets the model
choose its mode. Each is measured in its own mode. `exact` follows the exact gradient of pass@k, so what it loses is not
due to sampling.
"""

import time

import numpy as np

from experiments import executors, study
from experiments.results import Results, load
from experiments.studies.gap import gap, gap_draws
from experiments.study import Plan
from experiments.summary import interval, signed
from minifork import runs
from minifork.evaluate import evaluate
from minifork.schema import Config
from minifork.statistics import intervals
from minifork.storage.files import write_json

KS = (16, 64)
FORWARD, REVERSE = "forward, GRPO", "reverse, GRPO"  # as the study calls them


def contrast(config: Config) -> None:
    """Run what is missing for `reproduce.pairs` pairs, evaluate, compare; writes runs/<task>/contrast.json.

    Raises ValueError naming a stage that failed.
    """
    started = time.monotonic()
    plans = planned(config)
    executors.run(plans)
    if evaluate(config):
        raise ValueError(f"{runs.task_folder(config)}: the engines disagree (see above)")
    compare(config, plans)
    print(f"RL: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def planned(config: Config) -> list[Plan]:
    """The RL runs of the config's pairs."""
    return study.plans(config, study.read("rl"), range(config.reproduce.pairs))


def compare(config: Config, plans: list[Plan]) -> None:
    """Compare the RL runs with where they started; raises ValueError when one was not measured."""
    results = load(config)
    lines: dict[str, np.ndarray] = {}  # [pairs, 1 + snapshots, 1 + KS, n]
    for name in dict.fromkeys(plan.name for plan in plans):
        lines[name] = np.stack([trajectory(results, plan) for plan in plans if plan.name == name])
    moved = {name: line[:, -1] - line[:, 0] for name, line in lines.items()}
    rows = []
    for name, line in lines.items():
        row = {
            "run": name,
            "start": line[:, 0].mean(axis=(0, 2)).tolist(),
            "end": line[:, -1].mean(axis=(0, 2)).tolist(),
        }
        rows.append(row | {"change": {str(k): interval(moved[name][:, i]) for i, k in enumerate((1, *KS))}})
    differ = {str(k): interval((moved[FORWARD] - moved[REVERSE])[:, 1 + i]) for i, k in enumerate(KS)}
    forward = [plan.name for plan in plans if plan.config.rl.mode == "FWD" and plan.name != FORWARD]
    above = {name: above_curve(lines[name][:, -1], lines[FORWARD]) for name in dict.fromkeys(forward)}
    result = runs.made_by(config) | {"pairs": config.reproduce.pairs, "runs": rows}
    result |= {"forward_minus_reverse": differ, "above_grpo": above}
    print(text(result))
    write_json(runs.task_folder(config) / "contrast.json", result)


def above_curve(solved: np.ndarray, curves: np.ndarray) -> dict[str, dict]:
    """How far runs [pairs, 1 + KS, n] end above curves [pairs, snapshots, 1 + KS, n], by k with its interval."""
    mean, draws = gap(solved.mean(axis=2), curves.mean(axis=3)).mean(axis=0), gap_draws(solved, curves)
    ends = intervals.interval(draws)
    return {str(k): {"mean": float(mean[i]), "ci95": ends[:, i].tolist()} for i, k in enumerate(KS)}


def trajectory(results: Results, plan: Plan) -> np.ndarray:
    """Solve rates float64[1 + snapshots, 1 + len(KS), n] of every problem from the start on, in the run's own mode.

    Raises ValueError when the start or the run was not measured.
    """
    config, mode = plan.config, None if plan.config.rl.mode == "free" else plan.config.rl.mode
    start = results.parent_of(plan)
    records = results.of(plan)
    if not start or not records:
        raise ValueError(f"{runs.task_folder(config)}: no {plan.name} of pair {config.seed}; run `make contrast`")
    return np.stack([[results.solved(record, k, mode) for k in (1, *KS)] for record in [*start, *records]])


def text(found: dict) -> str:
    """What `compare` found, in words."""
    head = "".join(f"{f'pass@{k}: start, end, change':>44}" for k in (1, *KS))
    lines = [f"{'RL, in its own mode':<28}{head}"]
    for row in found["runs"]:
        ends = zip(row["start"], row["end"], row["change"].values(), strict=True)
        cells = [f"{start:.3f} {end:.3f} {signed(moved)}" for start, end, moved in ends]
        lines.append(f"{row['run']:<28}" + "".join(f"{words:>44}" for words in cells))
    for k, value in found["forward_minus_reverse"].items():
        lines.append(f"forward minus reverse, change of pass@{k}: {signed(value)}")
    for name, by_k in found["above_grpo"].items():
        above = ", ".join(f"pass@{k} {signed(value)}" for k, value in by_k.items())
        lines.append(f"{name}, above forward GRPO's snapshots at no less pass@1: {above}")
    return "\n".join(lines)
