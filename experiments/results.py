"""Reading eval.json and eval.npz: which records belong together, and paired bootstrap over problems."""

from dataclasses import dataclass, replace

import numpy as np

from experiments import sweep
from minifork import config as configs
from minifork import passk, runs
from minifork.evaluate import read_evaluation
from minifork.records import array_key
from minifork.schema import Config


@dataclass(frozen=True)
class Results:
    """The records of an evaluation, the p arrays [n] behind them and the bootstrap weights [draws, n]; the settings
    that made them, the checksum of eval.json, and the variant of the fine-tunings that are plain: the config's own."""

    records: list[dict]
    arrays: dict[str, np.ndarray]
    weights: np.ndarray
    settings: str = ""
    checksum: str = ""
    plain: str = "data"

    def p(self, record: dict, mode: str | None = None) -> np.ndarray:
        """p_i of a record, free or with a forced mode, float64[n]."""
        return self.array(record, mode)

    def array(self, record: dict, what: str | None) -> np.ndarray:
        """Any array of a record in eval.npz; see `minifork.records.array_key`."""
        key = array_key(record, what)
        if key not in self.arrays:
            raise ValueError(f"the evaluation holds no {key}: it was made with settings that do not give it")
        return self.arrays[key]

    def pairs(self) -> list[int]:
        """Seeds s for which base-seed<s> was fine-tuned plainly with SFT seed s."""
        tuned = {r["seed"] for r in self.records if r["variant"] == self.plain}
        return sorted(s for s in tuned if self.tuned(s) and self.base(s) is not None)

    def base(self, seed: int) -> dict | None:
        """The record of base-seed<seed>."""
        return next((r for r in self.records if r["variant"] == "base" and r["base_seed"] == seed), None)

    def tuned(
        self, seed: int, variant: str | None = None, fork_rate: float | None = None, test_set: str = "plain"
    ) -> list[dict]:
        """The records of one fine-tuning of a pair, the plain one if no other is named, in order of epochs; empty when
        it was not run."""
        return [
            r
            for r in self.records
            if r["stage"] != "base"
            and r["seed"] == r["base_seed"] == seed
            and r["variant"] == (variant or self.plain)
            and (fork_rate is None or r["fork_rate"] == fork_rate)
            and r["test_set"] == test_set
        ]

    def fork_rates(self, seed: int) -> list[float]:
        """The FORK_RATEs of the pair's plain runs, ascending."""
        return sorted({r["fork_rate"] for r in self.tuned(seed)})

    def solved(self, record: dict, k: int, mode: str | None = None) -> np.ndarray:
        """1 - (1 - p_i)^k of every problem, float64[n]; its unbiased estimate where p_i was sampled."""
        p, n = self.p(record, mode), record["n"] if mode is None else record["forced"][mode]["n"]
        return passk.solve_rate(p, k) if n is None else passk.unbiased(np.rint(p * n).astype(np.int64), n, k)


def complete_pairs(config: Config, results: Results) -> list[int]:
    """The pairs that have every run of the config's sweep; where none has, all with a base and a plain fine-tuning.

    So pairs of which another command made a few runs do not leave everything else without them. Raises ValueError
    naming two plain runs of these pairs that differ in more than their seeds and FORK_RATE.
    """
    found, pairs = {record["run"] for record in results.records}, results.pairs()
    whole = [pair for pair in pairs if _sweep_of(config, pair) <= found] or pairs
    plain = [record for pair in whole for record in results.tuned(pair)]
    other = next((record for record in plain if record["recipe_hash"] != plain[0]["recipe_hash"]), None)
    if other:
        raise ValueError(
            f"{runs.eval_file(config)}: {plain[0]['run']} and {other['run']} differ in more than FORK_RATE and seeds"
            " (see their config.yaml); remove or rename one, then run `minifork eval` again"
        )
    return whole


def _sweep_of(config: Config, pair: int) -> set[str]:
    """The folders of the runs that the config's sweep plans for a pair, whatever evaluation the config names."""
    config = replace(config, name="")
    jobs = [job for job in sweep.read(config, [pair]) if job.stage != "wise"]
    return {runs.run_folder(configs.changed(config, job.overrides), job.stage).name for job in jobs}


def load(config: Config) -> Results:
    """The results of the last evaluation; raises ValueError naming the file when there is none, and runs that would
    pass for one."""
    path = runs.eval_file(config)
    evaluation, arrays = read_evaluation(path)
    if any(record.get("forced") is None for record in evaluation["records"]):
        raise ValueError(f"{path}: evaluates a stratified decoder; figures and claims are about i.i.d. samples")
    if any(record["rho"] is None for record in evaluation["records"]):
        raise ValueError(f"{path}: p is bounded but not computed there; run `minifork eval` with a larger eval.budget")
    runs_of: dict[tuple, str] = {}
    for record in evaluation["records"]:
        kind = tuple(record[key] for key in ("variant", "fork_rate", "seed", "base_seed"))
        if (other := runs_of.setdefault(kind, record["run"])) != record["run"]:
            raise ValueError(
                f"{path}: {other} and {record['run']} would pass for one run ({kind[0]}, seed {kind[2]});"
                " remove or rename one, then run `minifork eval` again"
            )
    weights = passk.resamples(evaluation["n_problems"], config.eval.bootstrap)
    plain = runs.variant(replace(config, name=""), "sft")
    return Results(evaluation["records"], arrays, weights, evaluation["settings"], evaluation["checksum"], plain)
