"""Which mitigation wins coverage back? All on one frontier, with early stopping as the line to beat.

Every method is a fine-tuning of as many steps from the same bases, at FORK_RATE .5 and 1, for every pair of seeds.
Plain cross-entropy's snapshots are the *early-stopping curve*: pass@k that can be had at a given pass@1 by stopping in
time. A method is better only where its last checkpoint lies above that curve at its own pass@1, with its 95 %
interval (pairs and problems resampled). The numbers that shape losses and decoders are round first guesses: none has
been chosen yet, which is to be done on the valid stream (`eval.split=valid`).

A run of any other name is compared as well, if its folder ends in -seed<s> and `minifork eval` knows it.
"""

from dataclasses import dataclass

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from experiments.figures import whiskers
from experiments.reproduce import run_all
from experiments.results import Results, load
from minifork import measure, passk, policy, runs, strata
from minifork.config import Config
from minifork.evaluate import find_checkpoints, problems_for
from minifork.exact import exact
from minifork.stages import load_run, pick_device

RATES = (0.5, 1.0)
KS = (16, 64)
DRAWS = 1000
LOST = 0.05  # less than this was not lost, so there is nothing to recover

# fine-tunings that differ from plain cross-entropy by these overrides: (FORK_RATEs, overrides)
TUNINGS: list[tuple[tuple[float, ...], list[str]]] = [
    (RATES, []),
    (RATES, ["sft.loss=label_smoothing=0.1"]),
    (RATES, ["sft.loss=entropy_bonus=0.1"]),
    (RATES, ["sft.loss=gem=0.7"]),
    (RATES, ["sft.loss=coverage=16"]),
    (RATES, ["sft.loss=drop_tail=0.3"]),
    ((0.5,), ["sft.allocation=problem"]),
    (RATES, ["sft.fresh=true"]),
]
# what decodes the last checkpoint of plain cross-entropy otherwise: name, policy
DECODERS = ("temperature=1.5", "temperature=2", "min_p=0.1,temperature=2", "top_n_sigma=1,temperature=2", "top_p=0.95")


@dataclass(frozen=True)
class Point:
    """A method's last checkpoint, or a decoder, of one pair: solve rates float64[1 + len(KS), n] of every problem at
    k = 1 and KS."""

    pair: int
    solved: np.ndarray


def frontier(config: Config) -> None:
    """Run what is missing, evaluate, compare, and write runs/<task>/frontier.json and figures/frontier-*.png."""
    jobs = {
        pair: [[f"sft.fork_rate={rate:g}", *overrides] for rates, overrides in TUNINGS for rate in rates]
        for pair in range(config.reproduce.pairs)
    }
    wise = [["wise", f"sft.fork_rate={rate:g}"] for rate in RATES]
    run_all(config, jobs, wise)
    compare(config)


def compare(config: Config) -> None:
    """Compare the runs of the last evaluation; raises ValueError when it has no plain fine-tuning."""
    results = load(config)
    pairs = results.pairs()
    if not pairs:
        raise ValueError(f"{runs.eval_file(config)}: no plain fine-tuning to compare with; run `make frontier`")
    decoded = decode(config, pairs)
    rows = []
    for rate in [rate for rate in RATES if all(results.tuned(pair, fork_rate=rate) for pair in pairs)]:
        for mode in (None, "FWD"):
            curves = {pair: curve(results, pair, rate, mode) for pair in pairs}
            bases = np.stack([solve(results, results.base(pair), mode) for pair in pairs])
            methods = points(results, pairs, rate, mode) | (decoded.get(rate, {}) if mode is None else {})
            rows += [judge(name, rate, mode, found, curves, bases) for name, found in methods.items()]
            figure = draw(rows, curves, rate, mode)
            path = runs.task_folder(config) / "figures" / f"frontier-fork{rate:g}-{mode or 'free'}.png"
            runs.write_atomically(path, lambda file, f=figure: f.savefig(file, format="png", dpi=150))
            print(path)
    print(table(rows))
    runs.write_json(runs.task_folder(config) / "frontier.json", rows)


def solve(results: Results, record: dict, mode: str | None) -> np.ndarray:
    """float64[1 + len(KS), n]: the solve rates of a record at k = 1 and KS."""
    return np.stack([results.solved(record, k, mode) for k in (1, *KS)])


