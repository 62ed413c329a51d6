"""The targets of an evaluation: every checkpoint on every test set, with its problems and measurement."""

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from minifork import config as configs
from minifork import runs
from minifork.decoding import policy
from minifork.measure import Measurement
from minifork.measuring.problems import ProblemSet, evaluation_problems, problem_set
from minifork.models import pick_device
from minifork.runs import Checkpoint, Run
from minifork.schema import Config
from minifork.storage import measurements
from minifork.storage.version import measuring_version


@dataclass(frozen=True)
class TestSet:
    """The way in which test problems are printed.

    order: of the branches, as data.branch_order; cue_rate: the share of problems whose order gives the right branch
    away; prefix: the number of integers that may precede a trace, as sft.prefix.
    """

    name: str = "plain"
    order: str = "shuffled"
    cue_rate: float = 0.0
    prefix: int = 0


PLAIN = TestSet()


@dataclass(frozen=True)
class Target:
    """A checkpoint and a test set to measure it on."""

    checkpoint: Checkpoint
    test_set: TestSet


@dataclass(frozen=True)
class Evaluation:
    """A target and its measurement; current: whether this version of the measuring code made it."""

    target: Target
    measurement: Measurement
    current: bool


def find_targets(config: Config) -> tuple[list[Target], list[str]]:
    """Every checkpoint of the finished runs of the config's task and data with its test sets, bases first.

    Second, lines that name the runs that are left out, and why.
    """
    targets, notes = [], []
    all_runs = runs.all_runs(config)
    comparable = [run for run in all_runs if _is_comparable(run, config)]
    if len(comparable) < len(all_runs):
        notes.append(f"{runs.task_folder(config)}: {len(all_runs) - len(comparable)} runs of other data are left out")
    for run in comparable:
        try:
            checkpoints = _checkpoints(run, config)
            targets += [
                Target(checkpoint, test_set)
                for checkpoint in checkpoints
                for test_set in test_sets(run.config, run.stage)
            ]
        except (ValueError, OSError) as error:
            notes.append(f"{run.folder}: left out, {error}")
    return targets, notes


def _is_comparable(run: Run, config: Config) -> bool:
    """True if a run was trained on the config's data; a base does not depend on all of its fields."""
    differing = dict(asdict(run.config.data).items() ^ asdict(config.data).items())
    return {*differing} <= {"branch_order", *(config.data.unwalked if run.stage == "base" else ())}


def _checkpoints(run: Run, config: Config) -> list[Checkpoint]:
    """The checkpoints of a run; raises ValueError saying why they cannot be measured."""
    if not run.complete:
        raise ValueError("unfinished")
    sampled = config.eval.engine in ("split", "rollout") or config.eval.stratify != "none"
    if run.values.get("sft.prefix") and sampled:
        raise ValueError("its p is an average over prefixes: only an exact, unstratified evaluation has it")
    runs.require_parent(run)
    return run.checkpoints()


def test_sets(config: Config, stage: str) -> list[TestSet]:
    """The test sets of a run: the plain one, and a matched one where its training data gave the branch away."""
    values = runs.deciding_values(config, stage)
    prefix, cue_rate = (values.get(key, 0) for key in ("sft.prefix", "sft.cue_rate"))
    sets = [TestSet(prefix=prefix)]
    if cue_rate and stage != "rl":
        sets.append(TestSet(f"cue{cue_rate:g}", cue_rate=cue_rate, prefix=prefix))
    if values.get("data.branch_order") == "published":
        sets.append(TestSet("published", "published", prefix=prefix))
    return sets


@lru_cache(maxsize=8)
def problems_for(config: Config, device: str, test_set: TestSet = PLAIN) -> ProblemSet:
    """The problems that the config evaluates on, as tensors."""
    problems = evaluation_problems(config.data, config.eval, test_set.order, test_set.cue_rate)
    return problem_set(config.data, problems, device, config.eval.grading, test_set.prefix)


# measurements


def load_evaluation(config: Config, target: Target) -> Evaluation | None:
    """The measurement of a target, by this version of the code if there is one, None where there is none.

    Raises ValueError naming a file that is damaged.
    """
    key, folder = key_of(config, target), target.checkpoint.run.folder
    if measurement := measurements.load_measurement(folder, key):
        return Evaluation(target, measurement, current=True)
    if measurement := measurements.load_other_version(folder, key):
        return Evaluation(target, measurement, current=False)
    return None


def key_of(config: Config, target: Target) -> measurements.Key:
    """The key of the measurement of a target under a config's settings."""
    settings = {"policy": str(policy.parse_policy(config.eval.policy)), "device": pick_device(config)}
    settings = _without_before(config, "eval", asdict(config.eval) | settings)
    data = _without_before(config, "data", asdict(config.data))
    data.pop("branch_order", None)  # plain test sets ignore the order in which branches are printed
    checked = target.checkpoint.final and target.test_set.name == "plain"
    test_set = asdict(target.test_set) | {"task": config.task, "data": data, "checked": checked}
    run, version = target.checkpoint.run, version_of(config.data, config.eval.policy)
    return measurements.Key(target.checkpoint.weights_hash, run.identity, settings, test_set, version)


def _without_before(config: Config, section: str, values: dict[str, Any]) -> dict[str, Any]:
    """Values of a section without those from before their keys existed (see `minifork.config.before`)."""
    before = configs.before(config.task).items()
    return {name: value for name, value in values.items() if (f"{section}.{name}", value) not in before}


@lru_cache
def version_of(task: object, decoder: str) -> str:
    """The version of the code that measures on a task with a decoder."""
    return measuring_version(task, *policy.parse_policy(decoder).functions)
