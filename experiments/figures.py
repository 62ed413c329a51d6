"""The figures: the crossing, pass@k over epochs, the dose, the fork. Drawn from eval.json and eval.npz.

The first pair of seeds is drawn with 95 % intervals (bootstrap over problems), further pairs as thin lines (the bars
of the dose are the first pair's alone).
Line styles and markers repeat what colour says, so that the figures read in grey.
"""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.results import Results, complete_pairs, load
from minifork import passk, runs
from minifork.records import fork_quantities
from minifork.schema import Config

BASE = {"color": "black", "linestyle": "--", "marker": ""}
EPOCH_COLOURS = matplotlib.colormaps["viridis"]
RIGHT, WRONG, SKILL, POLARISATION = "#0072B2", "#D55E00", "#56B4E9", "#E69F00"  # Okabe and Ito
BOOTSTRAP = 400
K_STYLES = {1: ("#0072B2", "o", "-"), 16: ("#E69F00", "s", "-."), 64: ("#CC79A7", "^", ":")}


def figures(config: Config) -> None:
    """Draw every figure the results allow into runs/<task>/figures/ and say which.

    Raises ValueError when there is no evaluation, or none of a plain fine-tuning.
    """
    results = load(config)
    pairs = complete_pairs(config, results)
    if not pairs:
        raise ValueError(
            f"{runs.eval_file(config)}: no fine-tuning of this config ({results.plain}) to draw; "
            "run `make sft` without NAME, then `make eval`"
        )
    folder = runs.task_folder(config) / (f"figures-{config.name}" if config.name else "figures")
    for name, figure in drawn(results, pairs).items():
        path = folder / f"{name}.png"
        runs.write_atomically(path, lambda file, f=figure: f.savefig(file, format="png", dpi=150))
        print(path)


