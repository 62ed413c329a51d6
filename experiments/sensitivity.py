"""Is the regime tuned? A map of coverage shrinkage and polarisation over epochs, traces, learning rate, width and d.

The runs are those of experiments/sweeps/sensitivity.yaml; every width and number of branches has a base of its own.
"""

import re
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import sweep
from experiments.results import Results, load
from minifork import config as configs
from minifork import runs
from minifork.schema import Config

K = 16


def sensitivity(config: Config) -> None:
    """Run what is missing, evaluate, draw; writes sensitivity.json and figures/sensitivity.png in runs/<task>/.

    Raises ValueError naming a stage that failed.
    """
    started = time.monotonic()
    source = sweep.start(config)
    planned = replace(config, reproduce=replace(config.reproduce, sweep="sensitivity"))
    jobs = sweep.read(planned, range(config.reproduce.pairs))
    sweep.sweep(config, source, jobs)
    panels = []
    for one, overrides in settings(config, jobs):
        sweep.run(source, "eval", *overrides)
        panels.append(panel(one, load(one)))
    folder = runs.task_folder(config)
    runs.write_json(folder / "sensitivity.json", runs.made_by(config) | {"k": K, "panels": panels})
    figure = draw(panels)
    path = folder / "figures" / "sensitivity.png"
    runs.write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=150))
    lost = np.array([row["S"][-1] for one in panels for row in one["rows"]])
    print(
        f"{path}: S_{K} after the last epoch is {lost.min():+.3f} to {lost.max():+.3f} over {len(lost)} settings, "
        f"above .05 in {np.mean(lost > 0.05):.0%}; {(time.monotonic() - started) / 60:.1f} minutes",
        flush=True,
    )


def settings(config: Config, jobs: list[sweep.Job]) -> list[tuple[Config, list[str]]]:
    """The configs that have a folder of their own, and the overrides that lead there."""
    found: dict[Path, tuple[Config, list[str]]] = {}
    for job in jobs:
        overrides = [word for word in job.overrides if word.split("=")[0].split(".")[0] in ("runs", "model", "data")]
        planned = configs.changed(config, overrides)
        found.setdefault(runs.task_folder(planned), (planned, overrides))
    return list(found.values())


def panel(config: Config, results: Results) -> dict:
    """S_K and the index under forced FWD of every run of one folder after every snapshot, means over pairs of seeds."""
    pairs = range(config.reproduce.pairs)
    rows = []
    for variant in sorted({r["variant"] for r in results.records if r["stage"] == "sft"}, key=_numbers):
        of_pairs = [results.tuned(pair, variant) for pair in pairs]
        lost = [[at(results.base(p)) - at(r) for r in of] for p, of in zip(pairs, of_pairs, strict=True)]
        index = [[r["forced"]["FWD"]["index"][str(K)] for r in of] for of in of_pairs]
        rows.append({"run": variant, "S": np.mean(lost, axis=0).tolist(), "index": np.mean(index, axis=0).tolist()})
    epochs = [r["epoch"] for r in results.tuned(pairs[0], rows[0]["run"])]
    return {"width": config.model.width, "branches": config.data.branches, "epochs": epochs, "rows": rows}


def _numbers(name: str) -> list[float]:
    """The numbers in a run's name: traces500 comes before traces1000."""
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", name)]


def at(record: dict) -> float:
    """pass@K of a record."""
    return record["pass_at"][str(K)]


def draw(panels: list[dict]) -> Figure:
    """One row of two maps for every width and d: S_K and the index, runs against epochs."""
    figure = Figure(figsize=(11, 2.9 * len(panels)), layout="constrained")
    for axes, one in zip(figure.subplots(len(panels), 2, squeeze=False), panels, strict=True):
        name = f"width {one['width']}, d = {one['branches']}"
        _map(axes[0], one, "S", f"{name}: shrinkage S$_{{{K}}}$", "PuOr_r", -1)
        _map(axes[1], one, "index", f"{name}: polarisation at {K} (forced FWD)", "Greys", 0)
    return figure


def _map(axes: Axes, one: dict, what: str, title: str, colours: str, least: int) -> None:
    values = np.array([row[what] for row in one["rows"]])
    axes.imshow(values, cmap=matplotlib.colormaps[colours], vmin=least, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        dark = abs(value) > 0.6
        axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set_xticks(range(len(one["epochs"])), [str(epoch) for epoch in one["epochs"]])
    axes.set_yticks(range(len(values)), [row["run"] for row in one["rows"]], fontsize=7)
    axes.set(xlabel="epoch", title=title)
