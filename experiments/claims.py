"""Which claims hold: experiments/claims.yaml against the last evaluation.

A claim's number is a mean over pairs of seeds, its interval a bootstrap that resamples pairs and problems
(`minifork.passk.hierarchical`), the same problems for all runs. It holds if the whole interval lies strictly inside the
range that was fixed beforehand, and fails otherwise. A share that is recovered is judged as what is won beyond that
share of what was lost, which is linear, and only where at least LOST was lost.
"""

import math
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from experiments import contrast, sweep
from experiments.gap import DRAWS, LOST
from experiments.results import Results, complete_pairs, load
from minifork import config as configs
from minifork import passk, records, runs
from minifork.config import fingerprint, read_yaml
from minifork.evaluate import settings_of
from minifork.schema import Config

FILE = Path(__file__).parent / "claims.yaml"
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
        if self.mode is not None and name not in ("pass", "index"):
            raise ValueError(f"mode is {self.mode!r}: only pass@K and index@K are known for a forced mode")

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
        if self.rising and self.minus is not None:
            raise ValueError("minus has no meaning beside rising, whose number is the smallest step")
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least or at_most: what would refute it?")
        ends = [end for end in (self.at_least, self.at_most) if end is not None]
        if not all(map(math.isfinite, ends)) or ends != sorted(set(ends)):
            raise ValueError(f"no number is {self.rule}")
        if not (sweep.FOLDER / f"{self.of}.yaml").exists() and not self.of.endswith(".yaml"):
            raise ValueError(f"of is {self.of!r}: there is no such sweep in {sweep.FOLDER}")
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
    """Judge every claim about the config's sweep, print the verdicts, write runs/<task>/claims.json.

    Raises ValueError for a claim that cannot be read, for results of another config, and without a pair to judge.
    """
    wanted, listed = read(FILE)
    listed = [claim for claim in listed if claim.of == config.reproduce.sweep]
    if not listed:
        print(f"no claims are made about the sweep {config.reproduce.sweep}")
        return
    results = load(config)
    pairs = complete_pairs(config, results)
    if not pairs:
        raise ValueError(f"{runs.eval_file(config)}: no pair of base and fine-tuned run; see `make reproduce`")
    if results.settings != settings_of(config):
        raise ValueError(f"{runs.eval_file(config)}: made with other settings or code; run `minifork eval` again")
    require_planned(config, results, pairs, {term.run for claim in listed for _, term in _terms(claim)})
    judged = []
    for claim in listed:
        try:
            judged.append(judge(claim, results, pairs))
        except ValueError as error:
            raise ValueError(f"{FILE}: claim {claim.id!r}: {error}") from None
    for row in judged:
        print(line(row))
    held, tested = (sum(row["verdict"] in of for row in judged) for of in (("holds",), ("holds", "fails")))
    provisional = "" if len(pairs) >= wanted else f"; provisional, {wanted} pairs are wanted"
    print(f"{held} of {tested} claims hold on {len(pairs)} pair{'s' * (len(pairs) > 1)} of seeds{provisional}")
    if len(pairs) == 1:
        print("intervals are about problems only: one pair says nothing about seeds")
    result = runs.made_by(config) | {"sweep": config.reproduce.sweep, "pairs": len(pairs), "wanted": wanted}
    result |= {"claims": judged, "of": results.checksum}
    runs.write_json(runs.task_folder(config) / (f"claims-{config.name}.json" if config.name else "claims.json"), result)


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


def _claim(entry: dict) -> Claim:
    entry = dict(_checked(entry, Claim))
    for name in ("value", "minus", "over"):
        if entry.get(name) is not None and not (name == "over" and type(entry[name]) in (int, float)):
            entry[name] = Term(**_checked(entry[name], Term))
    if not isinstance(entry.get("rising", []), list):
        raise ValueError("rising must be a list of terms")
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
    words = list(known)[: 4 if kind is Claim else 2]
    for name in words:
        if not isinstance(entry.get(name), str):
            raise ValueError(f"missing key {name!r}" if name not in entry else f"{name} must be words")
    for name in ("at_least", "at_most", "fork_rate", "epoch"):
        whole = name == "epoch"
        if entry.get(name) is not None and type(entry[name]) not in ((int,) if whole else (int, float)):
            raise ValueError(f"{name} must be a {'whole ' * whole}number, not {entry[name]!r}")
    for name in ("test_set", "mode"):
        if not isinstance(entry.get(name, ""), (str, type(None))):
            raise ValueError(f"{name} must be a word, not {entry[name]!r}")
    return entry


def require_planned(config: Config, results: Results, pairs: list[int], variants: set[str]) -> None:
    """Raise ValueError naming a run of the variants and pairs that is not what the sweep, or `contrast`, plans under
    its name, seeds apart."""
    config = replace(config, name="")  # which names the evaluation, not the runs
    planned = {("base", None): fingerprint(runs.setup(config, "base"))}
    for job in sweep.read(config, [0]):
        run = configs.changed(config, job.overrides)
        planned[runs.variant(run, job.stage), run.sft.fork_rate] = fingerprint(runs.setup(run, job.stage))
    for learned in contrast.RUNS:
        try:
            run = configs.changed(config, learned.overrides)
        except ValueError:
            continue  # a run that the task, or another setting, has not
        planned[runs.variant(run, "rl"), run.sft.fork_rate] = fingerprint(runs.setup(run, "rl"))
    seen = dict(planned)
    for record in results.records:
        own = record["base_seed"] in pairs and record["seed"] in (None, record["base_seed"])
        if not own or record["variant"] not in variants:
            continue
        kind = record["variant"], record["fork_rate"]
        if seen.setdefault(kind, record["setup_hash"]) != record["setup_hash"]:
            other = "the sweep's" if kind in planned else "that of another pair"
            raise ValueError(f"{record['run']} was made with a config that is not {other}; claims would mix them")


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
    low, high = passk.interval(number[1:])
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
    low, _ = passk.interval((won - claim.at_least * lost)[1:])
    ends = passk.interval(won[1:] / lost[1:]).tolist() if lost.min() >= LOST else None
    verdict = "holds" if low > 0 and passk.interval(lost[1:])[0] > 0 else "fails"
    return {"verdict": verdict, "effect": float(won[0] / lost[0]), "ci95": ends, "why": None}


def of_pairs(results: Results, pairs: list[int], term: Term) -> np.ndarray:
    """A term's mean over pairs float64[1 + DRAWS]: the estimate, then bootstrap draws.

    Raises NotRunError when a pair lacks the run, ValueError when it has several that the term could mean.
    """
    values = np.stack([_of_pair(results, pair, term) for pair in pairs])
    weights = np.concatenate([np.full((1, len(pairs)), 1 / len(pairs)), passk.pair_resamples(len(pairs), DRAWS, 1)])
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
    if len(rates := sorted({record["fork_rate"] or 0 for record in found})) > 1:
        raise ValueError(f"{term} was run at FORK_RATEs {', '.join(f'{rate:g}' for rate in rates)}: name one")
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
        return f"{verdict:<8}{row['id']:<18}{row['says']} ({row['why']})"
    return f"{verdict:<8}{row['id']:<18}{row['effect']:+.3f} {interval(row):<18}{row['rule']:<16}{row['says']}"


def interval(row: dict) -> str:
    """The interval of a row, in words."""
    return "[too little lost]" if row["ci95"] is None else f"[{row['ci95'][0]:+.3f}, {row['ci95'][1]:+.3f}]"
