"""Evaluation: pass@k of every run of a task, what it is made of, and a check by another engine.

Reads the runs in runs/<task>/, writes eval.json (one record a checkpoint) and eval.npz (p_i of every
problem) there, and prints a table. All runs are measured on the same test problems and all intervals
use the same resamples, so differences between runs are paired.
"""

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_gen import streams
from data_gen.task import Problems
from minifork import measure, passk, policy, records, runs
from minifork.config import fingerprint
from minifork.schema import Config
from minifork.stages import load_run, pick_device, planned_epochs, sft_data

VISIBLE = 1e-5  # width of pass@k below which the model's own arithmetic hides it
_KEY = ("run", "epoch", "test_set")  # of a record
COMING = ".next.npz"  # an eval.npz until its eval.json is written
SECONDS_BETWEEN_LINES = 10
CHECK_LEVEL = 1e-3  # chance that a correct evaluation reports any disagreement


@dataclass(frozen=True)
class Checkpoint:
    """One set of weights to measure: where it lies, its run's meta and config, its epoch (None for a base)."""

    path: Path
    meta: dict
    config: Config
    epoch: int | None
    final: bool


@dataclass(frozen=True)
class Found:
    """What is known of one checkpoint on one test set: its record, its arrays by their names in eval.npz, its check."""

    record: dict
    arrays: dict[str, np.ndarray]
    check: dict | None


def evaluate(config: Config, wanted: Callable[[Checkpoint], bool] = lambda _: True) -> int:
    """Measure every finished run of the task; returns 1 when another engine disagrees with a result.

    What the last evaluation found with the same settings of the same weights is kept; beyond that, only the wanted
    checkpoints are measured. Raises ValueError for a policy that is none, and when there is nothing to measure.
    """
    require_policy(config)
    checkpoints, known, found = find_checkpoints(config), last_found(config), []
    sets: dict[tuple[str, int], measure.ProblemSet] = {}
    kept, told = 0, time.monotonic()
    of = f"of {len(checkpoints)} " if (count := sum(map(wanted, checkpoints))) < len(checkpoints) else ""
    print(f"evaluating {count} {of}checkpoints on {config.eval.problems} {config.eval.split} problems", flush=True)
    for done, checkpoint in enumerate(tqdm(checkpoints, desc="eval", unit="checkpoint", disable=None)):
        if time.monotonic() - told > SECONDS_BETWEEN_LINES and not sys.stderr.isatty():
            told = time.monotonic()
            print(f"eval: {done}/{len(checkpoints)} checkpoints", flush=True)
        for name in test_sets(checkpoint):
            identity = identify(checkpoint, name)
            before = known.get(_key(identity))
            checked = checkpoint.final and name == "plain"
            if before and identity.items() <= before.record.items() and (before.check or not checked):
                found.append(before if checked else replace(before, check=None))
                kept += 1
            elif wanted(checkpoint):
                try:
                    found.append(measure_one(config, checkpoint, identity, sets, checked))
                except measure.NotComputedError as error:
                    print(f"{checkpoint.path}: left out, {error}", flush=True)
    if not found:
        raise ValueError(f"{runs.task_folder(config)}: nothing could be measured (see above)")
    if kept:
        print(f"{kept} of {len(found)} results are the last evaluation's, of the same weights and settings")
    result = summary(config, found)
    save(runs.eval_file(config), result, {name: array for one in found for name, array in one.arrays.items()})
    tell(config, result)
    return 0 if all(check["agrees"] for check in result["checks"]) else 1


