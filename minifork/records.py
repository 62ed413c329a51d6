"""What eval.json says of one checkpoint: pure functions from engine results to plain dictionaries."""

from collections.abc import Sequence

import numpy as np

from minifork import passk, strata
from minifork.strata import Strata
from minifork.tree import Result

KINDS = {
    **dict.fromkeys(("run", "stage", "variant", "test_set", "setup_hash", "recipe_hash", "weights_hash"), (str,)),
    **dict.fromkeys(("epoch", "seed", "n"), (int, type(None))),
    "base_seed": (int,),
    "fork_rate": (float, int, type(None)),
    "pass_at": (dict,),
    "rho": (float, int, type(None)),
    "forced": (dict, type(None)),
}  # what others read of a record
SCHEMA = 4  # of eval.json; raised when records change, so that old ones are refused by name
TAUS = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95)


def is_record(record: object) -> bool:
    """Whether something has the keys of a record, with values of their kinds."""
    return isinstance(record, dict) and all(isinstance(record.get(key, ...), kinds) for key, kinds in KINDS.items())


def coverage(result: Result, ks: Sequence[int], weights: np.ndarray) -> dict:
    """pass@k and what it is made of, from one engine result.

    pass_at: computed where p is, with certified pass_at_lo and pass_at_hi (where these are not equal,
    pass_at is the lower one, and what depends on the mean p is null); the unbiased estimate, for k <= n only
    and without bounds, where p is sampled. ci95: the 95 % interval of a bootstrap over problems, weights
    float64[draws, n problems].
    """
    p = result.p_lo
    if result.n is None:
        solved = passk.solve_rate(p[:, None], ks)
        low, high = (passk.pass_at_k(bound, ks) for bound in (result.p_lo, result.p_hi))
        bounds = {"pass_at_lo": by_k(ks, low), "pass_at_hi": by_k(ks, high)}
        rho = passk.rho(p)
    else:
        ks = [k for k in ks if k <= result.n]
        solved = unbiased(result, ks)
        bounds = {"pass_at_lo": None, "pass_at_hi": None}
        rho = float(passk.polarisation(p.mean(), unbiased(result, [2]).mean(axis=0), [2])[1][0])
    passed = solved.mean(axis=0)
    loss, index = passk.polarisation(p.mean(), passed, ks)
    known = result.exact or result.n is not None
    return {
        "engine": result.engine,
        "n": result.n,
        "tokens": float(result.tokens.sum() / result.ends.sum()) if result.ends.any() else None,
        "pass_at": by_k(ks, passed),
        **bounds,
        "ci95": intervals(ks, weights @ solved),
        "J": by_k(ks, loss) if known else None,
        "index": by_k(ks, index) if known else None,
        "rho": rho if known else None,
        "cover_at": {f"{tau:g}": float(v) for tau, v in zip(TAUS, passk.cover_at(p, TAUS), strict=True)},
        "sampling_error": None if result.n is None else by_k(ks, [passk.sampling_error(p, result.n, k) for k in ks]),
    }


def wasted(result: Result, shortest: np.ndarray) -> float | None:
    """Tokens by which an accepted trace is longer than it had to be, averaged over accepted traces; None without any.

    shortest: int64[B], the tokens of the shortest accepted trace of each problem.
    """
    accepted = result.ends[:, 0]
    return float((result.tokens[:, 0] - accepted * shortest).sum() / accepted.sum()) if accepted.any() else None


def width(record: dict) -> float:
    """How far the certified bounds of a record lie apart at the k where they do most; 0 if it was sampled."""
    low, high = record["pass_at_lo"], record["pass_at_hi"]
    return 0.0 if low is None else max(high[k] - low[k] for k in low)


def unbiased(result: Result, ks: Sequence[int]) -> np.ndarray:
    """The unbiased estimate of 1 - (1 - p_i)^k, float64[B, K], from a sampled result."""
    return np.stack([passk.unbiased(result.accepted, result.n, k) for k in ks], axis=1)


def stratified(result: Strata, ks: Sequence[int], weights: np.ndarray) -> dict:
    """pass@k of a stratified decoder; what is defined for i.i.d. samples only is null."""
    low, high = (strata.solve_rate(p, ks) for p in (result.p_lo, result.p_hi))
    missing = dict.fromkeys(("tokens", "J", "index", "rho", "cover_at", "sampling_error"))
    return {
        "engine": "exact",
        "n": None,
        "pass_at": by_k(ks, low.mean(axis=0)),
        "pass_at_lo": by_k(ks, low.mean(axis=0)),
        "pass_at_hi": by_k(ks, high.mean(axis=0)),
        "ci95": intervals(ks, weights @ low),
        **missing,
    }


