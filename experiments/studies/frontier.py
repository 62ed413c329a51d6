"""`make frontier`: compares all mitigations of lost coverage with early stopping, the line to beat.

The methods are those of experiments/studies/frontier.yaml. For every pair of seeds all start from the same base and
train for as many steps. The snapshots of plain cross-entropy are the *early-stopping curve*. A method is better only
where its last checkpoint lies above the best pass@k that stopping in time has at no less skill
(`experiments.studies.early_stopping`), with its 95 % interval.

Where an entry asks to choose a key, its value is chosen on validation problems, on the first pair at FORK_RATE 1: the
value with the largest gap above the curve at k = 16.
"""

from functools import partial

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments import executors, study
from experiments.drawing import default_settings, panels, save_figure, whiskers
from experiments.estimates import KS, MIN_SHRINKAGE, pairs_text
from experiments.results import load_results, write_result
from experiments.studies.early_stopping import (
    RULE,
    ByEval,
    above_curve,
    best_place,
    compared_points,
    gap_text,
    gap_values,
    is_compared,
    measure_plans,
    on_validation,
)
from experiments.studies.steps import evaluate_and_check, print_minutes, require_fork
from experiments.study import Plan
from minifork import runs
from minifork.schema import Config
from minifork.storage.files import write_json

CHOOSING_PAIR, CHOOSING_RATE = 0, 1.0  # values are chosen on this pair at this FORK_RATE
CROSS_ENTROPY = "cross-entropy"  # the name of the plain method in the study


def frontier(config: Config) -> None:
    """Choose values, run what is missing, evaluate, compare; writes frontier.json and figures/frontier-*.png.

    Raises ValueError naming a stage that failed.
    """
    require_fork(config, "frontier")
    with print_minutes("frontier"):
        entries = study.read_study("frontier")
        chosen = choose_values(config, entries)
        plans = study.plans(config, entries, config.reproduce.seeds)
        plans = [plan for plan in plans if not plan.choose or plan.value == chosen[plan.name]]
        executors.run_plans(plans)
        decoders = [plan for plan in plans if plan.config.eval != config.eval]
        results = measure_plans(config, decoders + [on_validation(plan) for plan in plans], CROSS_ENTROPY)
        in_study = [plan for plan in plans if plan.config.eval == config.eval]
        evaluate_and_check(config, partial(is_compared, in_study, CROSS_ENTROPY))
        compare_with_early_stopping(config, plans, results | {config.eval: load_results(config)})


# choosing


def choose_values(config: Config, entries: list[dict]) -> dict[str, object]:
    """The value of every method, by its name; prints the scores behind it and writes them to frontier-values.json."""
    plans = study.plans(config, entries, [CHOOSING_PAIR])
    plans = [plan for plan in plans if plan.config.sft.fork_rate == CHOOSING_RATE]
    plans = [plan for plan in plans if plan.choose or plan.name == CROSS_ENTROPY]
    executors.run_plans(plans)
    scores = validation_scores(config, plans)
    chosen = {name: max(by_value, key=lambda value: by_value[value]) for name, by_value in scores.items()}
    for name, by_value in scores.items():
        text = ", ".join(f"{value} {score:+.3f}" for value, score in by_value.items())
        print(f"{name}: chose {chosen[name]} (pass@16 above early stopping on validation problems: {text})", flush=True)
    write_json(runs.task_folder(config) / "frontier-values.json", {"chosen": chosen, "scores": scores})
    return chosen


def validation_scores(config: Config, plans: list[Plan]) -> dict[str, dict]:
    """The gap above early stopping at k = 16 on validation problems, by the method's name and value."""
    plans = [on_validation(plan) for plan in plans]
    results = measure_plans(config, plans, CROSS_ENTROPY)
    plain = next(plan for plan in plans if plan.name == CROSS_ENTROPY)
    scores: dict[str, dict] = {}
    for plan in [plan for plan in plans if plan.choose]:
        points = compared_points(results, [plan], [plain], None)
        gap = gap_values(points, best_place(points, 16), 16)
        scores.setdefault(plan.name, {})[plan.value] = float(gap.mean())
    return scores


# comparing


def compare_with_early_stopping(config: Config, plans: list[Plan], results: ByEval) -> None:
    """Compare the runs of plans with their early-stopping curve; raises ValueError when one was not measured."""
    rows: list[dict] = []
    for rate in sorted({plan.config.sft.fork_rate for plan in plans if plan.name == CROSS_ENTROPY}):
        of_rate = [plan for plan in plans if plan.config.sft.fork_rate == rate]
        plain = {plan.config.seed: plan for plan in of_rate if plan.name == CROSS_ENTROPY}
        for mode in (None, "FWD"):
            mode_name = mode or "free"
            in_mode = [plan for plan in of_rate if mode in (None, *plan.config.sft.modes.split(","))]
            for name, of_method in measured_methods(in_mode, results).items():
                place = {"method": name, "fork_rate": rate, "mode": mode_name}
                of_pairs = [plain[plan.config.seed] for plan in of_method]
                rows.append(place | method_row(of_method, of_pairs, results, mode))
            curves = compared_points(results, [*plain.values()], [*plain.values()], mode)[:, 1:]
            figure = draw_frontier(rows, curves, rate, mode_name)
            save_figure(figure, runs.task_folder(config) / "figures" / f"frontier-fork{rate:g}-{mode_name}.png")
    print(frontier_table(rows), f"{pairs_text(config.reproduce.pairs)}; {RULE}", sep="\n")
    write_result(config, "frontier", {"methods": rows})


