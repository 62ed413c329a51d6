"""Does reinforcement learning lose coverage at forks too? Forward RL against reverse RL, and one advantage to another.

All runs start from the fine-tuned model after epoch `rl.epoch`, as in arXiv 2605.17026. Forward RL forces FWD, whose
traces meet the fork; reverse RL forces REV, whose traces do not; free RL lets the model choose its mode. Each is
measured in its own mode. `exact` follows the exact gradient of pass@k, so what it loses is not due to sampling.
"""

import time
from dataclasses import dataclass

import numpy as np

from experiments import sweep
from experiments.gap import gap, gap_draws
from experiments.results import Results, load
from experiments.summary import interval, signed
from minifork import config as configs
from minifork import passk, runs
from minifork.schema import Config

KS = (16, 64)


@dataclass(frozen=True)
class Run:
    """One RL run of a pair: where it starts, the mode of its traces ("free": any), its advantage and that one's k, if
    it has one."""

    name: str
    rate: float
    mode: str
    advantage: str
    k: int | None = None

    @property
    def overrides(self) -> list[str]:
        kind = [f"rl.mode={self.mode}", f"rl.advantage={self.advantage}", *([f"rl.k={self.k}"] if self.k else [])]
        return [f"sft.fork_rate={self.rate:g}", *kind]


FORWARD = Run("forward, GRPO", 1.0, "FWD", "grpo")
REVERSE = Run("reverse, GRPO", 0.0, "REV", "grpo")
RUNS = (
    FORWARD,
    REVERSE,
    Run("free, GRPO", 0.5, "free", "grpo"),
    Run("forward, pass@2 advantage", 1.0, "FWD", "passk", 2),
    Run("forward, exact pass@1", 1.0, "FWD", "exact", 1),
    Run("forward, exact pass@4", 1.0, "FWD", "exact", 4),
)


def contrast(config: Config) -> None:
    """Run what is missing for `reproduce.pairs` pairs, evaluate, compare; writes runs/<task>/contrast.json.

    Raises ValueError naming a stage that failed.
    """
    started, pairs = time.monotonic(), range(config.reproduce.pairs)
    source = sweep.start(config)
    seeds = {pair: (f"seed={pair}", f"base_seed={pair}") for pair in pairs}
    rates = sorted({run.rate for run in RUNS})
    starts = [sweep.Job("sft", (*seeds[pair], f"sft.fork_rate={rate:g}")) for pair in pairs for rate in rates]
    learn = [sweep.Job("rl", (*seeds[pair], *run.overrides)) for pair in pairs for run in RUNS]
    sweep.sweep(config, source, starts + learn)
    sweep.run(source, "eval")
    compare(config)
    print(f"RL: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def compare(config: Config) -> None:
    """Compare the RL runs of the last evaluation; raises ValueError when a pair lacks one, and without a pair."""
    results = load(config)
    pairs = [pair for pair in results.pairs() if pair < config.reproduce.pairs]
    if not pairs:
        raise ValueError(f"{runs.eval_file(config)}: no pair of base and fine-tuned run; run `make contrast`")
    changes = {run.name: change(config, results, pairs, run) for run in RUNS}
    rows = []
    for run in RUNS:
        start, end = (np.stack(part) for part in zip(*changes[run.name], strict=True))  # [pairs, 1 + KS, n]
        row = {"run": run.name, "start": start.mean(axis=(0, 2)).tolist(), "end": end.mean(axis=(0, 2)).tolist()}
        row["change"] = {str(k): interval((end - start)[:, i]) for i, k in enumerate((1, *KS))}
        rows.append(row)
    moved = {name: np.stack([end - start for start, end in of]) for name, of in changes.items()}
    differ = {str(k): interval((moved[FORWARD.name] - moved[REVERSE.name])[:, 1 + i]) for i, k in enumerate(KS)}
    curves = np.stack([trajectory(config, results, pair, FORWARD) for pair in pairs])
    above = {}
    for run in [run for run in RUNS if run.mode == FORWARD.mode and run != FORWARD]:
        solved = np.stack([end for _, end in changes[run.name]])
        mean, draws = gap(solved.mean(axis=2), curves.mean(axis=3)).mean(axis=0), gap_draws(solved, curves)
        ends = passk.interval(draws)
        above[run.name] = {str(k): {"mean": float(mean[i]), "ci95": ends[:, i].tolist()} for i, k in enumerate(KS)}
    found = runs.made_by(config) | {"pairs": len(pairs), "runs": rows}
    found |= {"forward_minus_reverse": differ, "above_grpo": above}
    print(text(found))
    runs.write_json(runs.task_folder(config) / "contrast.json", found)


def records_of(config: Config, results: Results, pair: int, run: Run) -> list[dict]:
    """Where the RL run of a pair started, and all its snapshots; raises ValueError when there are none."""
    planned = configs.changed(config, [f"seed={pair}", f"base_seed={pair}", *run.overrides])
    start = [r for r in results.tuned(pair, fork_rate=run.rate) if r["epoch"] == config.rl.epoch]
    start = start if config.rl.epoch else [results.base(pair)]
    found = results.tuned(pair, runs.variant(planned, "rl"), fork_rate=run.rate)
    if not start or not found:
        raise ValueError(f"{runs.eval_file(config)}: no {run.name} of pair {pair}; run `make contrast`")
    return [*start, *found]


def trajectory(config: Config, results: Results, pair: int, run: Run) -> np.ndarray:
    """Solve rates float64[1 + snapshots, 1 + len(KS), n] of every problem from the start on, in the run's own mode."""
    mode = None if run.mode == "free" else run.mode
    records = records_of(config, results, pair, run)
    return np.stack([np.stack([results.solved(r, k, mode) for k in (1, *KS)]) for r in records])


def change(config: Config, results: Results, pairs: list[int], run: Run) -> list[tuple[np.ndarray, np.ndarray]]:
    """Solve rates float64[1 + len(KS), n] at the start and at the end of a run, for every pair."""
    return [(line[0], line[-1]) for line in (trajectory(config, results, pair, run) for pair in pairs)]


def text(found: dict) -> str:
    """What `compare` found, in words."""
    head = "".join(f"{f'pass@{k}: start, end, change':>44}" for k in (1, *KS))
    lines = [f"{'RL, in its own mode':<28}{head}"]
    for row in found["runs"]:
        ends = zip(row["start"], row["end"], row["change"].values(), strict=True)
        cells = [f"{start:.3f} {end:.3f} {signed(moved)}" for start, end, moved in ends]
        lines.append(f"{row['run']:<28}" + "".join(f"{words:>44}" for words in cells))
    for k, value in found["forward_minus_reverse"].items():
        lines.append(f"forward minus reverse, change of pass@{k}: {signed(value)}")
    for name, by_k in found["above_grpo"].items():
        above = ", ".join(f"pass@{k} {signed(value)}" for k, value in by_k.items())
        lines.append(f"{name}, above forward GRPO's snapshots at no less pass@1: {above}")
    return "\n".join(lines)
