"""`minifork anchoring`: what fine-tuning does at forks when undecided tokens are anchored, masked, or neither.

sigma is the standard deviation of the branch logit over problems, at test forks and at training forks. If both grow
alike, the model drifts. If sigma and accuracy grow more at training forks, it memorises. Skill given FWD is r, the
probability of everything but the choice of branch. The runs are those of experiments/studies/anchoring.yaml.
"""

from collections.abc import Iterator

import numpy as np

from experiments.claims import Term
from experiments.drawing import draw_over_epochs, save_figure
from experiments.estimates import mean_over_pairs, mean_text, pairs_text, probability_over_pairs, table
from experiments.results import Results, load_results
from experiments.studies.steps import evaluate_and_check, make_runs, print_minutes
from experiments.study import Plan, by_name
from minifork import runs
from minifork.schema import Config
from minifork.storage.files import write_json

GIVEN_FWD = [Term({}, name, mode="FWD") for name in ("skill", "pass@1", "pass@16", "pass@64")]
FREE = [Term({}, name) for name in ("skill", "pass@1", "pass@16", "pass@64", "train fork accuracy")]
SIGMAS = [Term({}, "sigma"), Term({}, "train sigma")]  # null where problems differ in their number of branches


def anchoring(config: Config) -> None:
    """Run what is missing, evaluate, draw; writes anchoring.json and figures/anchoring.png in runs/<task>/.

    Raises ValueError naming a stage that failed.
    """
    with print_minutes("anchoring"):
        plans = make_runs(config, "anchoring")
        evaluate_and_check(config)
        rows, folder = [*rows_by_epoch(load_results(config), plans)], runs.task_folder(config)
        write_json(folder / "anchoring.json", runs.made_by(config) | {"pairs": config.reproduce.pairs, "rows": rows})
        figure = draw_over_epochs(rows, {"sigma": ":", "skill FWD": "", "pass@16 FWD": ""})
        save_figure(figure, folder / "figures" / "anchoring.png")
        print(f"{table(rows, mean_text)}\n{pairs_text(config.reproduce.pairs)}")


def rows_by_epoch(results: Results, plans: list[Plan]) -> Iterator[dict]:
    """The estimates over pairs of every run after every epoch, by quantity; those given FWD have it in their name.

    "train s" is the time of the whole run, which depends on what else the machine did.
    """
    for name, of_run in by_name(plans).items():
        for records in zip(*map(results.records_of, of_run), strict=True):
            seconds = [results.runs[record["run"]].record["seconds"] for record in records]
            row = {"run": name, "epoch": records[0]["epoch"], "train s": round(np.mean(seconds))}
            for term in GIVEN_FWD + FREE + (SIGMAS if records[0]["fork"].get("sigma") is not None else []):
                values = [term.quantity.values(results, record, term.k, term.mode) for record in records]
                estimate = probability_over_pairs if term.quantity.probability else mean_over_pairs
                row[f"{term.what} {term.mode or ''}".strip()] = estimate(np.stack(values))
            yield row
