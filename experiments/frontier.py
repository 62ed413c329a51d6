"""Which mitigation wins coverage back? All on one frontier, with early stopping as the line to beat.

Every method starts from the same bases at FORK_RATE .5 and 1, for every pair of seeds, and trains for as many steps.
Plain cross-entropy's snapshots are the *early-stopping curve*. A method is better only where its last checkpoint lies
above the best pass@k that stopping in time has at no less pass@1 (`experiments.gap`), with its 95 % interval (pairs and
problems resampled).

A number that shapes a method is chosen on validation problems, on the first pair at FORK_RATE 1: the one of its
``values`` with the largest gap above the curve at k = 16. A run of any other name is compared as well, if its folder
ends in -seed<s> and all pairs have it.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure

from experiments import sweep
from experiments.figures import whiskers
from experiments.gap import LOST, gap, gap_draws
from experiments.results import Results, load
from experiments.spread import spread, spread_line, stratified
from experiments.summary import signed
from minifork import config as configs
from minifork import measure, passk, policy, runs
from minifork.evaluate import Checkpoint, evaluate, problems_for
from minifork.exact import exact
from minifork.schema import Config
from minifork.stages import load_run, pick_device, snapshots

RATES = (0.5, 1.0)
KS = (16, 64)
CHOSEN_ON = (0, 1.0)  # pair and FORK_RATE


@dataclass(frozen=True)
class Method:
    """A mitigation: a stage (sft, wise or decode), its overrides (the decode policy, for decode) as words with {value},
    {rate}, {pair}, {traces} (four times the config's) and {epochs} (a quarter) to fill in, and the values to choose
    from. mode: what the task must have for it."""

    name: str
    stage: str
    words: str
    values: tuple[str, ...] = ("",)
    rates: tuple[float, ...] = RATES
    mode: str = "FWD"

    def overrides(self, config: Config, value: str, rate: float, pair: int) -> list[str]:
        """What the method's run of a FORK_RATE and a pair changes in a config."""
        more = {"traces": 4 * config.sft.traces, "epochs": max(1, config.sft.epochs // 4)}
        words = self.words.format(value=value, rate=f"{rate:g}", pair=pair, **more).split()
        return [f"seed={pair}", f"base_seed={pair}", f"sft.fork_rate={rate:g}", *words]


PLAIN = Method("cross-entropy", "sft", "")
METHODS = (
    Method("rationale", "sft", "sft.modes=RAT", rates=(1.0,), mode="RAT"),
    Method("SEARCH traces", "sft", "sft.modes=SEARCH", rates=(1.0,), mode="SEARCH"),
    Method("both modes for every problem", "sft", "sft.modes=FWD,REV sft.allocation=problem", rates=(0.5,)),
    Method("fresh traces every epoch", "sft", "sft.fresh=true"),
    Method(
        "four times the problems, a quarter of the epochs",
        "sft",
        "sft.traces={traces} sft.epochs={epochs} name=problems{traces}-fork{rate}-seed{pair}",
    ),
    Method("random prefix", "sft", "sft.prefix={value}", ("2", "8")),
    Method("label smoothing", "sft", "sft.loss=label_smoothing={value}", ("0.05", "0.1", "0.2")),
    Method("entropy bonus", "sft", "sft.loss=entropy_bonus={value}", ("0.03", "0.1", "0.3")),
    Method("GEM", "sft", "sft.loss=gem={value}", ("0.5", "0.7", "0.9")),
    Method("direct coverage", "sft", "sft.loss=coverage={value}", ("4", "16", "64")),
    Method("dropping the over-learned", "sft", "sft.loss=drop_tail={value}", ("0.1", "0.3", "0.5")),
    Method("WiSE-FT, base", "wise", "wise.weights={value}", ("0.25", "0.5", "0.75")),
    Method("WiSE-FT, epoch 2", "wise", "wise.weights={value} wise.early=2", ("0.25", "0.5", "0.75")),
    Method("temperature", "decode", "temperature={value}", ("1.5", "2", "3")),
    Method("min-p, hot", "decode", "min_p={value},temperature=2", ("0.02", "0.05", "0.1")),
    Method("top-n-sigma, hot", "decode", "top_n_sigma={value},temperature=2", ("1", "1.5", "2")),
    Method("top-k, hot", "decode", "top_k={value},temperature=3", ("2", "4")),
    Method("nucleus", "decode", "top_p={value}", ("0.9", "0.95")),
)


@dataclass(frozen=True)
class Point:
    """A method's last checkpoint, or a decoder, of one pair: solve rates float64[1 + len(KS), n] of every problem at
    k = 1 and KS, and its cost: seconds of training, tokens of a sample."""

    pair: int
    solved: np.ndarray
    seconds: float
    tokens: float


def frontier(config: Config) -> None:
    """Choose values, run what is missing, evaluate, compare; writes frontier.json and figures/frontier-*.png.

    Raises ValueError naming a stage that failed.
    """
    started, pairs = time.monotonic(), range(config.reproduce.pairs)
    source = sweep.start(config)
    methods = [method for method in METHODS if method.mode in config.data.mode_names]
    pair, rate = CHOSEN_ON
    grid = [(PLAIN, "", rate, pair)] + [(m, v, rate, pair) for m in methods if len(m.values) > 1 for v in m.values]
    _train(config, source, grid)
    chosen = choose(config, methods)
    tried = [(PLAIN, "", rate, pair) for pair in pairs for rate in RATES]
    _train(config, source, tried + [(m, chosen[m.name], r, p) for p in pairs for m in methods for r in m.rates])
    if evaluate(config, wanted=compared(config)):
        raise ValueError(f"{runs.eval_file(config)}: the engines disagree (see above)")
    compare(config, chosen)
    print(f"frontier: {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def compared(config: Config) -> Callable[[Checkpoint], bool]:
    """Which checkpoints' pass@k is looked at: the end of every run, and all snapshots of the plain ones."""
    plain = runs.variant(config, "sft")
    return lambda checkpoint: checkpoint.final or checkpoint.meta["variant"] == plain


def _train(config: Config, source: Path, tried: list[tuple[Method, str, float, int]]) -> None:
    """Make the runs of methods, their values, FORK_RATEs and pairs."""
    jobs = [sweep.Job(m.stage, tuple(m.overrides(config, value, rate, pair))) for m, value, rate, pair in tried]
    sweep.sweep(config, source, [job for job in jobs if job.stage != "decode"])


def choose(config: Config, methods: list[Method]) -> dict[str, str]:
    """The value of every method, by its name; the scores behind it are printed and kept in frontier-values.json."""
    pair, rate = CHOSEN_ON
    valid = replace(config, eval=replace(config.eval, split="valid"))
    plain = configs.changed(config, PLAIN.overrides(config, "", rate, pair))
    folder, own = runs.run_folder(plain, "sft"), policy.parse(config.eval.policy)
    kept = [runs.base_folder(plain) / "ckpt.pt", *(folder / path for path in snapshots(plain).values())]
    curve = np.stack([solve_rates(valid, plain, path, own)[0] for path in kept]).mean(axis=2)
    scores: dict[str, dict[str, float]] = {}
    for method in methods:
        for value in method.values if len(method.values) > 1 else ():
            path, run, decoder = folder / f"epochs/e{plain.sft.epochs}.pt", plain, own
            if method.stage == "decode":
                decoder = policy.parse(method.words.format(value=value))
            else:
                run = configs.changed(config, method.overrides(config, value, rate, pair))
                path = runs.task_folder(run) / last(run, method.stage)
            solved, _ = solve_rates(valid, run, path, decoder)
            above = gap(solved.mean(axis=1)[None], curve[None])[0]
            scores.setdefault(method.name, {})[value] = float(above[KS.index(16)])
    chosen = {m.name: m.values[0] for m in methods} | {name: max(of, key=of.get) for name, of in scores.items()}
    for name, of in scores.items():
        tried = ", ".join(f"{value} {score:+.3f}" for value, score in of.items())
        print(f"{name}: {chosen[name]} (pass@16 above early stopping on validation problems: {tried})", flush=True)
    runs.write_json(runs.task_folder(config) / "frontier-values.json", {"chosen": chosen, "scores": scores})
    return chosen


def last(run: Config, stage: str) -> Path:
    """The last snapshot that a config's run keeps, below the task's folder."""
    name = runs.run_folder(run, "sft").name
    if stage == "wise":
        name += runs.mixture_suffix(run.wise.shares[0], run.wise.early)
    return Path(name) / "epochs" / f"e{run.sft.epochs}.pt"


@torch.no_grad()
def solve_rates(config: Config, run: Config, path: Path, decoder: policy.Policy) -> tuple[np.ndarray, float]:
    """Solve rates float64[1 + len(KS), n] of a run's weights on a config's problems, and the tokens of a sample.

    Raises ValueError when eval.budget does not suffice to compute them.
    """
    device = pick_device(config)
    problems = problems_for(config, device, prefix=0 if path.name == "ckpt.pt" else run.sft.prefix)
    budget = config.eval.budget
    result = exact(measure.tree_of(load_run(path, run).to(device), config.data, problems, decoder), budget)
    if not result.exact:
        raise ValueError(f"eval.budget is {budget}: too few prefixes to compute p of {path}; raise it")
    p = measure.over_prefixes(problems, result.p_lo)
    return passk.solve_rate(p[:, None], (1, *KS)).T, float(result.tokens.sum() / result.ends.sum())


def compare(config: Config, chosen: dict[str, str]) -> None:
    """Compare the runs of the last evaluation; raises ValueError when it has no plain fine-tuning.

    chosen: the value of every method by its name; methods that are not named are compared at any value.
    """
    results = load(config)
    pairs = [pair for pair in results.pairs() if pair < config.reproduce.pairs]
    if not pairs:
        raise ValueError(f"{runs.eval_file(config)}: no plain fine-tuning to compare with; run `make frontier`")
    rows, spreads = [], []
    for rate in [rate for rate in RATES if all(results.tuned(pair, fork_rate=rate) for pair in pairs)]:
        decoded, recovered = decode(config, results, pairs, rate, chosen)
        spreads += recovered
        for mode in (None, "FWD"):
            curves = {pair: curve(results, pair, rate, mode) for pair in pairs}
            bases = np.stack([solve(results, results.base(pair), mode) for pair in pairs])
            methods = points(config, results, pairs, rate, mode, chosen) | (decoded if mode is None else {})
            rows += [judge(name, rate, mode, found, curves, bases) for name, found in methods.items()]
            figure = draw(rows, curves, rate, mode)
            path = runs.task_folder(config) / "figures" / f"frontier-fork{rate:g}-{mode or 'free'}.png"
            runs.write_atomically(path, lambda file, f=figure: f.savefig(file, format="png", dpi=150))
            print(path)
    print(table(rows))
    for row in spreads:
        print(spread_line(row))
    found = runs.made_by(config) | {"methods": rows, "stratified": spreads}
    runs.write_json(runs.task_folder(config) / "frontier.json", found)


def solve(results: Results, record: dict, mode: str | None) -> np.ndarray:
    """float64[1 + len(KS), n]: the solve rates of a record at k = 1 and KS."""
    return np.stack([results.solved(record, k, mode) for k in (1, *KS)])


def curve(results: Results, pair: int, rate: float, mode: str | None) -> np.ndarray:
    """The early-stopping curve float64[1 + snapshots, 1 + len(KS), n]: the base, then every snapshot."""
    records = [results.base(pair), *results.tuned(pair, fork_rate=rate)]
    return np.stack([solve(results, record, mode) for record in records])


def points(
    config: Config, results: Results, pairs: list[int], rate: float, mode: str | None, chosen: dict[str, str]
) -> dict[str, list[Point]]:
    """The last checkpoint of every method that has one for all pairs, by variant; not of values that lost."""
    lost = set(_variants(config, rate, chosen))
    found: dict[str, list[Point]] = {}
    for variant in sorted({r["variant"] for r in results.records if r["fork_rate"] == rate} - lost):
        if mode and variant.startswith(("data-RAT", "data-SEARCH")):
            continue  # they never saw another mode than their own
        records = [results.tuned(pair, variant, fork_rate=rate)[-1:] for pair in pairs]
        if all(records):
            found[variant] = [
                Point(pair, solve(results, one, mode), _seconds(config, one["run"]), one["tokens"])
                for pair, (one,) in zip(pairs, records, strict=True)
            ]
    return found


def _variants(config: Config, rate: float, chosen: dict[str, str]) -> Iterator[str]:
    """The variants of the values that were tried and not chosen."""
    for method in METHODS:
        for value in method.values if method.name in chosen and method.stage != "decode" else ():
            if value != chosen[method.name]:
                run = configs.changed(config, method.overrides(config, value, rate, 0))
                yield runs.variant(run, "sft") + str(last(run, method.stage).parent.parent).partition("-seed0")[2]


def _seconds(config: Config, run: str) -> float:
    """How long a run trained."""
    return runs.read_json(runs.task_folder(config) / run / "meta.json")["seconds"]


@torch.no_grad()
def decode(
    config: Config, results: Results, pairs: list[int], rate: float, chosen: dict[str, str]
) -> tuple[dict[str, list[Point]], list[dict]]:
    """Decoders on the last checkpoint of plain cross-entropy, computed, not sampled: points by policy, and what
    stratified decoders recover (see `spread`)."""
    device = pick_device(config)
    problems, found, spreads = problems_for(config, device), {}, []
    for pair in pairs:
        record = results.tuned(pair, fork_rate=rate)[-1]
        folder = runs.task_folder(config) / record["run"]
        path, run = folder / f"epochs/e{record['epoch']}.pt", runs.read_config(folder)
        for method in METHODS:
            if method.stage == "decode" and method.name in chosen:
                text = method.words.format(value=chosen[method.name])
                solved, tokens = solve_rates(config, run, path, policy.parse(text))
                found.setdefault(text, []).append(Point(pair, solved, _seconds(config, record["run"]), tokens))
        tree = measure.tree_of(load_run(path, run).to(device), config.data, problems, policy.parse(config.eval.policy))
        spreads.append(spread(tree, problems, results.solved(record, problems.branches.shape[1])))
    return found, stratified(rate, spreads)


def judge(
    name: str, rate: float, mode: str | None, found: list[Point], curves: dict[int, np.ndarray], bases: np.ndarray
) -> dict:
    """One method against the early-stopping curve: means over pairs, the gap above the curve with its interval."""
    solved = np.stack([point.solved for point in found])  # [pairs, 1 + KS, n]
    row = {"method": name, "fork_rate": rate, "mode": mode or "free", "pairs": len(found)}
    row |= {what: float(np.mean([getattr(point, what) for point in found])) for what in ("seconds", "tokens")}
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


def table(rows: list[dict]) -> str:
    """One line a method: where it is, how far above early stopping, what it recovered, its cost, and the verdict."""
    head = f"{'method':<36}{'r':>5}{'mode':>6}" + "".join(f"{f'pass@{k}':>9}" for k in (1, *KS))
    head += "".join(f"{f'above curve, k = {k}':>28}{'recovered':>11}" for k in KS)
    lines = [head + f"{'train s':>9}{'tokens':>8}"]
    for row in rows:
        text = f"{row['method']:<36}{row['fork_rate']:>5g}{row['mode']:>6}"
        text += "".join(f"{row['pass_at'][str(k)]:>9.3f}" for k in (1, *KS))
        for k in KS:
            recovered = row[f"recovered_{k}"]
            text += f"{signed(row[f'above_{k}']):>28}" + ("          -" if recovered is None else f"{recovered:>11.2f}")
        lines.append(text + f"{row['seconds']:>9.0f}{row['tokens']:>8.2f}" + verdict(row))
    return "\n".join(lines)


def verdict(row: dict) -> str:
    """Whether a row lies above the curve at every k of KS, below at one, or cannot be told from it."""
    intervals = [row[f"above_{k}"]["ci95"] for k in KS]
    if all(low > 0 for low, _ in intervals):
        return "  better"
    return "  worse" if any(high < 0 for _, high in intervals) else ""


def draw(rows: list[dict], curves: dict[int, np.ndarray], rate: float, mode: str | None) -> Figure:
    """pass@k against pass@1: the curves of all pairs, and every method; its bars are the interval of its gap."""
    figure = Figure(figsize=(9.6, 4.8), layout="constrained")
    mine = [row for row in rows if row["fork_rate"] == rate and row["mode"] == (mode or "free")]
    kinds = list(dict.fromkeys(_kind(row) for row in rows))  # a method looks the same at every FORK_RATE
    colours = matplotlib.colormaps["tab20"]
    for i, (axes, k) in enumerate(zip(figure.subplots(1, 2), KS, strict=True)):
        for pair, line in curves.items():
            ones, many = line[:, 0].mean(axis=1), line[:, 1 + i].mean(axis=1)
            axes.plot(ones, many, color="black", linewidth=1.4 if pair == 0 else 0.6, marker=".", zorder=1,
                      label="early stopping" if pair == 0 else None)  # fmt: skip
        for row in mine:
            j = kinds.index(_kind(row))
            low, high = row[f"above_{k}"]["ci95"]
            x, y, mean = row["pass_at"]["1"], row["pass_at"][str(k)], row[f"above_{k}"]["mean"]
            error = whiskers(np.array([mean]), np.array([low]), np.array([high]))
            axes.errorbar(x, y, yerr=error, color=colours(j % 20), marker="osD^vP*X"[j % 8], linestyle="",
                          label=row["method"])  # fmt: skip
        axes.set(xlabel="pass@1", ylabel=f"pass@{k}", title=f"FORK_RATE {rate:g}, {mode or 'free'}, k = {k}")
        axes.set_ylim(top=1.02)  # intervals are of the gap, and may reach above what a pass@k can be
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=7)
    return figure


def _kind(row: dict) -> str:
    """A method's name without the FORK_RATE that some carry."""
    return row["method"].partition("-fork")[0]


def markdown(rows: list[dict], rate: float) -> str:
    """The free rows of a FORK_RATE as the Markdown table of docs/mitigations.md, by falling pass@16."""
    lines = ["| run or decoder | pass@1 | pass@16 | pass@64 | above early stopping at k = 16 | at k = 64 |"]
    lines += ["|---|---|---|---|---|---|"]
    mine = [row for row in rows if row["fork_rate"] == rate and row["mode"] == "free"]
    for row in sorted(mine, key=lambda row: -row["pass_at"]["16"]):
        cells = [f"{row['pass_at'][str(k)]:.3f}" for k in (1, *KS)]
        cells += [signed(row[f"above_{k}"]) for k in KS]
        lines.append(f"| {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)
