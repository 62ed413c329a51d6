"""Which claims hold: experiments/claims.yaml against the last evaluation.

A claim's number is a mean over pairs of seeds and problems, with the 95 % interval of `minifork.statistics.intervals`.
All runs are measured on the same problems. A claim holds if the whole interval lies strictly inside the range that was
fixed beforehand, and fails otherwise. A share that is recovered is judged as what is won beyond that share of what was
lost, which is linear, and only where at least LOST was lost.
"""

import math
from dataclasses import MISSING, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np

from experiments import study
from experiments.estimates import (
    LOST,
    difference_over_pairs,
    interval_text,
    mean_over_pairs,
    pairs_text,
    probability_over_pairs,
    uncertainty_text,
)
from experiments.results import Results, load_results
from minifork import config as configs
from minifork import runs
from minifork.config import read_yaml
from minifork.measuring import quantities
from minifork.schema import Config
from minifork.statistics import intervals
from minifork.storage.files import write_json

FILE = Path(__file__).parent / "claims.yaml"
FORK = {  # what a term can mean of the fork: an array, and a quantity of `quantities.fork_quantities`
    "fork accuracy": ("fork", "accuracy"),
    "fork entropy": ("fork", "entropy"),
    "confidence right": ("fork", "confidence_right"),
    "confidence wrong": ("fork", "confidence_wrong"),
    "train fork accuracy": ("fork_train", "accuracy"),
}
QUANTITIES = (*FORK, "mode entropy", "rest")
PROBABILITIES = ("pass", "fork accuracy", "train fork accuracy", "rest")  # means over problems of numbers in [0, 1]


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
        at_k = name in ("pass", "index") and k.isdecimal() and int(k) >= 1
        if self.stage not in runs.STAGES:
            raise ValueError(f"run has the stage {self.stage!r}: choose {', '.join(runs.STAGES)}")
        if self.what not in QUANTITIES and not at_k:
            raise ValueError(f"what is {self.what!r}: choose pass@K, index@K, {', '.join(QUANTITIES)}")
        if self.mode is not None and not at_k:
            raise ValueError(f"mode is {self.mode!r}: only pass@K and index@K are known for a forced mode")

    @property
    def stage(self) -> str:
        """The stage of the run."""
        return self.run.get("stage", "sft")

    @property
    def is_probability(self) -> bool:
        """Whether it is the mean over problems of a probability."""
        return self.what.partition("@")[0] in PROBABILITIES

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
        ends = [end for end in (self.at_least, self.at_most) if end is not None]
        if not ends:
            raise ValueError("give at_least or at_most: what would refute it?")
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

    @property
    def terms(self) -> dict[str, Term]:
        """The terms of the claim, by name."""
        named = {"value": self.value, "minus": self.minus, "over": self.over}
        named |= {f"step {i}": term for i, term in enumerate(self.rising)}
        return {name: term for name, term in named.items() if isinstance(term, Term)}


class NotRunError(ValueError):
    """A claim's run is missing."""


def claims(config: Config) -> None:
    """Judge every claim about the config's study, print the verdicts, write runs/<task>/claims.json.

    Raises ValueError for a claim that cannot be read, and without a pair to judge.
    """
    wanted, listed = read_claims(FILE)
    listed = [claim for claim in listed if claim.of == config.reproduce.study]
    if not listed:
        print(f"no claims are made about the study {config.reproduce.study}")
        return
    results = load_results(config)
    pairs = results.complete_pairs()
    rows = [judge(claim, results, pairs) for claim in listed]
    print("\n".join(map(line, rows)))
    verdicts = [row["verdict"] for row in rows]
    held, failed = verdicts.count("holds"), verdicts.count("fails")
    provisional = "" if len(pairs) >= wanted else f"; provisional, {wanted} pairs are wanted"
    print(f"{held} of {held + failed} claims hold on {pairs_text(len(pairs))}{provisional}")
    result = runs.made_by(config) | {"study": config.reproduce.study, "pairs": len(pairs), "wanted": wanted}
    write_json(runs.task_folder(config) / "claims.json", result | {"claims": rows, "of": results.fingerprint})


