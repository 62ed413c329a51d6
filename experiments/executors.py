"""Makes the runs of a study, on this machine or on a cluster, each in a process of its own.

Missing parents of runs are made first. On this machine bases use all cores, one after the other. The other runs, and on
a GPU all, run side by side with one core each.
"""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from experiments.jobs import Processes, make_on_one_core
from experiments.schedule import run_side_by_side
from experiments.study import Plan
from minifork import runs
from minifork.cores import cores
from minifork.models import pick_device

RESERVED_PAIRS = range(5, 10)


def run_plans(plans: Iterable[Plan]) -> None:
    """Make the runs of plans that are missing, and their missing parents.

    Raises ValueError naming the runs that failed, after all others are done, and where not both or neither of
    RESERVED_PAIRS and the stream confirm are asked for.
    """
    needed = _with_parents(plans)
    for plan in needed:
        if (plan.config.seed in RESERVED_PAIRS) != (plan.config.eval.split == "confirm"):
            pair = f"pair {plan.config.seed} with eval.split={plan.config.eval.split}"
            raise ValueError(f"{pair}: pairs 5 to 9 and the split confirm go together; see preset=confirm")
    missing = [plan for plan in needed if not runs.finished(plan.config, plan.stage)]
    if not missing:
        return
    if missing[0].config.reproduce.cluster:
        from experiments.cluster import run_on_cluster

        run_on_cluster(missing)
    else:
        _run_here(missing)


def _with_parents(plans: Iterable[Plan]) -> list[Plan]:
    """Plans and those of their parents, each run once, by stage."""
    needed: dict[str, Plan] = {}
    for plan in plans:
        stage: str | None = plan.stage
        while stage:
            needed.setdefault(runs.identity(plan.config, stage), replace(plan, stage=stage))
            stage = runs.parent_stage(plan.config, stage)
    return sorted(needed.values(), key=lambda plan: runs.STAGES.index(plan.stage))


def _run_here(plans: list[Plan]) -> None:
    """Make bases one after the other, then the other runs, `reproduce.workers` at a time with one core each.

    On a GPU bases are like the other runs. Raises ValueError at the first base that fails alone, and naming the other
    runs that failed after all are done.
    """
    gpu = pick_device(plans[0].config) == "cuda"
    bases = [] if gpu else [plan for plan in plans if plan.stage == "base"]
    for plan in bases:
        if Processes().make(plan):
            raise ValueError(f"a stage failed (see above): {' '.join(plan.command[1:])}")
    processes, side_by_side = Processes(), plans[len(bases) :]

    def submit(plan: Plan) -> Future[str]:
        return pool.submit(make_on_one_core, plan, processes)

    with ThreadPoolExecutor(plans[0].config.reproduce.workers or cores()) as pool:
        try:
            run_side_by_side(side_by_side, submit, lambda _, future: future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise
