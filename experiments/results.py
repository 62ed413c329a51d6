"""Reading eval.json and eval.npz: which records belong together, and paired bootstrap over problems."""

from dataclasses import dataclass

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
    that made them and the checksum of eval.json."""

    records: list[dict]
    arrays: dict[str, np.ndarray]
    weights: np.ndarray
    settings: str = ""
    checksum: str = ""

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
        """Seeds s for which base-seed<s> was fine-tuned with SFT seed s, data-level."""
        tuned = {r["seed"] for r in self.records if r["variant"] == "data"}
        return sorted(s for s in tuned if self.tuned(s) and self.base(s) is not None)

    def base(self, seed: int) -> dict | None:
        """The record of base-seed<seed>."""
        return next((r for r in self.records if r["variant"] == "base" and r["base_seed"] == seed), None)

    def tuned(
        self, seed: int, variant: str = "data", fork_rate: float | None = None, test_set: str = "plain"
    ) -> list[dict]:
        """The records of one fine-tuning of a pair, in order of epochs; empty when it was not run."""
        return [
            r
            for r in self.records
            if r["stage"] != "base"
            and r["seed"] == r["base_seed"] == seed
            and r["variant"] == variant
            and (fork_rate is None or r["fork_rate"] == fork_rate)
            and r["test_set"] == test_set
        ]

    def fork_rates(self, seed: int) -> list[float]:
        """The FORK_RATEs of the pair's data-level runs, ascending."""
        return sorted({r["fork_rate"] for r in self.tuned(seed)})

    def solved(self, record: dict, k: int, mode: str | None = None) -> np.ndarray:
        """1 - (1 - p_i)^k of every problem, float64[n]; its unbiased estimate where p_i was sampled."""
        p, n = self.p(record, mode), record["n"] if mode is None else record["forced"][mode]["n"]
        return passk.solve_rate(p, k) if n is None else passk.unbiased(np.rint(p * n).astype(np.int64), n, k)


def complete_pairs(config: Config, results: Results) -> list[int]:
    """The pairs that have every run of the config's sweep; where none has, all with a base and a plain fine-tuning.

    So pairs of which another command made a few runs do not leave everything else without them.
    """
    found, pairs = {record["run"] for record in results.records}, results.pairs()
    whole = [pair for pair in pairs if _sweep_of(config, pair) <= found]
    return whole or pairs


def _sweep_of(config: Config, pair: int) -> set[str]:
    """The folders of the runs that the config's sweep plans for a pair."""
    jobs = [job for job in sweep.read(config, [pair]) if job.stage != "wise"]
    return {runs.run_folder(configs.changed(config, job.overrides), job.stage).name for job in jobs}


def load(config: Config) -> Results:
    """The results of the last evaluation; raises ValueError naming the file when there is none."""
    path = runs.eval_file(config)
    evaluation, arrays = read_evaluation(path)
    if any(record.get("forced") is None for record in evaluation["records"]):
        raise ValueError(f"{path}: evaluates a stratified decoder; figures and claims are about i.i.d. samples")
    if any(record["rho"] is None for record in evaluation["records"]):
        raise ValueError(f"{path}: p is bounded but not computed there; run `minifork eval` with a larger eval.budget")
    weights = passk.resamples(evaluation["n_problems"], config.eval.bootstrap)
    return Results(evaluation["records"], arrays, weights, evaluation["settings"], evaluation["checksum"])
