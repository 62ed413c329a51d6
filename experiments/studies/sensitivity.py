"""`make sensitivity`: a map of coverage shrinkage and polarisation over epochs, traces, learning rate, width and d.

It shows whether the effect depends on the settings that were chosen for it. The runs are those of
experiments/studies/sensitivity.yaml. Every width and number of branches has its own base.
"""

from dataclasses import replace

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.drawing import default_settings, save_figure
from experiments.estimates import SHRINKAGE_K as K
from experiments.results import Results, load_results, write_result
from experiments.studies.steps import evaluate_and_check, make_runs, print_minutes, require_fork
from experiments.study import Plan, by_name, grouped
from minifork import config as configs
from minifork import runs
from minifork.schema import Config


def sensitivity(config: Config) -> None:
    """Run what is missing, evaluate, draw; writes sensitivity.json and figures/sensitivity.png in runs/<task>/.

    Raises ValueError naming a stage that failed.
    """
    require_fork(config, "sensitivity")
    with print_minutes("sensitivity"):
        plans, panels = make_runs(config, "sensitivity"), []
        of_panels = grouped(plans, lambda plan: (plan.config.data, plan.config.model))
        for (data, model), of_panel in of_panels.items():
            panel_config = replace(config, data=data, model=model)
            evaluate_and_check(panel_config)
            panels.append(panel(load_results(panel_config), of_panel))
        write_result(config, "sensitivity", {"k": K, "panels": panels})
        save_figure(draw_maps(panels), runs.task_folder(config) / "figures" / "sensitivity.png")
        shrinkage = np.array([row["S"][-1] for panel in panels for row in panel["rows"]])
        print(f"coverage shrinkage S_{K} after the last epoch: {shrinkage.min():+.3f} to {shrinkage.max():+.3f} over "
              f"{len(shrinkage)} settings, above .05 in {np.mean(shrinkage > 0.05):.0%} of them")  # fmt: skip


def panel(results: Results, plans: list[Plan]) -> dict:
    """Coverage shrinkage S_K and the polarisation index (forced FWD) of every run and epoch, means over pairs."""
    rows, epochs, values = [], [], configs.flat_values(results.config)
    for name, of_run in by_name(plans).items():
        records = [results.records_of(plan) for plan in of_run]
        bases = [[results.parent_of(plan)[0]["pass_at"][str(K)]] for plan in of_run]
        shrinkage = np.array(bases) - [[record["pass_at"][str(K)] for record in of_pair] for of_pair in records]
        index = [[record["forced"]["FWD"]["index"][str(K)] for record in of_pair] for of_pair in records]
        rows.append({"run": name, "S": shrinkage.mean(axis=0).tolist(), "index": np.mean(index, axis=0).tolist()})
        epochs = [record["epoch"] for record in records[0]]
    return {"width": values["model.width"], "branches": values["data.branches"], "epochs": epochs, "rows": rows}


@default_settings()
def draw_maps(panels: list[dict]) -> Figure:
    """One row of two maps for every width and d: coverage shrinkage and the index, runs against epochs."""
    figure = Figure(figsize=(11, 3.1 * len(panels)), layout="constrained")
    for (left, right), panel in zip(figure.subplots(len(panels), 2, squeeze=False), panels, strict=True):
        name = f"width {panel['width']}, d = {panel['branches']}"
        _map(left, panel, "S", f"{name}\ncoverage shrinkage S$_{{{K}}}$", "PuOr_r", -1)
        _map(right, panel, "index", f"{name}\npolarisation index at k = {K}, forced FWD", "Greys", 0)
    return figure


def _map(axes: Axes, panel: dict, quantity: str, title: str, colours: str, vmin: int) -> None:
    """A quantity of every run (rows) and epoch (columns), as colours and numbers."""
    values = np.array([row[quantity] for row in panel["rows"]])
    axes.imshow(values, cmap=matplotlib.colormaps[colours], vmin=vmin, vmax=1, aspect="auto")
    for (y, x), value in np.ndenumerate(values):
        colour = "white" if abs(value) > 0.6 else "black"
        axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(panel["epochs"])), [str(epoch) for epoch in panel["epochs"]])
    axes.set_yticks(range(len(values)), [row["run"] for row in panel["rows"]], fontsize=7)
    axes.set(xlabel="epoch", title=title)
