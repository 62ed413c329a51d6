"""`make law`: pass@k of every checkpoint as the coverage law predicts it from r and sigma, against the exact curve.

The law (`minifork.statistics.law`) is about traces that meet a fork which nothing decides, so about forced FWD. It
needs an r that hardly varies. Its scope is a mean r of MIN_R or more; other checkpoints are shown, not scored. Beside
the runs of experiments/studies/law.yaml, every finished run of the task is scored, of any study. As the branch is a
fair coin, the exact curve is averaged over which branch is right ("symmetrised"). That removes most of the luck of
1,000 problems. Where problems differ in their number of branches, each number is scored by itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from operator import itemgetter

import numpy as np

from experiments.claims import PRIMARY_LEVEL
from experiments.curves import has_fork, symmetrised
from experiments.estimates import mean_over_pairs, table
from experiments.results import Results, load_results, write_result
from experiments.studies.steps import evaluate_and_check, make_runs, print_minutes
from experiments.study import grouped
from minifork import config as configs
from minifork import runs
from minifork.measuring.quantities import fork_statistics, kurtosis_values, sigma_values
from minifork.schema import Config
from minifork.statistics import law as laws
from minifork.statistics.passk import problem_pass_at_k

KS = (4, 16, 64, 256, 1024)
BANDS = (0, 2, 5, 8, np.inf)  # of sigma
KURTOSIS = (3.45, -0.125)  # of the mixture, as a line in sigma, fixed before the runs that it is judged on
FROM_MOMENTS = {
    "law, from moments": laws.fork_pass_at_k,
    "Beta": laws.beta_pass_at_k,
    "logit-normal": laws.logit_normal_pass_at_k,
    "two points": laws.two_point_pass_at_k,
}


def law(config: Config) -> None:
    """Run and evaluate what is missing, predict, compare; writes law.json and law-rows.json (every checkpoint).

    Raises ValueError naming a stage that failed, and when no checkpoint is in the law's scope.
    """
    with print_minutes("law"):
        make_runs(config, "law")
        rows: list[dict] = []
        own_data = config.data.printed("shuffled")
        for data in dict.fromkeys(run.config.data.printed("shuffled") for run in runs.all_runs(config)):
            of_data = replace(config, data=data)
            evaluate_and_check(of_data)
            rows += [{"own": data == own_data} | row for row in checkpoint_rows(load_results(of_data))]
        scored = [row for row in rows if row["r"] >= laws.MIN_R]
        if not scored:
            folder = runs.task_folder(config)
            raise ValueError(f"{folder}: no checkpoint has a mean r of {laws.MIN_R} or more at a fork; train on forks")
        bands = [band_row(scored, low, high) for low, high in zip(BANDS, BANDS[1:], strict=False)]
        write_result(config, "law", {"ks": KS, "bands": bands, "claims": claim_rows(scored)})
        write_result(config, "law-rows", {"ks": KS, "rows": rows})
        print(table([band for band in bands if band["checkpoints"]], "{median:.3f} (worst {worst:.3f})".format_map))


def checkpoint_rows(results: Results) -> Iterator[dict]:
    """A row of `law_row` for every checkpoint of a run and every number of branches, over the pairs of seeds."""
    plain = [record for record in results.records if has_fork(record) and record["test_set"] == "plain"]
    plain = [record for record in plain if record["base_seed"] in results.config.reproduce.seeds]
    plain = [record for record in plain if record["seed"] in (None, record["base_seed"])]  # others are no pair
    groups = grouped(plain, lambda record: (record["stage"], configs.tag_text(record["tags"]), record["epoch"]))
    for (stage, name, epoch), records in groups.items():
        forks, rs = ([results.array(record, array) for record in records] for array in ("fork", "r"))
        count = (forks[0] > 0).sum(axis=1)
        for branches in np.unique(count[count > 1]):
            rows = count == branches
            of_pairs = [(fork[rows][:, :branches], r[rows]) for fork, r in zip(forks, rs, strict=True)]
            place = {"stage": stage, "run": name, "epoch": epoch, "branches": int(branches), "pairs": len(records)}
            if stage == "sft" and records[0]["tags"].keys() <= {"sft.fork_rate"}:
                place["plain_fork_rate"] = records[0]["fork_rate"]
            free = [free_curves(results, record, rows) for record in records]
            yield place | law_row(of_pairs) | mean_curves(free)


def law_row(of_pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    """The law and its rivals on one checkpoint, from (branch probabilities float64[n, d], r float64[n]) of every pair.

    sigma, kurtosis, r, corr_r: means over pairs. "exact", "symmetrised", "law" and its rivals: pass@k at KS, means over
    pairs. "law error", "mixture error": symmetrised minus predicted by k, with intervals, in which r and sigma vary
    with the problems too. "kurtosis interval": the kurtosis with its interval. "bound": 1.96 standard errors of the raw
    and the symmetrised curve of as many problems under the law.
    """
    statistics = [fork_statistics(branch, r) for branch, r in of_pairs]
    names = ("sigma", "kurtosis", "r", "corr_r")
    row: dict = {name: mean_or_none([of_pair[name] for of_pair in statistics]) for name in names}
    row |= mean_curves([curves_of(branch, r) for branch, r in of_pairs])
    branches, problems = of_pairs[0][0].shape[1], sum(len(r) for _, r in of_pairs)
    for name, points in predictions(branches).items():
        errors = np.stack([prediction_errors(branch, r, points) for branch, r in of_pairs])
        row[f"{name} error"] = {
            str(k): mean_over_pairs(errors[..., i]) | mean_over_pairs(errors[..., i], PRIMARY_LEVEL)
            for i, k in enumerate(KS)
        }
    row["kurtosis interval"] = mean_over_pairs(np.stack([kurtosis_values(branch) for branch, _ in of_pairs]))
    paths, spread = laws.path_points([row["sigma"]], branches), {"exact": False, "symmetrised": True}
    deviations = {name: laws.law_deviation(row["r"], paths, KS, mirrored) for name, mirrored in spread.items()}
    return row | {"bound": {name: (1.96 * sd / np.sqrt(problems)).round(5).tolist() for name, sd in deviations.items()}}


def mean_or_none(values: list[float | None]) -> float | None:
    """The mean, None where a value is None: kurtosis and correlations of numbers that are all equal."""
    numbers = [value for value in values if value is not None]
    return float(np.mean(numbers)) if len(numbers) == len(values) else None


def curves_of(branch: np.ndarray, r: np.ndarray) -> dict[str, np.ndarray]:
    """pass@k float64[K] of one model: exact, symmetrised, under the law and under its rivals, by name.

    The rivals are laws from the mean and variance of p and, for two branches, the mixture.
    """
    p, sigma = r[:, None] * branch, float(sigma_values(branch).mean())
    exact, mirrored = problem_pass_at_k(p[:, :1], KS), symmetrised(branch, r, KS)
    curves = {"exact": exact.mean(axis=0), "symmetrised": mirrored.mean(axis=0)}
    for name, points in predictions(branch.shape[1]).items():
        curves[name] = laws.law_pass_at_k(float(r.mean()), points(sigma), KS)
    from_moments = FROM_MOMENTS | {"law, from moments": partial(laws.fork_pass_at_k, branches=branch.shape[1])}
    return curves | {name: predict(p.mean(), p.var(), KS) for name, predict in from_moments.items()}


def predictions(branches: int) -> dict[str, Callable[[float], np.ndarray]]:
    """The points of the law and, for two branches, of the mixture, as functions of sigma."""
    points: dict[str, Callable[[float], np.ndarray]] = {"law": lambda sigma: laws.path_points([sigma], branches)}
    if branches == 2:
        points["mixture"] = lambda sigma: laws.mixture_points(sigma, KURTOSIS[0] + KURTOSIS[1] * sigma)
    return points


def free_curves(results: Results, record: dict, rows: np.ndarray) -> dict[str, np.ndarray]:
    """pass@k float64[K] of free samples on the problems bool[n] ``rows``, symmetrised and under the law.

    Empty for a task whose traces begin with something else than FWD or REV.
    """
    if tuple(results.config.data.first_tokens) != ("FWD", "REV"):
        return {}
    q, reverse, r = (results.array(record, name)[rows] for name in ("modes", "REV", "r"))
    q, branch = q[:, 0], results.array(record, "fork")[rows]
    branch = branch[:, branch[0] > 0]
    p = (q * r)[:, None] * branch + ((1 - q) * reverse)[:, None]
    mode_logit = np.log(q) - np.log1p(-q)
    paths = laws.path_points([float(sigma_values(branch).mean())], branch.shape[1])
    mode = float(mode_logit.mean()), float(mode_logit.std())
    predicted = laws.free_pass_at_k(paths, float(r.mean()), float(reverse.mean()), mode, KS)
    return {"free, symmetrised": problem_pass_at_k(p[..., None], KS).mean(axis=(0, 1)), "free, law": predicted}


def mean_curves(curves: list[dict[str, np.ndarray]]) -> dict[str, list[float]]:
    """The means over pairs of curves by name."""
    return {name: np.mean([curve[name] for curve in curves], axis=0).round(5).tolist() for name in curves[0]}


def prediction_errors(branch: np.ndarray, r: np.ndarray, points: Callable[[float], np.ndarray]) -> np.ndarray:
    """Symmetrised minus predicted pass@k as pseudo-values of every problem, float64[n, K].

    The prediction has the mean r and the sigma of these problems, so it varies with them, here to first order. points:
    those of `predictions`.
    """
    sigma = sigma_values(branch)
    centre = np.array([r.mean(), sigma.mean()])

    def curve(parameters: np.ndarray) -> np.ndarray:
        return laws.law_pass_at_k(parameters[0], points(float(parameters[1])), KS)

    steps = 0.01 * np.diag(centre)
    slopes = [(curve(centre + step) - curve(centre - step)) / (2 * step.sum()) for step in steps]
    predicted = curve(centre) + np.stack([r, sigma], axis=1) @ slopes - centre @ slopes
    return symmetrised(branch, r, KS) - predicted


def claim_rows(rows: list[dict]) -> list[dict]:
    """What the law's claims are about: of plain runs in scope, on the config's own data, the `extremes` of each kind.

    Each estimate is of one checkpoint, an error also of one k.
    """
    plain = [row for row in rows if row["own"] and "plain_fork_rate" in row and row["branches"] == 2]
    middle = [row for row in plain if 2 <= row["sigma"] < 8]
    by_rate = sorted(grouped(middle, itemgetter("plain_fork_rate")).items())
    claims = [{"claim": "law", "fork_rate": rate, "estimate": errors(of_rate, "law error")}
              for rate, of_rate in by_rate]  # fmt: skip
    last = [row for row in plain if row["plain_fork_rate"] == 1][-1:]
    claims += [{"claim": "law fails", "estimate": row["law error"]["256"]} for row in last]
    early = extremes([row["kurtosis interval"] for row in plain if row["sigma"] < 5])
    late = extremes([row["kurtosis interval"] for row in plain if row["sigma"] > 9.5])
    return [
        *claims,
        {"claim": "mixture", "estimate": errors(plain, "mixture error")},
        {"claim": "kurtosis, early", "estimate": early},
        {"claim": "kurtosis, late", "estimate": late},
    ]


def errors(rows: list[dict], name: str) -> list[dict]:
    """The `extremes` of the errors of a name, over checkpoints and k."""
    return extremes([estimate for row in rows for estimate in row[name].values()])


def extremes(estimates: list[dict]) -> list[dict]:
    """The estimates whose intervals have the smallest or the largest of all lower or upper ends, at any level.

    They decide whether all intervals lie in a range, and whether one lies outside it.
    """
    ends = [[estimate[key][i] for estimate in estimates]
            for key in (estimates or [{}])[0] if key.startswith("ci") for i in (0, 1)]  # fmt: skip
    return [estimates[i] for i in sorted({int(pick(column)) for column in ends for pick in (np.argmin, np.argmax)})]


def band_row(rows: list[dict], low: float, high: float) -> dict:
    """Of the checkpoints with low <= sigma < high: how many, their kurtosis, and the errors of every law.

    An error is the largest over k of |law - symmetrised curve|. Given are its median and its worst over checkpoints,
    for "law, raw" those of the difference from the exact curve.
    """
    inside = [row for row in rows if low <= row["sigma"] < high]
    band = {"sigma": f"{low:g} to {high:g}", "checkpoints": len(inside)}
    if not inside:
        return band
    band["kurtosis"] = f"{np.median([row['kurtosis'] for row in inside if row['kurtosis'] is not None]):.2f}"
    curves = {"law, raw": ("law", "exact")} | {
        name: (name, "symmetrised") for name in ("law", "mixture", *FROM_MOMENTS)
    }
    for name, (predicted, curve) in curves.items():
        gaps = [np.abs(np.subtract(row[predicted], row[curve])).max() for row in inside if predicted in row]
        band[name] = {"median": float(np.median(gaps)), "worst": float(np.max(gaps))} if gaps else None
    return band
