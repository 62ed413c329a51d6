"""The results of a study: records of what was measured, selected by the config of their runs, and arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from experiments import study
from minifork import config as configs
from minifork import runs
from minifork.decoding.traces import accepted_share
from minifork.evaluation.files import array_name, named_arrays, row_of
from minifork.evaluation.targets import find_targets, load_evaluation
from minifork.measuring.quantities import index_values
from minifork.runs import Run
from minifork.schema import Config
from minifork.statistics import passk
from minifork.storage.files import fingerprint, write_sealed_json
from minifork.values import full_key, typed_value


class ANY:
    """Stands for every value of a key."""


@dataclass(frozen=True)
class Results:
    """A study's config, its runs by name, the records that were measured under the config's settings, and their arrays.

    A record describes one checkpoint on one test set. It has the form of an entry of runs/<task>/eval.json, but it is
    built anew from the measurements in <run>/eval/; eval.json itself is not read. arrays: [n, ..], the values of every
    problem behind the records; `minifork.evaluation.files.array_name` gives their keys.
    """

    config: Config
    runs: dict[str, Run]
    records: list[dict]
    arrays: dict[str, np.ndarray]

    def select(
        self,
        keys: Mapping[str, Any] = {},  # noqa: B006 (never changed)
        stage: str = "sft",
        pair: int | None = None,
        epoch: int | None = None,
        test_set: str = "plain",
    ) -> list[dict]:
        """The records, by pair and epoch, of a stage's runs that have the values of ``keys``.

        Keys are full or short. The value ANY matches every value. Seeds match every value too. Every other key that
        decides a run must have the study's value. Raises ValueError for a key that decides nothing about such runs, and
        naming two runs that match one pair and epoch with equal values.
        """
        key_values = self._full_keys(keys, stage)
        planned = configs.flat_values(self.config) | dict.fromkeys(runs.SEEDS, ANY) | key_values
        names = [name for name, run in self.runs.items() if run.stage == stage and _matches(run, planned)]
        matching = [
            record
            for record in self.records
            if record["run"] in names
            and record["test_set"] == test_set
            and pair in (None, record["base_seed"])
            and record["seed"] in (None, record["base_seed"])
            and epoch in (None, record["epoch"])
        ]
        return self._sorted(matching, [key for key, value in key_values.items() if value is ANY])

    def _full_keys(self, keys: Mapping[str, Any], stage: str) -> dict[str, Any]:
        """The full names of keys, with their values as their types; raises ValueError for keys that decide nothing."""
        source, kinds = f"select(stage={stage!r})", configs.keys(Config, task=self.config.task)
        deciding, key_values = runs.deciding_values(self.config, stage), {}
        for name, value in keys.items():
            key = full_key(name, deciding, source)
            key_values[key] = value if value is ANY else typed_value(value, kinds[key], key, source)
        return key_values

    def _sorted(self, records: list[dict], free: Sequence[str] = ()) -> list[dict]:
        """Records by pair and epoch.

        Raises ValueError naming two runs that match one pair and epoch with equal values of the free keys.
        """
        names: dict[tuple, str] = {}
        for record in records:
            values = tuple(self.runs[record["run"]].values.get(key) for key in free)
            first = names.setdefault((record["base_seed"], record["epoch"], values), record["run"])
            if first != record["run"]:
                root = runs.task_folder(self.config)
                raise ValueError(f"{root / first} and {root / record['run']} are copies of one run; remove one")
        return sorted(records, key=lambda record: (record["base_seed"], record["epoch"] or 0))

    def records_of(self, plan: study.Plan) -> list[dict]:
        """The records of a plan's run on the test set that the plan is about, by epoch."""
        place = (plan.identity, plan.test_set)
        return self._sorted([record for record in self.records if (record["identity"], record["test_set"]) == place])

    def is_last(self, record: dict) -> bool:
        """True if a record is of the last weights of its run."""
        epochs = self.runs[record["run"]].epochs
        return record["epoch"] == (epochs[-1] if epochs else None)

    def last_record(self, plan: study.Plan) -> dict:
        """The record of the last weights of a plan's run; raises ValueError when they were not measured."""
        records = self.records_of(plan)
        if not records or not self.is_last(records[-1]):
            raise ValueError(f"{plan.log.stem}: its last weights were not measured; run `minifork eval`")
        return records[-1]

    def parent_of(self, plan: study.Plan) -> list[dict]:
        """The record that a plan's run started from, on the plain test set; empty when that was not measured."""
        plain = [record for record in self.records if record["test_set"] == "plain"]
        return [record for record in plain if (record["identity"], record["epoch"]) == plan.start]

    def base(self, pair: int) -> dict:
        """The record of the base of a pair, one of `pairs`."""
        return self.select(stage="base", pair=pair)[0]

    def tuned(self, pair: int, fork_rate: float | type[ANY]) -> list[dict]:
        """The records of a pair's plain fine-tuning at a FORK_RATE, by epoch; empty when it was not run."""
        return self.select({"sft.fork_rate": fork_rate}, pair=pair)

    def fork_rates(self, pair: int) -> list[float]:
        """The FORK_RATEs of the pair's plain fine-tunings, ascending."""
        return sorted({record["fork_rate"] for record in self.tuned(pair, ANY)})

    def pairs(self) -> list[int]:
        """Seeds s for which the base of seed s was fine-tuned plainly with seed s."""
        tuned = {record["base_seed"] for record in self.select({"sft.fork_rate": ANY})}
        return sorted(pair for pair in tuned if self.select(stage="base", pair=pair))

    @property
    def train_minutes(self) -> float:
        """The training time of all runs, summed. Bases use all cores, other runs one core each."""
        return round(sum(run.record["seconds"] for run in self.runs.values() if run.stage != "wise") / 60, 1)

    def complete_pairs(self) -> list[int]:
        """The pairs that have every run of the config's study; where none has, all with a base and a fine-tuning.

        A further pair that has only a few of the runs is therefore ignored. Raises ValueError when there is no
        pair.
        """
        pairs, identities = self.pairs(), {record["identity"] for record in self.records if self.is_last(record)}
        if not pairs:
            root = runs.task_folder(self.config)
            raise ValueError(
                f"{root}: no pair of a base and its fine-tuning was measured; `make study` runs a study without pairs"
            )
        entries = study.read_study(self.config.reproduce.study)
        needed = {pair: {plan.identity for plan in study.plans(self.config, entries, [pair])} for pair in pairs}
        return [pair for pair in pairs if needed[pair] <= identities] or pairs

    def seconds(self, record: dict) -> float:
        """The time that a record's run was trained for."""
        return self.runs[record["run"]].record["seconds"]

    def array(self, record: dict, name: str) -> np.ndarray:
        """An array of a record by its name in `minifork.measure.measure`, such as fork or rest.

        Raises ValueError when the evaluation did not give it.
        """
        key = array_name(record, name)
        if key not in self.arrays:
            reason = "it was made with settings or by a version that does not give it; see `minifork eval --again`"
            raise ValueError(f"the evaluation holds no {key}: {reason}")
        return self.arrays[key]

    def problem_p(self, record: dict, mode: str | None = None) -> np.ndarray:
        """p_i of every problem, float64[n], in a forced mode; in free samples if the mode is None."""
        return self.array(record, "free" if mode is None else mode)

    def skill(self, record: dict, mode: str | None = None) -> np.ndarray:
        """The skill of every problem, float64[n]: p without the luck of the branch (`minifork.measure.skill_arrays`).

        In free samples (mode None) it is "skill", in forced FWD "r", and in modes that meet no fork p itself.
        """
        if mode is None:
            return self.array(record, "skill")
        settings = self.config.eval
        meets_fork = mode == "FWD" and record["fork"] and settings.forked and settings.grading == "steps"
        return self.array(record, "r") if meets_fork else self.problem_p(record, mode)

    def record_pass_at_k(self, record: dict, k: int, mode: str | None = None) -> np.ndarray:
        """1 - (1 - p_i)^k of every problem, float64[n]; its unbiased estimate where p_i was sampled."""
        p, part = self.problem_p(record, mode), record if mode is None else record["forced"][mode]
        if (n := part["n"]) is None:
            return passk.problem_pass_at_k(p, k)
        if part["engine"] != "remainder":
            return passk.unbiased_pass_at_k(np.rint(p * n).astype(np.int64), n, k)
        low, high = (self.array(record, f"{mode or 'free'}_{end}") for end in ("lo", "hi"))
        correct = np.rint(accepted_share(p, low, high) * n).astype(np.int64)
        return passk.remainder_pass_at_k(correct, n, k, low, high - low)

    def record_pass_at_ks(self, record: dict, ks: Sequence[int], mode: str | None = None) -> np.ndarray:
        """`record_pass_at_k` at every k of ks, float64[K, n]."""
        return np.stack([self.record_pass_at_k(record, k, mode) for k in ks])

    def record_index(self, record: dict, k: int, mode: str | None = None) -> np.ndarray:
        """The polarisation index at k as pseudo-values of every problem, float64[n]."""
        return index_values(self.problem_p(record, mode), self.record_pass_at_k(record, k, mode), k)

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of all records."""
        return fingerprint(self.records)


def _matches(run: Run, planned: dict[str, Any]) -> bool:
    """True if a run has the planned value of every key that decides it, apart from ANY."""
    return all(planned.get(key, ANY) in (ANY, value) for key, value in run.values.items())


def write_result(config: Config, name: str, content: dict) -> None:
    """Write what was computed as runs/<task>/<name>.json, after what made it, the seeds and a hash of the settings."""
    about = {"seeds": [*config.reproduce.seeds], "settings": fingerprint(asdict(config.eval))}
    write_sealed_json(runs.task_folder(config) / f"{name}.json", runs.made_by(config) | about | content)


def load_results(config: Config) -> Results:
    """All measurements under the config's settings.

    Raises ValueError when there is none, for a stratified decoder, and where p is bounded but not computed.
    """
    root = runs.task_folder(config)
    if config.eval.stratify != "none":
        raise ValueError(f"{root}: eval.stratify asks for a stratified decoder; figures and claims need i.i.d. samples")
    targets, left_out = find_targets(config)
    for line in left_out:
        print(line)
    evaluations = [evaluation for target in targets if (evaluation := load_evaluation(config, target))]
    if not evaluations:
        raise ValueError(f"{root}: nothing was measured with these settings; run `minifork eval` with them first")
    records = [row_of(config, evaluation) for evaluation in evaluations]
    if any(part["rho"] is None for record in records for part in (record, *record["forced"].values())):
        raise ValueError(f"{root}: p is bounded but not computed; run `minifork eval` with a larger eval.budget")
    if stale := sum(not record["current"] for record in records):
        print(f"{stale} of {len(records)} records are of another version of the code; run `minifork eval --again`")
    measured_runs = [evaluation.target.checkpoint.run for evaluation in evaluations]
    return Results(config, {run.name: run for run in measured_runs}, records, named_arrays(records, evaluations))
