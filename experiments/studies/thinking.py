"""`minifork thinking`: how the first token of a trace steers how long a model thinks, and what that costs.

Each first token, a mode or an opener, is forced in turn: on hard problems (with the fork), on hard ones with traces cut
at T tokens, and on easy ones (without the fork). A model over-thinks if it writes more tokens on easy problems than the
shortest right trace has, or is less accurate there than with the best first token. It under-thinks if it is less
accurate on hard problems than with the best first token. "tokens saved" is what it gets for that. P(mode) is the
probability of a mode rather than FWD, at the place where both part.

The runs are those of the config's study: `--config openers`, or `--config star preset=search`.
"""

import numpy as np

from data_gen.openers import partings
from data_gen.star import Star
from experiments.estimates import agreements, alternatives_text, compare_alternatives, pairs_text, signed, stack_pairs
from experiments.results import Results, load_results, write_result
from experiments.studies.steps import evaluate_and_check, last_checkpoint, make_runs, print_minutes
from experiments.study import Plan, by_name
from minifork import config as configs
from minifork.measuring import prefix_control
from minifork.measuring.problems import evaluation_problems
from minifork.schema import Config

SYNONYMS_AGREE = 0.02  # largest difference of P(mode) between two openers that the table draws alike


def thinking(config: Config) -> None:
    """Make the missing runs for `reproduce.pairs` pairs, evaluate, report; writes runs/<task>/thinking.json.

    Raises ValueError naming a stage that failed, and for a task that is no star with a fork.
    """
    if not isinstance(task := config.data, Star) or task.branches < 2:
        raise ValueError(f"task is {config.task!r}: thinking needs a star with a fork, such as --config openers")
    with print_minutes("thinking"):
        plans, rows, pairs = make_runs(config, config.reproduce.study), [], getattr(task, "synonyms", [])
        measured = {place: measure_place(config, change) for place, change in places(task).items()}
        for name, of_run in by_name(plans).items():
            values = {place: stack_pairs([responses_of_run(results, plan, task) for plan in of_run])
                      for place, results in measured.items()}  # fmt: skip
            compared = {place: compare_alternatives(by_token) for place, by_token in values.items()}
            synonyms = agreements(values["hard"], pairs, "P(", SYNONYMS_AGREE)
            rows.append({"run": name, "problems": compared, "synonyms": synonyms})
        write_result(config, "thinking", {"runs": rows})
        print("\n".join([*map(run_text, rows), pairs_text(config.reproduce.pairs)]))


def places(task: Star) -> dict[str, dict]:
    """The config's changes for each set of problems. T: the tokens of right traces that visit 1, 2, ... branches."""
    uncut = {"easy": {"eval.forked": False, "eval.max_tokens": 0}, "hard": {"eval.forked": True, "eval.max_tokens": 0}}
    cuts = [2 + task.length * visited for visited in range(1, task.branches)]
    return {f"hard, T={cut}": {"eval.forked": True, "eval.max_tokens": cut} for cut in cuts} | uncut


def measure_place(config: Config, change: dict) -> Results:
    """The results of final checkpoints under a change of the config."""
    changed = configs.with_changes(config, change)
    evaluate_and_check(changed, lambda checkpoint: checkpoint.final)
    return load_results(changed)


def responses_of_run(results: Results, plan: Plan, task: Star) -> dict[str, dict[str, np.ndarray]]:
    """The values float64[n] of the last checkpoint of a run, by first token and quantity."""
    settings, (record, problems, tree) = results.config.eval, last_checkpoint(results, plan)
    hard = settings.forked and not settings.max_tokens
    modes = partings(task, evaluation_problems(task, settings)) if hard else {}
    values = prefix_control.responses(tree, problems, modes, settings.rollouts)
    for first, row in values.items():
        row |= {f"pass@{k}": results.record_pass_at_k(record, k, first) for k in (1, 16)}
    return values


def run_text(row: dict) -> str:
    """What was found of one run, in words."""
    lines = [row["run"], *(alternatives_text(place, by_token) for place, by_token in row["problems"].items())]
    for pair in row["synonyms"]:
        verdict = f"{' and '.join(pair['names'])} {'agree' if pair['agree'] else 'differ'}"
        lines.append(f"synonyms {verdict}: difference of {pair['quantity']} {signed(pair['difference'])}")
    return "\n".join(lines)
