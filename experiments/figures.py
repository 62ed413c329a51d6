"""The figures: the crossing, pass@k over epochs, the dose, the fork.

The first pair of seeds is drawn with 95 % intervals over problems, further pairs as thin lines. The bars of the dose
figure are those of the first pair.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import drawing
from experiments.drawing import EPOCH_COLOURS, LARGE_K, POLARISATION, RIGHT, SKILL, WRONG
from experiments.estimates import SHRINKAGE_K as K
from experiments.front import front
from experiments.results import Results, load_results
from minifork import runs
from minifork.measuring.quantities import fork_values
from minifork.schema import Config
from minifork.statistics import intervals, passk

BASE = ("base", "black", "", "--")
K_STYLES = {
    "1": ("pass@1", RIGHT, "o", "-"),
    "16": ("pass@16", POLARISATION, "s", "-."),
    "64": ("pass@64", LARGE_K, "^", ":"),
}
DOSE_STYLES = {None: ("free samples", RIGHT, "o", "-"), "FWD": ("forced FWD (meets the fork)", WRONG, "s", "--")}
PARTS = (
    (-0.2, "mean skill: C$_{16}$, base - tuned", SKILL, "//"),
    (0.2, "polarisation: J$_{16}$, tuned - base", POLARISATION, ".."),
)
FORK_STYLES = {
    ("fork", "confidence_right"): ("test, argmax right", RIGHT, "o", "-"),
    ("fork", "confidence_wrong"): ("test, argmax wrong", WRONG, "x", "-"),
    ("fork", "entropy"): ("test", "black", "o", "-"),
    ("fork_train", "confidence_right"): ("train, argmax right", RIGHT, "o", ":"),
    ("fork_train", "confidence_wrong"): ("train, argmax wrong", WRONG, "x", ":"),
    ("fork_train", "entropy"): ("train", "gray", "o", ":"),
}


def figures(config: Config) -> None:
    """Draw every figure the results allow into runs/<task>/figures/ and print their paths.

    Raises ValueError when nothing was measured, or no plain fine-tuning.
    """
    results = load_results(config)
    pairs = results.complete_pairs()
    for name, figure in (draw_all(results, pairs) | front(results, pairs)).items():
        drawing.save_figure(figure, runs.task_folder(config) / "figures" / f"{name}.png")


@drawing.default_settings({"axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True})
def draw_all(results: Results, pairs: list[int]) -> dict[str, Figure]:
    """Every figure the results allow, by name."""
    drawings = {"crossing": crossing, "epochs": epochs}
    if results.base(pairs[0])["fork"]:  # null on a task that declares no fork
        drawings["fork"] = fork
    if len(results.fork_rates(pairs[0])) > 1:
        drawings["dose"] = dose
    return {name: draw(results, pairs) for name, draw in drawings.items()}


# figures


def crossing(results: Results, pairs: list[int]) -> Figure:
    """pass@k against k: the base against the highest FORK_RATE at several epochs."""
    rate = results.fork_rates(pairs[0])[-1]
    figure, (axes,) = drawing.panels(1, 6.4, 4.2)
    for pair, records, main in _tunings(results, pairs, rate):
        snapshots = [record for record in records if record["epoch"] in (1, 4, 16, records[-1]["epoch"])]
        colours = EPOCH_COLOURS(0.85 - 0.8 * np.arange(len(snapshots)) / max(1, len(snapshots) - 1))
        styles = [(f"SFT, epoch {r['epoch']}", colours[i], "osD^"[i % 4], "-") for i, r in enumerate(snapshots)]
        for record, style in zip([results.base(pair), *snapshots], [BASE, *styles], strict=True):
            ks = list(record["pass_at"])
            drawing.line(axes, [int(k) for k in ks], _pass_curve([record], ks), style, main, size=4)
    axes.set(xlabel="k (samples a problem)", ylabel="pass@k", ylim=(0, 1.02))
    drawing.powers_of_two(axes, 1024, step=2)
    axes.set_title(f"Before and after fine-tuning at FORK_RATE {rate:g}")
    axes.legend(loc="lower right")
    return figure


def epochs(results: Results, pairs: list[int]) -> Figure:
    """pass@k against epoch at the highest FORK_RATE and at .5, the base as horizontal lines."""
    rates = [r for r in (0.5, 1.0) if r in results.fork_rates(pairs[0])] or results.fork_rates(pairs[0])[-1:]
    figure, shown = drawing.panels(len(rates), 4.6 * len(rates), 4, sharey=True)
    for axes, rate in zip(shown, rates, strict=True):
        for pair, records, main in _tunings(results, pairs, rate):
            for k, style in K_STYLES.items():
                drawing.line(axes, [r["epoch"] for r in records], _pass_curve(records, [k]), style, main)
                if main:
                    base = results.base(pair)["pass_at"][k]
                    axes.axhline(base, color=style[1], linestyle=style[3], linewidth=1, alpha=0.7)
        drawing.powers_of_two(axes, results.tuned(pairs[0], rate)[-1]["epoch"])
        axes.set(xlabel="epoch", title=f"FORK_RATE {rate:g} (horizontal lines: the base)", ylim=(0, 1.02))
    shown[0].set_ylabel("pass@k")
    shown[0].legend(loc="lower left")
    return figure


def dose(results: Results, pairs: list[int]) -> Figure:
    """S_16 at the last epoch split into skill and polarisation, and the index, against FORK_RATE."""
    rates = results.fork_rates(pairs[0])
    at = np.arange(len(rates))
    figure, (left, right) = drawing.panels(2, 9.6, 4)
    _shrinkage_bars(left, at, [_shrinkage(results, pairs[0], rate) for rate in rates])
    for mode, style in DOSE_STYLES.items():
        for pair in reversed(pairs):
            tunings = [results.tuned(pair, rate) for rate in rates]
            if all(tunings):
                index = [_estimate(results.record_index(records[-1], K, mode)) for records in tunings]
                drawing.line(right, at, np.stack(index, axis=1), style, pair == pairs[0])
    right.set(ylabel="polarisation index at k = 16", title="Polarisation against exposure to the fork", ylim=(0, 1.02))
    right.legend(loc="best")
    for axes in (left, right):
        axes.set(xlabel="FORK_RATE", xticks=at, xticklabels=[f"{r:g}" for r in rates])
    return figure


def _shrinkage_bars(axes: Axes, at: np.ndarray, estimates: list[np.ndarray]) -> None:
    """Draw bars of skill and polarisation, and their sum, from [3, (skill, polarisation, total)] per FORK_RATE."""
    low, value, high = np.stack(estimates, axis=-1)  # each [part, FORK_RATE]
    errors = [drawing.whiskers(*ends) for ends in zip(value, low, high, strict=True)]
    for part, (offset, label, colour, hatch) in enumerate(PARTS):
        axes.bar(at + offset, value[part], 0.38, color=colour, hatch=hatch, edgecolor="black", label=label,
                 yerr=errors[part], capsize=2)  # fmt: skip
    axes.errorbar(at, value[2], errors[2], color="black", marker="o", capsize=3, label="shrinkage S$_{16}$, the sum")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set(ylabel="coverage shrinkage at k = 16", title="Coverage shrinkage against exposure to the fork")
    axes.legend(loc="best", fontsize=8.5)


def fork(results: Results, pairs: list[int]) -> Figure:
    """Confidence on right and wrong branches, and entropy, at the fork against epoch, test and train."""
    rate = results.fork_rates(pairs[0])[-1]
    figure, (left, right) = drawing.panels(2, 9.6, 4)
    for _, records, main in _tunings(results, pairs, rate):
        for (array, quantity), style in FORK_STYLES.items():
            if records[0][array]:  # at FORK_RATE 0 no training trace meets a fork
                values = [_estimate(fork_values(results.array(record, array), quantity)) for record in records]
                axes = right if quantity == "entropy" else left
                drawing.line(axes, [r["epoch"] for r in records], np.stack(values, axis=1), style, main)
    branches = (results.array(results.base(pairs[0]), "fork") > 0).sum(axis=1)  # d can differ between problems
    undecided = float(np.log(branches).mean())
    right.axhline(undecided, color="black", linewidth=0.8)
    label = f"ln {branches[0]}" if (branches == branches[0]).all() else "mean ln d"
    right.annotate(f"{label}: all branches equally likely", (1, undecided), xytext=(0, 3), textcoords="offset points")
    left.set(ylabel="mean probability of the likeliest branch", title=f"Confidence at the fork (FORK_RATE {rate:g})")
    right.set(ylabel="entropy over branches (nats)", title="Entropy at the fork", ylim=(0, 1.15 * undecided))
    for axes in (left, right):
        drawing.powers_of_two(axes, results.tuned(pairs[0], rate)[-1]["epoch"])
        axes.set_xlabel("epoch")
        axes.legend(loc="best")
    return figure


# parts of figures


def _tunings(results: Results, pairs: list[int], rate: float) -> Iterator[tuple[int, list[dict], bool]]:
    """Yield pair, records and whether it is the first pair, for the plain fine-tunings at a FORK_RATE.

    The first pair comes last, so that it is drawn on top.
    """
    for pair in reversed(pairs):
        if records := results.tuned(pair, rate):
            yield pair, records, pair == pairs[0]


def _pass_curve(records: Sequence[dict], ks: Sequence[str]) -> np.ndarray:
    """pass@k of records, then of ks, as float64[3, m]: low, value, high."""
    return np.array([[*r["ci95"][k], r["pass_at"][k]] for r in records for k in ks])[:, [0, 2, 1]].T


# estimates of one pair, float64[3, ...]: low, value, high


def _estimate(values: np.ndarray) -> np.ndarray:
    """The mean of the values or pseudo-values float64[n] of problems, with its interval, as float64[3]."""
    low, high = intervals.mean_interval(values[None])
    return np.array([low, values.mean(), high])


def _shrinkage(results: Results, pair: int, rate: float) -> np.ndarray:
    """Coverage shrinkage S_K and its two parts, float64[3, (skill, polarisation, total)], paired over problems."""
    records = [results.base(pair), results.tuned(pair, rate)[-1]]
    p = [results.problem_p(record) for record in records]
    passes = [results.record_pass_at_k(record, K) for record in records]

    def parts(means: np.ndarray) -> np.ndarray:
        ceiling, passed = passk.problem_pass_at_k(means[:, :2], K), means[:, 2:]
        skill, total = ceiling[:, 0] - ceiling[:, 1], passed[:, 0] - passed[:, 1]
        return np.stack([skill, total - skill, total], axis=1)

    pseudo = intervals.pseudo_values(parts, np.stack(p + passes))
    return np.stack([_estimate(values) for values in pseudo.T], axis=1)
