"""Which mitigation wins coverage back? All on one frontier, with early stopping as the line to beat.

The methods are those of experiments/studies/frontier.yaml. All start from the same bases, for every pair of seeds, and
train for as many steps. Plain cross-entropy's snapshots are the *early-stopping curve*. A method is better only where
its last checkpoint lies above the best pass@k that stopping in time has at no less pass@1 (`experiments.studies.gap`),
with its 95 % interval (pairs and problems resampled).

A key that an entry asks to choose is chosen on validation problems, on the first pair at FORK_RATE 1: the value with
the largest gap above the curve at k = 16.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments import executors, study
from experiments.figures import save, whiskers
from experiments.results import Results, load
from experiments.studies.gap import LOST, gap, gap_draws
from experiments.studies.spread import recovered_shares, spread, spread_line
from experiments.study import Plan
from experiments.summary import signed
from minifork import checkpoints, measure, runs
from minifork.decoding import policy
from minifork.evaluate import evaluate, measure_missing, problems_for
from minifork.runs import Checkpoint
from minifork.schema import Config
from minifork.settings import Eval
from minifork.statistics import intervals
from minifork.storage.files import write_json

RATES = (0.5, 1.0)
KS = (16, 64)
CHOSEN_ON = (0, 1.0)  # pair and FORK_RATE
PLAIN = "cross-entropy"


@dataclass(frozen=True)
class Point:
    """A method's last checkpoint of one pair: solve rates float64[1 + len(KS), n] of every problem at k = 1 and KS, and
    its cost: seconds of training, tokens of a sample."""

    pair: int
    solved: np.ndarray
    seconds: float
    tokens: float


def frontier(config: Config) -> None:
    """Choose values, run what is missing, evaluate, compare; writes frontier.json and figures/frontier-*.png.

    Raises ValueError naming a stage that failed.
    """
    started, entries = time.monotonic(), study.read("frontier")
    pair, rate = CHOSEN_ON
    tried = [plan for plan in study.plans(config, entries, [pair]) if plan.config.sft.fork_rate == rate]
    tried = [plan for plan in tried if plan.choose or plan.name == PLAIN]
    executors.run(tried)
    chosen = choose(config, tried)
    plans = study.plans(config, entries, range(config.reproduce.pairs))
    plans = [plan for plan in plans if not plan.choose or plan.value == chosen[plan.name]]
    executors.run(plans)
    for settings in {plan.config.eval for plan in plans} - {config.eval}:
        measure_missing(replace(config, eval=settings), lambda c, s=settings: is_compared(c, plans, s))
    if evaluate(config, lambda checkpoint: is_compared(checkpoint, plans, config.eval)):
        raise ValueError(f"{runs.task_folder(config)}: the engines disagree (see above)")
    compare(config, plans)
    print(f"frontier: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def is_compared(checkpoint: Checkpoint, plans: Iterable[Plan], settings: Eval) -> bool:
    """Whether plans look at a checkpoint under evaluation settings: all of the curve, the end of every other run."""
    measured = [plan for plan in plans if plan.config.eval == settings]
    plain, identity = [plan for plan in measured if plan.name == PLAIN], checkpoint.run.identity
    if identity in {runs.identity(plan.config, stage) for plan in plain for stage in ("base", "sft")}:
        return True
    return checkpoint.final and identity in {plan.identity for plan in measured}


def choose(config: Config, tried: list[Plan]) -> dict[str, object]:
    """The value of every method, by its name; the scores behind it are printed and kept in frontier-values.json."""
    valid = [replace(p, config=replace(p.config, eval=replace(p.config.eval, split="valid"))) for p in tried]
    results = {}
    for settings in {plan.config.eval for plan in valid}:
        one = replace(config, eval=settings)
        measure_missing(one, lambda c, s=settings: is_compared(c, valid, s))
        results[settings] = load(one)
    plain = next(plan for plan in valid if plan.name == PLAIN)
    stopped = curve(results[plain.config.eval], plain, None).mean(axis=2)
    scores: dict[str, dict[str, float]] = {}
    for plan in [plan for plan in valid if plan.choose]:
        of_settings = results[plan.config.eval]
        records = of_settings.of(plan)
        if not records:
            raise ValueError(f"{plan.name}, {plan.value}: not measured with these settings (see above)")
        solved = solve(of_settings, records[-1], None).mean(axis=1)
        above = gap(solved[None], stopped[None])[0]
        scores.setdefault(plan.name, {})[plan.value] = float(above[KS.index(16)])
    chosen = {name: max(of_values, key=of_values.get) for name, of_values in scores.items()}
    for name, of_values in scores.items():
        text = ", ".join(f"{value} {score:+.3f}" for value, score in of_values.items())
        print(f"{name}: {chosen[name]} (pass@16 above early stopping on validation problems: {text})", flush=True)
    write_json(runs.task_folder(config) / "frontier-values.json", {"chosen": chosen, "scores": scores})
    return chosen


def compare(config: Config, plans: list[Plan]) -> None:
    """Compare the runs of plans with their early-stopping curve; raises ValueError when one was not measured."""
    results = {settings: load(replace(config, eval=settings)) for settings in {plan.config.eval for plan in plans}}
    rows, spreads = [], []
    for rate in [rate for rate in RATES if any((p.name, p.config.sft.fork_rate) == (PLAIN, rate) for p in plans)]:
        mine = [plan for plan in plans if plan.config.sft.fork_rate == rate]
        plain = [plan for plan in mine if plan.name == PLAIN]
        for mode in (None, "FWD"):
            plain_results = results[config.eval]
            curves = {plan.config.seed: curve(plain_results, plan, mode) for plan in plain}
            bases = np.stack([line[0] for line in curves.values()])
            methods = points(
                results, [plan for plan in mine if mode in (None, *plan.config.sft.modes.split(","))], mode
            )
            rows += [judge(name, rate, mode, found, curves, bases) for name, found in methods.items()]
            name = f"frontier-fork{rate:g}-{mode or 'free'}.png"
            save(draw(rows, curves, rate, mode), runs.task_folder(config) / "figures" / name)
        spreads += recovered_shares(rate, [spread_of(results[plan.config.eval], plan) for plan in plain])
    print(table(rows))
    for row in spreads:
        print(spread_line(row))
    write_json(
        runs.task_folder(config) / "frontier.json", runs.made_by(config) | {"methods": rows, "stratified": spreads}
    )


def solve(results: Results, record: dict, mode: str | None) -> np.ndarray:
    """float64[1 + len(KS), n]: the solve rates of a record at k = 1 and KS."""
    return np.stack([results.solved(record, k, mode) for k in (1, *KS)])


def curve(results: Results, plain: Plan, mode: str | None) -> np.ndarray:
    """The early-stopping curve float64[1 + snapshots, 1 + len(KS), n]: the base, then every snapshot.

    Raises ValueError when a run was not measured.
    """
    base, snapshots = results.parent_of(plain), results.of(plain)
    if not base or not snapshots:
        raise ValueError(f"{runs.task_folder(plain.config)}: no plain fine-tuning to compare with; run `make frontier`")
    return np.stack([solve(results, record, mode) for record in base + snapshots])


def points(results: dict[Eval, Results], plans: list[Plan], mode: str | None) -> dict[str, list[Point]]:
    """The last checkpoint of every method that was measured, by its name and chosen value."""
    methods: dict[str, list[Point]] = {}
    for plan in plans:
        measured = results[plan.config.eval]
        if records := measured.of(plan):
            name, last = f"{plan.name} ({plan.value})" if plan.choose else plan.name, records[-1]
            seconds = measured.runs[last["run"]].record["seconds"]
            point = Point(plan.config.seed, solve(measured, last, mode), seconds, last["tokens"])
            methods.setdefault(name, []).append(point)
    return methods


def spread_of(results: Results, plain: Plan) -> dict[str, tuple]:
    """What stratified decoders recover on the last checkpoint of a plain fine-tuning (see `spread`)."""
    config, record = results.config, results.of(plain)[-1]
    device = checkpoints.pick_device(config)
    problems = problems_for(config, device)
    model = results.runs[record["run"]].model(record["epoch"]).to(device)
    tree = measure.tree_of(model, problems, policy.parse(config.eval.policy))
    return spread(tree, problems, results.solved(record, problems.branches.shape[1]))


def judge(
    name: str, rate: float, mode: str | None, found: list[Point], curves: dict[int, np.ndarray], bases: np.ndarray
) -> dict:
    """One method against the early-stopping curve: means over pairs, the gap above the curve with its interval."""
    solved = np.stack([point.solved for point in found])  # [pairs, 1 + KS, n]
    row = {"method": name, "fork_rate": rate, "mode": mode or "free", "pairs": len(found)}
    row |= {what: float(np.mean([getattr(point, what) for point in found])) for what in ("seconds", "tokens")}
    row["pass_at"] = {str(k): float(solved[:, i].mean()) for i, k in enumerate((1, *KS))}
    stopped = np.stack([curves[point.pair] for point in found])  # [pairs, snapshots, 1 + KS, n]
    draws = gap_draws(solved, stopped)
    for i, k in enumerate(KS):
        low, high = intervals.interval(draws[:, i])
        above = gap(solved.mean(axis=2), stopped.mean(axis=3))[:, i].mean()
        row[f"above_{k}"] = {"mean": float(above), "ci95": [float(low), float(high)]}
        lost = bases[:, 1 + i].mean() - stopped[:, -1, 1 + i].mean()
        won = solved[:, 1 + i].mean() - stopped[:, -1, 1 + i].mean()
        row[f"recovered_{k}"] = float(won / lost) if lost >= LOST else None
    return row


def table(rows: list[dict]) -> str:
    """One line a method: where it is, how far above early stopping, what it recovered, its cost, and the verdict."""
    head = f"{'method':<36}{'r':>5}{'mode':>6}" + "".join(f"{f'pass@{k}':>9}" for k in (1, *KS))
    head += "".join(f"{f'above curve, k = {k}':>28}{'recovered':>11}" for k in KS)
    lines = [head + f"{'train s':>9}{'tokens':>8}"]
    for row in rows:
        text = f"{row['method']:<36}{row['fork_rate']:>5g}{row['mode']:>6}"
        text += "".join(f"{row['pass_at'][str(k)]:>9.3f}" for k in (1, *KS))
        for k in KS:
            recovered = row[f"recovered_{k}"]
            text += f"{signed(row[f'above_{k}']):>28}" + ("          -" if recovered is None else f"{recovered:>11.2f}")
        lines.append(text + f"{row['seconds']:>9.0f}{row['tokens']:>8.2f}" + verdict(row))
    return "\n".join(lines)


def verdict(row: dict) -> str:
    """Whether a row lies above the curve at every k of KS, below at one, or cannot be told from it."""
    intervals = [row[f"above_{k}"]["ci95"] for k in KS]
    if all(low > 0 for low, _ in intervals):
        return "  better"
    return "  worse" if any(high < 0 for _, high in intervals) else ""


def draw(rows: list[dict], curves: dict[int, np.ndarray], rate: float, mode: str | None) -> Figure:
    """pass@k against pass@1: the curves of all pairs, and every method; its bars are the interval of its gap."""
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    mine = [row for row in rows if row["fork_rate"] == rate and row["mode"] == (mode or "free")]
    kinds = list(dict.fromkeys(row["method"] for row in rows))  # a method looks the same at every FORK_RATE
    colours = matplotlib.colormaps["tab20"]
    for i, (axes, k) in enumerate(zip(figure.subplots(1, 2), KS, strict=True)):
        for pair, line in curves.items():
            ones, many = line[:, 0].mean(axis=1), line[:, 1 + i].mean(axis=1)
            axes.plot(ones, many, color="black", linewidth=1.4 if pair == 0 else 0.6, marker=".", zorder=1,
                      label="early stopping" if pair == 0 else None)  # fmt: skip
        for row in mine:
            j = kinds.index(row["method"])
            low, high = row[f"above_{k}"]["ci95"]
            x, y, mean = row["pass_at"]["1"], row["pass_at"][str(k)], row[f"above_{k}"]["mean"]
            error = whiskers(np.array([mean]), np.array([low]), np.array([high]))
            axes.errorbar(x, y, yerr=error, color=colours(j % 20), marker="osD^vP*X"[j % 8], linestyle="",
                          label=row["method"])  # fmt: skip
        axes.set(xlabel="pass@1", ylabel=f"pass@{k}", title=f"FORK_RATE {rate:g}, {mode or 'free'}, k = {k}")
        axes.set_ylim(top=1.02)  # intervals are of the gap, and may reach above what a pass@k can be
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure
