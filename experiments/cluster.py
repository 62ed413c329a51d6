"""Makes the runs of a study on a Dask cluster. Workers need this package, and need not see the driver's folder.

The driver is the process that runs the study. A job is one run, trained and measured. It carries the weights that the
run starts from, and brings back all but the state of the optimizer. A worker with the driver's folder works there.

A worker makes a run in a process of its own (`experiments.jobs`), which ends with it. The scheduler then gives the job
to another worker. Two workers never write into one folder, as every run's folder is locked while it is made. How to
start a cluster, and what it costs, is in docs/cluster.md.
"""

import asyncio
import contextlib
import os
import shutil
import socket
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import data_gen
import minifork
from experiments.jobs import MAX_ATTEMPTS, Processes, make_on_one_core
from experiments.schedule import run_side_by_side
from experiments.study import Plan
from experiments.transfer import Files, result_files, start_files, store, write_files
from minifork import runs
from minifork.models import pick_device
from minifork.schema import Config
from minifork.storage.files import digest
from minifork.storage.locks import locked

LOCAL = "local:"  # local:4 starts four workers on this machine
MARKER = ".cluster-"  # a file of this name and a random suffix in the driver's runs folder shows who sees that folder
JOBS_A_WORKER = 2  # submitted and not ended: one that runs, one that waits with its weights in memory
SECONDS_FOR_A_CONNECTION = 10
SECONDS_FOR_A_WORKER = 60
# Workers on this machine share its cores with the jobs. By default they look at themselves up to a hundred times a
# second, which takes 4 % of a core each.
QUIET = {
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.monitor-interval": "2s",
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
}
INSTALL = "pip install 'minifork[cluster]'"


@dataclass(frozen=True)
class Job:
    """A run to make on a worker.

    plan: the run; its `runs` is the driver's folder as an absolute path. starts: what it starts from. marker: a file
    that only workers with the driver's folder see. code: the version of the driver's code.
    """

    plan: Plan
    starts: Files
    marker: Path
    code: str


def run_on_cluster(plans: Sequence[Plan]) -> None:
    """Make the runs of plans on the cluster `reproduce.cluster`, their parents among them.

    Raises ValueError when there is no such cluster or its workers have other code, and as `run_side_by_side` does.
    """
    config = plans[0].config
    with connected(config) as client, _marker(config) as marker:
        executor, code = client.get_executor(pure=False), code_version()

        def submit(plan: Plan) -> Future:
            absolute = replace(plan.config, runs=str(Path(plan.config.runs).resolve()))
            try:
                starts = start_files(plan)
            except (ValueError, OSError) as error:  # the other runs go on
                failed = Future[tuple[str, Files]]()
                failed.set_exception(error)
                return failed
            return executor.submit(make, Job(replace(plan, config=absolute), starts, marker, code))

        run_side_by_side(plans, submit, reason_of, lambda: JOBS_A_WORKER * len(client.nthreads()))


def reason_of(plan: Plan, future: Future) -> str:
    """Keep what a job brought back; returns the reason why it failed, or an empty text."""
    try:
        reason, files = future.result()
        if files:
            store(plan, files)
        return reason
    except (Exception, CancelledError) as error:  # whatever a worker raised: the other runs go on
        return f"{plan.log.stem}: {_one_line(error)}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# on a worker


def make(job: Job) -> tuple[str, Files]:
    """Make the run of a job and measure it; returns the reason why it failed, or "", and the files of the run.

    Where the driver's folder is not here, it is made in a folder of the worker's, which is removed once the run is
    finished. Raises ValueError for a worker with other code, OSError for one that cannot write, RuntimeError when the
    run was interrupted.
    """
    if job.code != code_version():
        raise ValueError(f"{socket.gethostname()} has other code of minifork; install the driver's version there")
    try:
        if os.path.exists(job.marker):
            return make_on_one_core(job.plan, Processes(), measure=True), {}
        return _make_in_scratch(job, _scratch() / job.plan.identity)
    except KeyboardInterrupt:  # it would end the worker
        raise RuntimeError(f"interrupted on {socket.gethostname()}") from None


