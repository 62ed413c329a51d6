"""Estimates over pairs of seeds: a mean with its interval, as data and as text.

An estimate is a dict: {"mean": .., "ci95": [low, high], "by_pair": [..]}. At the level of 99.5 % its interval is at
"ci99.5". The interval is null where the pairs differ too much for one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minifork.statistics import intervals

KS = (1, 16, 64)  # the k at which studies give pass@k
# Coverage shrinkage S_k is pass@k of the base minus pass@k of the fine-tuned model.
SHRINKAGE_K = 16  # the k of coverage shrinkage and of the polarisation index
MIN_SHRINKAGE = 0.05  # smaller coverage shrinkage leaves nothing to recover


def interval_key(level: float) -> str:
    """The entry of an estimate that holds its interval of this level: "ci95" for .95."""
    return f"ci{100 * level:g}"


def probability_over_pairs(values: np.ndarray, level: float = 0.95) -> dict:
    """The mean of probabilities float64[pairs, n], such as pass@k."""
    ends = None if intervals.pairs_differ(values) else intervals.probability_interval(values, level)
    return _estimate(values, ends, level)


def difference_over_pairs(a: np.ndarray, b: np.ndarray, level: float = 0.95) -> dict:
    """The mean of a - b, probabilities float64[pairs, n] each."""
    differ = intervals.pairs_differ(a) or intervals.pairs_differ(b)
    return _estimate(a - b, None if differ else intervals.difference_interval(a, b, level), level)


def mean_over_pairs(values: np.ndarray, level: float = 0.95) -> dict:
    """The mean of values or pseudo-values float64[pairs, n]."""
    return _estimate(values, intervals.mean_interval(values, level), level)


Alternatives = Mapping[str, Mapping[str, np.ndarray]]  # float64[pairs, n] by alternative and quantity


def stack_pairs(by_pair: Sequence[Mapping[str, Mapping[str, np.ndarray]]]) -> Alternatives:
    """The values float64[n] of every pair of seeds in one array for each alternative and quantity."""
    first = by_pair[0]
    return {name: {key: np.stack([pair[name][key] for pair in by_pair]) for key in first[name]} for name in first}


def compare_alternatives(values: Alternatives) -> dict[str, dict]:
    """Estimates of every quantity by alternative, and what each loses against the one with the largest pass@1.

    "pass@1" and "tokens" must be among the quantities. Those whose name does not begin with "tokens" are probabilities.
    """
    best, estimates = max(values.values(), key=lambda row: row["pass@1"].mean()), {}
    for name, row in values.items():
        loss, saving = difference_over_pairs(best["pass@1"], row["pass@1"]), best["tokens"] - row["tokens"]
        estimates[name] = {
            quantity: (mean_over_pairs if quantity.startswith("tokens") else probability_over_pairs)(array)
            for quantity, array in row.items()
        } | {"pass@1 lost": loss, "tokens saved": mean_over_pairs(saving)}
    return estimates


def agreements(values: Alternatives, names: Sequence[tuple[str, str]], prefix: str, largest: float) -> list[dict]:
    """Whether each two of the named alternatives agree in every quantity whose name begins with ``prefix``.

    They agree if their mean difference is at most ``largest``, up or down. Each row has the difference.
    """
    rows = []
    for first, second in names:
        for quantity in (key for key in values[first] if key.startswith(prefix)):
            difference = difference_over_pairs(values[first][quantity], values[second][quantity])
            agree = abs(difference["mean"]) <= largest
            rows.append({"names": [first, second], "quantity": quantity, "difference": difference, "agree": agree})
    return rows


def alternatives_text(title: str, rows: Mapping[str, Mapping[str, dict]]) -> str:
    """What `compare_alternatives` gives as a table with a column for each alternative."""
    quantities = next(iter(rows.values()))
    return table([{title: name} | {key: row[name] for key, row in rows.items()} for name in quantities])


def mean_of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row from those of every pair: numbers as {"mean": .., "by_pair": [..]}, the rest as in the first.

    A number that a pair lacks (None) is None.
    """
    merged: dict[str, Any] = {}
    for key, first in rows[0].items():
        by_pair = [row[key] for row in rows]
        numbers = all(isinstance(value, float) for value in by_pair)
        missing = None if None in by_pair else first
        merged[key] = {"mean": float(np.mean(by_pair)), "by_pair": by_pair} if numbers else missing
    return merged


def _estimate(values: np.ndarray, ends: np.ndarray | None, level: float) -> dict:
    interval = {interval_key(level): None if ends is None else ends.tolist()}
    return {"mean": float(values.mean())} | interval | {"by_pair": values.mean(axis=1).tolist()}


def estimate_by_k(estimate: Callable[..., Any], *values: np.ndarray, ks: Sequence[int] = KS) -> dict[str, Any]:
    """An estimate for every k, by "k", from values float64[pairs, K, n]."""
    return {str(k): estimate(*(array[:, i] for array in values)) for i, k in enumerate(ks)}


def mean_text(estimate: dict) -> str:
    """The mean of an estimate."""
    return f"{estimate['mean']:.3f}"


def estimate_text(estimate: dict) -> str:
    """The mean of an estimate and its interval."""
    return f"{mean_text(estimate)} {uncertainty_text(estimate, '')}"


def table(rows: Sequence[Mapping[str, Any]], text: Callable[[dict], str] = estimate_text) -> str:
    """A table with a line for every row, headed by the keys: estimates as ``text`` gives them, the rest as it is."""
    cells = [[text(entry) if isinstance(entry, dict) else str(entry) for entry in row.values()] for row in rows]
    lines = [list(rows[0]), *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(f"{line[0]:<{widths[0]}}  " + "  ".join(map(str.rjust, line[1:], widths[1:])) for line in lines)


def interval_text(ends: Sequence[float], sign: str = "+") -> str:
    """An interval as [low, high], by default with signs."""
    low, high = ends
    return f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def uncertainty_text(estimate: dict, sign: str = "+") -> str:
    """The interval of an estimate, or where it has none the values of the pairs."""
    if estimate["ci95"] is not None:
        return interval_text(estimate["ci95"], sign)
    return f"(pairs: {', '.join(f'{value:{sign}.3f}' for value in estimate['by_pair'])})"


def signed(estimate: dict) -> str:
    """A mean and its interval, as differences are printed."""
    return f"{estimate['mean']:+.3f} {uncertainty_text(estimate)}"


def pairs_text(count: int) -> str:
    """The number of pairs of seeds, and what one pair means for intervals."""
    return f"{count} pairs of seeds" if count > 1 else "1 pair of seeds (intervals are about problems only)"
