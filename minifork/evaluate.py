"""Evaluation: measure what is missing, keep it with its run, collect it in eval.json and eval.npz, print tables.

Every checkpoint is measured once under given settings, and the measurement is kept with its run
(`minifork.storage.measurements`). All checkpoints are measured on the same test problems, so differences between runs
are paired. runs/<task>/eval.json and eval.npz collect all that was measured with the settings of the last command. A
*row* is an entry of "records" in eval.json: a measurement with its run. A *run record* is the run.json of a run.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from data_gen import streams
from minifork import config as configs
from minifork import runs, tables
from minifork.cores import cores
from minifork.decoding import policy
from minifork.interrupts import Stoppable
from minifork.measure import Measurement, NotComputedError, measure
from minifork.measuring.problems import ProblemSet, evaluation_problems, problem_set, training_forks
from minifork.models import pick_device
from minifork.runs import Checkpoint, Run
from minifork.schema import Config
from minifork.storage import measurements
from minifork.storage.files import digest, write_atomically, write_json
from minifork.storage.locks import locked
from minifork.storage.version import measuring_version
from minifork.values import MISSING

EVAL_JSON_VERSION = 5  # raised when a key that others read changes
SECONDS_BETWEEN_LINES = 10
MOST_MEASUREMENTS_AT_ONCE = 8  # each may hold up to 1 GiB of waiting prefixes


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


def evaluate(config: Config, selected: Callable[[Checkpoint], bool] = lambda _: True, again: bool = False) -> int:
    """Measure what is missing, write and print all; returns 1 when another engine disagrees with a result.

    Arguments and errors are those of `measure_missing`.
    """
    evaluations = measure_missing(config, selected, again)
    content = write_eval_files(config, evaluations)
    print(tables.evaluation_text(config, content))
    return 0 if all(check["agrees"] for check in content["checks"]) else 1


def measure_missing(
    config: Config, selected: Callable[[Checkpoint], bool] = lambda _: True, again: bool = False
) -> list[Evaluation]:
    """Measure the selected checkpoints that were not measured; returns all measurements with the config's settings.

    again: measure again what another version of the measuring code measured. Raises ValueError for a policy that does
    not exist, and when there is nothing to measure.
    """
    require_policy(config)
    root, (targets, notes) = runs.task_folder(config), find_targets(config)
    for line in notes:
        print(line, flush=True)
    if not targets:
        raise ValueError(f"{root}: no finished run to evaluate; make one with `minifork pretrain` and `minifork sft`")
    missing = [target for target in targets if selected(target.checkpoint) and _is_missing(config, target, again)]
    _say_plan(config, len(targets), len(missing))
    _measure_side_by_side(config, missing)
    evaluations = [evaluation for target in targets if (evaluation := load_evaluation(config, target))]
    if not evaluations:
        raise ValueError(f"{root}: nothing could be measured (see above)")
    return evaluations


def require_policy(config: Config) -> None:
    """Raise ValueError naming the step of eval.policy that is wrong."""
    try:
        policy.parse_policy(config.eval.policy)
    except ValueError as error:
        raise ValueError(f"eval.policy: {error}") from None


def _say_plan(config: Config, targets: int, missing: int) -> None:
    """Print how much there is to measure, and when there are fewer problems than asked for."""
    settings, count = config.eval, len(evaluation_problems(config.data, config.eval))
    if count < settings.problems:
        stream = f"the {settings.split} stream holds {count} different problems"
        print(f"{stream}, not eval.problems={settings.problems}: all are used", flush=True)
    total = f"{targets} checkpoints and test sets on {count} {settings.split} problems"
    print(f"evaluating {total}, {missing} of them not measured yet", flush=True)


# what to measure


def find_targets(config: Config) -> tuple[list[Target], list[str]]:
    """Every checkpoint of the finished runs of the config's task and data with its test sets, bases first.

    Second, lines that name the runs that are left out, and why.
    """
    targets, notes = [], []
    all_runs = runs.all_runs(config)
    comparable = [run for run in all_runs if _test_data(run.config) == _test_data(config)]
    if len(comparable) < len(all_runs):
        notes.append(f"{runs.task_folder(config)}: {len(all_runs) - len(comparable)} runs of other data are left out")
    for run in comparable:
        try:
            checkpoints = _checkpoints(run, config)
            targets += [Target(checkpoint, test_set) for checkpoint in checkpoints for test_set in test_sets(run)]
        except (ValueError, OSError) as error:
            notes.append(f"{run.folder}: left out, {error}")
    return targets, notes


def _test_data(config: Config) -> dict[str, Any]:
    """The data section without the order in which branches are printed, which plain test sets ignore."""
    return {key: value for key, value in asdict(config.data).items() if key != "branch_order"}


def _checkpoints(run: Run, config: Config) -> list[Checkpoint]:
    """The checkpoints of a run; raises ValueError saying why they cannot be measured."""
    if not run.complete:
        raise ValueError("unfinished")
    sampled = config.eval.engine in ("split", "rollout") or config.eval.stratify != "none"
    if run.values.get("sft.prefix") and sampled:
        raise ValueError("its p is an average over prefixes: only an exact, unstratified evaluation has it")
    runs.require_parent(run)
    return run.checkpoints()


def test_sets(run: Run) -> list[TestSet]:
    """The test sets of a run: the plain one, and a matched one where its training data gave the branch away."""
    prefix, cue_rate = (run.values.get(key, 0) for key in ("sft.prefix", "sft.cue_rate"))
    sets = [TestSet(prefix=prefix)]
    if cue_rate and run.stage != "rl":
        sets.append(TestSet(f"cue{cue_rate:g}", cue_rate=cue_rate, prefix=prefix))
    if run.values.get("data.branch_order") == "published":
        sets.append(TestSet("published", "published", prefix=prefix))
    return sets


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


def _is_missing(config: Config, target: Target, again: bool) -> bool:
    """True if a target is still to be measured. A damaged measurement is named in a line and made anew."""
    try:
        evaluation = load_evaluation(config, target)
    except ValueError as error:
        print(error, flush=True)
        return True
    return evaluation is None or again and not evaluation.current


def key_of(config: Config, target: Target) -> measurements.Key:
    """The key of the measurement of a target under a config's settings."""
    settings = {"policy": str(policy.parse_policy(config.eval.policy)), "device": pick_device(config)}
    settings = _without_before(config, "eval", asdict(config.eval) | settings)
    data = _without_before(config, "data", _test_data(config))
    checked = target.checkpoint.final and target.test_set.name == "plain"
    test_set = asdict(target.test_set) | {"task": config.task, "data": data, "checked": checked}
    run, version = target.checkpoint.run, _version(config.data, config.eval.policy)
    return measurements.Key(target.checkpoint.weights_hash, run.identity, settings, test_set, version)


def _without_before(config: Config, section: str, values: dict[str, Any]) -> dict[str, Any]:
    """Values of a section without those from before their keys existed (see `minifork.config.before`)."""
    before = configs.before(config.task)
    return {name: value for name, value in values.items() if before.get(f"{section}.{name}", MISSING) != value}


@lru_cache
def _version(task: object, decoder: str) -> str:
    """The version of the code that measures on a task with a decoder."""
    return measuring_version(task, *policy.parse_policy(decoder).functions)


# measuring


def _measure_side_by_side(config: Config, missing: list[Target]) -> None:
    """Measure targets, on a CPU one a core: tiny models make poor use of several threads.

    Raises the error of the first measurement that fails, once the running ones are done; Ctrl-C stops them.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1 if pick_device(config) == "cuda" else min(threads, cores(), MOST_MEASUREMENTS_AT_ONCE))
    torch.set_num_threads(1)
    calls = Stoppable()
    try:
        futures = {pool.submit(calls.call, _measure, config, target): target for target in missing}
        for future in _as_they_end(futures):
            try:
                future.result()
            except NotComputedError as error:
                print(f"{futures[future].checkpoint.path}: left out, {error}", flush=True)
    except KeyboardInterrupt:
        calls.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def _as_they_end(futures: dict[Future, Target]) -> Iterator[Future]:
    """The futures as they end, behind a bar on a terminal, elsewhere with a printed line every few seconds."""
    printed = time.monotonic()
    bar = tqdm(as_completed(futures), desc="eval", unit="checkpoint", total=len(futures), disable=None)
    for done, future in enumerate(bar):
        if bar.disable and time.monotonic() - printed > SECONDS_BETWEEN_LINES:
            printed = time.monotonic()
            print(f"eval: {done}/{len(futures)} checkpoints", flush=True)
        yield future


def _measure(config: Config, target: Target) -> None:
    """Measure a target and keep the measurement with its run."""
    device = pick_device(config)
    model = target.checkpoint.model().to(device)
    test = problems_for(config, device, target.test_set)
    training = _training_problems(config, target, device)
    key = key_of(config, target)
    measured = measure(model, test, config.eval, training, key.test_set["checked"])
    measurements.save_measurement(target.checkpoint.run.folder, key, measured)


def _training_problems(config: Config, target: Target, device: str) -> ProblemSet | None:
    """The first problems whose trace passed the fork when a run was fine-tuned, None where none did."""
    tuned = target.checkpoint.run.config
    if "sft.traces" not in target.checkpoint.run.values:
        return None
    forks = training_forks(tuned.data, tuned.sft, tuned.seed, tuned.sft.traces, config.eval.problems)
    return None if forks is None else problem_set(config.data, forks, device, prefix=target.test_set.prefix)


@lru_cache(maxsize=8)
def problems_for(config: Config, device: str, test_set: TestSet = PLAIN) -> ProblemSet:
    """The problems that the config evaluates on, as tensors."""
    problems = evaluation_problems(config.data, config.eval, test_set.order, test_set.cue_rate)
    return problem_set(config.data, problems, device, config.eval.grading, test_set.prefix)


# eval.json and eval.npz


def array_name(row: dict[str, Any], quantity: str) -> str:
    """The name in eval.npz of an array of a row: run/epoch/test set/quantity, see `minifork.measure.measure`."""
    epoch = "base" if row["epoch"] is None else f"e{row['epoch']}"
    return f"{row['run']}/{epoch}/{row['test_set']}/{quantity}"


def record_of(config: Config, evaluation: Evaluation) -> dict[str, Any]:
    """The row of an evaluation in eval.json: the run, its differences from the config, and the measurement."""
    checkpoint, test_set = evaluation.target.checkpoint, evaluation.target.test_set
    run = checkpoint.run
    return {
        "run": run.name,
        "identity": run.identity,
        "tags": run.tags(config),
        "stage": run.stage,
        "base_seed": run.config.base_seed,
        "seed": run.values.get("seed"),
        "fork_rate": run.values.get("sft.fork_rate"),
        "epoch": checkpoint.epoch,
        "test_set": test_set.name,
        "weights_hash": checkpoint.weights_hash,
        "current": evaluation.current,
    } | evaluation.measurement.record


def named_arrays(rows: list[dict[str, Any]], evaluations: list[Evaluation]) -> dict[str, np.ndarray]:
    """The arrays of evaluations by their names in eval.npz; rows: those of the evaluations, in the same order."""
    arrays: dict[str, np.ndarray] = {}
    for row, evaluation in zip(rows, evaluations, strict=True):
        arrays |= {array_name(row, name): array for name, array in evaluation.measurement.arrays.items()}
    return arrays


def write_eval_files(config: Config, evaluations: list[Evaluation]) -> dict[str, Any]:
    """Write eval.json and eval.npz; returns the content of eval.json."""
    settings, problems = config.eval, evaluation_problems(config.data, config.eval)
    rows = [record_of(config, evaluation) for evaluation in evaluations]
    npz = measurements.pack_npz(named_arrays(rows, evaluations))
    strata = "" if settings.stratify == "none" else f" {settings.stratify}={settings.strata}"
    content = {
        "schema": EVAL_JSON_VERSION,
        "task": config.task,
        "engine": "+".join(sorted({row["engine"] for row in rows})),
        "policy": f"{policy.parse_policy(settings.policy)}{strata}",
        "grading": settings.grading,
        "guessing_floor": config.data.guessing_floor if settings.grading == "answer" else None,
        "split": settings.split,
        "n_problems": len(problems),
        "data_hash": streams.data_hash(config.data.prompts(problems)),
        "settings": asdict(settings),
        "version": _version(config.data, settings.policy),
        "records": rows,
        "checks": _checks(evaluations),
        "npz_hash": digest(npz),
    }
    path = runs.task_folder(config) / "eval.json"
    with locked(path.parent):  # two evaluations must not mix their files
        write_atomically(path.with_suffix(".npz"), lambda file: file.write(npz))
        write_json(path, content)
    return content


def _checks(evaluations: list[Evaluation]) -> list[dict[str, Any]]:
    """The cross-checks, each with its run and whether the engines agree (Bonferroni over all checks)."""
    checks = [
        {"run": evaluation.target.checkpoint.run.name, **evaluation.measurement.check}
        for evaluation in evaluations
        if evaluation.measurement.check
    ]
    return [check | {"agrees": check["p_value"] * len(checks) >= tables.FALSE_ALARMS} for check in checks]