# the file


def read_claims(path: Path) -> tuple[int, list[Claim]]:
    """How many pairs of seeds a verdict needs, and the claims; raises ValueError naming the file and the claim."""
    tree, kinds = read_yaml(path), {"pairs": int, "claims": list}
    if not isinstance(tree, dict) or {k: type(v) for k, v in tree.items()} != kinds or tree["pairs"] < 1:
        raise ValueError(f"{path}: give pairs, a number of 1 or more, and claims, a list")
    listed: dict[str, Claim] = {}
    for entry in tree["claims"]:
        name = entry.get("id") if isinstance(entry, dict) else entry
        try:
            claim = Claim(**_fields(entry, Claim))
            if claim.id in listed:
                raise ValueError("there are two of this id")
        except ValueError as error:
            raise ValueError(f"{path}: claim {name!r}: {error}") from None
        listed[claim.id] = claim
    return tree["pairs"], list(listed.values())


def _fields(entry: Any, kind: type) -> dict[str, Any]:
    """The fields of a dataclass from a mapping; raises ValueError for unknown and missing keys and wrong types."""
    if not isinstance(entry, dict):
        raise ValueError(f"{entry!r} is no mapping")
    named = {field.name: field for field in fields(kind)}
    if unknown := [key for key in entry if key not in named]:
        raise ValueError(f"unknown key {unknown[0]!r}; known are {', '.join(named)}")
    if missing := [name for name, field in named.items() if field.default is MISSING and name not in entry]:
        raise ValueError(f"missing key {missing[0]!r}")
    return {name: _typed(name, value, get_type_hints(kind)[name]) for name, value in entry.items()}


def _typed(name: str, value: Any, hint: Any) -> Any:
    """A field's value as its type, with terms for mappings that stand where a term does."""
    kinds = get_args(hint) or (hint,)
    if Ellipsis in kinds and isinstance(value, list):
        return tuple(Term(**_fields(term, Term)) for term in value)
    if Term in kinds and isinstance(value, dict):
        return Term(**_fields(value, Term))
    if Ellipsis in kinds or type(value) not in kinds:
        raise ValueError(f"{name} is {value!r}: not what a claim has there, see the head of the file")
    return value


# verdicts


def judge(claim: Claim, results: Results, pairs: list[int]) -> dict:
    """The verdict on a claim, its number and interval: a row of claims.json.

    Raises ValueError naming the file and the claim when a term's run cannot be looked up.
    """
    row = {"id": claim.id, "says": claim.says, "of": claim.of, "by": claim.by, "rule": claim.rule}
    try:
        values = {name: over_pairs(results, pairs, term) for name, term in claim.terms.items()}
        if len({array.shape for array in values.values()}) > 1:
            raise ValueError("its terms are about different problems; compare runs on the same ones")
    except NotRunError as missing:
        return row | _verdict("not run", why=f"{missing} is missing")
    except ValueError as error:
        raise ValueError(f"{FILE}: claim {claim.id!r}: {error}") from None
    if not all(np.isfinite(array).all() for array in values.values()):
        return row | _verdict("not run", why="too few problems for an interval")
    if claim.over is not None:
        return row | _recovered(
            claim, values["value"] - values["minus"], values.get("over", claim.over) - values["minus"]
        )
    probabilities = all(term.is_probability for term in claim.terms.values())
    difference = difference_over_pairs if probabilities else lambda one, other: mean_over_pairs(one - other)
    if claim.rising:
        steps = [difference(after, before) for before, after in pairwise(values.values())]
        return row | _judged(claim, steps) | {"steps": steps}
    if claim.minus is not None:
        return row | _judged(claim, [difference(values["value"], values["minus"])])
    return row | _judged(claim, [(probability_over_pairs if probabilities else mean_over_pairs)(values["value"])])


