"""Which claims hold: experiments/claims.yaml against the last evaluation.

A claim's number is a mean over pairs of seeds, its interval a bootstrap that resamples pairs and problems
independently (Owen 2007), the same problems for all runs. It holds if the whole interval lies in the range that was
fixed beforehand, and fails otherwise.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml

from experiments.results import Results, load
from minifork import passk, records, runs
from minifork.config import Config, fingerprint

FILE = Path(__file__).parent / "claims.yaml"
DRAWS = 1000
FORK = ("accuracy", "entropy", "confidence right", "confidence wrong")


@dataclass(frozen=True)
class Term:
    """What of which run: see experiments/claims.yaml. Raises ValueError for a ``what`` that does not exist."""

    run: str
    what: str
    fork_rate: float | None = None
    epoch: int | None = None
    test_set: str = "plain"
    mode: str | None = None

    def __post_init__(self) -> None:
        name, _, k = self.what.partition("@")
        known = [f"fork {what}" if what in FORK[:2] else what for what in FORK]
        known += ["train fork accuracy", "mode entropy", "rest"]
        if self.what not in known and not (name in ("pass", "index") and k.isdigit() and int(k) >= 1):
            raise ValueError(f"what is {self.what!r}: choose pass@K, index@K, {', '.join(known)}")

    def __str__(self) -> str:
        rate = "" if self.fork_rate is None else f" at FORK_RATE {self.fork_rate:g}"
        epoch = "" if self.epoch is None else f", epoch {self.epoch}"
        return f"{self.run}{rate}{epoch} ({self.test_set})"


@dataclass(frozen=True)
class Claim:
    """A claim of the file, its terms in place. Raises ValueError when it does not say what would refute it."""

    id: str
    says: str
    of: str
    by: str
    value: Term | None = None
    minus: Term | None = None
    over: Term | float | None = None
    rising: tuple[Term, ...] = ()
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (not self.rising) or len(self.rising) == 1:
            raise ValueError("give value, or rising with at least two terms")
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least or at_most: what would refute it?")
        if self.over is not None and self.minus is None:
            raise ValueError("over needs minus: (value - minus) / (over - minus)")
        if self.by not in ("paper", "us"):
            raise ValueError(f"by is {self.by!r}: choose paper or us")

    @property
    def rule(self) -> str:
        """The range, in words."""
        if self.at_least is not None and self.at_most is not None:
            return f"in [{self.at_least:g}, {self.at_most:g}]"
        return f">= {self.at_least:g}" if self.at_most is None else f"<= {self.at_most:g}"


class NotRunError(ValueError):
    """A claim's run is missing."""


def claims(config: Config) -> None:
    """Judge every claim about the config's sweep, print the verdicts, write runs/<task>/claims.json.

    Raises ValueError for a claim that cannot be read, for results of another config, and without a pair to judge.
    """
    wanted, listed = read(FILE)
    listed = [claim for claim in listed if claim.of == config.reproduce.sweep]
    if not listed:
        print(f"no claims are made about the sweep {config.reproduce.sweep}")
        return
    results = load(config)
    pairs = results.pairs()
    if not pairs:
        raise ValueError(f"{runs.eval_file(config)}: no pair of base and fine-tuned run; see `make reproduce`")
    require_one_setup(config, results, pairs)
    judged = [judge(claim, results, pairs) for claim in listed]
    for row in judged:
        print(line(row))
    held, tested = (sum(row["verdict"] in of for row in judged) for of in (("holds",), ("holds", "fails")))
    provisional = "" if len(pairs) >= wanted else f"; provisional, {wanted} pairs are wanted"
    print(f"{held} of {tested} claims hold on {len(pairs)} pair{'s' * (len(pairs) > 1)} of seeds{provisional}")
    result = {"sweep": config.reproduce.sweep, "pairs": len(pairs), "wanted": wanted, "claims": judged}
    runs.write_json(runs.task_folder(config) / "claims.json", result)


def read(path: Path) -> tuple[int, list[Claim]]:
    """How many pairs of seeds a verdict needs, and the claims; raises ValueError naming the file and the claim."""
    try:
        tree = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or set(tree) != {"pairs", "claims"} or not isinstance(tree["claims"], list):
        raise ValueError(f"{path}: give pairs, a number, and claims, a list")
    found: list[Claim] = []
    for entry in tree["claims"]:
        name = entry.get("id") if isinstance(entry, dict) else entry
        try:
            found.append(_claim(entry))
        except ValueError as error:
            raise ValueError(f"{path}: claim {name!r}: {error}") from None
        if name in [claim.id for claim in found[:-1]]:
            raise ValueError(f"{path}: claim {name!r}: there are two of this id")
    return int(tree["pairs"]), found


def _claim(entry: dict) -> Claim:
    entry = dict(_checked(entry, Claim))
    for name in ("value", "minus", "over"):
        if isinstance(entry.get(name), dict):
            entry[name] = Term(**_checked(entry[name], Term))
    entry["rising"] = tuple(Term(**_checked(term, Term)) for term in entry.get("rising", ()))
    return Claim(**entry)


def _checked(entry: dict, kind: type) -> dict:
    """A mapping whose keys are fields of a dataclass, none that it needs missing."""
    if not isinstance(entry, dict):
        raise ValueError(f"{entry!r} is no mapping")
    known = {field.name: field for field in fields(kind)}
    unknown = [key for key in entry if key not in known]
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(known)}")
    missing = [name for name in list(known)[: 4 if kind is Claim else 2] if name not in entry]
    if missing:
        raise ValueError(f"missing key {missing[0]!r}")
    return entry