def measured_methods(plans: list[Plan], results: ByEval) -> dict[str, list[Plan]]:
    """The plans whose runs were measured, by the name of their method and its chosen value."""
    measured = [plan for plan in plans if results[plan.config.eval].records_of(plan)]
    return study.grouped(measured, lambda plan: f"{plan.name} ({plan.value})" if plan.choose else plan.name)


def method_row(plans: list[Plan], plain: list[Plan], results: ByEval, mode: str | None) -> dict:
    """A method's last checkpoints against the early-stopping curves of their pairs: means over pairs, the gap above the
    curve with its interval, the share of the curve's coverage shrinkage that is recovered.

    plans, plain: the runs of the method and those with the curves, one of every pair.
    """
    records = [results[plan.config.eval].last_record(plan) for plan in plans]
    seconds = [results[plan.config.eval].seconds(record) for plan, record in zip(plans, records, strict=True)]
    points = compared_points(results, plans, plain, mode).mean(axis=(0, 3))
    method, base, last = points[[0, 1, -1]]
    row = {
        "pairs": len(plans),
        "seconds": float(np.mean(seconds)),
        "tokens": float(np.mean([record["tokens"] for record in records])),
        "skill": float(method[0]),
        "pass_at": {str(k): float(value) for k, value in zip(KS, method[1:], strict=True)},
    }
    for i, (k, above) in enumerate(above_curve(results, plans, plain, mode).items(), 2):
        shrinkage, gain = base[i] - last[i], method[i] - last[i]
        recovered = float(gain / shrinkage) if shrinkage >= MIN_SHRINKAGE else None
        row |= {f"above_{k}": above, f"recovered_{k}": recovered}
    return row


def frontier_table(rows: list[dict]) -> str:
    """One line a method: skill, pass@k, the gap above early stopping, the share it recovered, its cost and verdict."""
    head = f"{'method':<36}{'FORK_RATE':>11}{'mode':>6}{'skill':>9}" + "".join(f"{f'pass@{k}':>9}" for k in KS)
    head += "".join(f"{f'above curve, k = {k}':>28}{'recovered':>11}" for k in KS[1:])
    lines = [head + f"{'train s':>9}{'tokens':>8}  verdict"]
    for row in rows:
        text = f"{row['method']:<36}{row['fork_rate']:>11g}{row['mode']:>6}{row['skill']:>9.3f}"
        text += "".join(f"{passed:>9.3f}" for passed in row["pass_at"].values())
        for k in KS[1:]:
            recovered = row[f"recovered_{k}"]
            text += f"{gap_text(row[f'above_{k}']):>28}{'-' if recovered is None else f'{recovered:.2f}':>11}"
        lines.append(text + f"{row['seconds']:>9.0f}{row['tokens']:>8.2f}" + frontier_verdict(row))
    return "\n".join(lines)


def frontier_verdict(row: dict) -> str:
    """The verdict on a row: better if it lies above the curve at every k where it can, worse if below at one."""
    ends = [row[f"above_{k}"]["ci95"] for k in KS[1:] if not row[f"above_{k}"]["cannot_be_exceeded"]]
    if ends and all(low > 0 for low, _ in ends):
        return "  better"
    return "  worse" if any(high < 0 for _, high in ends) else ""


@default_settings()
def draw_frontier(rows: list[dict], curves: np.ndarray, rate: float, mode: str) -> Figure:
    """pass@k against skill: the curve, thin those of pairs, and every method with the interval of its gap as a bar.

    curves: float64[pairs, snapshots, 1 + K, n].
    """
    figure, axes_of_panels = panels(2, 9, 7)
    sampling = "sampled freely" if mode == "free" else f"forced {mode}"
    figure.suptitle(f"FORK_RATE {rate:g}, {sampling}")
    names = list(dict.fromkeys(row["method"] for row in rows))  # a method has one colour and marker in all figures
    colours = matplotlib.colormaps["tab20"]
    for i, (axes, k) in enumerate(zip(axes_of_panels, KS[1:], strict=True), 2):
        means = curves[:, :, [0, i]].mean(axis=3)
        axes.plot(*means.mean(axis=0).T, color="black", marker=".", linewidth=1.4, zorder=1, label="early stopping")
        for curve in means:
            axes.plot(*curve.T, color="black", linewidth=0.6, alpha=0.5, zorder=1)
        for row in [row for row in rows if (row["fork_rate"], row["mode"]) == (rate, mode)]:
            j, above = names.index(row["method"]), row[f"above_{k}"]
            ends = (0, 0, 0) if above["cannot_be_exceeded"] else (above["mean"], *above["ci95"])
            error = whiskers(*([value] for value in ends))
            axes.errorbar(row["skill"], row["pass_at"][str(k)], yerr=error, color=colours(j % 20),
                          marker="osD^vP*X"[j % 8], linestyle="", label=row["method"])  # fmt: skip
        axes.set(xlabel="skill (p without the luck of the branch)", ylabel=f"pass@{k}", title=f"k = {k}")
        axes.set_ylim(top=1.02)  # the interval of a gap may end above pass@k = 1
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", fontsize=7, ncols=2)
    return figure
