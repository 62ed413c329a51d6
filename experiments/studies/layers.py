"""`make layers`: what fine-tuning does at each of several forks on the way, and how many right paths samples find.

A guess at f forks succeeds with d^-f in any case. So what counts is sigma at each fork, the polarisation index, and
for several right paths the number of different ones among k samples. Everything is exact. The models are those of
experiments/studies/layers.yaml, each after its last step. Traces are forced to FWD at forks and where a column says so.
law@k is what the coverage law (`minifork.statistics.law`) gives pass@k given FWD, from the sigma of every fork.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from experiments.claims import Term, estimate_terms
from experiments.estimates import mean_over_pairs, pairs_text, probability_over_pairs, table
from experiments.results import Results, load_results, write_result
from experiments.studies.steps import evaluate_and_check, make_runs, print_minutes
from experiments.study import Plan, by_name, grouped
from minifork import config as configs
from minifork import runs
from minifork.decoding.policy import parse_policy
from minifork.measure import trace_tree
from minifork.measuring.forks import branches_by_fork, distinct_paths, path_probabilities
from minifork.measuring.problems import evaluation_problems, problem_set
from minifork.measuring.quantities import fork_values, kurtosis_values, sigma_values
from minifork.models import pick_device
from minifork.schema import Config
from minifork.statistics.law import law_pass_at_k, path_points

TERMS = [
    *(Term({}, name) for name in ("pass@1", "pass@64", "index@16")),
    *(Term({}, name, mode="FWD") for name in ("index@16", "pass@1", "pass@16", "pass@64")),
]
LAW_KS = (16, 64)  # at which the coverage law is shown beside pass@k given FWD
NO_LAW = dict.fromkeys(f"law@{k}" for k in LAW_KS)
KS = (4, 16, 64, 256)  # numbers of samples among which different right paths are counted
Tables = dict[str, list[dict]]


def layers(config: Config) -> None:
    """Make the missing runs, evaluate, print the tables, write runs/<task>/layers.json.

    Raises ValueError naming a run that failed.
    """
    with print_minutes("layers"):
        plans = make_runs(config, "layers")
        tables: Tables = {"runs": [], "forks": [], "paths": []}
        for data, of_data in grouped(plans, lambda plan: plan.config.data).items():
            evaluate_and_check(replace(config, data=data), lambda checkpoint: checkpoint.final)
            results = load_results(replace(config, data=data))
            for of_run in by_name(of_data).values():
                add_rows(tables, results, of_run)
        print(*map(table, tables.values()), pairs_text(config.reproduce.pairs), sep="\n\n")
        write_result(config, "layers", tables)


def add_rows(tables: Tables, results: Results, plans: list[Plan]) -> None:
    """Add the rows of a model, from its runs for all pairs: one, one a fork, and one if several paths are right."""
    keys, records = configs.flat_values(results.config), [results.last_record(plan) for plan in plans]
    row = {"run": plans[0].name, "forks": keys["data.forks"], "right paths": keys["data.right_paths"]}
    estimates = estimate_terms(results, records, TERMS)
    branches, paths = zip(*(forks_and_paths(results.config, plan) for plan in plans), strict=True)
    predicted = predicted_passes(branches, estimates["pass@1 FWD"]["mean"]) if row["right paths"] == 1 else NO_LAW
    tables["runs"].append(row | estimates | predicted)
    for number, by_pair in enumerate(zip(*branches, strict=True), start=1):
        fork: dict = {"fork": number}
        for name, values_of in (("sigma", sigma_values), ("kurtosis", kurtosis_values)):
            fork[name] = mean_over_pairs(np.stack([values_of(branch) for branch in by_pair]))
        fork["accuracy"] = probability_over_pairs(np.stack([fork_values(branch, "accuracy") for branch in by_pair]))
        tables["forks"].append(row | fork)
    if row["right paths"] > 1:
        distinct = {f"paths@{k}": mean_over_pairs(np.stack([distinct_paths(p, k) for p in paths])) for k in KS}
        tables["paths"].append(row | distinct)


def predicted_passes(by_pair: Sequence[list[np.ndarray]], skill: float) -> dict[str, float | None]:
    """pass@k given FWD under the coverage law, as a product over forks, for LAW_KS; None without a fork.

    by_pair: float64[m, d] at every fork, by pair. skill: the mean pass@1 given FWD, from which r follows.
    """
    forks = [np.concatenate(pairs) for pairs in zip(*by_pair, strict=True)]
    if not forks:
        return NO_LAW
    r = skill / np.prod([branch[:, 0] for branch in forks], axis=0).mean()
    sigmas = [float(np.mean([sigma_values(branch).mean() for branch in pairs])) for pairs in zip(*by_pair, strict=True)]
    curve = law_pass_at_k(r, path_points(sigmas, forks[0].shape[1]), LAW_KS)
    return {name: round(value, 3) for name, value in zip(NO_LAW, curve.tolist(), strict=True)}


def forks_and_paths(config: Config, plan: Plan) -> tuple[list[np.ndarray], np.ndarray]:
    """What `branches_by_fork` and `path_probabilities` give of a run after its last step, under the config's policy."""
    batch, device = evaluation_problems(config.data, config.eval), pick_device(config)
    problems = problem_set(config.data, batch, device)
    model = runs.read_run(runs.folder_of(plan.config, plan.stage)).model().to(device)
    tree = trace_tree(model, problems, parse_policy(config.eval.policy), config.eval.max_tokens)
    return branches_by_fork(tree, problems, batch), path_probabilities(tree, problems)
