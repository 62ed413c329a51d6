"""Verdicts on the claims of experiments/claims.yaml.

They read the measurements that are kept with the runs, those made under the settings of the current config, and what
studies have written. Nothing is measured here.

A claim's number is a mean over pairs of seeds and problems, with the 95 % interval of `minifork.statistics.intervals`.
All runs are measured on the same problems. A claim holds if the whole interval lies strictly inside the range that was
fixed beforehand. Otherwise it fails. A recovered share (gain / shrinkage) is judged by gain - share * shrinkage, which
is linear, and only where the coverage shrinkage is at least MIN_SHRINKAGE.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from experiments import estimates
from experiments.results import Results, load_results
from minifork import config as configs
from minifork import runs
from minifork.config import read_yaml
from minifork.measuring import quantities
from minifork.schema import Config
from minifork.statistics import intervals
from minifork.storage.files import read_json, write_json

FILE = Path(__file__).parent / "claims.yaml"


@dataclass(frozen=True)
class Quantity:
    """A quantity of a run that a term can name.

    values: a function of results, a record, k and a forced mode (None if free) that returns a value or pseudo-value for
    every problem, float64[n]. at_k: true if it is written with its k, as in pass@16. moded: true if it may have a mode.
    All others ignore k and mode. probability: true if its values are probabilities, whose mean has an interval inside
    [0, 1].
    """

    values: Callable[[Results, dict, int, str | None], np.ndarray]
    at_k: bool = False
    moded: bool = False
    probability: bool = False


def _index(results: Results, record: dict, k: int, mode: str | None) -> np.ndarray:
    p, passes = results.problem_p(record, mode), results.record_pass_at_k(record, k, mode)
    return quantities.index_values(p, passes, k)


def _fork_quantity(array: str, quantity: str, probability: bool = False) -> Quantity:
    """A quantity of `quantities.fork_values`, at the forks of an array: "fork" (test) or "fork_train"."""

    def values(results: Results, record: dict, k: int, mode: str | None) -> np.ndarray:
        return quantities.fork_values(results.array(record, array), quantity)

    return Quantity(values, probability=probability)


def _sigma(array: str) -> Quantity:
    """sigma at the forks of an array."""
    return Quantity(lambda results, record, k, mode: quantities.sigma_values(results.array(record, array)))


# To add a quantity: a line here, its name at `what` in claims.yaml, its value in tests/experiments/test_claims.py.
QUANTITIES = {
    "pass": Quantity(Results.record_pass_at_k, at_k=True, moded=True, probability=True),
    "index": Quantity(_index, at_k=True, moded=True),
    "skill": Quantity(lambda results, record, k, mode: results.skill(record, mode), moded=True, probability=True),
    "fork accuracy": _fork_quantity("fork", "accuracy", probability=True),
    "fork entropy": _fork_quantity("fork", "entropy"),
    "confidence right": _fork_quantity("fork", "confidence_right"),
    "confidence wrong": _fork_quantity("fork", "confidence_wrong"),
    "train fork accuracy": _fork_quantity("fork_train", "accuracy", probability=True),
    "sigma": _sigma("fork"),
    "train sigma": _sigma("fork_train"),
    "mode entropy": Quantity(lambda results, record, k, mode: quantities.entropy(results.array(record, "modes"))),
    "rest": Quantity(lambda results, record, k, mode: results.array(record, "rest"), probability=True),
}


@dataclass(frozen=True)
class Term:
    """A quantity of a run, as experiments/claims.yaml describes it. Raises ValueError for one that does not exist."""

    run: dict
    what: str
    epoch: int | None = None
    test_set: str = "plain"
    mode: str | None = None

    def __post_init__(self) -> None:
        name, at, k = self.what.partition("@")
        quantity = QUANTITIES.get(name)
        valid = quantity is not None and (quantity.moded or not self.mode)
        if quantity and quantity.at_k:
            valid &= k.isdecimal() and int(k) >= 1
        else:
            valid &= not at
        if not valid:
            names = ", ".join(name for name, quantity in QUANTITIES.items() if not quantity.moded)
            raise ValueError(f"what is {self.what!r}: choose pass@K, index@K, skill (these may have a mode), {names}")
        if self.stage not in runs.STAGES:
            raise ValueError(f"run has the stage {self.stage!r}: choose {', '.join(runs.STAGES)}")

    @property
    def quantity(self) -> Quantity:
        """The quantity that ``what`` names."""
        return QUANTITIES[self.what.partition("@")[0]]

    @property
    def k(self) -> int:
        """The k of pass@K and index@K, 0 for other quantities."""
        return int(self.what.partition("@")[2] or 0)

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
class Reported:
    """An estimate that a study has written: entry ``what`` of the row with the values ``row`` in the list ``rows``."""

    file: str  # in runs/<task>/, without .json
    rows: str
    row: dict
    what: str

    def read(self, folder: Path) -> dict | None:
        """The estimate, None where there is none. Raises NotRunError without the file, ValueError without the row."""
        path = folder / f"{self.file}.json"
        if not path.exists():
            raise NotRunError(path)
        matching = [row for row in read_json(path).get(self.rows, []) if self.row.items() <= row.items()]
        if len(matching) != 1 or self.what not in matching[0]:
            raise ValueError(f"{path} must have one row with {self.row} and {self.what} in {self.rows}")
        return matching[0][self.what]


@dataclass(frozen=True)
class Claim:
    """A claim of the file with its terms. Raises ValueError for a range or terms that do not fit together."""

    id: str
    says: str
    of: str
    by: str
    value: Term | None = None
    minus: Term | None = None
    over: Term | float | None = None
    rising: tuple[Term, ...] = ()
    reported: Reported | None = None
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        ends = [end for end in (self.at_least, self.at_most) if end is not None]
        if not ends or ends != sorted(set(ends)) or not all(map(math.isfinite, ends)):
            raise ValueError("give at_least or at_most, or both with at_least below at_most")
        ways = [isinstance(self.value, Term), len(self.rising) > 1, self.reported is not None]
        if sum(ways) != 1 or self.minus and not self.value:
            raise ValueError("give value, which may have minus, or rising with at least two terms, or reported")
        if self.over is not None and (self.minus is None or self.at_least is None or self.at_most is not None):
            raise ValueError("over needs minus and at_least only: (value - minus) / (over - minus) >= at_least")

    @property
    def rule(self) -> str:
        """The range, in words."""
        if self.at_least is not None and self.at_most is not None:
            return f"in ({self.at_least:g}, {self.at_most:g})"
        return f"> {self.at_least:g}" if self.at_most is None else f"< {self.at_most:g}"

    @property
    def terms(self) -> dict[str, Term]:
        """The terms of the claim, by name."""
        terms = {"value": self.value, "minus": self.minus, "over": self.over}
        terms |= {f"step {i}": term for i, term in enumerate(self.rising)}
        return {name: term for name, term in terms.items() if isinstance(term, Term)}


class NotRunError(ValueError):
    """A claim's run is missing."""


