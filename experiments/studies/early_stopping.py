"""The gap between a method and early stopping, the line to beat: pass@k at no less skill, with an interval.

The early-stopping curve goes from where a run started through its snapshots, each a point (skill, pass@k) that is a
mean over pairs of seeds and problems. Skill is `Results.skill`, not pass@1: at a fork that cannot be deciphered pass@1
holds the luck of the branch, and a curve read at no less pass@1 consists of lucky snapshots.

Early stopping has the best pass@k of the curve at a skill that is lower than the method's, or than the curve's largest
if that is smaller, by at most TOLERANCE. Without it the place would be a matter of noise where skill saturates, and
there pass@k falls by .1 at one skill. So a snapshot of the curve itself lies below it, by TOLERANCE times its slope.
Which place this is, is decided on validation problems. The gap is that to this place on test problems.

Arrays of *points* are float64[.., 1 + K, n]: skill, then pass@k for k of KS.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from experiments.estimates import KS, mean_over_pairs, signed
from experiments.results import Results, load_results
from experiments.study import Plan, grouped
from minifork import runs
from minifork.evaluate import measure_missing
from minifork.runs import Checkpoint
from minifork.schema import Config
from minifork.settings import Eval

ByEval = Mapping[Eval, Results]  # the results under each evaluation settings
TOLERANCE = 0.005  # of skill; also how close to 1 the curve cannot be exceeded
RULE = f"early stopping may have {TOLERANCE:g} less skill, so where its curve is steep its own snapshots lie below it"


# measuring


def measure_plans(config: Config, plans: list[Plan], curve: str) -> dict[Eval, Results]:
    """Measure the checkpoints that `is_compared` names; returns the results under each evaluation settings of plans.

    curve: the name of the plans whose snapshots are the early-stopping curve.
    """
    results = {}
    for settings, of_settings in grouped(plans, lambda plan: plan.config.eval).items():
        measure_missing(replace(config, eval=settings), partial(is_compared, of_settings, curve))
        results[settings] = load_results(replace(config, eval=settings))
    return results


def is_compared(plans: list[Plan], curve: str, checkpoint: Checkpoint) -> bool:
    """True for the checkpoints that plans compare: all of the early-stopping curve, the last of every other run."""
    identity, plain = checkpoint.run.identity, [plan for plan in plans if plan.name == curve]
    on_curve = identity in {plan.identity for plan in plain}
    on_curve |= (identity, checkpoint.epoch) in {plan.start for plan in plain}
    return on_curve or checkpoint.final and identity in {plan.identity for plan in plans}


def on_validation(plan: Plan) -> Plan:
    """The plan, measured on validation problems."""
    return replace(plan, config=replace(plan.config, eval=replace(plan.config.eval, split="valid")))


def early_stopping_curve(results: Results, plan: Plan, mode: str | None) -> np.ndarray:
    """The points float64[1 + snapshots, 1 + K, n] of where a run started and of its snapshots.

    Raises ValueError when the start or the run was not measured.
    """
    start, snapshots = results.parent_of(plan), results.records_of(plan)
    if not start or not snapshots:
        root = runs.task_folder(plan.config)
        raise ValueError(f"{root}: no {plan.name} of pair {plan.config.seed} to compare with; run the study again")
    return np.stack([_points(results, record, mode) for record in start + snapshots])


def compared_points(results: ByEval, plans: Sequence[Plan], plain: Sequence[Plan], mode: str | None) -> np.ndarray:
    """The points float64[pairs, 2 + snapshots, 1 + K, n] of the last checkpoints of plans, each before its curve.

    plans, plain: a method's run and the run with the curve, one of every pair. Raises ValueError when one was not
    measured.
    """
    pairs = []
    for plan, curve_plan in zip(plans, plain, strict=True):
        measured, curve = results[plan.config.eval], results[curve_plan.config.eval]
        method = _points(measured, measured.last_record(plan), mode)
        pairs.append(np.concatenate([method[None], early_stopping_curve(curve, curve_plan, mode)]))
    return np.stack(pairs)


def _points(results: Results, record: dict, mode: str | None) -> np.ndarray:
    return np.concatenate([results.skill(record, mode)[None], results.record_pass_at_ks(record, KS, mode)])


# the gap


class Place(NamedTuple):
    """A place on the curve, by indices into points whose first is the method.

    It lies where the line from ``left`` to ``right``, the same or the next snapshot, has the skill of ``reference``
    less TOLERANCE. The reference is the method, or the snapshot with the largest skill if that is smaller.
    """

    reference: int
    left: int
    right: int


def best_place(points: np.ndarray, k: int) -> Place:
    """The place of the best pass@k that early stopping has at no less skill than the method.

    points: [pairs, 1 + snapshots, 1 + K, n], the method first.
    """
    skill = points[:, :, 0].mean(axis=(0, 2))
    reference = min(0, 1 + int(skill[1:].argmax()), key=skill.__getitem__)
    below = skill < skill[reference] - TOLERANCE
    snapshots = range(1, len(skill))
    places = [Place(reference, i, i) for i in snapshots if not below[i]]
    places += [Place(reference, i, i + 1) for i in snapshots[:-1] if below[i] != below[i + 1]]
    return min(places, key=lambda place: gap_values(points, place, k).mean())


def gap_values(points: np.ndarray, place: Place, k: int) -> np.ndarray:
    """The gap in pass@k between the method and a place, float64[pairs, n]: its mean is the gap.

    The values are linear in the points, with the slope of the curve as the price of skill. So their interval is that of
    the gap (the delta method). If the skill lies outside the line on these problems, the nearer end is the place, at no
    price. points: [pairs, 1 + snapshots, 1 + K, n], the method first.
    """
    skill, passes = points[:, :, 0], points[:, :, 1 + KS.index(k)]
    (left, right), (low, high) = (values.mean(axis=(0, 2))[list(place[1:])] for values in (skill, passes))
    target = skill[:, place.reference] - TOLERANCE
    run = right - left  # 0 at a snapshot
    share, slope = ((target.mean() - left) / run, (high - low) / run) if run else (0.0, 0.0)
    if not 0 <= share <= 1:
        share, slope = float(share > 1), 0.0
    skill_there, passes_there = ((1 - share) * v[:, place.left] + share * v[:, place.right] for v in (skill, passes))
    return passes[:, 0] - passes_there - slope * (target - skill_there)


def above_curve(results: ByEval, plans: Sequence[Plan], plain: Sequence[Plan], mode: str | None) -> dict[str, dict]:
    """The `gap_above` of plans by k. Arguments and errors are those of `compared_points`; the same runs must be
    measured on validation problems too. Raises ValueError where other epochs of plain were."""
    test = compared_points(results, plans, plain, mode)
    valid = compared_points(results, [*map(on_validation, plans)], [*map(on_validation, plain)], mode)
    if valid.shape[1] != test.shape[1]:
        raise ValueError(f"{plain[0].name}: some of its epochs were measured on test or validation problems alone")
    return {str(k): gap_above(test, best_place(valid, k), k) for k in KS[1:]}


def gap_above(points: np.ndarray, place: Place, k: int) -> dict:
    """The mean of `gap_values` with its interval, and "cannot_be_exceeded".

    This is true, and the mean and the interval are null, where the curve is within TOLERANCE of 1 and the method is not
    certainly below it.
    """
    gap = mean_over_pairs(gap_values(points, place, k))
    reached = points[:, 0, 1 + KS.index(k)].mean() - gap["mean"]
    if reached >= 1 - TOLERANCE and gap["ci95"][1] >= 0:
        return {"mean": None, "ci95": None, "cannot_be_exceeded": True}
    return gap | {"cannot_be_exceeded": False}


def gap_text(gap: dict) -> str:
    """A gap and its interval as text."""
    return "cannot be exceeded" if gap["cannot_be_exceeded"] else signed(gap)
