"""Which mitigation wins coverage back? All on one frontier, with early stopping as the line to beat.

The methods are those of experiments/studies/frontier.yaml. All start from the same bases, for every pair of seeds, and
train for as many steps. Plain cross-entropy's snapshots are the *early-stopping curve*. A method is better only where
its last checkpoint lies above the best pass@k that stopping in time has at no less pass@1
(`experiments.studies.early_stopping`), with its 95 % interval.

A key that an entry asks to choose is chosen on validation problems, on the first pair at FORK_RATE 1: the value with
the largest gap above the curve at k = 16.
"""

from dataclasses import replace
from functools import partial

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments import executors, study
from experiments.estimates import KS, LOST, pairs_text, signed
from experiments.figures import known_settings, save_figure, whiskers
from experiments.results import Results, load_results
from experiments.studies.early_stopping import BIAS, above_curve, curve, early_stopping_gap
from experiments.studies.steps import evaluate_and_check, timed
from experiments.studies.stratified import recovered_shares, stratified_line, stratified_study
from experiments.study import Plan
from minifork import runs
from minifork.evaluate import measure_missing
from minifork.runs import Checkpoint
from minifork.schema import Config
from minifork.settings import Eval
from minifork.storage.files import write_json

CHOSEN_ON = (0, 1.0)  # pair and FORK_RATE
PLAIN = "cross-entropy"


def frontier(config: Config) -> None:
    """Choose values, run what is missing, evaluate, compare; writes frontier.json and figures/frontier-*.png.

    Raises ValueError naming a stage that failed.
    """
    with timed("frontier"):
        entries = study.read_study("frontier")
        chosen = choose(config, entries)
        plans = study.plans(config, entries, range(config.reproduce.pairs))
        plans = [plan for plan in plans if not plan.choose or plan.value == chosen[plan.name]]
        executors.run_plans(plans)
        results = measured(config, [plan for plan in plans if plan.config.eval != config.eval])
        evaluate_and_check(config, partial(is_compared, [plan for plan in plans if plan.config.eval == config.eval]))
        compare(config, plans, results | {config.eval: load_results(config)})


def measured(config: Config, plans: list[Plan]) -> dict[Eval, Results]:
    """Results under every plan's evaluation settings, what plans look at measured first."""
    results = {}
    for settings in dict.fromkeys(plan.config.eval for plan in plans):
        alike = [plan for plan in plans if plan.config.eval == settings]
        measure_missing(replace(config, eval=settings), partial(is_compared, alike))
        results[settings] = load_results(replace(config, eval=settings))
    return results


def is_compared(plans: list[Plan], checkpoint: Checkpoint) -> bool:
    """Whether plans look at a checkpoint: at all of the early-stopping curve, at the end of every other run."""
    identity = checkpoint.run.identity
    on_curve = {runs.identity(plan.config, stage) for plan in plans if plan.name == PLAIN for stage in ("base", "sft")}
    return identity in on_curve or checkpoint.final and identity in {plan.identity for plan in plans}


def choose(config: Config, entries: list[dict]) -> dict[str, object]:
    """The value of every method, by its name; the scores behind it are printed and kept in frontier-values.json."""
    pair, rate = CHOSEN_ON
    tried = [plan for plan in study.plans(config, entries, [pair]) if plan.config.sft.fork_rate == rate]
    tried = [plan for plan in tried if plan.choose or plan.name == PLAIN]
    executors.run_plans(tried)
    valid = [replace(p, config=replace(p.config, eval=replace(p.config.eval, split="valid"))) for p in tried]
    results = measured(config, valid)
    plain = next(plan for plan in valid if plan.name == PLAIN)
    stopped = curve(results[plain.config.eval], plain, None).mean(axis=2)
    scores: dict[str, dict] = {}
    for plan in [plan for plan in valid if plan.choose]:
        of_settings = results[plan.config.eval]
        records = of_settings.records_of(plan)
        if not records:
            raise ValueError(f"{plan.name}, {plan.value}: not measured with these settings (see above)")
        solved = of_settings.problem_pass_at_ks(records[-1], KS).mean(axis=1)
        scores.setdefault(plan.name, {})[plan.value] = float(
            early_stopping_gap(solved[None], stopped[None])[0, KS[1:].index(16)]
        )
    chosen = {name: max(by_value, key=lambda value: by_value[value]) for name, by_value in scores.items()}
    for name, by_value in scores.items():
        text = ", ".join(f"{value} {score:+.3f}" for value, score in by_value.items())
        print(f"{name}: {chosen[name]} (pass@16 above early stopping on validation problems: {text})", flush=True)
    write_json(runs.task_folder(config) / "frontier-values.json", {"chosen": chosen, "scores": scores})
    return chosen


