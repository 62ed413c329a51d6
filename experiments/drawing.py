"""The parts that figures share: settings, colours, lines with bands, axes.

Line styles and markers repeat the colours, so that figures read in grey.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, cast

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from experiments.study import grouped
from minifork.storage.files import write_atomically

EPOCH_COLOURS = matplotlib.colormaps["viridis"]
RIGHT, WRONG, SKILL, POLARISATION, LARGE_K = "#0072B2", "#D55E00", "#56B4E9", "#E69F00", "#CC79A7"  # Okabe and Ito
RUN_STYLES = list(
    zip((RIGHT, WRONG, SKILL, POLARISATION, LARGE_K, "#009E73", "black", "gray"), "osD^vP*X", strict=True)
)
LineStyle = tuple[str, Any, str, str]  # label, colour, marker, line style


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG and print its path; raises OSError naming the file when it cannot be written."""
    picture = io.BytesIO()
    with default_settings():
        figure.savefig(picture, format="png", dpi=150)
    write_atomically(path, picture.getvalue())
    print(path)


@contextlib.contextmanager
def default_settings(changes: Mapping[str, Any] = {}) -> Iterator[None]:  # noqa: B006 (never changed)
    """matplotlib's default settings with changes; a user's matplotlibrc is ignored."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, changes))
        yield


def panels(count: int, width: float, height: float, sharey: bool = False) -> tuple[Figure, np.ndarray]:
    """A figure of width x height inches with ``count`` panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, count, sharey=sharey, squeeze=False)[0]


def line(
    axes: Axes, at: ArrayLike, estimate: np.ndarray, style: LineStyle, main: bool, size: float | None = None
) -> None:
    """Draw a line through estimates float64[3, m] (low, value, high) with its 95 % band; if not main, a thin line."""
    (low, value, high), (label, colour, marker, linestyle) = estimate, style
    if not main:
        axes.plot(at, value, color=colour, linestyle=linestyle, linewidth=0.6, alpha=0.6)
        return
    axes.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(at, value, label=label, color=colour, marker=marker, markersize=size, linestyle=linestyle)


def powers_of_two(axes: Axes, largest: int, step: int = 1) -> None:
    """Make the x axis logarithmic, with the labels 1, 2, 4, ..."""
    ticks = [2**i for i in range(0, largest.bit_length(), step)]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(t) for t in ticks])


def whiskers(value: ArrayLike, low: ArrayLike, high: ArrayLike) -> np.ndarray:
    """Lengths float64[2, m] of error bars below and above."""
    return np.stack([np.subtract(value, low), np.subtract(high, value)])


@default_settings()
def draw_over_epochs(rows: Sequence[Mapping[str, Any]], quantities: Mapping[str, str]) -> Figure:
    """Estimates against the epoch, a panel for each quantity of the rows and a line for each run; bars are intervals.

    rows: {"run", "epoch", estimates by quantity}. quantities: of each, the line style of the same quantity at training
    forks ("train " before its name), or "".
    """
    shown = [name for name in quantities if name in rows[0]]
    figure, axes_of_panels = panels(len(shown), 3.6 * len(shown), 3.6)
    for axes, quantity in zip(axes_of_panels, shown, strict=True):
        for i, (run, of_run) in enumerate(grouped(rows, itemgetter("run")).items()):
            colour, marker = RUN_STYLES[i % len(RUN_STYLES)]
            epochs = [row["epoch"] * 2 ** (0.05 * i) for row in of_run]  # side by side, so that bars do not overlap
            for name, label, style in ((quantity, run, "-"), (f"train {quantity}", None, quantities[quantity])):
                if style and name in rows[0]:
                    means = np.array([row[name]["mean"] for row in of_run])
                    ends = np.array([row[name]["ci95"] or (np.nan, np.nan) for row in of_run]).T
                    axes.errorbar(epochs, means, yerr=whiskers(means, *ends), color=colour, marker=marker, label=label,
                                  linestyle=style, elinewidth=0.8, markersize=5)  # fmt: skip
        powers_of_two(axes, max(row["epoch"] for row in rows))
        unit = " in logits (dotted: training)" if quantity == "sigma" else ""
        axes.set(xlabel="epoch", ylabel=f"{quantity}{unit}")
    columns = 2 * len(shown) - 2  # that fit below the panels
    figure.legend(*axes_of_panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns)
    return figure
