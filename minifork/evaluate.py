"""Evaluation: pass@k of every run of a task, what it is made of, and a check by another engine.

Every checkpoint is measured once under given settings, and the measurement is kept with its run
(`minifork.storage.measurements`). All checkpoints are measured on the same test problems, so differences between
runs are paired. runs/<task>/eval.json and eval.npz are a view of what was measured
with the settings of the last command.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from data_gen import streams
from data_gen.task import Problems
from minifork import config as configs
from minifork import runs, tables
from minifork.checkpoints import pick_device
from minifork.cores import cores
from minifork.decoding import policy
from minifork.interrupts import Stoppable
from minifork.measure import Measurement, NotComputedError, measure
from minifork.measuring.problems import ProblemSet, evaluation_problems, problem_set, training_forks
from minifork.runs import Checkpoint, Run
from minifork.schema import Config
from minifork.storage import measurements
from minifork.storage.files import digest, write_atomically, write_json
from minifork.storage.locks import locked
from minifork.storage.measurements import packed
from minifork.storage.version import measuring_version

T = TypeVar("T")

SCHEMA = 5  # of eval.json; raised when what others read of it changes
SECONDS_BETWEEN_LINES = 10
MOST_AT_ONCE = 8  # measurements, as each may keep up to 1 GiB of waiting prefixes


@dataclass(frozen=True)
class TestSet:
    """How test problems are printed: the order of branches, the share of cued problems, how many random prefixes."""

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
    """A target with what was measured of it, by this version of the measuring code or by another one."""

    target: Target
    measurement: Measurement
    current: bool


def evaluate(config: Config, wanted: Callable[[Checkpoint], bool] = lambda _: True, again: bool = False) -> int:
    """Measure what is missing, write the view, print it; returns 1 when another engine disagrees with a result.

    Raises ValueError as `measure_missing` does.
    """
    evaluations = measure_missing(config, wanted, again)
    view = write_view(config, evaluations)
    print(tables.report(config, view))
    return 0 if all(check["agrees"] for check in view["checks"]) else 1


def measure_missing(
    config: Config, wanted: Callable[[Checkpoint], bool] = lambda _: True, again: bool = False
) -> list[Evaluation]:
    """Measure what is missing of the wanted checkpoints; returns all that was measured with the config's settings.

    again: measure anew what another version of the measuring code measured. Raises ValueError for a policy that is
    none, and when there is nothing to measure.
    """
    require_policy(config)
    root = runs.task_folder(config)
    targets, left_out = find_targets(config)
    print("".join(f"{line}\n" for line in left_out), end="", flush=True)
    if not targets:
        raise ValueError(f"{root}: no finished run to evaluate; make one with `minifork pretrain` and `minifork sft`")
    missing = [target for target in targets if wanted(target.checkpoint) and _is_missing(config, target, again)]
    problems = len(evaluation_problems(config.data, config.eval))
    if problems < config.eval.problems:
        held = f"the {config.eval.split} stream holds {problems} different problems"
        print(f"{held}, not eval.problems={config.eval.problems}: all are used", flush=True)
    what = f"{len(targets)} checkpoints and test sets on {problems} {config.eval.split} problems"
    print(f"evaluating {what}, {len(missing)} of them not measured yet", flush=True)
    _measure_side_by_side(config, missing)
    evaluations = [one for target in targets if (one := stored(config, target))]
    if not evaluations:
        raise ValueError(f"{root}: nothing could be measured (see above)")
    return evaluations


def require_policy(config: Config) -> None:
    """Raise ValueError naming the step of eval.policy that is wrong."""
    try:
        policy.parse_policy(config.eval.policy)
    except ValueError as error:
        raise ValueError(f"eval.policy: {error}") from None


def with_progress(items: Iterable[T], name: str, unit: str, total: int) -> Iterator[T]:
    """The items one by one, behind a bar on a terminal and a plain line every few seconds elsewhere."""
    printed = time.monotonic()
    for done, item in enumerate(tqdm(items, desc=name, unit=unit, total=total, disable=None)):
        if time.monotonic() - printed > SECONDS_BETWEEN_LINES and not sys.stderr.isatty():
            printed = time.monotonic()
            print(f"{name}: {done}/{total} {unit}s", flush=True)
        yield item


# what to measure


def find_targets(config: Config) -> tuple[list[Target], list[str]]:
    """Every checkpoint of the finished runs of the config's task and data with its test sets, bases first.

    Second, lines that name the runs that are left out, and why.
    """
    targets, lines = [], []
    every = runs.all_runs(config)
    alike = [run for run in every if _test_data(run.config) == _test_data(config)]
    if len(alike) < len(every):
        lines.append(f"{runs.task_folder(config)}: {len(every) - len(alike)} runs of other data are left out")
    for run in alike:
        try:
            targets += [Target(one, test) for one in _checkpoints(run, config) for test in test_sets(run)]
        except (ValueError, OSError) as error:
            lines.append(f"{run.folder}: left out, {error}")
    return targets, lines


def _test_data(config: Config) -> dict[str, Any]:
    """The data section without the order in which branches are printed, which plain test sets ignore."""
    return {key: value for key, value in asdict(config.data).items() if key != "branch_order"}


def _checkpoints(run: Run, config: Config) -> list[Checkpoint]:
    """The checkpoints of a run; raises ValueError or OSError saying why they cannot be measured."""
    sampled = config.eval.engine in ("split", "rollout") or config.eval.stratify != "none"
    if not run.complete:
        raise ValueError("unfinished")
    if run.stage != "base" and run.config.sft.prefix and sampled:
        raise ValueError("its p is an average over prefixes: only an exact, unstratified evaluation has it")
    runs.require_parent(run)
    return run.checkpoints()


def test_sets(run: Run) -> list[TestSet]:
    """The test sets of a run: the plain one, and where its training data gave the branch away a matched one."""
    prefix = 0 if run.stage == "base" else run.config.sft.prefix
    sets, cue_rate = [TestSet(prefix=prefix)], run.config.sft.cue_rate
    if run.stage in ("sft", "wise") and cue_rate:
        sets.append(TestSet(f"cue{cue_rate:g}", cue_rate=cue_rate, prefix=prefix))
    if run.stage != "base" and run.config.data.branch_order == "published":
        sets.append(TestSet("published", "published", prefix=prefix))
    return sets


# measuring


def key_of(config: Config, target: Target) -> measurements.Key:
    """What decides the measurement of a target under a config's settings."""
    settings = {"policy": str(policy.parse_policy(config.eval.policy)), "device": pick_device(config)}
    settings = _without_before(config, "eval", asdict(config.eval) | settings)
    data = _without_before(config, "data", _test_data(config))
    checked = target.checkpoint.final and target.test_set.name == "plain"
    test_set = asdict(target.test_set) | {"task": config.task, "data": data, "checked": checked}
    run, version = target.checkpoint.run, _version(config.data, config.eval.policy)
    return measurements.Key(target.checkpoint.weights, run.identity, settings, test_set, version)


def _without_before(config: Config, section: str, values: dict[str, Any]) -> dict[str, Any]:
    """Values of a section without those from before their keys existed, so that a new key leaves measurements valid."""
    before = configs.before(config.task)
    return {name: value for name, value in values.items() if before.get(f"{section}.{name}", ...) != value}


@lru_cache
def _version(task: object, decoder: str) -> str:
    """The version of the code that measures on a task with a decoder."""
    return measuring_version(task, *policy.parse_policy(decoder).functions)


def _is_missing(config: Config, target: Target, again: bool) -> bool:
    """Whether a target is still to be measured; a damaged measurement is, and is named in a line."""
    try:
        measured = stored(config, target)
    except ValueError as error:
        print(error, flush=True)
        return True
    return measured is None or again and not measured.current


def stored(config: Config, target: Target) -> Evaluation | None:
    """What was measured of a target, if by another version of the code only then that; None where nothing was.

    Raises ValueError naming a file that is damaged.
    """
    key, folder = key_of(config, target), target.checkpoint.run.folder
    if measurement := measurements.load_measurement(folder, key):
        return Evaluation(target, measurement, current=True)
    if measurement := measurements.load_other_version(folder, key):
        return Evaluation(target, measurement, current=False)
    return None


def _measure_side_by_side(config: Config, missing: list[Target]) -> None:
    """Measure targets, on a CPU one a core: tiny models make poor use of several threads.

    Raises what the first measurement that fails raises, once those that run are done; Ctrl-C stops them.
    """
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(1 if pick_device(config) == "cuda" else min(threads, cores(), MOST_AT_ONCE))
    torch.set_num_threads(1)
    calls = Stoppable()
    try:
        futures = {pool.submit(calls.call, _measure, config, target): target for target in missing}
        for future in with_progress(as_completed(futures), "eval", "checkpoint", len(futures)):
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


def _measure(config: Config, target: Target) -> None:
    """Measure a target and keep what was found with its run."""
    run, device, settings = target.checkpoint.run, pick_device(config), config.eval
    model = target.checkpoint.model().to(device)
    test = problems_for(config, device, target.test_set)
    forks = _training_forks(run, settings.problems)
    training = None if forks is None else problem_set(config.data, forks, device, prefix=target.test_set.prefix)
    key = key_of(config, target)
    measured = measure(model, test, settings, training, key.test_set["checked"])
    measurements.save_measurement(run.folder, key, measured)


def _training_forks(run: Run, most: int) -> Problems | None:
    """The problems whose trace passed the fork when a run was fine-tuned, None where none did or they are not known."""
    if run.stage == "base" or run.stage == "rl" and run.config.rl.epoch == 0:
        return None
    tuned = run.config
    try:
        return training_forks(tuned.data, tuned.sft, tuned.seed, tuned.sft.traces, most)
    except ValueError as error:  # a version that drew problems repeatedly made the run
        print(f"{run.folder}: its training forks are left out, {error}", flush=True)
        return None


@lru_cache(maxsize=8)
def problems_for(config: Config, device: str, test_set: TestSet = PLAIN) -> ProblemSet:
    """The problems that the config evaluates on, as tensors; with a prefix, each with all that its model knows."""
    drawn = evaluation_problems(config.data, config.eval, test_set.order, test_set.cue_rate)
    return problem_set(config.data, drawn, device, config.eval.grading, test_set.prefix)


# the view


def array_name(record: dict[str, Any], what: str) -> str:
    """The name in eval.npz of an array (see `minifork.measure.measure`) of a record: run/epoch/test set/what."""
    epoch = "base" if record["epoch"] is None else f"e{record['epoch']}"
    return f"{record['run']}/{epoch}/{record['test_set']}/{what}"


def record_of(config: Config, evaluation: Evaluation) -> dict[str, Any]:
    """What eval.json says of a target: which run, how it differs from the config's, and what was measured."""
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
        "weights_hash": checkpoint.weights,
        "current": evaluation.current,
    } | evaluation.measurement.record


def write_view(config: Config, evaluations: list[Evaluation]) -> dict[str, Any]:
    """Write eval.json and eval.npz from what was measured; returns what eval.json says."""
    settings, records = config.eval, [record_of(config, one) for one in evaluations]
    pairs = list(zip(evaluations, records, strict=True))
    checks = [{"run": record["run"], **one.measurement.check} for one, record in pairs if one.measurement.check]
    for check in checks:
        check["agrees"] = check["p_value"] * len(checks) >= tables.FALSE_ALARMS
    spread = "" if settings.stratify == "none" else f" {settings.stratify}={settings.strata}"
    problems = evaluation_problems(config.data, settings)
    arrays = packed({array_name(r, what): a for one, r in pairs for what, a in one.measurement.arrays.items()})
    view = {
        "schema": SCHEMA,
        "task": config.task,
        "engine": "+".join(sorted({record["engine"] for record in records})),
        "policy": f"{policy.parse_policy(settings.policy)}{spread}",
        "grading": settings.grading,
        "guessing_floor": config.data.guessing_floor if settings.grading == "answer" else None,
        "split": settings.split,
        "n_problems": len(problems),
        "data_hash": streams.data_hash(config.data.prompts(problems)),
        "settings": asdict(settings),
        "version": _version(config.data, settings.policy),
        "records": records,
        "checks": checks,
        "npz_hash": digest(arrays),
    }
    path = runs.task_folder(config) / "eval.json"
    with locked(path.parent):  # of two evaluations that end at once, one writes both files
        write_atomically(path.with_suffix(".npz"), lambda file: file.write(arrays))
        write_json(path, view)
    return view