def compare(config: Config, plans: list[Plan], results: dict[Eval, Results]) -> None:
    """Compare the runs of plans with their early-stopping curve; raises ValueError when one was not measured."""
    folder, rows, spreads = runs.task_folder(config), [], []
    for rate in sorted({plan.config.sft.fork_rate for plan in plans if plan.name == PLAIN}):
        alike = [plan for plan in plans if plan.config.sft.fork_rate == rate]
        plain = [plan for plan in alike if plan.name == PLAIN]
        for mode in (None, "FWD"):
            curves = {plan.config.seed: curve(results[config.eval], plan, mode) for plan in plain}
            in_mode = [plan for plan in alike if mode in (None, *plan.config.sft.modes.split(","))]
            for name, of_method in methods(in_mode, results).items():
                place = {"method": name, "fork_rate": rate, "mode": mode or "free"}
                rows.append(place | compared(of_method, results, mode, curves))
            drawn = draw(rows, curves, rate, mode or "free")
            save_figure(drawn, folder / "figures" / f"frontier-fork{rate:g}-{mode or 'free'}.png")
        spreads += recovered_shares(rate, [stratified_study(results[plan.config.eval], plan) for plan in plain])
    print("\n".join([table(rows), f"{pairs_text(config.reproduce.pairs)}; {BIAS}", *map(stratified_line, spreads)]))
    write_json(folder / "frontier.json", runs.made_by(config) | {"methods": rows, "stratified": spreads})


def methods(plans: list[Plan], results: dict[Eval, Results]) -> dict[str, list[Plan]]:
    """The plans whose runs were measured, by the name of their method and its chosen value."""
    named: dict[str, list[Plan]] = {}
    for plan in plans:
        if results[plan.config.eval].records_of(plan):
            named.setdefault(f"{plan.name} ({plan.value})" if plan.choose else plan.name, []).append(plan)
    return named


def compared(plans: list[Plan], results: dict[Eval, Results], mode: str | None, curves: dict[int, np.ndarray]) -> dict:
    """A method's runs against the early-stopping curves of their pairs: means over pairs of the last checkpoints, the
    gap above the curve with its interval, the share of what the curve lost that is recovered."""
    lasts = [(results[plan.config.eval], results[plan.config.eval].records_of(plan)[-1]) for plan in plans]
    solved = np.stack([one.problem_pass_at_ks(last, KS, mode) for one, last in lasts])  # [pairs, 1 + K, n]
    stopped = np.stack([curves[plan.config.seed] for plan in plans])  # [pairs, snapshots, 1 + K, n]
    bases = np.stack([line[0] for line in curves.values()])
    row = {
        "pairs": len(plans),
        "seconds": float(np.mean([one.runs[last["run"]].record["seconds"] for one, last in lasts])),
        "tokens": float(np.mean([last["tokens"] for _, last in lasts])),
        "pass_at": {str(k): float(solved[:, i].mean()) for i, k in enumerate(KS)},
    }
    for i, (k, above) in enumerate(above_curve(solved, stopped).items(), 1):
        lost = bases[:, i].mean() - stopped[:, -1, i].mean()
        won = solved[:, i].mean() - stopped[:, -1, i].mean()
        row |= {f"above_{k}": above, f"recovered_{k}": float(won / lost) if lost >= LOST else None}
    return row


def table(rows: list[dict]) -> str:
    """One line a method: where it is, how far above early stopping, what it recovered, its cost, and the verdict."""
    head = f"{'method':<36}{'r':>5}{'mode':>6}" + "".join(f"{f'pass@{k}':>9}" for k in KS)
    head += "".join(f"{f'above curve, k = {k}':>28}{'recovered':>11}" for k in KS[1:])
    lines = [head + f"{'train s':>9}{'tokens':>8}"]
    for row in rows:
        text = f"{row['method']:<36}{row['fork_rate']:>5g}{row['mode']:>6}"
        text += "".join(f"{row['pass_at'][str(k)]:>9.3f}" for k in KS)
        for k in KS[1:]:
            recovered = row[f"recovered_{k}"]
            text += f"{signed(row[f'above_{k}']):>28}{'-' if recovered is None else f'{recovered:.2f}':>11}"
        lines.append(text + f"{row['seconds']:>9.0f}{row['tokens']:>8.2f}" + verdict(row))
    return "\n".join(lines)


def verdict(row: dict) -> str:
    """Whether a row lies above the curve at every k, below at one, or cannot be told from it."""
    ends = [row[f"above_{k}"]["ci95"] for k in KS[1:]]
    if all(low > 0 for low, _ in ends):
        return "  better"
    return "  worse" if any(high < 0 for _, high in ends) else ""


@known_settings()
def draw(rows: list[dict], curves: dict[int, np.ndarray], rate: float, mode: str) -> Figure:
    """pass@k against pass@1: the curves of all pairs, and every method; its bars are the interval of its gap."""
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    names = list(dict.fromkeys(row["method"] for row in rows))  # a method looks the same at every FORK_RATE
    colours = matplotlib.colormaps["tab20"]
    for i, (axes, k) in enumerate(zip(figure.subplots(1, 2), KS[1:], strict=True), 1):
        for pair, line in curves.items():
            style = {"label": "early stopping", "linewidth": 1.4} if pair == 0 else {"linewidth": 0.6}
            axes.plot(*line[:, [0, i]].mean(axis=2).T, color="black", marker=".", zorder=1, **style)
        for row in [row for row in rows if (row["fork_rate"], row["mode"]) == (rate, mode)]:
            j, above = names.index(row["method"]), row[f"above_{k}"]
            error = whiskers(*([value] for value in (above["mean"], *above["ci95"])))
            axes.errorbar(row["pass_at"]["1"], row["pass_at"][str(k)], yerr=error, color=colours(j % 20),
                          marker="osD^vP*X"[j % 8], linestyle="", label=row["method"])  # fmt: skip
        axes.set(xlabel="pass@1", ylabel=f"pass@{k}", title=f"FORK_RATE {rate:g}, {mode}, k = {k}")
        axes.set_ylim(top=1.02)  # intervals are of the gap, and may reach above what a pass@k can be
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure
