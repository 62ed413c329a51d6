"""The environment of the process that makes a run."""

from experiments import jobs, study
from minifork.cli import EXIT_HELD
from tests.helpers.starts import Starts


def test_a_run_has_one_core_and_does_not_trim_its_memory(copy, monkeypatch):
    """As workers of Dask are told to, which slows training. The same holds for a second attempt."""
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0)
    codes = iter([EXIT_HELD, 0])
    starts = Starts(monkeypatch, lambda command: next(codes))
    jobs.make_on_one_core(study.plans(copy().config(), [{}], [0])[0], jobs.Processes())
    assert len(starts.environments) == 2
    for environment in starts.environments:
        assert environment["OMP_NUM_THREADS"] == "1" and "MALLOC_TRIM_THRESHOLD_" not in environment
