"""`minifork anchoring`: what fine-tuning does at forks when undecided tokens are anchored, masked, or neither.

sigma is the standard deviation of the branch logit over problems, at test forks and at training forks. If both grow
alike, the model drifts. If sigma and accuracy grow more at training forks, it memorises. Skill given FWD is r, the
probability of everything but the choice of branch. The runs are those of experiments/studies/anchoring.yaml.
"""

from collections.abc import Iterator

import numpy as np

from experiments.claims import Term, estimate_terms
from experiments.drawing import draw_over_epochs, save_figure
from experiments.estimates import mean_text, pairs_text, table
from experiments.results import Results, write_result
from experiments.studies.steps import make_and_measure, print_minutes, require_fork
from experiments.study import Plan, by_name
from minifork import runs
from minifork.schema import Config

GIVEN_FWD = [Term({}, name, mode="FWD") for name in ("skill", "pass@1", "pass@16", "pass@64")]
FREE = [Term({}, name) for name in ("skill", "pass@1", "pass@16", "pass@64", "train fork accuracy")]
SIGMAS = [Term({}, "sigma"), Term({}, "train sigma")]  # null where problems differ in their number of branches


def anchoring(config: Config) -> None:
    """Run what is missing, evaluate, draw; writes anchoring.json and figures/anchoring.png in runs/<task>/.

    Raises ValueError naming a stage that failed.
    """
    require_fork(config, "anchoring")
    with print_minutes("anchoring"):
        plans, results = make_and_measure(config, "anchoring")
        rows = [*rows_by_epoch(results, plans)]
        write_result(config, "anchoring", {"pairs": config.reproduce.pairs, "rows": rows})
        figure = draw_over_epochs(rows, {"sigma": ":", "skill FWD": "", "pass@16 FWD": ""})
        save_figure(figure, runs.task_folder(config) / "figures" / "anchoring.png")
        print(f"{table(rows, mean_text)}\n{pairs_text(config.reproduce.pairs)}")


def rows_by_epoch(results: Results, plans: list[Plan]) -> Iterator[dict]:
    """The estimates over pairs of every run after every epoch, by quantity; those given FWD have it in their name.

    "train s" is the time of the whole run, which depends on what else the machine did.
    """
    for name, of_run in by_name(plans).items():
        for records in zip(*map(results.records_of, of_run), strict=True):
            seconds = np.mean([results.seconds(record) for record in records])
            row = {"run": name, "epoch": records[0]["epoch"], "train s": round(seconds)}
            sigmas = SIGMAS if records[0]["fork"].get("sigma") is not None else []
            yield row | estimate_terms(results, records, GIVEN_FWD + FREE + sigmas)
