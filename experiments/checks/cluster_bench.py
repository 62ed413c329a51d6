"""`make cluster-bench`: what jobs on a cluster cost, and a study on a cluster against the same study without one.

All workers are on this machine. Empty jobs show the cost of a job in itself. Jobs *with payload* carry what a
fine-tuning starts from, bring back as many bytes as one of its results has, and are stored as results are.
"""

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, as_completed, wait
from functools import partial
from pathlib import Path

from experiments import executors, study, transfer
from experiments.cluster import JOBS_A_WORKER, connected
from experiments.results import write_result
from experiments.study import Plan
from minifork import config as configs
from minifork import runs
from minifork.evaluate import evaluate
from minifork.schema import Config

WORKERS = (2, 4)
EMPTY_JOBS, JOBS_WITH_PAYLOAD = 500, 200
FINE_TUNINGS = [{"sft.fork_rate": [i / 8 for i in range(1, 9)]}]
SECONDS_OF_A_RUN = 90  # for which the number of workers that one driver can feed is given


def cluster_bench(config: Config) -> None:
    """Time everything, print it and write runs/<task>/cluster-bench.json.

    Needs the config's base and its fine-tuning; raises ValueError saying how to make them.
    """
    rows = [row for count in WORKERS for row in job_rows(config, count)]
    for row in rows:
        print(row)
    seconds = {name: study_seconds(config, name) for name in ("", f"local:{WORKERS[0]}")}
    plain, clustered = seconds.values()
    ratio = clustered / plain
    print(f"{WORKERS[0]} workers: 8 fine-tunings in {clustered:.0f} s, {ratio:.3f} of {plain:.0f} s without a cluster")
    timed = {"plain_s": plain, "cluster_s": clustered, "ratio": ratio}
    write_result(config, "cluster-bench", {"jobs": rows, "study": timed})


def job_rows(config: Config, count: int) -> Iterator[dict]:
    """What an empty job and a job with payload cost on so many workers."""
    plan, run = Plan("sft", "sft", config), runs.require_run(config, "sft")
    sizes = {path: len(content) for path, content in transfer.result_files(run).items()}
    with connected(configs.with_changes(config, {"reproduce.cluster": f"local:{count}"})) as client:
        executor = client.get_executor(pure=False)
        [*as_completed([executor.submit(int) for _ in range(count)])]  # warm-up
        yield {"workers": count, "job": "empty"} | cost(executor, count, EMPTY_JOBS, dict, {})
        starts = partial(transfer.start_files, plan)
        yield {"workers": count, "job": "with payload"} | cost(executor, count, JOBS_WITH_PAYLOAD, starts, sizes)


def cost(
    executor: Executor, workers: int, jobs: int, starts: Callable[[], transfer.Files], sizes: dict[str, int]
) -> dict:
    """Milliseconds and bytes a job, and the most memory the driver has had, where every job brings back ``sizes``.

    starts: gives what a job starts from, anew for each as the driver does.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for number, files in enumerate(answers(executor, JOBS_A_WORKER * workers, jobs, starts, sizes)):
            transfer.write_files(files, Path(folder, str(number)))
    seconds = (time.perf_counter() - started) / jobs
    return {
        "jobs": jobs,
        "ms_a_job": 1000 * seconds,
        "bytes_sent": sum(map(len, starts().values())),
        "bytes_received": sum(sizes.values()),
        "driver_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "workers_fed": int(SECONDS_OF_A_RUN / seconds),
    }


def answers(
    executor: Executor, in_flight: int, jobs: int, starts: Callable[[], transfer.Files], sizes: dict[str, int]
) -> Iterator[transfer.Files]:
    """What jobs bring back, as they end. As many jobs are in flight as the driver of a study has."""
    futures: set[Future] = set()
    for _ in range(jobs):
        if len(futures) == in_flight:
            ended, futures = wait(futures, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in ended)
        futures.add(executor.submit(answer, starts(), sizes))
    yield from (future.result() for future in as_completed(futures))


def answer(starts: transfer.Files, sizes: dict[str, int]) -> transfer.Files:
    """Random files of these sizes, as a worker would bring them back."""
    return {path: os.urandom(size) for path, size in sizes.items()}


def study_seconds(config: Config, cluster: str) -> float:
    """The seconds in which fine-tunings are made and measured, on a cluster or, with an empty text, without one."""
    base = runs.require_run(config, "base")
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = configs.with_changes(config, {"runs": folder, "reproduce.cluster": cluster})
        shutil.copytree(base.folder, runs.task_folder(elsewhere) / base.name)
        plans = study.plans(elsewhere, FINE_TUNINGS, [config.seed])
        started = time.perf_counter()
        executors.run_plans(plans)
        evaluate(elsewhere)
        return time.perf_counter() - started