def drawn(results: Results, pairs: list[int]) -> dict[str, Figure]:
    """Every figure the results allow, by name."""
    draw = {"crossing": crossing, "epochs": epochs, "fork": fork}
    if len(results.fork_rates(pairs[0])) > 1:
        draw["dose"] = dose
    with matplotlib.rc_context({"font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}):
        return {name: make(results, pairs) for name, make in draw.items()}


def crossing(results: Results, pairs: list[int]) -> Figure:
    """pass@k against k: the base against the highest FORK_RATE at several epochs."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    rate = results.fork_rates(pairs[0])[-1]
    for pair in reversed(pairs):
        records = results.tuned(pair, fork_rate=rate)
        if not records:
            continue
        _pass_curve(axes, results.base(pair), pair == pairs[0], label="base", **BASE)
        wanted = [r for r in records if r["epoch"] in (1, 4, 16, records[-1]["epoch"])]
        for i, record in enumerate(wanted):
            colour = EPOCH_COLOURS(0.85 - 0.8 * i / max(1, len(wanted) - 1))
            style = {"color": colour, "marker": "osD^"[i % 4], "linestyle": "-", "markersize": 4}
            _pass_curve(axes, record, pair == pairs[0], label=f"SFT, epoch {record['epoch']}", **style)
    axes.set(xlabel="k (samples a problem)", ylabel="pass@k", ylim=(0, 1.02))
    _powers_of_two(axes, 1024, every=2)
    axes.set_title(f"Before and after fine-tuning at FORK_RATE {rate:g}")
    axes.legend(loc="lower right")
    return figure


def _powers_of_two(axes: Axes, most: int, every: int = 1) -> None:
    """A logarithmic x axis labelled 1, 2, 4, ... in plain numbers."""
    ticks = [2**i for i in range(0, most.bit_length(), every)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(t) for t in ticks])


def _pass_curve(axes: Axes, record: dict, main: bool, label: str, **style) -> None:
    ks = [int(k) for k in record["pass_at"]]
    values = list(record["pass_at"].values())
    if not main:
        axes.plot(ks, values, linewidth=0.6, alpha=0.6, **{**style, "marker": ""})
        return
    low, high = np.array(list(record["ci95"].values())).T
    axes.fill_between(ks, low, high, color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(ks, values, label=label, **style)


def epochs(results: Results, pairs: list[int]) -> Figure:
    """pass@k against epoch at the highest FORK_RATE and at .5, the base as horizontal lines."""
    rates = [r for r in (0.5, 1.0) if r in results.fork_rates(pairs[0])] or results.fork_rates(pairs[0])[-1:]
    figure = Figure(figsize=(4.6 * len(rates), 4), layout="constrained")
    panels = figure.subplots(1, len(rates), sharey=True, squeeze=False)
    for axes, rate in zip(panels[0], rates, strict=True):
        for pair in reversed(pairs):
            records, base = results.tuned(pair, fork_rate=rate), results.base(pair)
            if not records:
                continue
            at = [r["epoch"] for r in records]
            for k, (colour, marker, line) in K_STYLES.items():
                values = [r["pass_at"][str(k)] for r in records]
                if pair != pairs[0]:
                    axes.plot(at, values, color=colour, linestyle=line, linewidth=0.6, alpha=0.6)
                    continue
                low, high = np.array([r["ci95"][str(k)] for r in records]).T
                axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
                axes.plot(at, values, color=colour, linestyle=line, marker=marker, label=f"pass@{k}")
                axes.axhline(base["pass_at"][str(k)], color=colour, linestyle=line, linewidth=1, alpha=0.7)
        _powers_of_two(axes, results.tuned(pairs[0], fork_rate=rate)[-1]["epoch"])
        axes.set(xlabel="epoch", title=f"FORK_RATE {rate:g} (plain lines: the base)", ylim=(0, 1.02))
    panels[0][0].set_ylabel("pass@k")
    panels[0][0].legend(loc="lower left")
    return figure


def dose(results: Results, pairs: list[int]) -> Figure:
    """S_16 at the last epoch split into skill and polarisation, and the index, against FORK_RATE."""
    k, first = 16, pairs[0]
    rates = np.array(results.fork_rates(first))
    at = np.arange(len(rates))
    figure = Figure(figsize=(9.6, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    base = results.base(first)
    parts = [_shrinkage(results, base, results.tuned(first, fork_rate=r)[-1], k) for r in rates]
    for offset, name, colour, hatch in ((-0.2, "skill", SKILL, "//"), (0.2, "polarisation", POLARISATION, "..")):
        low, value, high = np.array([p[name] for p in parts]).T
        label = {"skill": "mean skill: C$_{16}$ base - tuned", "polarisation": "polarisation: J$_{16}$ tuned - base"}
        left.bar(at + offset, value, 0.38, color=colour, hatch=hatch, edgecolor="black", label=label[name],
                 yerr=whiskers(value, low, high), capsize=2)  # fmt: skip
    low, value, high = np.array([p["total"] for p in parts]).T
    left.errorbar(
        at, value, whiskers(value, low, high), color="black", marker="o", capsize=3, label="S$_{16}$, the sum"
    )
    left.axhline(0, color="black", linewidth=0.8)
    left.set(ylabel="coverage shrinkage at k = 16", title="Shrinkage against exposure")
    left.legend(loc="best", fontsize=8.5)

    for name, colour, marker, line in (("free", RIGHT, "o", "-"), ("FWD", WRONG, "s", "--")):
        for pair in reversed(pairs):
            found = [results.tuned(pair, fork_rate=r) for r in rates]
            if not all(found):
                continue
            mode = None if name == "free" else name
            low, value, high = np.array([_index(results, records[-1], mode, k) for records in found]).T
            if pair != first:
                right.plot(at, value, color=colour, linestyle=line, linewidth=0.6, alpha=0.6)
                continue
            label = "free" if name == "free" else "forced FWD (given the fork)"
            right.errorbar(at, value, whiskers(value, low, high), color=colour, marker=marker, linestyle=line,
                           capsize=3, label=label)  # fmt: skip
    right.set(ylabel="polarisation index at k = 16", title="Polarisation, free and given the fork", ylim=(0, 1.02))
    right.legend(loc="best")
    for axes in (left, right):
        axes.set(xlabel="FORK_RATE", xticks=at, xticklabels=[f"{r:g}" for r in rates])
    return figure


def whiskers(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Lengths float64[2, m] of error bars below and above; 0 where an interval does not reach its estimate.

    A percentile interval of a ratio, such as the index of nearly equal p, can lie to one side of it.
    """
    return np.maximum(np.stack([value - low, high - value]), 0.0)


def _shrinkage(results: Results, base: dict, tuned: dict, k: int) -> dict[str, tuple[float, float, float]]:
    """S_k and its two parts, each as (low, value, high), paired over problems."""

    def parts(weights: np.ndarray) -> np.ndarray:
        p, solved = (np.stack([of(base), of(tuned)], axis=1) for of in (results.p, lambda r: results.solved(r, k)))
        passed, ceiling = weights @ solved, passk.solve_rate(weights @ p, k)
        skill = ceiling[:, 0] - ceiling[:, 1]
        total = passed[:, 0] - passed[:, 1]
        return np.stack([skill, total - skill, total], axis=1)

    value = parts(np.full((1, results.weights.shape[1]), 1 / results.weights.shape[1]))[0]
    low, high = passk.interval(parts(results.weights))
    return {name: (low[i], value[i], high[i]) for i, name in enumerate(("skill", "polarisation", "total"))}


def _index(results: Results, record: dict, mode: str | None, k: int) -> tuple[float, float, float]:
    """The polarisation index of a record, free or with a forced mode, at k as (low, value, high)."""
    p, solved = results.p(record, mode), results.solved(record, k, mode)[:, None]

    def index(weights: np.ndarray) -> np.ndarray:
        return passk.polarisation(weights @ p, weights @ solved, [k])[1][:, 0]

    value = index(np.full((1, len(p)), 1 / len(p)))[0]
    low, high = passk.interval(index(results.weights))
    return float(low), float(value), float(high)


def fork(results: Results, pairs: list[int]) -> Figure:
    """Confidence on right and wrong branches, and entropy, at the fork against epoch, test and train."""
    rate = results.fork_rates(pairs[0])[-1]
    figure = Figure(figsize=(9.6, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for pair in reversed(pairs):
        records, main = results.tuned(pair, fork_rate=rate), pair == pairs[0]
        at = [r["epoch"] for r in records]
        for where, name, line in (("fork", "test", "-"), ("fork_train", "train", ":")):
            if not records or records[0][where] is None:  # at FORK_RATE 0 no training trace meets a fork
                continue
            lines = [
                (left, "confidence_right", f"{name}, argmax right", RIGHT, "o"),
                (left, "confidence_wrong", f"{name}, argmax wrong", WRONG, "x"),
                (right, "entropy", name, "black" if name == "test" else "gray", "o"),
            ]
            for axes, key, label, colour, marker in lines:
                low, value, high = np.array([_fork_mean(results.array(r, where), key) for r in records]).T
                style = {"color": colour, "linestyle": line}
                if main:
                    axes.plot(at, value, label=label, marker=marker, **style)
                    axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
                else:
                    axes.plot(at, value, linewidth=0.6, alpha=0.6, **style)
    branches = (results.array(results.base(pairs[0]), "fork") > 0).sum(axis=1)  # problems may have fewer than others
    undecided = float(np.log(branches).mean())
    right.axhline(undecided, color="black", linewidth=0.8)
    label = f"ln {branches[0]}" if (branches == branches[0]).all() else "mean ln d"
    right.annotate(f"{label}: undecided", (1, undecided), xytext=(0, 3), textcoords="offset points")
    left.set(ylabel="mean probability of the likeliest branch", title=f"Confidence at the fork (FORK_RATE {rate:g})")
    right.set(
        ylabel="entropy at the fork (nats)",
        title="How open the choice still is",
        ylim=(0, 1.15 * undecided),
    )
    for axes in (left, right):
        _powers_of_two(axes, results.tuned(pairs[0], fork_rate=rate)[-1]["epoch"])
        axes.set_xlabel("epoch")
        axes.legend(loc="best")
    return figure


def _fork_mean(branch: np.ndarray, key: str) -> tuple[float, float, float]:
    """A fork statistic of branch probabilities [n, d] as (low, value, high); nan where no problem counts."""
    value, where = fork_quantities(branch)[key]
    if where.sum() < 5:  # an interval from a handful of problems would say nothing
        return np.nan, np.nan, np.nan
    weights = passk.resamples(len(value), BOOTSTRAP)
    low, high = passk.interval((weights @ (value * where)) / np.maximum(weights @ where, 1e-12))
    return float(low), float(value[where].mean()), float(high)
