"""Is the regime tuned? A map of coverage shrinkage and polarisation over epochs, traces, learning rate, width and d.

The runs are those of experiments/studies/sensitivity.yaml; every width and number of branches has a base of its own.
"""

import time
from dataclasses import replace

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import executors, study
from experiments.figures import save
from experiments.results import Results, load
from experiments.study import Plan
from minifork import runs
from minifork.evaluate import evaluate
from minifork.schema import Config
from minifork.storage.files import write_json

K = 16


def sensitivity(config: Config) -> None:
    """Run what is missing, evaluate, draw; writes sensitivity.json and figures/sensitivity.png in runs/<task>/.

    Raises ValueError naming a stage that failed.
    """
    started = time.monotonic()
    plans = study.plans(config, study.read("sensitivity"), range(config.reproduce.pairs))
    executors.run(plans)
    panels = []
    for data, model in dict.fromkeys((plan.config.data, plan.config.model) for plan in plans):
        one = replace(config, data=data, model=model)
        evaluate(one)
        panels.append(panel(load(one), [p for p in plans if (p.config.data, p.config.model) == (data, model)]))
    folder = runs.task_folder(config)
    write_json(folder / "sensitivity.json", runs.made_by(config) | {"k": K, "panels": panels})
    save(draw(panels), folder / "figures" / "sensitivity.png")
    lost = np.array([row["S"][-1] for one in panels for row in one["rows"]])
    print(
        f"S_{K} after the last epoch is {lost.min():+.3f} to {lost.max():+.3f} over {len(lost)} settings, "
        f"above .05 in {np.mean(lost > 0.05):.0%}; {(time.monotonic() - started) / 60:.1f} minutes",
        flush=True,
    )


def panel(results: Results, plans: list[Plan]) -> dict:
    """S_K and the polarisation index (forced FWD) of every run and epoch, means over pairs."""
    rows, epochs = [], []
    for name in dict.fromkeys(plan.name for plan in plans):
        mine = [plan for plan in plans if plan.name == name]
        records = [results.of(plan) for plan in mine]
        epochs = [record["epoch"] for record in records[0]]
        bases = [results.parent_of(plan)[0]["pass_at"][str(K)] for plan in mine]
        passed = np.array([[record["pass_at"][str(K)] for record in line] for line in records])
        lost = np.array(bases)[:, None] - passed
        index = [[record["forced"]["FWD"]["index"][str(K)] for record in line] for line in records]
        rows.append({"run": name, "S": lost.mean(axis=0).tolist(), "index": np.mean(index, axis=0).tolist()})
    config = results.config
    return {"width": config.model.width, "branches": config.data.branches, "epochs": epochs, "rows": rows}


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
