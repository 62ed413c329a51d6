"""Which claims hold: experiments/claims.yaml against the last evaluation.

A claim's number is a mean over pairs of seeds, its interval a bootstrap that resamples pairs and problems
(`minifork.statistics.intervals`), the same problems for all runs. It holds if the whole interval lies strictly inside
the range that was fixed beforehand, and fails otherwise. A share that is recovered is judged as what is won beyond that
share of what was lost, which is linear, and only where at least LOST was lost.
"""

import math
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from experiments import study
from experiments.results import Results, load
from experiments.studies.gap import DRAWS, LOST
from minifork import config as configs
from minifork import runs
from minifork.config import read_yaml
from minifork.measuring import quantities
from minifork.schema import Config
from minifork.statistics import intervals, passk
from minifork.storage.files import write_json

FILE = Path(__file__).parent / "claims.yaml"
TERMS = ("value", "minus", "over")  # of a claim; over may be a number
FORK = ("accuracy", "entropy", "confidence right", "confidence wrong")


@dataclass(frozen=True)
class Term:
    """What of which run: see experiments/claims.yaml. Raises ValueError for a ``what`` that does not exist."""

    run: dict
    what: str
    epoch: int | None = None
    test_set: str = "plain"
    mode: str | None = None

    def __post_init__(self) -> None:
        name, _, k = self.what.partition("@")
        if self.stage not in runs.STAGES:
            raise ValueError(f"run has the stage {self.stage!r}: choose {', '.join(runs.STAGES)}")
        known = [f"fork {what}" if what in FORK[:2] else what for what in FORK]
        known += ["train fork accuracy", "mode entropy", "rest"]
        if self.what not in known and not (name in ("pass", "index") and k.isdigit() and int(k) >= 1):
            raise ValueError(f"what is {self.what!r}: choose pass@K, index@K, {', '.join(known)}")
        if self.mode is not None and name not in ("pass", "index"):
            raise ValueError(f"mode is {self.mode!r}: only pass@K and index@K are known for a forced mode")

    @property
    def stage(self) -> str:
        """The stage of the run."""
        return self.run.get("stage", "sft")

    @property
    def keys(self) -> dict:
        """The keys in which the run differs from the study's config."""
        return {key: value for key, value in self.run.items() if key != "stage"}

    def __str__(self) -> str:
        epoch = "" if self.epoch is None else f", epoch {self.epoch}"
        return " ".join([self.stage, configs.tag_text(self.keys)]).strip() + f"{epoch} ({self.test_set})"


@dataclass(frozen=True)
class Claim:
    """A claim of the file, its terms in place. Raises ValueError when it does not say what would refute it."""

    id: str
    says: str
    of: str
    by: str
    value: Term | None = None
    minus: Term | None = None
    over: Term | float | int | None = None
    rising: tuple[Term, ...] = ()
    at_least: float | int | None = None
    at_most: float | int | None = None

    def __post_init__(self) -> None:
        if (self.value is None) == (not self.rising) or len(self.rising) == 1:
            raise ValueError("give value, or rising with at least two terms")
        if self.rising and self.minus is not None:
            raise ValueError("minus has no meaning beside rising, whose number is the smallest step")
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least or at_most: what would refute it?")
        ends = [end for end in (self.at_least, self.at_most) if end is not None]
        if not all(map(math.isfinite, ends)) or ends != sorted(set(ends)):
            raise ValueError(f"no number is {self.rule}")
        if not self.of.endswith(".yaml") and not study.path_of(self.of).exists():
            raise ValueError(f"of is {self.of!r}: there is no such study in {study.FOLDER}")
        if self.over is not None and (self.minus is None or self.at_least is None or self.at_most is not None):
            raise ValueError("over needs minus and at_least only: (value - minus) / (over - minus) >= at_least")
        if self.by not in ("paper", "us"):
            raise ValueError(f"by is {self.by!r}: choose paper or us")

    @property
    def rule(self) -> str:
        """The range, in words."""
        if self.at_least is not None and self.at_most is not None:
            return f"in ({self.at_least:g}, {self.at_most:g})"
        return f"> {self.at_least:g}" if self.at_most is None else f"< {self.at_most:g}"


class NotRunError(ValueError):
    """A claim's run is missing."""


def claims(config: Config) -> None:
    """Judge every claim about the config's study, print the verdicts, write runs/<task>/claims.json.

    Raises ValueError for a claim that cannot be read, and without a pair to judge.
    """
    wanted, listed = read(FILE)
    listed = [claim for claim in listed if claim.of == config.reproduce.study]
    if not listed:
        print(f"no claims are made about the study {config.reproduce.study}")
        return
    results = load(config)
    pairs = results.complete_pairs()
    judged = [_named(claim, results, pairs) for claim in listed]
    for row in judged:
        print(line(row))
    held, tested = (sum(row["verdict"] in of for row in judged) for of in (("holds",), ("holds", "fails")))
    provisional = "" if len(pairs) >= wanted else f"; provisional, {wanted} pairs are wanted"
    print(f"{held} of {tested} claims hold on {len(pairs)} pair{'s' * (len(pairs) > 1)} of seeds{provisional}")
    if len(pairs) == 1:
        print("intervals are about problems only: one pair says nothing about seeds")
    result = runs.made_by(config) | {"study": config.reproduce.study, "pairs": len(pairs), "wanted": wanted}
    write_json(runs.task_folder(config) / "claims.json", result | {"claims": judged, "of": results.fingerprint})


def _named(claim: Claim, results: Results, pairs: list[int]) -> dict:
    """`judge`, with the file and the claim named in errors."""
    try:
        return judge(claim, results, pairs)
    except ValueError as error:
        raise ValueError(f"{FILE}: claim {claim.id!r}: {error}") from None


def read(path: Path) -> tuple[int, list[Claim]]:
    """How many pairs of seeds a verdict needs, and the claims; raises ValueError naming the file and the claim."""
    try:
        tree = read_yaml(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    kinds = {"pairs": int, "claims": list}
    if not isinstance(tree, dict) or {k: type(v) for k, v in tree.items()} != kinds or tree["pairs"] < 1:
        raise ValueError(f"{path}: give pairs, a number of 1 or more, and claims, a list")
    found: list[Claim] = []
    for entry in tree["claims"]:
        name = entry.get("id") if isinstance(entry, dict) else entry
        try:
            found.append(_claim(entry))
        except ValueError as error:
            raise ValueError(f"{path}: claim {name!r}: {error}") from None
        if name in [claim.id for claim in found[:-1]]:
            raise ValueError(f"{path}: claim {name!r}: there are two of this id")
    return tree["pairs"], found


def _claim(entry: Any) -> Claim:
    entry = _checked(entry, Claim)
    terms = {name: Term(**_checked(entry[name], Term)) for name in TERMS if isinstance(entry.get(name), dict)}
    rising = tuple(Term(**_checked(term, Term)) for term in entry.get("rising", ()))
    return Claim(**entry | terms | {"rising": rising})


def _checked(entry: Any, kind: type) -> dict:
    """A mapping whose keys are fields of a dataclass, of their types, none that it needs missing."""
    if not isinstance(entry, dict):
        raise ValueError(f"{entry!r} is no mapping")
    named = {field.name: field for field in fields(kind)}
    if unknown := [key for key in entry if key not in named]:
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(named)}")
    if missing := [name for name, field in named.items() if field.default is MISSING and name not in entry]:
        raise ValueError(f"missing key {missing[0]!r}")
    for name, value in entry.items():
        allowed = {"rising": list, "value": dict, "minus": dict, "over": dict | float | int}.get(name)
        allowed = allowed or get_type_hints(kind)[name]
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise ValueError(f"{name} is {value!r}: not what a claim has there, see the head of the file")
    return entry


def judge(claim: Claim, results: Results, pairs: list[int]) -> dict:
    """The verdict on a claim, its number and interval: a row of claims.json."""
    row = {"id": claim.id, "says": claim.says, "of": claim.of, "by": claim.by, "rule": claim.rule}
    try:
        draws = {name: of_pairs(results, pairs, term) for name, term in _terms(claim)}
    except NotRunError as missing:
        return row | {"verdict": "not run", "effect": None, "ci95": None, "why": f"{missing} is missing"}
    if not all(np.isfinite(values).all() for values in draws.values()):
        return row | {"verdict": "not run", "effect": None, "ci95": None, "why": "too few problems for an interval"}
    if claim.over is not None:
        return row | _recovered(claim, draws["value"] - draws["minus"], draws.get("over", claim.over) - draws["minus"])
    if claim.rising:
        number = np.diff(np.stack(list(draws.values())), axis=0).min(axis=0)
    else:
        number = draws["value"] - draws.get("minus", 0.0)
    low, high = intervals.interval(number[1:])
    inside = (claim.at_least is None or low > claim.at_least) and (claim.at_most is None or high < claim.at_most)
    found = {"verdict": "holds" if inside else "fails", "effect": float(number[0]), "ci95": [float(low), float(high)]}
    return row | found | {"why": None}