def _judged(claim: Claim, estimates: list[dict]) -> dict:
    """The verdict on estimates that must all lie in the range. Its number is the one that is least inside."""
    margins = [_margin(claim, estimate["ci95"]) for estimate in estimates]
    worst = estimates[margins.index(min(margins))]
    if worst["ci95"] is None:
        return _verdict("fails", worst, f"pairs differ too much for an interval {uncertainty_text(worst, '')}")
    return _verdict("holds" if min(margins) > 0 else "fails", worst)


def _margin(claim: Claim, ends: list[float] | None) -> float:
    """How far an interval lies inside a claim's range; negative where it does not. Where there is none, -inf."""
    if ends is None:
        return -math.inf
    margins = [] if claim.at_least is None else [ends[0] - claim.at_least]
    return min(margins if claim.at_most is None else [*margins, claim.at_most - ends[1]])


def _recovered(claim: Claim, won: np.ndarray, lost: np.ndarray) -> dict:
    """The verdict on a recovered share, from what was won and lost, float64[pairs, n] each."""
    if lost.mean() < LOST:
        return _verdict("fails", why=f"only {lost.mean():.3f} was lost")
    ends, share = intervals.share_interval(won, lost), float(won.mean() / lost.mean())
    if ends is None:
        return _verdict("fails", {"mean": share, "ci95": None}, "what was lost may be nothing")
    beyond, _ = intervals.mean_interval(won - claim.at_least * lost)
    return _verdict("holds" if beyond > 0 else "fails", {"mean": share, "ci95": ends.tolist()})


def _verdict(verdict: str, estimate: dict | None = None, why: str | None = None) -> dict:
    """What a row says beside the claim itself."""
    mean, ends = (estimate["mean"], estimate["ci95"]) if estimate else (None, None)
    return {"verdict": verdict, "effect": mean, "ci95": ends, "why": why}


def over_pairs(results: Results, pairs: list[int], term: Term) -> np.ndarray:
    """The values of a term for every pair and problem, float64[pairs, n].

    Raises NotRunError when a pair lacks the run, ValueError when it has several that the term could mean.
    """
    values = []
    for pair in pairs:
        records = results.where(term.keys, term.stage, pair=pair, epoch=term.epoch, test_set=term.test_set)
        if not records:
            raise NotRunError(f"{term} of pair {pair}")
        values.append(statistic(results, records[-1], term))
    shortest = min(map(len, values))  # every pair has training problems of its own, and not always as many
    return np.stack([array[:shortest] for array in values])


def statistic(results: Results, record: dict, term: Term) -> np.ndarray:
    """The values of a term for every problem of a record, float64[n]; pseudo-values of a statistic that is no mean."""
    name, _, k = term.what.partition("@")
    if name == "pass":
        return results.problem_pass_at_k(record, int(k), term.mode)
    if name == "index":
        p, solved = results.array(record, term.mode), results.problem_pass_at_k(record, int(k), term.mode)
        return quantities.index_values(p, solved, int(k))
    if name in FORK:
        what, quantity = FORK[name]
        return quantities.fork_values(results.array(record, what), quantity)
    return results.array(record, "rest") if name == "rest" else quantities.entropy(results.array(record, "modes"))


def line(row: dict) -> str:
    """A row of claims.json as a line."""
    verdict = row["verdict"].upper() if row["verdict"] == "fails" else row["verdict"]
    if row["effect"] is None:
        return f"{verdict:<8}{row['id']:<18}{row['says']} ({row['why']})"
    return f"{verdict:<8}{row['id']:<18}{row['effect']:+.3f} {ends_text(row):<18}{row['rule']:<16}{row['says']}"


def ends_text(row: dict) -> str:
    """The interval of a row, or why it has none."""
    return f"[{row['why']}]" if row["ci95"] is None else interval_text(row["ci95"])
