"""The steps that studies share: make the runs that are missing, evaluate them, print how long it took."""

import contextlib
import time
from collections.abc import Callable, Iterator

from experiments import executors, study
from experiments.results import Results, load_results
from experiments.study import Plan
from minifork import measure, runs
from minifork.decoding import policy
from minifork.decoding.traces import TraceTree
from minifork.evaluate import evaluate
from minifork.evaluation.targets import problems_for
from minifork.measuring.problems import ProblemSet, evaluation_problems
from minifork.models import pick_device
from minifork.runs import Checkpoint
from minifork.schema import Config


def require_fork(config: Config, command: str) -> None:
    """Raise ValueError unless test problems have a fork and traces can be forced into FWD."""
    problems = evaluation_problems(config.data, config.eval)
    if config.data.fork_prefix(problems) is None or "FWD" not in config.data.first_tokens:
        need = "problems with a fork and traces that begin with FWD, such as those of --config star"
        raise ValueError(f"task is {config.task!r}: {command} needs {need}")


def make_runs(config: Config, name: str) -> list[Plan]:
    """Make the missing runs of a study for all pairs of seeds; errors are those of `run_plans`."""
    plans = study.plans(config, study.read_study(name), config.reproduce.seeds)
    executors.run_plans(plans)
    return plans


def make_and_measure(config: Config, name: str) -> tuple[list[Plan], Results]:
    """Make and measure what is missing of a study for all pairs of seeds; errors are those of both steps."""
    plans = make_runs(config, name)
    evaluate_and_check(config)
    return plans, load_results(config)


def evaluate_and_check(config: Config, selected: Callable[[Checkpoint], bool] = lambda _: True) -> None:
    """Measure the selected checkpoints that are not measured yet; raises ValueError when another engine disagrees."""
    if evaluate(config, selected):
        raise ValueError(f"{runs.task_folder(config)}: the engines disagree (see above)")


def last_checkpoint(results: Results, plan: Plan) -> tuple[dict, ProblemSet, TraceTree]:
    """The record of the last checkpoint of a run, its test problems and its traces on them."""
    config, record = results.config, results.last_record(plan)
    device = pick_device(config)
    problems = problems_for(config, device)
    model = results.runs[record["run"]].model(record["epoch"]).to(device)
    tree = measure.trace_tree(model, problems, policy.parse_policy(config.eval.policy), config.eval.max_tokens)
    return record, problems, tree


@contextlib.contextmanager
def print_minutes(name: str) -> Iterator[None]:
    """Print how many minutes the block took."""
    started = time.monotonic()
    yield
    print(f"{name}: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)
