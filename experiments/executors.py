"""Makes the runs of a study, on this machine or on a cluster, each in a process of its own.

Missing parents of runs are made first. On this machine bases use all cores, one after the other. The other runs run
side by side with one core each.
"""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from experiments.jobs import Processes, make_on_one_core
from experiments.schedule import run_side_by_side
from experiments.study import Plan
from minifork import runs
from minifork.cores import cores

RESERVED_PAIRS = range(5, 10)


def run_plans(plans: Iterable[Plan], snapshots: bool = False) -> None:
    """Make the runs of plans that are missing, and their missing parents.

    snapshots: whether the weights of every epoch are needed here, where the runs are made on a cluster. Raises
    ValueError naming the runs that failed, after all others are done, and for RESERVED_PAIRS.
    """
    needed = _with_parents(plans)
    for plan in needed:
        if plan.config.seed in RESERVED_PAIRS and plan.config.eval.split != "confirm":
            raise ValueError(f"pair {plan.config.seed}: pairs 5 to 9 are for a confirmation; see preset=confirm")
    missing = [plan for plan in needed if not runs.finished(plan.config, plan.stage)]
    if not missing:
        return
    if missing[0].config.reproduce.cluster:
        from experiments.cluster import run_on_cluster

        run_on_cluster(missing, snapshots)
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

    Raises ValueError at the first base that fails, and naming the other runs that failed after all are done.
    """
    for plan in (plan for plan in plans if plan.stage == "base"):
        if Processes().make(plan):
            raise ValueError(f"a stage failed (see above): {' '.join(plan.command[1:])}")
    processes, tuned = Processes(), [plan for plan in plans if plan.stage != "base"]

    def submit(plan: Plan) -> Future[str]:
        return pool.submit(make_on_one_core, plan, processes)

    with ThreadPoolExecutor(plans[0].config.reproduce.workers or cores()) as pool:
        try:
            run_side_by_side(tuned, submit, lambda _, future: future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.stop()
            raise
