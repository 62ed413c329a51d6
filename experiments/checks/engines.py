"""`make agreement`: tests all engines against each other on four models and four decode policies.

All run on the same problems. For every outcome that is reached, two things are tested: the counts of split, of
rollouts and of the remainder follow the exact probabilities (randomised PIT), and two samples come from the same
probabilities (conditional randomised PIT). Every p-value is uniform if the engines agree. With Bonferroni's correction
over all of them, a false alarm has probability below LEVEL. Then the engines' precision is compared
(`experiments.checks.efficiency`).
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from tqdm import tqdm

from experiments.checks.efficiency import SEARCHED, efficiency
from experiments.results import write_result
from minifork import config as configs
from minifork import measure, runs
from minifork.decoding import policy
from minifork.decoding.exact import Limits, exact, exact_by_prefix
from minifork.decoding.remainder import sample_remainder
from minifork.decoding.split import split
from minifork.decoding.traces import EXACT, Result, TraceTree, accepted_share
from minifork.evaluation.targets import problems_for
from minifork.gpu.backends import sample
from minifork.measuring.problems import evaluation_problems
from minifork.models import pick_device
from minifork.schema import Config
from minifork.statistics.agreement import randomised_pit, two_sample_pit, uniform_p, whole_counts
from minifork.storage.files import write_json

POLICIES = ("temperature=1", "temperature=0.7,top_p=0.95", "temperature=1.5,top_k=8", "min_p=0.1")
FORK_RATES = (0.0, 0.5, 1.0)
ENGINE_PAIRS = ("exact/split", "exact/rollout", "split/rollout", "exact/remainder", "split/remainder")
MAX_PROBLEMS = 500
SPLIT_ROLLOUTS = 2000  # split samples so many rollouts a problem
LEVEL = 1e-3  # the probability of a false alarm in the whole command
MIN_PROBABILITY = 1e-3  # outcomes with a smaller mean probability hold too few traces to test
MIN_UNKNOWN = 1e-2  # of a problem's probability: fp32 errors in p are magnified by 1 / unknown when remainder is tested


def agreement(config: Config) -> int:
    """Test the config's base and its fine-tunings at r = 0, .5 and 1; returns 1 when engines disagree.

    Prints the efficiency of the last. Raises ValueError naming a run that is missing, and for an eval.budget within
    which p is not computed.
    """
    failed = conclude(config, list(comparisons(config)))
    checkpoint = runs.require_run(fine_tunings(config)[-1], "sft").checkpoints()[-1]
    rows = efficiency(checkpoint, problems_for(config, pick_device(config)), config.eval.rollouts)
    write_result(config, "efficiency", {"run": checkpoint.run.name, "engines": rows})
    return failed


def fine_tunings(config: Config) -> list[Config]:
    """The fine-tunings that are tested: the config's own, at each of FORK_RATES."""
    return [configs.with_changes(config, {"sft.fork_rate": rate}) for rate in FORK_RATES]


def comparisons(config: Config) -> Iterator[list[dict[str, Any]]]:
    """Yield the tests of every model under every policy, one list for each. Raises as `agreement` does."""
    models = [runs.require_run(config, "base"), *(runs.require_run(tuning, "sft") for tuning in fine_tunings(config))]
    count, device = _problem_count(config), pick_device(config)
    settings = replace(config.eval, problems=count, check_problems=min(count, config.eval.check_problems))
    problems = problems_for(replace(config, eval=settings), device)
    for run, decoder in tqdm(list(product(models, POLICIES)), desc="agreement", disable=None):
        tree = measure.trace_tree(run.model().to(device), problems, policy.parse_policy(decoder))
        tests = compare_engines(tree, problems.outcome_names, settings.check_rollouts, settings.budget)
        yield [{"run": run.name, "policy": decoder, **test} for test in tests]


