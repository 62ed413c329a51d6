"""Runs plans side by side, each as soon as the run that it starts from is finished, and prints progress."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from experiments.study import Plan


def run_side_by_side(
    plans: Sequence[Plan],
    submit: Callable[[Plan], Future],
    reason_of: Callable[[Plan, Future], str],
    at_once: Callable[[], int] | None = None,
) -> None:
    """Make the runs of plans.

    submit: starts making a run. reason_of: called in this thread with each future that ended, before anything that
    starts from its run is submitted. It returns the reason why the run failed, or an empty text. at_once: how many runs
    may be submitted and not ended, by default all. Raises ValueError with the reasons of all failures, after all other
    runs are done.
    """
    waiting, futures = {plan.identity: plan for plan in plans}, dict[Future, Plan]()
    unfinished, failures, started, ended = set(waiting), list[str](), time.monotonic(), 0

    def submit_ready() -> None:
        ready = [plan for plan in waiting.values() if plan.start is None or plan.start[0] not in unfinished]
        room = max(1, at_once()) - len(futures) if at_once else len(ready)
        for plan in ready[: max(0, room)]:
            futures[submit(waiting.pop(plan.identity))] = plan

    submit_ready()
    while futures:
        for future in wait(futures, return_when=FIRST_COMPLETED).done:
            plan, ended = futures.pop(future), ended + 1
            if reason := reason_of(plan, future):
                failures.append(reason)
            else:
                unfinished.discard(plan.identity)
            progress = _progress(ended, len(plans), (time.monotonic() - started) / 60)
            print(f"[{ended}/{len(plans)}] {plan.log.stem}: {'FAILED' if reason else 'done'} ({progress})", flush=True)
        submit_ready()
    failures += [f"{plan.log.stem}: what it starts from failed" for plan in waiting.values()]
    if failures:
        raise ValueError(f"{len(failures)} of {len(plans)} runs failed: {'; '.join(failures)}")


def _progress(ended: int, total: int, minutes: float) -> str:
    """The time so far, the rate of runs and the time left."""
    text = f"{minutes:.1f} minutes so far, {ended / max(minutes, 1e-9):.2g} runs a minute"
    return text if ended == total else f"{text}, about {minutes * (total - ended) / ended:.1f} minutes left"