def _terms(claim: Claim) -> list[tuple[str, Term]]:
    """The terms of a claim, by name."""
    named = [("value", claim.value), ("minus", claim.minus), ("over", claim.over)]
    named += [(f"step {i}", term) for i, term in enumerate(claim.rising)]
    return [(name, term) for name, term in named if isinstance(term, Term)]


def _recovered(claim: Claim, won: np.ndarray, lost: np.ndarray) -> dict:
    """The verdict on a recovered share, from what was won and lost, float64[1 + DRAWS] each.

    The interval is shown only where no draw has next to nothing lost, which would make the share anything.
    """
    if lost[0] < LOST:
        return {"verdict": "fails", "effect": None, "ci95": None, "why": f"only {lost[0]:.3f} was lost"}
    low, _ = intervals.interval((won - claim.at_least * lost)[1:])
    ends = intervals.interval(won[1:] / lost[1:]).tolist() if lost.min() >= LOST else None
    verdict = "holds" if low > 0 and intervals.interval(lost[1:])[0] > 0 else "fails"
    return {"verdict": verdict, "effect": float(won[0] / lost[0]), "ci95": ends, "why": None}


def of_pairs(results: Results, pairs: list[int], term: Term) -> np.ndarray:
    """A term's mean over pairs float64[1 + DRAWS]: the estimate, then bootstrap draws.

    Raises NotRunError when a pair lacks the run, ValueError when it has several that the term could mean.
    """
    values = np.stack([_of_pair(results, pair, term) for pair in pairs])
    weights = np.concatenate([np.full((1, len(pairs)), 1 / len(pairs)), intervals.pair_resamples(len(pairs), DRAWS, 1)])
    return np.einsum("dp,pd->d", weights, values)


def _of_pair(results: Results, pair: int, term: Term) -> np.ndarray:
    """A term of one pair, float64[1 + DRAWS], under the resamples of problems."""
    matching = results.where(term.keys, term.stage, pair=pair, epoch=term.epoch, test_set=term.test_set)
    if not matching:
        raise NotRunError(f"{term} of pair {pair}")
    return statistic(results, matching[-1], term)


def statistic(results: Results, record: dict, term: Term) -> np.ndarray:
    """What a term means of a record, float64[1 + DRAWS], under the resamples of problems."""
    name, _, k = term.what.partition("@")
    if name == "pass":
        return _weights(results.array(record, term.mode)) @ results.solved(record, int(k), term.mode)
    if name == "index":
        p, solved = results.array(record, term.mode), results.solved(record, int(k), term.mode)
        weights = _weights(p)
        return passk.polarisation(weights @ p, (weights @ solved)[:, None], [int(k)])[1][:, 0]
    if name == "rest":
        rest = results.array(record, "rest")
        return _weights(rest) @ rest
    if name == "mode entropy":
        entropy = quantities.entropy(results.array(record, "modes"))
        return _weights(entropy) @ entropy
    where = "fork_train" if name.startswith("train") else "fork"
    quantity = name.removeprefix("train ").removeprefix("fork ").replace(" ", "_")
    value, counted = quantities.fork_quantities(results.array(record, where))[quantity]
    weights = _weights(value)
    with np.errstate(invalid="ignore"):
        return (weights @ (value * counted)) / (weights @ counted)


def _weights(values: np.ndarray) -> np.ndarray:
    """Shares of problems float64[1 + DRAWS, n]: equal ones, then resamples, the same for every run."""
    return _shares(len(values))


@lru_cache(maxsize=4)
def _shares(n: int) -> np.ndarray:
    return np.concatenate([np.full((1, n), 1 / n), intervals.resamples(n, DRAWS)])


def line(row: dict) -> str:
    """A row of claims.json as a line."""
    verdict = row["verdict"].upper() if row["verdict"] == "fails" else row["verdict"]
    if row["effect"] is None:
        return f"{verdict:<8}{row['id']:<18}{row['says']} ({row['why']})"
    return f"{verdict:<8}{row['id']:<18}{row['effect']:+.3f} {interval(row):<18}{row['rule']:<16}{row['says']}"


def interval(row: dict) -> str:
    """The interval of a row, in words."""
    return "[too little lost]" if row["ci95"] is None else f"[{row['ci95'][0]:+.3f}, {row['ci95'][1]:+.3f}]"