def by_k(ks: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    """{"1": .., "2": .., ..}"""
    return {str(k): float(v) for k, v in zip(ks, values, strict=True)}


def intervals(ks: Sequence[int], draws: np.ndarray) -> dict[str, list[float]]:
    """The 95 % interval at each k, from bootstrap draws float64[draws, K]."""
    low, high = passk.interval(draws)
    return {str(k): [float(a), float(b)] for k, a, b in zip(ks, low, high, strict=True)}


def errors(result: Result, sinks: Sequence[str]) -> dict[str, float]:
    """The share of each way to fail, averaged over problems; with pass@1 they sum to 1 where all is known."""
    return dict(zip(sinks[1:], result.ends.mean(axis=0)[1:].tolist(), strict=True))


def fork_statistics(branch: np.ndarray) -> dict:
    """What a model does at the fork, from float64[n, d] with the right branch first; entropies in nats."""
    statistics = {}
    for name, (value, where) in fork_quantities(branch).items():
        statistics[name] = float(value[where].mean()) if where.any() else None
    return {**statistics, "n": len(branch)}


def fork_quantities(branch: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The per-problem values [n] behind each fork statistic, and the problems bool[n] it averages over."""
    top, right, everywhere = branch.max(axis=1), branch.argmax(axis=1) == 0, np.ones(len(branch), dtype=bool)
    return {
        "p_right": (branch[:, 0], everywhere),
        "accuracy": (right.astype(float), everywhere),
        "entropy": (entropy(branch), everywhere),
        "confidence_right": (top, right),
        "confidence_wrong": (top, ~right),
        "wrong_commit": ((branch[:, 0] < 0.05).astype(float), everywhere),
    }


def mode_statistics(modes: np.ndarray, names: Sequence[str]) -> dict:
    """Mean probability of each mode, float64[n, modes], and the mean entropy (nats) of the choice."""
    mean = dict(zip(names, modes.mean(axis=0).tolist(), strict=True))
    return {"p_forward": mean["FWD"], "entropy": float(entropy(modes).mean()), "p": mean}


def entropy(p: np.ndarray) -> np.ndarray:
    """Entropy in nats of the last axis."""
    return -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1)


def array_key(record: dict, what: str | None) -> str:
    """The name of an array of a record in eval.npz: run/epoch/test set/what.

    what: None or a mode for p float64[n], free or forced, and with "_lo" and "_hi" added its interval where
    it is not exact; "strata" for p_ij float64[n, m]; "fork" or
    "fork_train" for the branch probabilities float64[n, d] on test or training problems; "modes" for those of the
    modes float64[n, modes]; "rest" for the probability float64[n] of the rest of a trace given the right branch.
    """
    epoch = "base" if record["epoch"] is None else f"e{record['epoch']}"
    return f"{record['run']}/{epoch}/{record['test_set']}/{what or 'free'}"


def table(records: list[dict]) -> str:
    """The final checkpoint of every run, one line each."""
    last = _last(records)
    ks = [k for k in ("1", "4", "16", "64", "1024") if all(k in r["pass_at"] for r in records)]
    hits = any(record.get("hit_rate") is not None for record in records)
    head = "".join(f"{'pass@' + k:>10}" for k in ks)
    names = [_title(*which) for which in last]
    longest = max(28, *map(len, names))
    lines = [f"{'run':<{longest}}{'epoch':>6}{head}{'rho':>7}{'P(FWD)':>8}{'fork test':>11}{'train':>7}{'entropy':>9}"]
    lines[0] += f"{'strata at fork':>16}" if hits else ""
    for name, record in zip(names, last.values(), strict=True):
        train = record["fork_train"]
        cells = [(record["pass_at"][k], 10) for k in ks]
        cells += [(record["rho"], 7), (record["mode"]["p_forward"], 8), (record["fork"]["accuracy"], 11)]
        cells += [(train["accuracy"] if train else None, 7), (record["fork"]["entropy"], 9)]
        cells += [(record["hit_rate"], 16)] if hits else []
        texts = "".join(f"{'-' if value is None else f'{value:.3f}':>{width}}" for value, width in cells)
        lines.append(f"{name:<{longest}}{record['epoch'] or '-':>6}{texts}")
    return "\n".join(lines)


def mode_table(records: list[dict]) -> str:
    """What each mode is worth when it is forced, for the final checkpoint of every run: pass@1, tokens a trace, and
    wasted ones, by which accepted traces are longer than the shortest."""
    last = _last(records)
    modes = next(iter(last.values()))["forced"]
    names = [_title(*which) for which in last]
    longest = max(34, *map(len, names))
    lines = [f"{'forced mode':<{longest}}" + "".join(f"{mode:>8} pass@1  tokens wasted" for mode in modes)]
    for name, record in zip(names, last.values(), strict=True):
        cells = []
        for forced in record["forced"].values():
            waste = "-" if forced["wasted"] is None else f"{forced['wasted']:.2f}"
            tokens = "-" if forced["tokens"] is None else f"{forced['tokens']:.2f}"
            cells.append(f"{forced['pass_at']['1']:>15.3f}{tokens:>8}{waste:>7}")
        lines.append(f"{name:<{longest}}" + "".join(cells))
    return "\n".join(lines)


def _title(run: str, test_set: str) -> str:
    """A run, and the test set unless it is the plain one."""
    return run + (f" ({test_set})" if test_set != "plain" else "")


def _last(records: list[dict]) -> dict[tuple[str, str], dict]:
    """The record of the final checkpoint of every run on every test set."""
    return {(record["run"], record["test_set"]): record for record in records}
