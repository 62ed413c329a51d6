"""Measurements are kept with their runs: found again by their key and by no other, whole or made anew, never twice."""

import dataclasses
import itertools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

import minifork.training.reinforce as learning
from minifork import evaluate, runs
from minifork.evaluation import files as eval_files
from minifork.evaluation import targets
from minifork.evaluation.targets import PLAIN, Target
from minifork.measure import Measurement
from minifork.settings import Eval
from minifork.storage import measurements
from minifork.storage.measurements import Key
from tests.helpers.pipeline import BASE, replace_weights
from tests.minifork.test_runs import differing

KEY = Key("a", "b", {"policy": "greedy"}, {"name": "plain"}, "123456")
OTHER = {"weights": "b", "run": "a", "settings": {"policy": "warm"}, "test_set": {"name": "cued"}, "version": "654321"}
MEASUREMENT = Measurement({"pass_at": {"1": 0.25}, "n": None}, {"free": np.array([0.5, 0.0])}, {"p_value": 0.5})


def is_measurement(loaded: Measurement | None) -> bool:
    """Whether what was loaded is MEASUREMENT, bit for bit."""
    if loaded is None or (loaded.record, loaded.check) != (MEASUREMENT.record, MEASUREMENT.check):
        return False
    return [*loaded.arrays] == ["free"] and np.array_equal(loaded.arrays["free"], MEASUREMENT.arrays["free"])


@pytest.fixture
def two_runs(copy):
    return copy(BASE, "fork1")


@pytest.fixture
def measured(monkeypatch) -> list[str]:
    """The names of the runs that are measured from now on, one for every measurement."""
    names, real = [], evaluate._measure

    def measure_and_note(config, target):
        names.append(target.checkpoint.run.name)
        real(config, target)

    monkeypatch.setattr(evaluate, "_measure", measure_and_note)
    return names


def expected(trained, pipeline) -> list[dict]:
    """The records that the fixture's evaluation has of the runs that a pipeline holds."""
    return [record for record in trained.view()["records"] if (pipeline.folder / record["run"]).exists()]


# keys


@pytest.mark.parametrize("field", OTHER)
def test_found_by_its_key_and_by_no_other(tmp_path, field):
    """Where only the version differs, it is found as another version's."""
    other = replace(KEY, **{field: OTHER[field]})
    assert measurements.load_measurement(tmp_path, KEY) is measurements.load_other_version(tmp_path, KEY) is None
    measurements.save_measurement(tmp_path, KEY, MEASUREMENT)
    assert is_measurement(measurements.load_measurement(tmp_path, KEY))
    assert measurements.load_measurement(tmp_path, other) is None
    assert is_measurement(measurements.load_other_version(tmp_path, other)) == (field == "version")

    for suffix in ("json", "npz"):
        (tmp_path / "eval" / f"{KEY.file_stem}.{suffix}").rename(tmp_path / "eval" / f"{other.file_stem}.{suffix}")
    with pytest.raises(ValueError, match="damaged or edited"):  # its name is another key's
        measurements.load_measurement(tmp_path, other)


def test_a_new_version_takes_the_place_of_the_old_one(tmp_path):
    """Whatever the order of their names."""
    for version in ("555555", "111111", "999999"):
        measurements.save_measurement(
            tmp_path, replace(KEY, version=version), replace(MEASUREMENT, check={"by": version})
        )
        loaded = measurements.load_other_version(tmp_path, KEY)
        assert loaded is not None and loaded.check == {"by": version}


def test_what_changes_a_key(trained, monkeypatch):
    """Weights, run, every setting, test set, device and version; nothing else, and not how a decoder is written."""
    config, fork1, fresh = trained.config(), runs.read_run(trained.run("fork1")), runs.read_run(trained.run("fresh"))

    def digits(run=fork1, epoch=1, test_set=PLAIN, config=config) -> str:
        return targets.key_of(config, Target(run.checkpoint(epoch), test_set)).file_stem

    test_sets = [replace(PLAIN, cue_rate=1.0), replace(PLAIN, order="published"), replace(PLAIN, prefix=3)]
    different = [digits(), digits(epoch=2), digits(fresh), *(digits(test_set=one) for one in test_sets)]
    settings = [f"eval.{field.name}" for field in dataclasses.fields(Eval) if field.name != "grading"]
    different += [digits(config=differing(config, key)[1]) for key in settings]
    different += [digits(config=trained.config("data.nodes=9"))]
    assert fresh.checkpoint(1).weights_hash == fork1.checkpoint(1).weights_hash  # only its training problems differ
    for words in ("eval.policy=temperature=1.0", "data.branch_order=published", "sft.epochs=8", "name=x", "seed=3"):
        assert digits(config=trained.config(words)) == digits()
    monkeypatch.setattr(targets, "pick_device", lambda config: "cuda")
    different += [digits()]
    monkeypatch.setattr(targets, "version_of", lambda task, decoder: "another")
    different += [digits()]
    assert len({*different}) == len(different)


# nothing is measured twice


def test_settings_lie_side_by_side(two_runs, measured):
    """Decoders, engines and test sets: going back to earlier ones measures nothing and shows them as they were."""
    all_settings = [[], ["eval.policy=greedy"], ["eval.stratify=fork"], ["eval.forked=false"]]
    views = []
    for overrides in all_settings * 2:
        assert two_runs("eval", *overrides) == 0
        views.append((two_runs.view(), len(measured)))
    assert [count for _, count in views] == [4, 8, 12, 16, 16, 16, 16, 16]
    assert [view for view, _ in views[:4]] == [view for view, _ in views[4:]]
    assert len([*two_runs.folder.glob("*/eval/*.json")]) == 4 * len(all_settings)


def test_only_new_weights_are_measured(two_runs, measured, capsys):
    """A run that is made anew, and runs that came since."""
    assert two_runs("eval") == 0 and len(measured) == 4
    replace_weights(two_runs.run("fork1"), "epochs/e2.pt", 1.5)
    before = two_runs.view()["records"]
    assert two_runs("eval") == 0 and measured[4:] == [two_runs.run("fork1").name]
    changed = [one["epoch"] for one, other in zip(before, two_runs.view()["records"], strict=True) if one != other]
    assert changed == [2]
    capsys.readouterr()
    assert two_runs("sft", "seed=1") == two_runs("eval") == 0
    assert measured[5:] == [two_runs.at("sft", "seed=1").name] * 3
    printed = capsys.readouterr().out
    assert "evaluating 7 checkpoints and test sets on 64 test problems, 3 of them not measured yet" in printed


def test_only_what_is_wanted_is_measured(trained, two_runs, measured):
    """What was measured before is shown, wanted or not."""

    def epochs(wanted) -> list[int | None]:
        return [one.target.checkpoint.epoch for one in evaluate.measure_missing(two_runs.config(), wanted)]

    assert epochs(lambda checkpoint: checkpoint.final) == [None, 4]
    assert epochs(lambda checkpoint: checkpoint.epoch == 1) == [None, 1, 4] and len(measured) == 3
    assert two_runs("eval") == 0 and len(measured) == 4
    assert two_runs.view()["records"] == expected(trained, two_runs)


def test_weights_that_did_not_change_are_cross_checked_at_the_last_epoch(copy, monkeypatch):
    """RL without any signal has the same weights after every update; the last ones are checked all the same."""
    monkeypatch.setitem(learning.ADVANTAGES, "grpo", lambda reward, k: reward * 0)
    pipeline, without_signal = copy(BASE, "fork1"), ["rl.kl=0", "rl.updates=2", "rl.problems=16"]
    assert pipeline("rl", *without_signal) == 0
    evaluate.measure_missing(pipeline.config(), lambda checkpoint: checkpoint.epoch == 1)
    assert pipeline("eval") == 0
    name, view = pipeline.at("rl", *without_signal).name, pipeline.view()
    assert len({record["weights_hash"] for record in view["records"] if record["run"] == name}) == 1
    assert name in [check["run"] for check in view["checks"]]


# damage, kills, interruptions


def edited(content: bytes) -> bytes:
    """A record with another pass@1."""
    return re.sub(rb'("pass_at": {\s*"1": )[^,]+', rb"\g<1>0.5", content, count=1)


DAMAGE = {  # the content of a file, given the old one; None: the file is lost
    "json": [lambda old: old[:-40], lambda old: b"{}", edited],
    "npz": [lambda old: old[:-40], lambda old: old[:-1] + b"x", None],
}


