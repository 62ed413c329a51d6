"""eval.json and eval.npz: all that was measured with the settings of the last command.

A *row* is an entry of "records" in eval.json: a measurement with its run. A *run record* is the run.json of a run.
"""

from dataclasses import asdict
from typing import Any

import numpy as np

from data_gen import streams
from minifork import runs, tables
from minifork.decoding import policy
from minifork.evaluation.targets import Evaluation, version_of
from minifork.measuring.problems import evaluation_problems
from minifork.schema import Config
from minifork.storage import measurements
from minifork.storage.files import digest, write_atomically, write_json
from minifork.storage.locks import locked

EVAL_JSON_VERSION = 5  # raised when a key that others read changes


def array_name(row: dict[str, Any], quantity: str) -> str:
    """The name in eval.npz of an array of a row: run/epoch/test set/quantity, see `minifork.measure.measure`."""
    epoch = "base" if row["epoch"] is None else f"e{row['epoch']}"
    return f"{row['run']}/{epoch}/{row['test_set']}/{quantity}"


def row_of(config: Config, evaluation: Evaluation) -> dict[str, Any]:
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
    rows = [row_of(config, evaluation) for evaluation in evaluations]
    npz = measurements.pack_npz(named_arrays(rows, evaluations))
    strata = "" if settings.stratify == "none" else f" {settings.stratify}={settings.strata}"
    strata += f" pool={settings.pool}" if settings.pool else ""
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
        "version": version_of(config.data, settings.policy),
        "records": rows,
        "checks": _checks(evaluations),
        "npz_hash": digest(npz),
    }
    path = runs.task_folder(config) / "eval.json"
    with locked(path.parent):  # two evaluations must not mix their files
        write_atomically(path.with_suffix(".npz"), npz)
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
