"""The claims of experiments/claims.yaml: what each compares, and the range in which it holds.

`experiments.verdicts` judges them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np

from experiments.estimates import mean_over_pairs, probability_over_pairs
from experiments.results import Results
from minifork import config as configs
from minifork import runs
from minifork.measuring.quantities import entropy, fork_values, sigma_values
from minifork.schema import Config
from minifork.storage.files import fingerprint, is_sealed, read_json

FILE = Path(__file__).parent / "claims.yaml"
LEVEL = 0.95  # of the intervals of descriptive claims
PRIMARY_LEVEL = 0.995  # of those of primary claims, so that all of MAX_PRIMARY hold together with probability .95
MAX_PRIMARY = 10


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


def _of_array(name: str, values: Callable = np.asarray, probability: bool = False) -> Quantity:
    """A quantity that is a function of one array of a record, by default the array itself."""
    return Quantity(lambda results, record, k, mode: values(results.array(record, name)), probability=probability)


def _of_fork(quantity: str, array: str = "fork", probability: bool = False) -> Quantity:
    """A quantity of `fork_values`, at the forks of an array: "fork" (test) or "fork_train"."""
    return _of_array(array, partial(fork_values, quantity=quantity), probability)


# To add a quantity: a line here, its name at `what` in claims.yaml, its value in tests/experiments/test_claims.py.
QUANTITIES = {
    "pass": Quantity(Results.record_pass_at_k, at_k=True, moded=True, probability=True),
    "index": Quantity(Results.record_index, at_k=True, moded=True),
    "skill": Quantity(lambda results, record, k, mode: results.skill(record, mode), moded=True, probability=True),
    "fork accuracy": _of_fork("accuracy", probability=True),
    "fork entropy": _of_fork("entropy"),
    "confidence right": _of_fork("confidence_right"),
    "confidence wrong": _of_fork("confidence_wrong"),
    "train fork accuracy": _of_fork("accuracy", "fork_train", probability=True),
    "sigma": _of_array("fork", sigma_values),
    "train sigma": _of_array("fork_train", sigma_values),
    "mode entropy": _of_array("modes", entropy),
    "rest": _of_array("rest", probability=True),
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

    def values(self, results: Results, record: dict) -> np.ndarray:
        """The values or pseudo-values of the quantity for every problem of a record, float64[n]."""
        return self.quantity.values(results, record, self.k, self.mode)

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


def estimate_terms(results: Results, records: Sequence[dict], terms: Iterable[Term]) -> dict[str, dict]:
    """Estimates of the quantities of terms from the records of all pairs; those in a mode have it in their name."""
    estimates = {}
    for term in terms:
        values = np.stack([term.values(results, record) for record in records])
        estimate = probability_over_pairs if term.quantity.probability else mean_over_pairs
        estimates[f"{term.what} {term.mode or ''}".strip()] = estimate(values)
    return estimates


class NotRunError(ValueError):
    """A claim's run is missing."""


@dataclass(frozen=True)
class Reported:
    """What a study has written: entry ``what`` of the row with the values ``row`` in the list ``rows``.

    It is an estimate, or a list of estimates that must all lie in the range.
    """

    file: str  # in runs/<task>/, without .json
    rows: str
    row: dict
    what: str

    def read(self, config: Config, pairs: list[int]) -> list[dict]:
        """The estimates, none where the study could tell none.

        Raises NotRunError unless the study has written its file for these pairs and settings, and ValueError without
        the row.
        """
        path = runs.task_folder(config) / f"{self.file}.json"
        about = {"seeds": pairs, "settings": fingerprint(asdict(config.eval))}
        stored = read_json(path) if path.exists() else {}
        if not (about.items() <= stored.items() and is_sealed(stored)):
            raise NotRunError(f"{path} with these settings, of pairs {', '.join(map(str, pairs))},")
        matching = [row for row in stored.get(self.rows, []) if self.row.items() <= row.items()]
        if len(matching) != 1 or self.what not in matching[0]:
            raise ValueError(f"{path} must have one row with {self.row} and {self.what} in {self.rows}")
        written = matching[0][self.what]
        return written if isinstance(written, list) else [written] if written else []


@dataclass(frozen=True)
class Claim:
    """A claim of the file with its terms. Raises ValueError for a range or terms that do not fit together.

    primary: it is judged at PRIMARY_LEVEL; others are descriptive. each: the value must lie in the range for each pair
    by itself. follows: the quantity that it follows from, as other claims do.
    """

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
    primary: bool = False
    each: bool = False
    follows: str = ""

    def __post_init__(self) -> None:
        ends = [end for end in (self.at_least, self.at_most) if end is not None]
        if not ends or ends != sorted(set(ends)) or not all(map(math.isfinite, ends)):
            raise ValueError("give at_least or at_most, or both with at_least below at_most")
        ways = [isinstance(self.value, Term), len(self.rising) > 1, self.reported is not None]
        if not isinstance(self.minus, Term | None) or not isinstance(self.over, Term | float | int | None):
            raise ValueError("minus must be a term, over a term or a number")
        if sum(ways) != 1 or self.minus and not self.value:
            raise ValueError("give value, which may have minus, or rising with at least two terms, or reported")
        if self.over is not None and (self.minus is None or self.at_least is None or self.at_most is not None):
            raise ValueError("over needs minus and at_least only: (value - minus) / (over - minus) >= at_least")
        if self.each and (not self.value or self.over is not None):
            raise ValueError("each needs value, which may have minus")

    @property
    def level(self) -> float:
        """The level of the interval that decides."""
        return PRIMARY_LEVEL if self.primary else LEVEL

    @property
    def ends(self) -> tuple[float, float]:
        """The ends of the range, infinite where one is left out."""
        low = -math.inf if self.at_least is None else self.at_least
        return low, math.inf if self.at_most is None else self.at_most

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


def read_claims(path: Path) -> tuple[int, list[Claim]]:
    """The number of pairs that a verdict needs, and the claims. Raises ValueError naming the file and the claim."""
    tree, all_claims = configs.read_yaml(path), []
    if not isinstance(tree, dict) or not isinstance(tree.get("pairs"), int) or not isinstance(tree.get("claims"), list):
        raise ValueError(f"{path}: give pairs, a number, and claims, a list")
    for entry in tree["claims"]:
        try:
            all_claims.append(_read_claim(entry))
        except (AttributeError, TypeError, ValueError) as error:  # TypeError: unknown or missing keys
            reason = str(error).replace("\n", " ")
            raise ValueError(f"{path}: claim {entry!r:.60}: {reason}") from None
    if (primary := sum(claim.primary for claim in all_claims)) > MAX_PRIMARY:
        raise ValueError(f"{path}: {primary} claims are primary: at most {MAX_PRIMARY} can be")
    return tree["pairs"], all_claims


def _read_claim(entry: dict) -> Claim:
    """A claim of the file, a term for every mapping in it."""
    terms = {name: (Reported if name == "reported" else Term)(**value)
             for name, value in entry.items() if isinstance(value, dict)}  # fmt: skip
    return Claim(**entry | terms | {"rising": tuple(Term(**term) for term in entry.get("rising", ()))})
