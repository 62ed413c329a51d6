"""`make frontier`: compares all mitigations of lost coverage with early stopping, the line to beat.

The methods are those of experiments/studies/frontier.yaml. For every pair of seeds all start from the same base and
train for as many steps. The snapshots of plain cross-entropy are the *early-stopping curve*. A method is better only
where its last checkpoint lies above the best pass@k that stopping in time has at no less pass@1
(`experiments.studies.early_stopping`), with its 95 % interval.

Where an entry asks to choose a key, its value is chosen on validation problems, on the first pair at FORK_RATE 1: the
value with the largest gap above the curve at k = 16.
"""

from dataclasses import replace
from functools import partial

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments import executors, study
from experiments.estimates import KS, MIN_SHRINKAGE, estimate_by_k, pairs_text, signed
from experiments.figures import default_settings, save_figure, whiskers
from experiments.results import Results, load_results
from experiments.studies.early_stopping import BIAS, above_curve, early_stopping_curve, early_stopping_gap
from experiments.studies.steps import evaluate_and_check, print_minutes
from experiments.studies.stratified import (
    first_token_line,
    first_token_passes,
    first_token_rows,
    recovered_shares,
    stratified_line,
    stratified_study,
)
from experiments.study import Plan
from minifork import runs
from minifork.evaluate import measure_missing
from minifork.runs import Checkpoint
from minifork.schema import Config
from minifork.settings import Eval
from minifork.storage.files import write_json

CHOOSING_PAIR, CHOOSING_RATE = 0, 1.0  # values are chosen on this pair at this FORK_RATE
CROSS_ENTROPY = "cross-entropy"  # the name of the plain method in the study


def frontier(config: Config) -> None:
    """Choose values, run what is missing, evaluate, compare; writes frontier.json and figures/frontier-*.png.

    Raises ValueError naming a stage that failed.
    """
    with print_minutes("frontier"):
        entries = study.read_study("frontier")
        chosen = choose_values(config, entries)
        plans = study.plans(config, entries, range(config.reproduce.pairs))
        plans = [plan for plan in plans if not plan.choose or plan.value == chosen[plan.name]]
        executors.run_plans(plans)
        results = measure_plans(config, [plan for plan in plans if plan.config.eval != config.eval])
        evaluate_and_check(config, partial(is_compared, [plan for plan in plans if plan.config.eval == config.eval]))
        compare_with_early_stopping(config, plans, results | {config.eval: load_results(config)})


def measure_plans(config: Config, plans: list[Plan]) -> dict[Eval, Results]:
    """Measure the checkpoints that plans compare; returns the results under each of their evaluation settings."""
    results = {}
    for settings in dict.fromkeys(plan.config.eval for plan in plans):
        of_settings = [plan for plan in plans if plan.config.eval == settings]
        measure_missing(replace(config, eval=settings), partial(is_compared, of_settings))
        results[settings] = load_results(replace(config, eval=settings))
    return results


def is_compared(plans: list[Plan], checkpoint: Checkpoint) -> bool:
    """True for checkpoints that plans compare: all of the early-stopping curve, the last of every other run."""
    identity = checkpoint.run.identity
    plain = [plan for plan in plans if plan.name == CROSS_ENTROPY]
    on_curve = identity in {runs.identity(plan.config, stage) for plan in plain for stage in ("base", "sft")}
    return on_curve or checkpoint.final and identity in {plan.identity for plan in plans}


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
    plans = [replace(p, config=replace(p.config, eval=replace(p.config.eval, split="valid"))) for p in plans]
    results = measure_plans(config, plans)
    plain = next(plan for plan in plans if plan.name == CROSS_ENTROPY)
    curve = early_stopping_curve(results[plain.config.eval], plain, None).mean(axis=2)
    scores: dict[str, dict] = {}
    for plan in [plan for plan in plans if plan.choose]:
        records = results[plan.config.eval].records_of(plan)
        if not records:
            raise ValueError(f"{plan.name}, {plan.value}: not measured with these settings (see above)")
        method = results[plan.config.eval].record_pass_at_ks(records[-1], KS).mean(axis=1)
        gap = early_stopping_gap(method[None], curve[None])[0, KS[1:].index(16)]
        scores.setdefault(plan.name, {})[plan.value] = float(gap)
    return scores


# comparing


def compare_with_early_stopping(config: Config, plans: list[Plan], results: dict[Eval, Results]) -> None:
    """Compare the runs of plans with their early-stopping curve; raises ValueError when one was not measured."""
    folder, rows, stratified, first_tokens = runs.task_folder(config), [], [], []
    for rate in sorted({plan.config.sft.fork_rate for plan in plans if plan.name == CROSS_ENTROPY}):
        of_rate = [plan for plan in plans if plan.config.sft.fork_rate == rate]
        plain = [plan for plan in of_rate if plan.name == CROSS_ENTROPY]
        for mode in (None, "FWD"):
            mode_name = mode or "free"
            curves = {plan.config.seed: early_stopping_curve(results[config.eval], plan, mode) for plan in plain}
            in_mode = [plan for plan in of_rate if mode in (None, *plan.config.sft.modes.split(","))]
            for name, of_method in measured_methods(in_mode, results).items():
                place = {"method": name, "fork_rate": rate, "mode": mode_name}
                rows.append(place | method_row(of_method, results, mode, curves))
            figure = draw_frontier(rows, curves, rate, mode_name)
            save_figure(figure, folder / "figures" / f"frontier-fork{rate:g}-{mode_name}.png")
        by_pair = [stratified_study(results[plan.config.eval], plan) for plan in plain]
        stratified += recovered_shares(rate, by_pair)
        first_tokens += first_token_rows(rate, [first_token_passes(results[plan.config.eval], plan) for plan in plain])
    lines = [frontier_table(rows), f"{pairs_text(config.reproduce.pairs)}; {BIAS}", *map(stratified_line, stratified)]
    print("\n".join([*lines, *map(first_token_line, first_tokens)]))
    spread = {"stratified": stratified, "first_tokens": first_tokens}
    write_json(folder / "frontier.json", runs.made_by(config) | {"methods": rows} | spread)