@pytest.mark.parametrize(("suffix", "damage"), [(suffix, how) for suffix, changes in DAMAGE.items() for how in changes])
def test_what_is_damaged_is_named_and_made_anew(copy, measured, capsys, suffix, damage):
    """By `eval`; claims name it and refuse."""
    pipeline = copy(BASE, measured=True)
    assert pipeline("eval") == 0 and not measured
    records = pipeline.view()["records"]
    (path,) = pipeline.run(BASE).glob(f"eval/*.{suffix}")
    path.write_bytes(damage(path.read_bytes())) if damage else path.unlink()
    name = f"{path.with_suffix('.json')}: "
    assert name in pipeline.refused(capsys, "claims")
    assert pipeline("eval") == 0 and len(measured) == 1 and name in capsys.readouterr().out
    assert pipeline.view()["records"] == records
    assert pipeline("eval") == 0 and len(measured) == 1


@pytest.mark.parametrize("written", [0, 1, 4])
def test_an_interrupted_evaluation_loses_nothing(trained, two_runs, measured, monkeypatch, written):
    """Before either of a measurement's two files is in place, between them, and after whole ones."""
    real, replaced = os.replace, []

    def replace_or_die(*paths):
        if len(replaced) == written:
            raise KeyboardInterrupt
        replaced.append(paths)
        real(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_or_die)
        assert two_runs("eval") == 130 and not (two_runs.folder / "eval.json").exists()
    names = sorted(path.suffix for path in two_runs.folder.glob("*/eval/*"))
    assert names == [".json"] * (written // 2) + [".npz"] * -(-written // 2)
    assert two_runs("eval") == 0 and len(measured) > 4  # what was lost is measured twice
    assert two_runs.view()["records"] == expected(trained, two_runs)


def test_a_signal_stops_a_long_measurement(two_runs, monkeypatch, threads):
    """At once, and what was measured before is kept."""
    real, calls, done = evaluate._measure, itertools.count(), []

    def slow(config, target):
        if next(calls) < 2:
            real(config, target)
            done.append(target)
            return
        while len(done) < 2:  # the other thread may still measure
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(6_000):
            time.sleep(0.01)

    threads(2)
    monkeypatch.setattr(evaluate, "_measure", slow)
    started, before = time.monotonic(), {*threading.enumerate()}  # torch's compiler keeps threads of its own
    assert two_runs("eval") == 130
    assert time.monotonic() - started < 40
    assert len([*two_runs.folder.glob("*/eval/*.json")]) == len(done)
    assert not [one for one in {*threading.enumerate()} - before if one.name.startswith("ThreadPool")]


def test_two_evaluations_at_once(trained, two_runs):
    """In processes of their own, on the same runs: both succeed, and what they leave is whole."""
    processes = [multiprocessing.get_context("fork").Process(target=lambda: sys.exit(two_runs("eval"))) for _ in "12"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert two_runs.view()["records"] == expected(trained, two_runs)
    assert not [path for path in two_runs.folder.rglob(".*") if path.is_file()]


# other versions of the measuring code


def test_another_version_is_used_until_it_is_made_again(copy, measured, monkeypatch, capsys):
    """A line says so; --again replaces it."""
    pipeline = copy(BASE, "fork1", measured=True)
    assert pipeline("eval") == 0 and not measured
    before, version = pipeline.view(), targets.version_of
    for module in (targets, eval_files):
        monkeypatch.setattr(module, "version_of", lambda task, decoder: "another")
    capsys.readouterr()
    assert pipeline("eval") == 0 and not measured
    assert "4 of 4 were measured by another version of the code; --again measures anew" in capsys.readouterr().out
    assert pipeline.view()["records"] == [record | {"current": False} for record in before["records"]]
    assert pipeline("claims") == 0
    assert "4 of 4 records are of another version of the code" in capsys.readouterr().out

    assert pipeline("eval", "--again") == 0 and len(measured) == 4
    assert "another version" not in capsys.readouterr().out and pipeline.view()["records"] == before["records"]
    assert pipeline("eval", "--again") == 0 and len(measured) == 4
    for module in (targets, eval_files):
        monkeypatch.setattr(module, "version_of", version)
    assert pipeline("eval", "--again") == 0 and len(measured) == 8 and pipeline.view()["records"] == before["records"]