def claims(config: Config) -> None:
    """Judge every claim about the config's study, print the verdicts, write runs/<task>/claims.json.

    Raises ValueError for a claim that cannot be read, and without a pair to judge.
    """
    pairs_needed, all_claims = read_claims(FILE)
    of_study = [claim for claim in all_claims if claim.of == config.reproduce.study]
    if not of_study:
        print(f"no claims are made about the study {config.reproduce.study}")
        return
    results = load_results(config)
    pairs = results.complete_pairs()
    rows = [judge(claim, results, pairs) for claim in of_study]
    print("\n".join(map(claim_line, rows)))
    verdicts = [row["verdict"] for row in rows]
    count, judgeable = verdicts.count("holds"), len(verdicts) - verdicts.count("not run")
    provisional = "" if len(pairs) >= pairs_needed else f"; provisional, {pairs_needed} pairs are wanted"
    print(f"{count} of {judgeable} claims hold on {estimates.pairs_text(len(pairs))}{provisional}")
    result = runs.made_by(config) | {"study": config.reproduce.study, "pairs": len(pairs), "wanted": pairs_needed}
    write_json(runs.task_folder(config) / "claims.json", result | {"claims": rows, "of": results.fingerprint})


def read_claims(path: Path) -> tuple[int, list[Claim]]:
    """The number of pairs that a verdict needs, and the claims. Raises ValueError naming the file and the claim."""
    tree, all_claims = read_yaml(path), []
    if not isinstance(tree, dict) or not isinstance(tree.get("pairs"), int) or not isinstance(tree.get("claims"), list):
        raise ValueError(f"{path}: give pairs, a number, and claims, a list")
    for entry in tree["claims"]:
        try:
            all_claims.append(_read_claim(entry))
        except (AttributeError, TypeError, ValueError) as error:  # TypeError: unknown or missing keys
            reason = str(error).replace("\n", " ")
            raise ValueError(f"{path}: claim {entry!r:.60}: {reason}") from None
    return tree["pairs"], all_claims


def _read_claim(entry: dict) -> Claim:
    """A claim of the file, a term for every mapping in it."""
    terms = {name: (Reported if name == "reported" else Term)(**value)
             for name, value in entry.items() if isinstance(value, dict)}  # fmt: skip
    return Claim(**entry | terms | {"rising": tuple(Term(**term) for term in entry.get("rising", ()))})


# verdicts