def measured_methods(plans: list[Plan], results: dict[Eval, Results]) -> dict[str, list[Plan]]:
    """The plans whose runs were measured, by the name of their method and its chosen value."""
    methods: dict[str, list[Plan]] = {}
    for plan in plans:
        if results[plan.config.eval].records_of(plan):
            methods.setdefault(f"{plan.name} ({plan.value})" if plan.choose else plan.name, []).append(plan)
    return methods


def method_row(
    plans: list[Plan], results: dict[Eval, Results], mode: str | None, curves: dict[int, np.ndarray]
) -> dict:
    """A method's last checkpoints against the early-stopping curves of their pairs: means over pairs, the gap above the
    curve with its interval, the share of the curve's coverage shrinkage that is recovered.

    curves: float64[snapshots, 1 + K, n] by seed.
    """
    plan_results = [results[plan.config.eval] for plan in plans]
    records = [measured.records_of(plan)[-1] for measured, plan in zip(plan_results, plans, strict=True)]
    checkpoints = list(zip(plan_results, records, strict=True))
    trained_runs = [measured.runs[record["run"]] for measured, record in checkpoints]
    passes = np.stack([measured.record_pass_at_ks(record, KS, mode) for measured, record in checkpoints])
    method_curves = np.stack([curves[plan.config.seed] for plan in plans])
    row = {
        "pairs": len(plans),
        "seconds": float(np.mean([run.record["seconds"] for run in trained_runs])),
        "tokens": float(np.mean([record["tokens"] for record in records])),
        "pass_at": estimate_by_k(lambda values: float(values.mean()), passes),
    }
    bases = np.stack([curve[0] for curve in curves.values()])
    for i, (k, above) in enumerate(above_curve(passes, method_curves).items(), 1):
        last = method_curves[:, -1, i].mean()
        shrinkage, gain = bases[:, i].mean() - last, passes[:, i].mean() - last
        recovered = float(gain / shrinkage) if shrinkage >= MIN_SHRINKAGE else None
        row |= {f"above_{k}": above, f"recovered_{k}": recovered}
    return row


def frontier_table(rows: list[dict]) -> str:
    """One line a method: its pass@k, its gap above early stopping, the share it recovered, its cost and verdict."""
    head = f"{'method':<36}{'FORK_RATE':>11}{'mode':>6}" + "".join(f"{f'pass@{k}':>9}" for k in KS)
    head += "".join(f"{f'above curve, k = {k}':>28}{'recovered':>11}" for k in KS[1:])
    lines = [head + f"{'train s':>9}{'tokens':>8}  verdict"]
    for row in rows:
        text = f"{row['method']:<36}{row['fork_rate']:>11g}{row['mode']:>6}"
        text += "".join(f"{passed:>9.3f}" for passed in row["pass_at"].values())
        for k in KS[1:]:
            recovered = row[f"recovered_{k}"]
            text += f"{signed(row[f'above_{k}']):>28}{'-' if recovered is None else f'{recovered:.2f}':>11}"
        lines.append(text + f"{row['seconds']:>9.0f}{row['tokens']:>8.2f}" + frontier_verdict(row))
    return "\n".join(lines)


def frontier_verdict(row: dict) -> str:
    """The verdict on a row: better if it lies above the curve at every k, worse if below at one, else nothing."""
    ends = [row[f"above_{k}"]["ci95"] for k in KS[1:]]
    if all(low > 0 for low, _ in ends):
        return "  better"
    return "  worse" if any(high < 0 for _, high in ends) else ""


@default_settings()
def draw_frontier(rows: list[dict], curves: dict[int, np.ndarray], rate: float, mode: str) -> Figure:
    """pass@k against pass@1: the curves of all pairs, and every method with the interval of its gap as a bar."""
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    names = list(dict.fromkeys(row["method"] for row in rows))  # a method has one colour and marker in all figures
    colours = matplotlib.colormaps["tab20"]
    for i, (axes, k) in enumerate(zip(figure.subplots(1, 2), KS[1:], strict=True), 1):
        for pair, curve in curves.items():
            style = {"label": "early stopping", "linewidth": 1.4} if pair == 0 else {"linewidth": 0.6}
            axes.plot(*curve[:, [0, i]].mean(axis=2).T, color="black", marker=".", zorder=1, **style)
        for row in [row for row in rows if (row["fork_rate"], row["mode"]) == (rate, mode)]:
            j, above = names.index(row["method"]), row[f"above_{k}"]
            error = whiskers(*([value] for value in (above["mean"], *above["ci95"])))
            axes.errorbar(row["pass_at"]["1"], row["pass_at"][str(k)], yerr=error, color=colours(j % 20),
                          marker="osD^vP*X"[j % 8], linestyle="", label=row["method"])  # fmt: skip
        axes.set(xlabel="pass@1", ylabel=f"pass@{k}", title=f"FORK_RATE {rate:g}, {mode}, k = {k}")
        axes.set_ylim(top=1.02)  # the interval of a gap may end above pass@k = 1
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure
