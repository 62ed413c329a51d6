"""`make rl-lab`: what each RL objective does on average, its noise, estimators of KL, and 400 updates of each.

Gradients are those of forward RL on PROBLEMS problems, at the models after epochs 1, 4 and the last of fine-tuning at
FORK_RATE 1 (`minifork.training.gradients`), for groups of GROUPS rollouts. KL is that from the model before: from the
base after epoch 1, and so on. The runs are those of experiments/studies/rl_lab.yaml. Reductions say how an update
averages tokens, and "climbs" what it follows as groups grow, where reduction is none.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import pairwise

from experiments.claims import Term, estimate_terms
from experiments.estimates import mean_of_rows, mean_text, pairs_text, table
from experiments.results import Results, load_results, write_result
from experiments.studies.steps import evaluate_and_check, make_runs, print_minutes
from experiments.study import Plan, by_name
from minifork import config as configs
from minifork import runs
from minifork.schema import RL, Config
from minifork.storage.files import fingerprint, read_json, write_json
from minifork.storage.version import measuring_version
from minifork.training.gradients import compare_gradients
from minifork.training.reinforce import problems_of

TERMS = [Term({}, "pass@1", mode="FWD"), Term({}, "pass@64", mode="FWD"), Term({}, "sigma")]
GROUPS = (4, 16, 64)
PROBLEMS, UPDATES = 64, 1000  # problems of an update, and sampled updates for its noise


def rl_lab(config: Config) -> None:
    """Run what is missing, evaluate, compare gradients; writes runs/<task>/rl-lab.json.

    Raises ValueError naming a stage that failed, and for a task with too many right traces to list.
    """
    with print_minutes("RL lab"):
        plans = make_runs(config, "rl_lab")
        ends = {plan.start for plan in plans} | {(plan.identity, plan.config.rl.updates) for plan in plans}
        evaluate_and_check(config, lambda checkpoint: (checkpoint.run.identity, checkpoint.epoch) in ends)
        first_plans = [plan.config for plan in plans if plan.name == plans[0].name]
        by_pair = [[*comparisons(of_pair, objectives_of(plans))] for of_pair in first_plans]
        tables = {"runs": run_rows(load_results(config), plans)}
        for part in ("objectives", "kl"):
            of_pairs = [[row for cell in cells for row in cell[part]] for cells in by_pair]
            tables[part] = [mean_of_rows(rows) for rows in zip(*of_pairs, strict=True)]
        write_result(config, "rl-lab", tables)
        print("\n\n".join(table(rows, mean_text) for rows in tables.values()), pairs_text(len(by_pair)), sep="\n")


def objectives_of(plans: Sequence[Plan]) -> dict[str, RL]:
    """The settings of every objective of some runs, with groups of all sizes, by name."""
    objectives: dict[str, RL] = {}
    for plan in plans:
        settings = plan.config.rl
        for n in (settings.group,) if settings.advantage == "exact" else GROUPS:
            if replace(settings, group=n) not in objectives.values():
                objectives[plan.name if n == settings.group else f"{plan.name}, of {n}"] = replace(settings, group=n)
    return objectives


def comparisons(config: Config, objectives: dict[str, RL]) -> Iterator[dict[str, list[dict]]]:
    """What `compare_gradients` gives for each model of a pair, kept in runs/<task>/rl-lab/ once it is computed."""
    sft, count = runs.require_run(config, "sft"), min(PROBLEMS, config.rl.problems)
    checkpoints = [runs.require_run(config, "base").checkpoint(), *map(sft.checkpoint, sorted({1, 4, sft.epochs[-1]}))]
    problems = problems_of(configs.with_changes(config, {"rl.prompts": count}), 0)
    version = measuring_version(config.data, compare_gradients)
    for reference, checkpoint in pairwise(checkpoints):
        settings = [version, count, UPDATES, {name: asdict(each) for name, each in objectives.items()}]
        key = fingerprint([checkpoint.weights_hash, reference.weights_hash, *settings])
        path = runs.task_folder(config) / "rl-lab" / f"{key}.json"
        if not path.exists():
            models = checkpoint.model(), reference.model()
            write_json(path, compare_gradients(config, problems, models, objectives, UPDATES))
        rows = read_json(path, "objectives", "kl")
        yield {part: [{"epoch": str(checkpoint.epoch)} | row for row in rows[part]] for part in rows}


def run_rows(results: Results, plans: Sequence[Plan]) -> list[dict]:
    """Estimates over pairs, FWD forced, where runs start and at the end of each; with weights moved and tokens."""
    of_runs = by_name(plans)
    start = [results.parent_of(plan)[0] for plan in of_runs[plans[0].name]]
    rows = [{"run": "start"} | estimates(results, start) | {"moved": None, "M tokens": None}]
    for name, of_run in of_runs.items():
        effort = mean_of_rows([{"moved": moved(plan), "M tokens": tokens(plan) / 1e6} for plan in of_run])
        rows.append({"run": name} | estimates(results, [results.last_record(plan) for plan in of_run]) | effort)
    return rows


def estimates(results: Results, records: Sequence[dict]) -> dict[str, dict]:
    """pass@1, pass@64 and sigma of the records of all pairs, FWD forced."""
    terms = estimate_terms(results, records, TERMS)
    return {name.removesuffix(" FWD"): estimate for name, estimate in terms.items()}


def moved(plan: Plan) -> float:
    """The Euclidean distance between the weights before and after a run."""
    start = runs.require_run(plan.config, "sft").checkpoint(plan.config.rl.epoch).tensors()
    end = runs.require_run(plan.config, "rl").checkpoint().tensors()
    return sum(float((end[name] - start[name]).square().sum()) for name in start) ** 0.5


def tokens(plan: Plan) -> int:
    """The tokens that a run was trained on, prompts and padding included."""
    settings, task = plan.config.rl, plan.config.data
    group = 1 if settings.advantage == "exact" else settings.group  # forced FWD has one right trace
    return settings.updates * settings.prompts * group * (task.prompt_len + task.trace_len - 1)