def _make_in_scratch(job: Job, scratch: Path) -> tuple[str, Files]:
    with locked(scratch):
        plan = replace(job.plan, config=replace(job.plan.config, runs=str(scratch)))
        write_files(job.starts, runs.task_folder(plan.config))
        if reason := make_on_one_core(plan, Processes(), measure=True):
            return f"{socket.gethostname()}: {reason}", {}
        files = result_files(runs.require_run(plan.config, plan.stage))
        shutil.rmtree(scratch)
    return "", files


def _scratch() -> Path:
    """A folder of the worker's machine that a worker finds again when it is started again in the same place."""
    from distributed import get_worker

    return Path(get_worker().local_directory).parent / "minifork"


def code_version() -> str:
    """Twelve hex digits for the code and the shipped configs of everything that makes and measures runs."""
    folders = [Path(package.__file__ or "").parent for package in (data_gen, minifork)]
    files = sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml", ".cu"))
    return digest(b"".join(path.read_bytes() for path in files))


# connecting


@contextlib.contextmanager
def connected(config: Config) -> Iterator[Any]:
    """A Dask client of the cluster `reproduce.cluster`, whose workers were checked; starts the workers of local:<n>.

    Raises ValueError saying what to do when there is none, no worker comes, or a worker has other code or packages.
    """
    address = config.reproduce.cluster
    try:
        from dask import config as dask_config
        from distributed import Client, LocalCluster
    except ImportError:
        raise ValueError(f"reproduce.cluster is {address}: it needs Dask; {INSTALL}") from None
    with contextlib.ExitStack() as stack:
        if address.startswith(LOCAL):
            count = int(address.removeprefix(LOCAL))
            stack.enter_context(dask_config.set(QUIET))
            cluster = LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=":0")
            address = stack.enter_context(cluster).scheduler_address
        try:
            client = stack.enter_context(Client(address, timeout=SECONDS_FOR_A_CONNECTION))
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            raise ValueError(f"reproduce.cluster is {address}: no scheduler answers ({_one_line(error)})") from None
        _check(client, config)
        _allow_failures(client)
        print(f"{len(client.nthreads())} workers; dashboard: {client.dashboard_link}", flush=True)
        yield client


def _check(client: Any, config: Config) -> None:
    """Raise ValueError unless there are workers and all have the driver's packages, code and kind of device."""
    from distributed.versions import VersionMismatchWarning

    try:
        client.wait_for_workers(1, timeout=SECONDS_FOR_A_WORKER)
        with warnings.catch_warnings():
            warnings.simplefilter("error", VersionMismatchWarning)
            client.get_versions(check=True, packages=["torch"])
    except asyncio.TimeoutError:
        raise ValueError(f"{config.reproduce.cluster} has no worker; start one with `dask worker`") from None
    except VersionMismatchWarning as error:
        raise ValueError(f"workers have other versions of packages: {_one_line(error)}") from None
    for worker, (version, gpu) in client.run(_describe_function()).items():
        if version != code_version():
            has = "no minifork" if version is None else "other code of minifork"
            raise ValueError(f"{worker} has {has}; install the driver's version there")
        if config.device == "auto" and gpu != (pick_device(config) == "cuda"):  # the driver would measure all again
            raise ValueError(f"{worker} has {'a' if gpu else 'no'} GPU, unlike the driver; give device=cpu")


def _allow_failures(client: Any) -> None:
    """Let the scheduler try a job MAX_ATTEMPTS times when workers die."""

    def allow(dask_scheduler: Any) -> None:
        dask_scheduler.allowed_failures = MAX_ATTEMPTS - 1

    client.run_on_scheduler(allow)


def _describe_function() -> Callable[[], tuple[str | None, bool]]:
    """A function that gives the version of this package's code, None without it, and whether there is a GPU.

    It is sent by value, as it is defined inside another one. So it can be called where the package is missing.
    """

    def describe() -> tuple[str | None, bool]:
        try:
            import torch

            from experiments.cluster import code_version
        except ImportError:
            return None, False
        return code_version(), torch.cuda.is_available()

    return describe


@contextlib.contextmanager
def _marker(config: Config) -> Iterator[Path]:
    """The path of a new file in the driver's runs folder, which is removed at the end."""
    path = Path(config.runs).resolve() / f"{MARKER}{uuid.uuid4().hex}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
