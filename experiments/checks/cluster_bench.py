"""`make cluster-bench`: what jobs on a cluster cost, and a study on a cluster against the same study without one.

All workers are on this machine. Empty jobs show the cost of a job in itself. Jobs *with payload* carry what a
fine-tuning starts from, bring back as many bytes as one of its results has, and are stored as results are.
"""

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from dataclasses import replace
from pathlib import Path

from experiments import executors, study, transfer
from experiments.cluster import connected
from experiments.study import Plan
from minifork import config as configs
from minifork import runs
from minifork.evaluate import evaluate
from minifork.schema import Config
from minifork.storage.files import write_json

WORKERS = (2, 4)
EMPTY_JOBS, JOBS_WITH_PAYLOAD = 500, 200
FINE_TUNINGS = [{"sft.fork_rate": [i / 8 for i in range(1, 9)]}]
SECONDS_OF_A_RUN = 90  # for which the number of workers that one driver can feed is given


def cluster_bench(config: Config) -> None:
    """Time everything, print it and write runs/<task>/cluster-bench.json.

    Needs the config's base and its fine-tuning; raises ValueError saying how to make them.
    """
    rows = [row | {"workers": count} for count in WORKERS for row in job_rows(config, count)]
    for row in rows:
        print(row)
    seconds = {name: study_seconds(config, name) for name in ("", f"local:{WORKERS[0]}")}
    plain, clustered = seconds.values()
    ratio = clustered / plain
    print(f"{WORKERS[0]} workers: 8 fine-tunings in {clustered:.0f} s, {ratio:.3f} of {plain:.0f} s without a cluster")
    result = {"jobs": rows, "study": {"plain_s": plain, "cluster_s": clustered, "ratio": ratio}}
    write_json(runs.task_folder(config) / "cluster-bench.json", runs.made_by(config) | result)


def job_rows(config: Config, count: int) -> Iterator[dict]:
    """Seconds a job, bytes and the driver's memory of empty jobs and of jobs with payload, on so many workers."""
    run = runs.require_run(config, "sft")
    sizes = {path: len(content) for path, content in transfer.result_files(run, frozenset()).items()}
    plan = Plan("sft", "sft", config)
    with connected(_on_cluster(config, f"local:{count}")) as client, tempfile.TemporaryDirectory() as folder:
        executor = client.get_executor(pure=False)
        [*as_completed([executor.submit(int) for _ in range(count)])]  # warm-up
        for name, jobs in {"empty": EMPTY_JOBS, "with payload": JOBS_WITH_PAYLOAD}.items():
            started, sent = time.perf_counter(), 0
            futures: list[Future] = []
            for _ in range(jobs):
                starts = {} if name == "empty" else transfer.start_files(plan)
                sent = sum(map(len, starts.values()))
                futures.append(executor.submit(answer, starts, {} if name == "empty" else sizes))
            for number, future in enumerate(as_completed(futures)):
                transfer.write_files(future.result(), Path(folder, str(number)))
            seconds = (time.perf_counter() - started) / jobs
            received = 0 if name == "empty" else sum(sizes.values())
            row = {
                "job": name,
                "jobs": jobs,
                "ms_a_job": 1000 * seconds,
                "bytes_sent": sent,
                "bytes_received": received,
            }
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            yield row | {"driver_MiB": memory, "workers_fed": int(SECONDS_OF_A_RUN / seconds)}


def answer(starts: transfer.Files, sizes: dict[str, int]) -> transfer.Files:
    """Random files of these sizes, as a worker would bring them back."""
    return {path: os.urandom(size) for path, size in sizes.items()}


def study_seconds(config: Config, cluster: str) -> float:
    """The seconds in which fine-tunings are made and measured, on a cluster or, with an empty text, without one."""
    base = runs.require_run(config, "base")
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = _on_cluster(replace(config, runs=folder), cluster)
        shutil.copytree(base.folder, runs.task_folder(elsewhere) / base.name)
        plans = study.plans(elsewhere, FINE_TUNINGS, [config.seed])
        started = time.perf_counter()
        executors.run_plans(plans)
        evaluate(elsewhere)
        return time.perf_counter() - started


def _on_cluster(config: Config, cluster: str) -> Config:
    return configs.with_changes(config, {"reproduce.cluster": cluster})