def curve(results: Results, pair: int, rate: float, mode: str | None) -> np.ndarray:
    """The early-stopping curve float64[1 + snapshots, 1 + len(KS), n]: the base, then every snapshot."""
    records = [results.base(pair), *results.tuned(pair, fork_rate=rate)]
    return np.stack([solve(results, record, mode) for record in records])


def points(results: Results, pairs: list[int], rate: float, mode: str | None) -> dict[str, list[Point]]:
    """The last checkpoint of every method that has one for all pairs."""
    found: dict[str, list[Point]] = {}
    for variant in sorted({r["variant"] for r in results.records if r["fork_rate"] == rate}):
        last = [results.tuned(pair, variant, fork_rate=rate)[-1:] for pair in pairs]
        if all(last):
            found[variant] = [Point(p, solve(results, r[0], mode)) for p, r in zip(pairs, last, strict=True)]
    return found


@torch.no_grad()
def decode(config: Config, pairs: list[int]) -> dict[float, dict[str, list[Point]]]:
    """Decoders on the last checkpoint of plain cross-entropy, by FORK_RATE; computed, not sampled."""
    device = pick_device(config)
    problems = problems_for(config, device)
    found: dict[float, dict[str, list[Point]]] = {}
    for checkpoint in find_checkpoints(config):
        meta = checkpoint.meta
        if not checkpoint.final or meta["variant"] != "data" or meta["fork_rate"] not in RATES:
            continue
        if meta["seed"] not in pairs or meta["seed"] != meta["base_seed"]:
            continue
        model = load_run(checkpoint.path, checkpoint.config).to(device)
        of_rate = found.setdefault(meta["fork_rate"], {})
        for text in DECODERS:
            p = exact(measure.tree_of(model, config.data, problems, policy.parse(text))).p_lo
            solved = passk.solve_rate(p[:, None], (1, *KS)).T
            of_rate.setdefault(text, []).append(Point(meta["seed"], solved))
        tree = measure.tree_of(model, config.data, problems, policy.Policy())
        spread = len(problems.branches[0])
        length = torch.full((len(tree),), problems.fork.shape[1], device=device)
        stratified = strata.stratify(tree, problems.fork, length, spread)
        solved = strata.solve_rate(stratified.p_lo, (1, *KS)).T
        of_rate.setdefault(f"spread over {spread} tokens at the fork", []).append(Point(meta["seed"], solved))
    return found


def judge(
    name: str, rate: float, mode: str | None, found: list[Point], curves: dict[int, np.ndarray], bases: np.ndarray
) -> dict:
    """One method against the early-stopping curve: means over pairs, the gap above the curve with its interval."""
    solved = np.stack([point.solved for point in found])  # [pairs, 1 + KS, n]
    row = {"method": name, "fork_rate": rate, "mode": mode or "free", "pairs": len(found)}
    row["pass_at"] = {str(k): float(solved[:, i].mean()) for i, k in enumerate((1, *KS))}
    stopped = np.stack([curves[point.pair] for point in found])  # [pairs, snapshots, 1 + KS, n]
    draws = gap_draws(solved, stopped)
    for i, k in enumerate(KS):
        low, high = passk.interval(draws[:, i])
        above = gap(solved.mean(axis=2), stopped.mean(axis=3))[:, i].mean()
        row[f"above_{k}"] = {"mean": float(above), "ci95": [float(low), float(high)]}
        lost = bases[:, 1 + i].mean() - stopped[:, -1, 1 + i].mean()
        won = solved[:, 1 + i].mean() - stopped[:, -1, 1 + i].mean()
        row[f"recovered_{k}"] = float(won / lost) if lost >= LOST else None
    return row


def gap(method: np.ndarray, stopped: np.ndarray) -> np.ndarray:
    """float64[pairs, KS]: pass@k of methods [pairs, 1 + KS] above curves [pairs, snapshots, 1 + KS] at equal pass@1.

    The curve runs from snapshot to snapshot; where it passes a pass@1 more than once the best counts, and beyond its
    largest pass@1 the snapshot that has it.
    """
    return np.array(
        [
            [row[1 + i] - _reach(line, row[0], i) for i in range(len(KS))]
            for row, line in zip(method, stopped, strict=True)
        ]
    )


