"""Evaluation: measure what is missing, keep it with its run, collect it in eval.json and eval.npz, print tables.

Every checkpoint is measured once under given settings, and the measurement is kept with its run
(`minifork.storage.measurements`). All checkpoints are measured on the same test problems, so differences between runs
are paired. runs/<task>/eval.json and eval.npz collect all that was measured with the settings of the last command.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed

import torch
from tqdm import tqdm

from minifork import runs, tables
from minifork.cores import cores
from minifork.decoding import policy
from minifork.evaluation.files import write_eval_files
from minifork.evaluation.targets import Evaluation, Target, find_targets, key_of, load_evaluation, problems_for
from minifork.interrupts import Stoppable
from minifork.measure import NotComputedError, measure
from minifork.measuring.problems import ProblemSet, evaluation_problems, problem_set, training_forks
from minifork.models import pick_device
from minifork.runs import Checkpoint
from minifork.schema import Config
from minifork.storage import measurements
from minifork.training.wise_ft import mixtures

SECONDS_BETWEEN_LINES = 10
MOST_MEASUREMENTS_AT_ONCE = 8  # each may hold up to 1 GiB of waiting prefixes


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
    if absent := [target.checkpoint.path for target in missing if not target.checkpoint.is_here]:
        missing = [target for target in missing if target.checkpoint.is_here]
        print(f"{len(absent)} checkpoints are left out: their weights are not here, such as {absent[0]}", flush=True)
    _say_plan(config, len(targets), len(missing))
    _measure_side_by_side(config, missing)
    evaluations = [evaluation for target in targets if (evaluation := load_evaluation(config, target))]
    if not evaluations:
        raise ValueError(f"{root}: nothing could be measured (see above)")
    return evaluations


def measure_run(config: Config, stage: str) -> None:
    """Measure all checkpoints of the run of a config (wise: of its runs); raises as `measure_missing` does."""
    identities = {runs.identity(each, stage) for each in (mixtures(config) if stage == "wise" else [config])}
    measure_missing(config, lambda checkpoint: checkpoint.run.identity in identities)


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


def _is_missing(config: Config, target: Target, again: bool) -> bool:
    """True if a target is still to be measured. A damaged measurement is named in a line and made anew."""
    try:
        evaluation = load_evaluation(config, target)
    except ValueError as error:
        print(error, flush=True)
        return True
    return evaluation is None or again and not evaluation.current


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