def save(path: Path, result: dict, arrays: dict[str, np.ndarray]) -> None:
    """Write an eval.json and its eval.npz, which belong together: whenever this ends, a pair can be read.

    Raises OSError or ValueError naming the file when it cannot be written, or holds what is no number.
    """
    stored, buffer = path.with_suffix(".npz"), io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    result = result | {"npz_hash": runs.digest(buffer.getvalue())}
    result["checksum"] = fingerprint(result)
    runs.as_json(path, result)  # refuses what cannot be kept before anything is replaced
    coming = path.with_suffix(COMING)
    with runs.alone(path.parent):  # or two evaluations that end at once would leave one's json and the other's arrays
        with contextlib.suppress(ValueError, OSError):  # what cannot be read is not worth keeping
            if runs.read_json(path).get("npz_hash") == runs.digest(coming.read_bytes()):
                os.replace(coming, stored)  # it is the last evaluation's, which was killed before its own last line
        runs.write_atomically(coming, lambda file: file.write(buffer.getvalue()))
        runs.write_json(path, result)
        os.replace(coming, stored)


def require_policy(config: Config) -> None:
    """Raise ValueError naming the step of eval.policy that is wrong."""
    try:
        policy.parse(config.eval.policy)
    except ValueError as error:
        raise ValueError(f"eval.policy: {error}") from None


def measure_one(
    config: Config,
    checkpoint: Checkpoint,
    identity: dict,
    sets: dict[tuple[str, int], measure.ProblemSet],
    checked: bool,
) -> Found:
    """Measure one checkpoint on the test set that its identity names; sets keeps the test sets made so far."""
    settings, task, device, name = config.eval, config.data, pick_device(config), identity["test_set"]
    decoder = policy.parse(settings.policy)
    weights = passk.resamples(settings.problems, settings.bootstrap)
    model = load_run(checkpoint.path, checkpoint.config).to(device)
    prefix = 0 if checkpoint.meta["stage"] == "base" else checkpoint.config.sft.prefix
    if (name, prefix) not in sets:
        sets[name, prefix] = problems_for(config, device, *test_sets(checkpoint)[name], prefix)
    problems = sets[name, prefix]
    tree = measure.tree_of(model, task, problems, decoder)
    how = measure.iid if settings.stratify == "none" else measure.stratified
    measured = how(config, tree, problems, weights, checked)
    choices = {"fork": measure.branch_probabilities(tree, problems)}
    trained_on = training_forks(checkpoint, settings.problems)
    if trained_on is not None:
        seen = measure.problem_set(task, trained_on, device, prefix=prefix)
        choices["fork_train"] = measure.branch_probabilities(measure.tree_of(model, task, seen, decoder), seen)
    record = identity | measured.record
    record |= {"fork_train": None} | {what: records.fork_statistics(p) for what, p in choices.items()}
    choices["modes"] = measure.mode_probabilities(tree, task, problems)
    record["mode"] = records.mode_statistics(choices["modes"], task.mode_names)
    if settings.grading == "steps":
        choices["rest"] = measure.rest_probability(tree, problems)
        record["fork"]["p_rest"] = float(choices["rest"].mean())
    record["fork"]["train_p_right"] = record["fork_train"] and record["fork_train"]["p_right"]
    arrays = {records.array_key(record, what): p for what, p in (measured.p | choices).items()}
    return Found(record, arrays, measured.check and {"run": record["run"], **measured.check})


def summary(config: Config, found: list[Found]) -> dict:
    """What eval.json says, from what was found of every checkpoint."""
    settings, task = config.eval, config.data
    checks = [dict(one.check) for one in found if one.check]
    for check in checks:
        check["agrees"] = check["p_value"] * len(checks) >= CHECK_LEVEL
    spread = "" if settings.stratify == "none" else f" {settings.stratify}={settings.strata}"
    return {
        "schema": records.SCHEMA,
        "task": config.task,
        "engine": "+".join(sorted({one.record["engine"] for one in found})),
        "policy": f"{policy.parse(settings.policy)}{spread}",
        "grading": settings.grading,
        "guessing_floor": task.guessing_floor if settings.grading == "answer" else None,
        "split": settings.split,
        "n_problems": settings.problems,
        "data_hash": _data_hash(config),
        "settings": settings_of(config),
        "records": [one.record for one in found],
        "checks": checks,
    }