def require_one_setup(config: Config, results: Results, pairs: list[int]) -> None:
    """Raise ValueError naming the runs when bases are not of this config, or replications differ in more than seeds."""
    of_config = fingerprint(runs.setup(config, "base"))
    setups: dict[tuple, dict[str, str]] = {}
    for record in results.records:
        if record["base_seed"] not in pairs:
            continue
        if record["variant"] == "base" and record["setup_hash"] != of_config:
            raise ValueError(f"{record['run']} was made with another config than this one; claims would mix them")
        setups.setdefault((record["variant"], record["fork_rate"]), {})[record["setup_hash"]] = record["run"]
    for found in setups.values():
        if len(found) > 1:
            raise ValueError(f"{' and '.join(found.values())} differ in more than seeds; claims would mix them")


def judge(claim: Claim, results: Results, pairs: list[int]) -> dict:
    """The verdict on a claim, its number and interval: a row of claims.json."""
    row = {"id": claim.id, "says": claim.says, "of": claim.of, "by": claim.by, "rule": claim.rule}
    try:
        draws = number(claim, lambda term: of_pairs(results, pairs, term))
    except NotRunError as missing:
        return row | {"verdict": "not run", "effect": None, "ci95": None, "why": str(missing)}
    low, high = passk.interval(draws[1:])
    inside = (claim.at_least is None or low >= claim.at_least) and (claim.at_most is None or high <= claim.at_most)
    found = {"verdict": "holds" if inside else "fails", "effect": float(draws[0]), "ci95": [float(low), float(high)]}
    return row | found | {"why": None}


def number(claim: Claim, draws_of: Callable[[Term], np.ndarray]) -> np.ndarray:
    """The claim's number float64[1 + DRAWS], its estimate first, from the same of its terms."""
    if claim.rising:
        terms = np.stack([draws_of(term) for term in claim.rising])
        return np.diff(terms, axis=0).min(axis=0)
    value = draws_of(claim.value)
    if claim.minus is None:
        return value
    minus = draws_of(claim.minus)
    if claim.over is None:
        return value - minus
    over = draws_of(claim.over) if isinstance(claim.over, Term) else float(claim.over)
    with np.errstate(divide="ignore", invalid="ignore"):
        return (value - minus) / (over - minus)


def of_pairs(results: Results, pairs: list[int], term: Term) -> np.ndarray:
    """A term's mean over pairs float64[1 + DRAWS]: the estimate, then bootstrap draws.

    Raises NotRunError when a pair lacks the run.
    """
    values = np.stack([_of_pair(results, pair, term) for pair in pairs])
    weights = np.concatenate([np.full((1, len(pairs)), 1 / len(pairs)), passk.resamples(len(pairs), DRAWS, 1)])
    return np.einsum("dp,pd->d", weights, values)


def _of_pair(results: Results, pair: int, term: Term) -> np.ndarray:
    """A term of one pair, float64[1 + DRAWS], under the resamples of problems."""
    if term.run == "base":
        found = [results.base(pair)]
    else:
        found = results.tuned(pair, term.run, term.fork_rate, term.test_set)
        found = [record for record in found if term.epoch in (None, record["epoch"])]
    if not found:
        raise NotRunError(f"{term} of pair {pair}")
    return statistic(results, found[-1], term)


def statistic(results: Results, record: dict, term: Term) -> np.ndarray:
    """What a term means of a record, float64[1 + DRAWS], under the resamples of problems."""
    name, _, k = term.what.partition("@")
    if name == "pass":
        return _weights(results.p(record, term.mode)) @ results.solved(record, int(k), term.mode)
    if name == "index":
        p, solved = results.p(record, term.mode), results.solved(record, int(k), term.mode)
        weights = _weights(p)
        return passk.polarisation(weights @ p, (weights @ solved)[:, None], [int(k)])[1][:, 0]
    if name == "rest":
        rest = results.array(record, "rest")
        return _weights(rest) @ rest
    if name == "mode entropy":
        entropy = records.entropy(results.array(record, "modes"))
        return _weights(entropy) @ entropy
    where = "fork_train" if name.startswith("train") else "fork"
    quantity = name.removeprefix("train ").removeprefix("fork ").replace(" ", "_")
    value, counted = records.fork_quantities(results.array(record, where))[quantity]
    weights = _weights(value)
    with np.errstate(invalid="ignore"):
        return (weights @ (value * counted)) / (weights @ counted)


def _weights(values: np.ndarray) -> np.ndarray:
    """Shares of problems float64[1 + DRAWS, n]: equal ones, then resamples, the same for every run."""
    return _shares(len(values))


@lru_cache(maxsize=4)
def _shares(n: int) -> np.ndarray:
    return np.concatenate([np.full((1, n), 1 / n), passk.resamples(n, DRAWS)])


def line(row: dict) -> str:
    """A row of claims.json as a line."""
    verdict = row["verdict"].upper() if row["verdict"] == "fails" else row["verdict"]
    if row["effect"] is None:
        return f"{verdict:<8}{row['id']:<18}{row['says']} ({row['why']} is missing)"
    low, high = row["ci95"]
    return f"{verdict:<8}{row['id']:<18}{row['effect']:+.3f} [{low:+.3f}, {high:+.3f}] {row['rule']:<16}{row['says']}"
