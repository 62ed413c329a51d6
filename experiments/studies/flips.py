"""`make flips`: how often another printed order of a problem flips the branch that a model chooses.

arXiv 2605.17026 reports that perturbing the order of the premises, meaning unchanged, flips the branch. Every test
problem is printed in REPRINTS random orders (`Task.reprint`), shuffled and in published order, where the edges of the
right branch come first. A model chooses at the fork, FWD forced. The models are those of
experiments/studies/flips.yaml, each after its last step.
"""

import numpy as np

from experiments.estimates import mean_over_pairs, pairs_text, probability_over_pairs, table
from experiments.results import write_result
from experiments.studies.steps import make_runs, print_minutes
from experiments.study import Plan
from minifork import runs
from minifork.measure import branch_probabilities
from minifork.measuring.problems import evaluation_problems, problem_set
from minifork.models import pick_device
from minifork.schema import Config
from minifork.statistics.flips import VARIANCES, flip_values

REPRINTS = 16
ORDERS = ("shuffled", "published")


def flips(config: Config) -> None:
    """Make the missing runs, print the table, write runs/<task>/flips.json.

    Raises ValueError naming a run that failed, and for a task that declares no fork.
    """
    with print_minutes("flips"):
        problem_set(config.data, evaluation_problems(config.data, config.eval), "cpu").at_fork()  # or raise
        plans, rows = make_runs(config, "flips"), []
        for order in ORDERS:
            branch = reprinted_branches(config, order, plans)
            for name in dict.fromkeys(plan.name for plan in plans):
                of_model = branch[[plan.name == name for plan in plans]]
                rows.append({"trained": name, "printed": order} | flip_estimates(of_model))
        print(table(rows), pairs_text(config.reproduce.pairs), sep="\n")
        write_result(config, "flips", {"reprints": REPRINTS, "rows": rows})


def reprinted_branches(config: Config, order: str, plans: list[Plan]) -> np.ndarray:
    """float64[plans, REPRINTS, n, d]: the branch probabilities of the models of runs, which all see the same prints."""
    task, device, by_print = config.data.printed(order), pick_device(config), []
    models = [runs.read_run(runs.folder_of(plan.config, plan.stage)).model().to(device) for plan in plans]
    problems = evaluation_problems(config.data, config.eval)
    for seed in range(REPRINTS):
        reprinted = problem_set(task, task.reprint(problems, np.random.default_rng(seed)), device)
        by_print.append([branch_probabilities(model, reprinted) for model in models])
    return np.array(by_print).swapaxes(0, 1)


def flip_estimates(branch: np.ndarray) -> dict:
    """Each of `flip_values` over pairs with its interval, from branch probabilities float64[pairs, REPRINTS, n, d]."""
    by_pair, estimates = [flip_values(pair) for pair in branch], {}
    for name in by_pair[0]:
        values = np.stack([of_pair[name] for of_pair in by_pair])
        estimates[name] = mean_over_pairs(values) if name in VARIANCES else probability_over_pairs(values)
    return estimates
