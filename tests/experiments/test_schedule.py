"""Runs side by side: each after what it starts from, failures after all others, lines of progress."""

from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from experiments import study
from experiments.schedule import run_side_by_side
from experiments.study import Plan
from minifork import config as configs


def planned(*entries: dict) -> list[Plan]:
    return study.plans(configs.load_config("star"), [*entries], [0])


RL = [{"stage": "base"}, {}, {"stage": "rl", "rl.mode": ["FWD", "free"]}, {"sft.fork_rate": 0.5}]


def test_a_run_waits_for_what_it_starts_from(capsys):
    """And is submitted only after its parent's result was taken in."""
    events, plans = [], planned(*RL)

    def submit(plan: Plan) -> Future:
        events.append(("submitted", plan.identity))
        return pool.submit(int)

    def reason_of(plan: Plan, future: Future) -> str:
        assert future.result() == 0
        events.append(("kept", plan.identity))
        return ""

    with ThreadPoolExecutor(2) as pool:
        run_side_by_side(plans, submit, reason_of)
    assert len(events) == 10 and [event for event, _ in events].count("kept") == 5
    for plan in plans:
        parents = [other.identity for other in plans if plan.start and plan.start[0] == other.identity]
        assert len(parents) == (plan.stage != "base")
        assert all(events.index(("kept", parent)) < events.index(("submitted", plan.identity)) for parent in parents)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[0].startswith(f"[1/5] {plans[0].log.stem}: done (0.0 minutes so far, ")
    assert "minutes left" in lines[3] and lines[4].endswith(" runs a minute)")


def test_what_starts_from_a_failed_run_is_named(capsys):
    base, sft, *both, half = plans = planned(*RL)
    submitted = []

    def submit(plan: Plan) -> Future:
        submitted.append(plan)
        future: Future = Future()
        future.set_result(None)
        return future

    with pytest.raises(ValueError) as refusal:
        run_side_by_side(plans, submit, lambda plan, _: "no luck" if plan == sft else "")
    assert submitted == [base, sft, half]
    reasons = "; ".join(f"{plan.log.stem}: what it starts from failed" for plan in both)
    assert str(refusal.value) == f"3 of 5 runs failed: no luck; {reasons}"
    assert f"{sft.log.stem}: FAILED" in capsys.readouterr().out


def test_nothing_to_do():
    run_side_by_side([], lambda _: Future(), lambda *_: "")


def test_no_more_runs_are_submitted_than_may_run_at_once():
    """Also if no worker is there at the moment: then one."""
    pending, most = set(), []

    def submit(plan: Plan) -> Future:
        pending.add(plan.identity)
        most.append(len(pending))
        return pool.submit(int)

    def reason_of(plan: Plan, future: Future) -> str:
        pending.discard(plan.identity)
        return ""

    with ThreadPoolExecutor(4) as pool:
        for limit in (2, 0):
            most.clear()
            run_side_by_side(planned(*RL), submit, reason_of, lambda limit=limit: limit)
            assert len(most) == 5 and max(most) == max(1, limit)