def _reach(line: np.ndarray, x: float, i: int) -> float:
    """The largest pass@KS[i] that a curve [snapshots, 1 + KS] has at pass@1 >= x or where it crosses x."""
    ones, many = line[:, 0], line[:, 1 + i]
    reached = [many[ones.argmax()]] if x > ones.max() else list(many[ones >= x])
    for a, b in zip(range(len(ones) - 1), range(1, len(ones)), strict=True):
        if (ones[a] - x) * (ones[b] - x) < 0:
            share = (x - ones[a]) / (ones[b] - ones[a])
            reached.append(many[a] + share * (many[b] - many[a]))
    return max(reached)


def gap_draws(solved: np.ndarray, stopped: np.ndarray) -> np.ndarray:
    """Bootstrap draws float64[DRAWS, KS] of the mean gap: pairs and problems resampled independently (Owen 2007)."""
    weights = passk.resamples(solved.shape[2], DRAWS)
    of_pairs = passk.resamples(len(solved), DRAWS, 1)
    method = np.einsum("dn,pkn->dpk", weights, solved)
    lines = np.einsum("dn,pskn->dpsk", weights, stopped)
    return np.stack([of_pairs[d] @ gap(method[d], lines[d]) for d in range(DRAWS)])


def table(rows: list[dict]) -> str:
    """One line a method: where it is, how far above early stopping, what it recovered, and the verdict."""
    head = f"{'method':<44}{'r':>5}{'mode':>6}" + "".join(f"{f'pass@{k}':>9}" for k in (1, *KS))
    lines = [head + "".join(f"{f'above curve, k = {k}':>28}{'recovered':>11}" for k in KS)]
    for row in rows:
        text = f"{row['method']:<44}{row['fork_rate']:>5g}{row['mode']:>6}"
        text += "".join(f"{row['pass_at'][str(k)]:>9.3f}" for k in (1, *KS))
        for k in KS:
            low, high = row[f"above_{k}"]["ci95"]
            cell = f"{row[f'above_{k}']['mean']:+.3f} [{low:+.3f}, {high:+.3f}]"
            recovered = row[f"recovered_{k}"]
            text += f"{cell:>28}" + ("          -" if recovered is None else f"{recovered:>11.2f}")
        lines.append(text + verdict(row))
    return "\n".join(lines)


def verdict(row: dict) -> str:
    """Whether a row lies above the curve at every k of KS, below at one, or cannot be told from it."""
    intervals = [row[f"above_{k}"]["ci95"] for k in KS]
    if all(low > 0 for low, _ in intervals):
        return "  better"
    return "  worse" if any(high < 0 for _, high in intervals) else ""


def draw(rows: list[dict], curves: dict[int, np.ndarray], rate: float, mode: str | None) -> Figure:
    """pass@k against pass@1: the curves of all pairs, and every method."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    mine = [row for row in rows if row["fork_rate"] == rate and row["mode"] == (mode or "free")]
    colours = matplotlib.colormaps["tab20"]
    for i, (axes, k) in enumerate(zip(figure.subplots(1, 2), KS, strict=True)):
        for pair, line in curves.items():
            ones, many = line[:, 0].mean(axis=1), line[:, 1 + i].mean(axis=1)
            axes.plot(ones, many, color="black", linewidth=1.4 if pair == 0 else 0.6, marker=".", zorder=1,
                      label="early stopping" if pair == 0 else None)  # fmt: skip
        for j, row in enumerate(mine):
            low, high = row[f"above_{k}"]["ci95"]
            x, y, mean = row["pass_at"]["1"], row["pass_at"][str(k)], row[f"above_{k}"]["mean"]
            error = whiskers(np.array([mean]), np.array([low]), np.array([high]))
            axes.errorbar(x, y, yerr=error, color=colours(j % 20), marker="osD^vP*X"[j % 8], linestyle="",
                          label=row["method"])  # fmt: skip
        axes.set(xlabel="pass@1", ylabel=f"pass@{k}", title=f"FORK_RATE {rate:g}, {mode or 'free'}, k = {k}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure
