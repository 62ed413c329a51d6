"""`make claims`: verdicts on the claims of experiments/claims.yaml.

They read the measurements that are kept with the runs, those made under the settings of the current config, and what
studies have written. Nothing is measured here.

A claim's number is a mean over pairs of seeds and problems, with an interval of `minifork.statistics.intervals`. All
runs are measured on the same problems. A claim **holds** if the whole interval lies strictly inside the range that was
fixed beforehand, is **refuted** if it lies wholly outside, and is **undecided** otherwise. A recovered share (gain /
shrinkage) is judged by gain - share * shrinkage, which is linear, and only where the coverage shrinkage is at least
MIN_SHRINKAGE.
"""

import math
from itertools import pairwise
from pathlib import Path

import numpy as np

from experiments import estimates
from experiments.claims import FILE, LEVEL, PRIMARY_LEVEL, Claim, NotRunError, Term, read_claims
from experiments.results import Results, load_results
from minifork import runs
from minifork.schema import Config
from minifork.statistics import intervals
from minifork.storage.files import write_sealed_json

HOLDS, REFUTED, UNDECIDED, NOT_RUN = "holds", "refuted", "undecided", "not run"


def claims(config: Config) -> None:
    """Judge every claim about the config's study, print the verdicts, write runs/<task>/claims-<study>.json.

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
    print(verdicts_text(rows))
    provisional = "" if len(pairs) >= pairs_needed else f"; provisional, {pairs_needed} pairs are wanted"
    print(f"{count_text(rows)} on {estimates.pairs_text(len(pairs))}{provisional}")
    result = {
        **runs.made_by(config),
        "train_minutes": results.train_minutes,
        "study": config.reproduce.study,
        "seeds": pairs,
        "wanted": pairs_needed,
        "of": results.fingerprint,
        "claims": rows,
    }
    write_sealed_json(verdicts_file(config), result)


def verdicts_file(config: Config) -> Path:
    """The file of the verdicts about the config's study."""
    study = Path(config.reproduce.study).stem  # a study may be given as a path
    return runs.task_folder(config) / f"claims-{study}.json"


def verdicts_text(rows: list[dict]) -> str:
    """Rows of such a file as lines, primary claims first."""
    lines = []
    for name, level in (("primary", PRIMARY_LEVEL), ("descriptive", LEVEL)):
        if at_level := [row for row in rows if row["level"] == level]:
            lines += [f"{name} claims, {100 * level:g} % intervals", *map(claim_line, at_level)]
    return "\n".join(lines)


def count_text(rows: list[dict]) -> str:
    """How many claims of rows have each verdict."""
    verdicts = [row["verdict"] for row in rows]
    judged = len(verdicts) - verdicts.count(NOT_RUN)
    counts = [f"{count} {name}" for name in (REFUTED, UNDECIDED) if (count := verdicts.count(name))]
    return ", ".join([f"{verdicts.count(HOLDS)} of {judged} claims hold", *counts])


def claim_line(row: dict) -> str:
    """A row as a line."""
    follows = f" (follows from {row['follows']})" if row["follows"] else ""
    start = f"{row['verdict']:<10}{row['id']:<22}"
    if row["effect"] is None:
        return f"{start}{row['says']} ({row['why']})"
    return f"{start}{row['effect']:+.3f} {ends_text(row):<18}{row['rule']:<16}{row['says']}{follows}"


def ends_text(row: dict) -> str:
    """The interval of a row, or the reason why it has none."""
    return f"[{row['why']}]" if row["interval"] is None else estimates.interval_text(row["interval"])


def judge(claim: Claim, results: Results, pairs: list[int]) -> dict:
    """The verdict on a claim, its number and interval: a row of the file.

    Raises ValueError naming the file and the claim when a term's run cannot be looked up.
    """
    described = ("id", "says", "of", "by", "rule", "level", "follows")
    row = {name: getattr(claim, name) for name in described}
    try:
        if claim.reported:
            if not (written := claim.reported.read(results.config, pairs)):
                return row | _verdict(NOT_RUN, why="too small to tell")
            return row | _interval_verdict(claim, written)
        values = {name: values_over_pairs(results, pairs, term) for name, term in claim.terms.items()}
        if len({array.shape for array in values.values()}) > 1:
            raise ValueError("its terms are about different problems; compare runs on the same ones")
    except NotRunError as error:
        return row | _verdict(NOT_RUN, why=f"{error} is missing")
    except ValueError as error:
        raise ValueError(f"{FILE}: claim {claim.id!r}: {error}") from None
    if not all(np.isfinite(array).all() for array in values.values()):
        return row | _verdict(NOT_RUN, why="too few problems for an interval")
    if claim.over is not None:
        ceiling = values["over"] if isinstance(claim.over, Term) else claim.over
        return row | _share_verdict(claim, values["value"] - values["minus"], ceiling - values["minus"])
    effects = _effects(claim, values)
    return row | _interval_verdict(claim, effects) | ({"steps": effects} if len(effects) > 1 else {})


def values_over_pairs(results: Results, pairs: list[int], term: Term) -> np.ndarray:
    """The values or pseudo-values of a term for every pair and problem, float64[pairs, n].

    Raises NotRunError when a pair lacks the run, ValueError when it has several that the term could mean.
    """
    values = []
    for pair in pairs:
        records = results.select(term.keys, term.stage, pair=pair, epoch=term.epoch, test_set=term.test_set)
        if not records or (term.epoch is None and not results.is_last(records[-1])):
            raise NotRunError(f"{term} of pair {pair}")
        values.append(term.values(results, records[-1]))
    shortest = min(map(len, values))  # only "fork_train" differs in length between pairs
    return np.stack([array[:shortest] for array in values])


def _effects(claim: Claim, values: dict[str, np.ndarray]) -> list[dict]:
    """Estimates that must lie in a claim's range.

    They are of value, of value - minus (of all pairs or of each), or of every step of rising.
    """
    probabilities = all(term.quantity.probability for term in claim.terms.values())
    parts = {name: np.split(array, len(array) if claim.each else 1) for name, array in values.items()}
    if claim.value and not claim.minus:
        mean = estimates.probability_over_pairs if probabilities else estimates.mean_over_pairs
        return [mean(part, claim.level) for part in parts["value"]]
    steps = pairwise(values.values()) if claim.rising else zip(parts["minus"], parts["value"], strict=True)
    if probabilities:
        return [estimates.difference_over_pairs(after, before, claim.level) for before, after in steps]
    return [estimates.mean_over_pairs(after - before, claim.level) for before, after in steps]


def _interval_verdict(claim: Claim, effects: list[dict]) -> dict:
    """The verdict on estimates that must all lie in the range. Its number is the one that is least inside it.

    Raises ValueError for an estimate without an interval of the claim's level.
    """
    key = estimates.interval_key(claim.level)
    if any(key not in effect for effect in effects):
        raise ValueError(f"{FILE}: claim {claim.id!r}: the study has written no {key}, which a primary claim needs")
    low, high = claim.ends
    refuting = [effect for effect in effects if effect[key] and (effect[key][1] <= low or effect[key][0] >= high)]
    worst = min(refuting or effects, key=lambda effect: _margin(claim, effect[key]))
    if worst[key] is None:
        values = ", ".join(f"{value:.3f}" for value in worst["by_pair"])
        return _verdict(UNDECIDED, worst["mean"], why=f"pairs differ too much for an interval (pairs: {values})")
    verdict = REFUTED if refuting else HOLDS if _margin(claim, worst[key]) > 0 else UNDECIDED
    return _verdict(verdict, worst["mean"], worst[key])


def _margin(claim: Claim, interval: list[float] | None) -> float:
    """The margin between an interval and the ends of a claim's range; negative outside it, -inf without interval."""
    if interval is None:
        return -math.inf
    low, high = claim.ends
    return min(interval[0] - low, high - interval[1])


def _share_verdict(claim: Claim, gain: np.ndarray, shrinkage: np.ndarray) -> dict:
    """The verdict on the share gain / shrinkage that is recovered, from float64[pairs, n] each."""
    if shrinkage.mean() < estimates.MIN_SHRINKAGE:
        return _verdict(UNDECIDED, why=f"coverage shrank by only {shrinkage.mean():.3f}: too little to recover")
    ends, share = intervals.share_interval(gain, shrinkage, claim.level), float(gain.mean() / shrinkage.mean())
    if ends is None:
        return _verdict(UNDECIDED, share, why="the shrinkage may be zero")
    # gain > at_least x shrinkage is linear, so the verdict needs no division. The interval that is shown is Fieller's.
    low, high = intervals.mean_interval(gain - claim.at_least * shrinkage, claim.level)
    return _verdict(HOLDS if low > 0 else REFUTED if high <= 0 else UNDECIDED, share, ends.tolist())


def _verdict(verdict: str, effect: float | None = None, interval: list | None = None, why: str | None = None) -> dict:
    """The entries of a row beside the claim itself."""
    return {"verdict": verdict, "effect": effect, "interval": interval, "why": why}
