"""Reading eval.json and eval.npz: which records belong together, and paired bootstrap over problems."""

import zipfile
from dataclasses import dataclass

import numpy as np

from minifork import passk, runs
from minifork.config import Config
from minifork.evaluate import array_key


@dataclass(frozen=True)
class Results:
    """The records of an evaluation, the p arrays [n] behind them and the bootstrap weights [draws, n]."""

    records: list[dict]
    arrays: dict[str, np.ndarray]
    weights: np.ndarray

    def p(self, record: dict, mode: str | None = None) -> np.ndarray:
        """p_i of a record, free or with a forced mode, float64[n]."""
        return self.arrays[array_key(record, mode)]

    def fork(self, record: dict, where: str) -> np.ndarray:
        """Branch probabilities at the fork, float64[n, d], on test ("fork") or training problems ("fork_train")."""
        return self.arrays[array_key(record, where)]

    def pairs(self) -> list[int]:
        """Seeds s for which base-seed<s> was fine-tuned with SFT seed s, data-level."""
        tuned = {r["seed"] for r in self.records if r["variant"] == "data"}
        return sorted(s for s in tuned if self.tuned(s) and self.base(s) is not None)

    def base(self, seed: int) -> dict | None:
        """The record of base-seed<seed>."""
        return next((r for r in self.records if r["variant"] == "base" and r["base_seed"] == seed), None)

    def tuned(self, seed: int, variant: str = "data", fork_rate: float | None = None, cue: float = 0.0) -> list[dict]:
        """The records of one fine-tuning of a pair, in order of epochs; empty when it was not run."""
        return [
            r
            for r in self.records
            if r["stage"] == "sft"
            and r["seed"] == r["base_seed"] == seed
            and r["variant"] == variant
            and (fork_rate is None or r["fork_rate"] == fork_rate)
            and r["test_cue_rate"] == cue
        ]

    def fork_rates(self, seed: int) -> list[float]:
        """The FORK_RATEs of the pair's data-level runs, ascending."""
        return sorted({r["fork_rate"] for r in self.tuned(seed)})

    def solved(self, record: dict, k: int) -> np.ndarray:
        """1 - (1 - p_i)^k of every problem, float64[n]."""
        return passk.solve_rate(self.p(record), k)

    def interval(self, values: np.ndarray) -> tuple[float, float]:
        """The 95 % bootstrap interval of the mean of per-problem values [n]."""
        low, high = passk.interval(self.weights @ values)
        return float(low), float(high)


def load(config: Config) -> Results:
    """The results of the last evaluation; raises ValueError naming the file when there is none."""
    folder = runs.task_folder(config)
    evaluation = runs.read_json(folder / "eval.json")
    if evaluation.get("schema") != 1 or not isinstance(evaluation.get("records"), list):
        raise ValueError(f"{folder / 'eval.json'}: not an evaluation of this version; run `minifork eval` again")
    try:
        with np.load(folder / "eval.npz") as stored:
            arrays = {name: stored[name] for name in stored.files}
        missing = [key for record in evaluation["records"] if (key := array_key(record, None)) not in arrays]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise ValueError(f"{folder / 'eval.npz'}: missing or damaged; run `minifork eval` again") from None
    if missing:
        raise ValueError(f"{folder / 'eval.npz'}: does not belong to eval.json; run `minifork eval` again")
    weights = passk.resamples(evaluation["n_problems"], config.eval.bootstrap)
    return Results(evaluation["records"], arrays, weights)
