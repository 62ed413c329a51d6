"""The figure of the README: fine-tuning on forks in one panel, the law in the other, in light and in dark colours."""

from typing import Any, cast

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.curves import exact_curve, has_fork, law_curve
from experiments.drawing import EPOCH_COLOURS, RIGHT, WRONG, LineStyle, default_settings, line, panels, powers_of_two
from experiments.estimates import probability_over_pairs
from experiments.results import Results

KS = [2**i for i in range(11)]
THEMES: dict[str, dict[str, Any]] = {"front": {}, "front-dark": cast(Any, matplotlib.style.library["dark_background"])}
GRID = {"axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}


def front(results: Results, pairs: list[int]) -> dict[str, Figure]:
    """The figure by name, in both themes: means over pairs, with 95 % intervals over pairs and problems.

    Pairs without the smallest or the largest FORK_RATE are left out. Nothing for a task without a fork, and where only
    one FORK_RATE was run.
    """
    themed: dict[str, Figure] = {}
    rates = results.fork_rates(pairs[0])
    if len(rates) < 2 or not has_fork(results.base(pairs[0])):
        return themed
    pairs = [pair for pair in pairs if results.tuned(pair, rates[0]) and results.tuned(pair, rates[-1])]
    for name, theme in THEMES.items():
        with default_settings(GRID | theme):
            themed[name] = _draw(results, pairs, ink=str(theme.get("text.color", "black")), dark=bool(theme))
    return themed


def _draw(results: Results, pairs: list[int], ink: str, dark: bool) -> Figure:
    figure, (left, right) = panels(2, 10, 4, sharey=True)
    rates = results.fork_rates(pairs[0])
    _draw_pass(left, results, [results.base(pair) for pair in pairs], ("base", ink, "", "--"))
    for rate, colour, marker in ((rates[0], RIGHT, "s"), (rates[-1], WRONG, "o")):
        last = [results.tuned(pair, rate)[-1] for pair in pairs]
        _draw_pass(left, results, last, (f"FORK_RATE {rate:g}", colour, marker, "-"))
    _draw_law(right, results, [results.tuned(pair, rates[-1]) for pair in pairs], dark)
    for axes in (left, right):
        powers_of_two(axes, max(KS), step=2)
        axes.set(xlabel="k (samples a problem)", ylim=(0, 1.02))
        if axes.lines:  # the law may be out of scope
            axes.legend(loc="lower right")
    left.set(ylabel="pass@k", title="Before and after fine-tuning")
    right.set(title=f"At the fork (FORK_RATE {rates[-1]:g}): exact (points), law (lines)")
    return figure


def _draw_pass(axes: Axes, results: Results, records: list[dict], style: LineStyle) -> None:
    """Draw the mean pass@k of the records of all pairs, with its band, at the k that were measured."""
    ks = [int(k) for k in records[0]["pass_at"]]
    by_pair = np.stack([results.record_pass_at_ks(record, ks) for record in records])  # [pairs, K, n]
    estimates = [probability_over_pairs(by_pair[:, i]) for i in range(len(ks))]
    ends = [estimate["ci95"] or (estimate["mean"],) * 2 for estimate in estimates]
    low, high = np.array(ends).T
    line(axes, ks, np.stack([low, [estimate["mean"] for estimate in estimates], high]), style, main=True, size=4)


def _draw_law(axes: Axes, results: Results, by_pair: list[list[dict]], dark: bool) -> None:
    """Draw the first, a middle and the last epoch in the law's scope: exact means as points, the law's as lines."""
    epochs = [records for records in zip(*by_pair, strict=False) if all(law_curve(results, r, KS) for r in records)]
    for i, place in enumerate(dict.fromkeys([0, len(epochs) // 2, len(epochs) - 1]) if epochs else ()):
        predicted = [law for record in epochs[place] if (law := law_curve(results, record, KS))]
        exact = np.mean([exact_curve(results, record, KS) for record in epochs[place]], axis=0)
        label = f"epoch {epochs[place][0]['epoch']}, sigma {np.mean([sigma for _, sigma in predicted]):.1f}"
        colour = EPOCH_COLOURS((0.4 if dark else 0.0) + i / 4)
        axes.plot(KS, np.mean([curve for curve, _ in predicted], axis=0), color=colour, linestyle=("-", "--", ":")[i])
        axes.plot(KS, exact, color=colour, marker="osD"[i], markersize=5, linestyle="", label=label)
