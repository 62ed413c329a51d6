"""Every stage of the reproduction in order; finished ones are skipped, unfinished ones resumed."""

import time

from experiments import jobs
from minifork.config import Config

FORK_RATES = {"star": (0, 0.25, 0.5, 0.75, 1), "mixed": (0, 0.5, 1), "arith": (0, 1)}


def sft_overrides(config: Config, seed: int) -> list[list[str]]:
    """The fine-tunings of one pair of seeds: the dose, then what the task studies at r = 1.

    star: problem-level modes, fresh traces, cued problems; arith: rationale, the published order; with SEARCH
    among the modes, all three of them data-level and problem-level.
    """
    task = config.task
    if "SEARCH" in config.data.mode_names:
        return [[f"name={level}-seed{seed}", f"sft.allocation={level}"] for level in ("data", "problem")]
    dose = [[f"sft.fork_rate={rate:g}"] for rate in FORK_RATES[task]]
    if task == "mixed":
        return dose
    if task == "arith":
        rationale = ["sft.fork_rate=1", "sft.modes=RAT", f"name=rationale-seed{seed}"]
        leak = ["data.branch_order=published", "sft.allow_leak=true"]
        return [*dose, rationale, ["sft.fork_rate=1", *leak, f"name=published-seed{seed}"]]
    problem = ["sft.fork_rate=0.5", "sft.allocation=problem"]
    fresh = ["sft.fork_rate=1", "sft.fresh=true", f"name=fresh-seed{seed}"]
    cued = ["sft.fork_rate=1", "sft.cue_rate=1", "sft.allow_leak=true", f"name=cued-seed{seed}"]
    return [*dose, problem, fresh, cued]


def reproduce(config: Config) -> None:
    """Run everything for `reproduce.pairs` pairs of seeds; raises ValueError naming a stage that failed."""
    started, pairs = time.monotonic(), range(config.reproduce.pairs)
    source = jobs.bases(config, pairs)
    tunings = [
        ["sft", f"seed={pair}", f"base_seed={pair}", *overrides]
        for pair in pairs
        for overrides in sft_overrides(config, pair)
    ]
    jobs.side_by_side(config, source, tunings)
    for stage in ("eval", "figures", "claims"):
        jobs.run(source, stage)
    print(
        f"reproduced in {(time.monotonic() - started) / 60:.1f} minutes; figures in {source.parent / 'figures'}",
        flush=True,
    )