def tell(config: Config, result: dict) -> None:
    """Print the tables of an evaluation and what its checks said."""
    found, checks, path = result["records"], result["checks"], runs.eval_file(config)
    print(records.table(found))
    if config.eval.stratify == "none":
        print(records.mode_table(found))
    widest = max(records.width(record) for record in found)
    if widest > VISIBLE:
        print(f"pass@k is certified within {widest:.2g} only, and shown at its lower end: raise eval.budget")
    if result["guessing_floor"]:
        print(f"graded by the answer alone: a guess is right with probability {result['guessing_floor']:.3g}")
    print(check_lines(checks) if checks else "not cross-checked: rollouts in bf16 follow p of their own")
    print(f"all {len(found)} records: {path}; p of every problem: {path.with_suffix('.npz')}")


def last_found(config: Config) -> dict[tuple, Found]:
    """What the last evaluation found, if it was whole and of the same version and settings."""
    try:
        result, arrays = read_evaluation(runs.eval_file(config))
    except ValueError:
        return {}
    if result["settings"] != settings_of(config):
        return {}
    checks, found = {check["run"]: check for check in result["checks"]}, {}
    for record in result["records"]:
        folder = records.array_key(record, None).removesuffix("free")
        own = {name: array for name, array in arrays.items() if name.startswith(folder)}
        found[_key(record)] = Found(record, own, checks.get(record["run"]))
    return found