def conclude(config: Config, groups: list[list[dict[str, Any]]]) -> int:
    """Print and write the tests that `comparisons` gave; returns 1 when engines disagree."""
    tests = [test for group in groups for test in group]
    level, count = LEVEL / len(tests), _problem_count(config)
    for group in groups:
        print_smallest(group, level)
    failed = sum(test["p_value"] < level for test in tests)
    print(f"{len(tests)} tests on {count} problems, {failed} of them with p < {level:.1e}; "
          f"the probability of any false alarm is at most {LEVEL:g}")  # fmt: skip
    result = {"n_problems": count, "level": level, "splits": SPLIT_ROLLOUTS, "rollouts": config.eval.check_rollouts}
    write_json(runs.task_folder(config) / "agreement.json", result | {"tests": tests})
    return int(failed > 0)


def _problem_count(config: Config) -> int:
    return min(MAX_PROBLEMS, len(evaluation_problems(config.data, config.eval)))


def print_smallest(tests: list[dict[str, Any]], level: float) -> None:
    """Print the smallest p-value of each comparison, for one run under one policy."""
    smallest = {pair: min((t["p_value"] for t in tests if t["test"] == pair), default=1.0) for pair in ENGINE_PAIRS}
    verdict = "agree" if min(smallest.values()) >= level else "DISAGREE"
    text = "  ".join(f"{pair} {p:.2g}" for pair, p in smallest.items())
    print(f"{verdict:<9}{tests[0]['run']:<28}{tests[0]['policy']:<28}smallest p: {text}")


def compare_engines(tree: TraceTree, outcomes: tuple[str, ...], n: int, budget: int) -> list[dict[str, Any]]:
    """p-values of the comparisons of ENGINE_PAIRS for every outcome that is reached; n rollouts a problem.

    Raises ValueError when the budget of prefixes does not suffice to compute p.
    """
    p = exact(tree, budget)
    if not p.exact:
        raise ValueError(f"eval.budget is {budget}: too few prefixes to compute p; raise it")
    splits, rollouts = (
        np.rint(s.outcomes * s.n).astype(int) for s in (split(tree, SPLIT_ROLLOUTS, 1), sample(tree, n, 2))
    )
    search = exact_by_prefix(tree, {"": tree.forced}, Limits(p.evaluated * SEARCHED, EXACT))[""]
    rest = sample_remainder(tree, search, SPLIT_ROLLOUTS, 3)
    rng, tests = np.random.default_rng(0), []
    for outcome in np.flatnonzero(p.outcomes.mean(axis=0) > MIN_PROBABILITY).tolist():
        of_exact, of_split, of_rollouts = p.outcomes[:, outcome], splits[:, outcome], rollouts[:, outcome]
        pits = (
            randomised_pit(of_split, SPLIT_ROLLOUTS, of_exact, rng),
            randomised_pit(of_rollouts, n, of_exact, rng),
            two_sample_pit(of_rollouts, n, of_split, SPLIT_ROLLOUTS, rng),
            *remainder_pits(search.result, rest, outcome, p, of_split, n),
        )
        for pair, pit in zip(ENGINE_PAIRS, pits, strict=False):  # the last two are missing where nothing is left
            tests.append({"test": pair, "outcome": outcomes[outcome], "p_value": uniform_p(pit)})
    return tests


def remainder_pits(
    search: Result, rest: Result, outcome: int, p: Result, of_split: np.ndarray, n: int
) -> list[np.ndarray]:
    """PITs of an outcome's counts in the remainder, under exact q, and in n whole traces made from them, by split.

    search: the bounds that were searched; rest: the result of remainder after it. Only problems count that have more
    than MIN_UNKNOWN left. The list is empty if there are none.
    """
    left, rng = search.unknown > MIN_UNKNOWN, np.random.default_rng(1)
    if rest.n is None or not left.any():
        return []
    low, unknown = search.outcomes[left, outcome], search.unknown[left]
    q, share = (accepted_share(engine.outcomes[left, outcome], low, low + unknown) for engine in (p, rest))
    counts = np.rint(share * rest.n).astype(np.int64)
    whole = whole_counts(counts, rest.n, low, unknown, n, rng)
    return [randomised_pit(counts, rest.n, q, rng), two_sample_pit(whole, n, of_split[left], SPLIT_ROLLOUTS, rng)]