def judge(claim: Claim, results: Results, pairs: list[int]) -> dict:
    """The verdict on a claim, its number and interval: a row of claims.json.

    Raises ValueError naming the file and the claim when a term's run cannot be looked up.
    """
    row = {"id": claim.id, "says": claim.says, "of": claim.of, "by": claim.by, "rule": claim.rule}
    try:
        if claim.reported:
            estimate = claim.reported.read(runs.task_folder(results.config))
            return row | (
                _interval_verdict(claim, [estimate]) if estimate else _verdict("not run", why="too small to tell")
            )
        values = {name: values_over_pairs(results, pairs, term) for name, term in claim.terms.items()}
        if len({array.shape for array in values.values()}) > 1:
            raise ValueError("its terms are about different problems; compare runs on the same ones")
    except NotRunError as error:
        return row | _verdict("not run", why=f"{error} is missing")
    except ValueError as error:
        raise ValueError(f"{FILE}: claim {claim.id!r}: {error}") from None
    if not all(np.isfinite(array).all() for array in values.values()):
        return row | _verdict("not run", why="too few problems for an interval")
    if claim.over is not None:
        ceiling = values["over"] if isinstance(claim.over, Term) else claim.over
        return row | _share_verdict(claim, values["value"] - values["minus"], ceiling - values["minus"])
    effects = _effects(claim, values)
    return row | _interval_verdict(claim, effects) | ({"steps": effects} if claim.rising else {})


def _effects(claim: Claim, values: dict[str, np.ndarray]) -> list[dict]:
    """Estimates that must lie in a claim's range: of value, of value - minus, or of every step of rising."""
    probabilities = all(term.quantity.probability for term in claim.terms.values())
    if claim.value and not claim.minus:
        mean = estimates.probability_over_pairs if probabilities else estimates.mean_over_pairs
        return [mean(values["value"])]
    steps = pairwise(values.values()) if claim.rising else [(values["minus"], values["value"])]
    if probabilities:
        return [estimates.difference_over_pairs(after, before) for before, after in steps]
    return [estimates.mean_over_pairs(after - before) for before, after in steps]


def _interval_verdict(claim: Claim, effects: list[dict]) -> dict:
    """The verdict on estimates that must all lie in the range. Its number is the one that is least inside."""
    margins = [_margin(claim, effect["ci95"]) for effect in effects]
    worst = effects[margins.index(min(margins))]
    if worst["ci95"] is None:
        return _verdict(
            "fails", worst, f"pairs differ too much for an interval {estimates.uncertainty_text(worst, '')}"
        )
    return _verdict("holds" if min(margins) > 0 else "fails", worst)


def _margin(claim: Claim, ends: list[float] | None) -> float:
    """The margin between an interval and the ends of a claim's range; negative outside it, -inf without interval."""
    if ends is None:
        return -math.inf
    above = math.inf if claim.at_least is None else ends[0] - claim.at_least
    return above if claim.at_most is None else min(above, claim.at_most - ends[1])


def _share_verdict(claim: Claim, gain: np.ndarray, shrinkage: np.ndarray) -> dict:
    """The verdict on the share gain / shrinkage that is recovered, from float64[pairs, n] each."""
    if shrinkage.mean() < estimates.MIN_SHRINKAGE:
        return _verdict("fails", why=f"coverage shrank by only {shrinkage.mean():.3f}: too little to recover")
    ends, share = intervals.share_interval(gain, shrinkage), float(gain.mean() / shrinkage.mean())
    if ends is None:
        return _verdict("fails", {"mean": share, "ci95": None}, "the shrinkage may be zero")
    # gain > at_least x shrinkage is linear, so the verdict needs no division. The interval that is shown is Fieller's.
    low, _ = intervals.mean_interval(gain - claim.at_least * shrinkage)
    return _verdict("holds" if low > 0 else "fails", {"mean": share, "ci95": ends.tolist()})


def _verdict(verdict: str, estimate: dict | None = None, why: str | None = None) -> dict:
    """The entries of a row beside the claim itself."""
    mean, ends = (estimate["mean"], estimate["ci95"]) if estimate else (None, None)
    return {"verdict": verdict, "effect": mean, "ci95": ends, "why": why}


def values_over_pairs(results: Results, pairs: list[int], term: Term) -> np.ndarray:
    """The values or pseudo-values of a term for every pair and problem, float64[pairs, n].

    Raises NotRunError when a pair lacks the run, ValueError when it has several that the term could mean.
    """
    values = []
    for pair in pairs:
        records = results.select(term.keys, term.stage, pair=pair, epoch=term.epoch, test_set=term.test_set)
        if not records:
            raise NotRunError(f"{term} of pair {pair}")
        values.append(term.quantity.values(results, records[-1], term.k, term.mode))
    shortest = min(map(len, values))  # only "fork_train" differs in length between pairs
    return np.stack([array[:shortest] for array in values])


def claim_line(row: dict) -> str:
    """A row of claims.json as a line."""
    verdict = row["verdict"].upper() if row["verdict"] == "fails" else row["verdict"]
    if row["effect"] is None:
        return f"{verdict:<8}{row['id']:<18}{row['says']} ({row['why']})"
    return f"{verdict:<8}{row['id']:<18}{row['effect']:+.3f} {ends_text(row):<18}{row['rule']:<16}{row['says']}"


def ends_text(row: dict) -> str:
    """The interval of a row, or the reason why it has none."""
    return f"[{row['why']}]" if row["ci95"] is None else estimates.interval_text(row["ci95"])