def read_evaluation(path: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """An eval.json of this version and the arrays that belong to it, unchanged since they were written.

    Raises ValueError naming the file otherwise.
    """
    if not path.exists():
        raise ValueError(f"{path}: no such file; run `minifork eval` first")
    evaluation = runs.read_json(path, "settings", "checks")
    count, found = evaluation.get("n_problems"), evaluation.get("records")
    whole = type(count) is int and 0 < count < 10**7 and isinstance(found, list)
    whole = whole and all(map(records.is_record, found))
    whole = whole and isinstance(evaluation["settings"], str) and isinstance(evaluation["checks"], list)
    whole = whole and all(
        isinstance(check, dict) and isinstance(check.get("run"), str) for check in evaluation["checks"]
    )
    if evaluation.get("schema") != records.SCHEMA or not whole:
        raise ValueError(f"{path}: not an evaluation of this version; run `minifork eval` again")
    if evaluation.get("checksum") != fingerprint({k: v for k, v in evaluation.items() if k != "checksum"}):
        raise ValueError(f"{path}: damaged or edited; run `minifork eval` again")
    for stored in (path.with_suffix(".npz"), path.with_suffix(COMING)):
        try:
            content = stored.read_bytes()
            if runs.digest(content) == evaluation["npz_hash"]:
                with np.load(io.BytesIO(content)) as arrays:
                    return evaluation, {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, KeyError):
            continue
    stored = path.with_suffix(".npz")
    raise ValueError(f"{stored}: missing, damaged or not of this {path.name}; run `minifork eval` again")


def settings_of(config: Config) -> str:
    """What decides the result of measuring given weights, as a hash: settings, test problems, device, and the code."""
    data = runs.comparable(asdict(config.data)), _data_hash(config)
    return fingerprint([asdict(config.eval), data, pick_device(config), _code(config)])


def _data_hash(config: Config) -> str:
    """The hash of the plain test problems' prompts."""
    return streams.data_hash(config.data.prompts(drawn_problems(config)))


def _code(config: Config) -> str:
    """The hash of all code that measures, tasks and decode steps of other people's files included."""
    own = Path(__file__).parent
    files = {*own.glob("*.py"), *own.glob("csrc/*.cu"), *Path(streams.__file__).parent.glob("*.py")}
    for thing in (type(config.data), *policy.STEPS.values()):
        for part in thing if isinstance(thing, tuple) else (thing,):
            if callable(part) and (source := sys.modules[part.__module__].__dict__.get("__file__")):
                files.add(Path(source).resolve())
    return runs.digest(b"".join(path.read_bytes() for path in sorted(files)))


def _key(record: dict) -> tuple:
    return tuple(record[name] for name in _KEY)


def problems_for(
    config: Config, device: str, order: str = "shuffled", cue_rate: float = 0.0, prefix: int = 0
) -> measure.ProblemSet:
    """The problems that the config evaluates on, their branches printed in an order, a share of them cued, each with
    all the prefixes that its model knows."""
    drawn = drawn_problems(config, order, cue_rate)
    return measure.problem_set(config.data, drawn, device, config.eval.grading, prefix)


def drawn_problems(config: Config, order: str = "shuffled", cue_rate: float = 0.0) -> Problems:
    """The problems of `problems_for`, before they become tensors."""
    settings, printed = config.eval, replace(config.data, branch_order=order)
    return streams.test_problems(printed, settings.problems, cue_rate, forked=settings.forked, stream=settings.split)


def find_checkpoints(config: Config) -> list[Checkpoint]:
    """Every checkpoint of the finished runs of this task and data, bases first, then by name and epoch.

    Raises ValueError when there is none. Runs that cannot be compared are named and left out.
    """
    found: list[Checkpoint] = []
    folder = runs.task_folder(config)
    for run in sorted(folder.iterdir()) if folder.exists() else ():
        try:
            found += checkpoints_of(run, config) if (run / "meta.json").exists() else []
        except (ValueError, OSError) as error:
            print(f"{run}: left out, {error}")
    if not found:
        raise ValueError(f"{folder}: no finished run to evaluate; make one with `minifork pretrain` and `minifork sft`")
    return sorted(found, key=lambda c: (c.meta["stage"] != "base", c.path.parts[: len(folder.parts) + 1], c.epoch or 0))


def checkpoints_of(run: Path, config: Config) -> list[Checkpoint]:
    """The checkpoints of one run's folder; raises ValueError or OSError saying why they cannot be measured."""
    meta, own = runs.read_json(run / "meta.json", "stage", "config_hash", "seconds"), runs.read_config(run)
    sampled = config.eval.engine in ("split", "rollout") or config.eval.stratify != "none"
    if not meta.get("complete"):
        raise ValueError("unfinished")
    if not expected(run, own, meta).items() <= meta.items():
        raise ValueError("its name, config.yaml and meta.json do not belong together; remove it and run it again")
    if runs.comparable(asdict(own.data)) != runs.comparable(asdict(config.data)):
        raise ValueError("its data section differs from this config's")
    if meta["stage"] == "base":
        return [Checkpoint(run / "ckpt.pt", meta, own, None, True)]
    runs.require_start(run, run.parent / runs.start_file(meta))
    if "weight" in meta:
        runs.require_tuned(run, meta)
    if own.sft.prefix and sampled:
        raise ValueError("its p is an average over prefixes: only an exact, unstratified evaluation has it")
    kept = runs.snapshots_in(run)
    if wrong := planned_epochs(own, meta) ^ kept.keys():
        is_so = "is no snapshot of this run" if min(wrong) in kept else "is missing"
        raise ValueError(f"epochs/e{min(wrong)}.pt {is_so}; remove the folder and run it again")
    return [Checkpoint(path, meta, own, epoch, epoch == max(kept)) for epoch, path in kept.items()]


def expected(run: Path, own: Config, meta: dict) -> dict[str, object]:
    """What the meta.json of a finished run must say, given its folder and config, beside what it says of training.

    Raises ValueError for one that can be of no run.
    """
    stage, weight, early = meta["stage"], meta.get("weight"), meta.get("early", 0)
    if stage not in ("base", "sft", "rl") or type(weight) not in (type(None), float) or type(early) is not int:
        raise ValueError("its meta.json is damaged; remove it and run it again")
    if stage == "rl" and not isinstance(meta.get("start"), str):
        raise ValueError("its meta.json has no start; remove it and run it again")
    mixed = "" if weight is None else runs.mixture_suffix(weight, early)
    found = {
        "schema": runs.META_SCHEMA,
        "name": run.name,
        "variant": runs.variant(own, stage) + mixed,
        "seed": None if stage == "base" else own.seed,
        "base_seed": own.base_seed,
        "config_hash": runs.config_hash(own, meta),
    }
    return found if stage == "base" else found | {"fork_rate": own.sft.fork_rate}


def test_sets(checkpoint: Checkpoint) -> dict[str, tuple[str, float]]:
    """The test sets of a checkpoint: name -> order of the branches, share of cued problems.

    All are measured on the plain set; a run whose training data gave the branch away also on a matched one.
    """
    sets = {"plain": ("shuffled", 0.0)}
    if checkpoint.meta["stage"] == "sft" and checkpoint.config.sft.cue_rate > 0:
        sets[f"cue{checkpoint.config.sft.cue_rate:g}"] = ("shuffled", checkpoint.config.sft.cue_rate)
    if checkpoint.config.data.branch_order == "published":
        sets["published"] = ("published", 0.0)
    return sets


def training_forks(checkpoint: Checkpoint, most: int) -> Problems | None:
    """The (first) problems of the run's fine-tuning whose trace passed the fork, None if there are none.

    RL was fine-tuned where it starts: not at all from a base, and unknown where that run is gone.
    """
    config = checkpoint.config
    if checkpoint.meta["stage"] == "base" or (checkpoint.meta["stage"] == "rl" and not config.rl.epoch):
        return None
    if checkpoint.meta["stage"] == "rl":
        started = checkpoint.path.parents[2] / Path(checkpoint.meta["start"]).parts[0]
        if not started.exists():
            return None
        config = runs.read_config(started)
    data = sft_data(config, 0)
    forward = data.mode == config.data.mode_names.index("FWD")
    crossed = (forward & data.problems.forked).nonzero()[0][:most]
    return data.problems[crossed] if len(crossed) else None


def identify(checkpoint: Checkpoint, test_set: str) -> dict:
    """Which checkpoint and which test set a record is about."""
    meta = checkpoint.meta
    return {
        "run": meta["name"],
        "stage": meta["stage"],
        "base_seed": meta["base_seed"],
        "seed": meta["seed"],
        "fork_rate": meta.get("fork_rate"),
        "variant": meta["variant"],
        "epoch": checkpoint.epoch,
        "test_set": test_set,
        "config_hash": meta["config_hash"],
        "setup_hash": fingerprint(runs.setup(checkpoint.config, meta["stage"])),
        "recipe_hash": fingerprint(runs.recipe(checkpoint.config, meta["stage"])),
        "weights_hash": runs.weights_hash(checkpoint.path),
    }


def check_lines(checks: list[dict]) -> str:
    """What the other engine said of the results."""
    lines = [
        f"cross-check: {c['run']}: {c['engine']} against {c['by']}, p {c['p_value']:.2g}: DISAGREE"
        for c in checks
        if not c["agrees"]
    ]
    first, smallest = checks[0], min(check["p_value"] for check in checks)
    rate = sum(c["problems"] * c["n"] for c in checks) / sum(c["seconds"] for c in checks)
    pairs = sorted({f"{c['engine']} and {c['by']}" for c in checks})
    verdict = "disagree" if lines else "agree"
    lines.append(
        f"cross-check: {', '.join(pairs)} ({first['n']} a problem, {first['problems']} problems) {verdict} for "
        f"{len(checks)} checkpoints (smallest p {smallest:.2g}; false alarms <= {CHECK_LEVEL:g} an evaluation); "
        f"{rate:,.0f} samples/s"
    )
    return "\n".join(lines)
