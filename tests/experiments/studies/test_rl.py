"""RL on forward and reverse traces, compared: every run of the comparison at toy size, numbers checked by hand."""

import numpy as np
import pytest

from experiments import study
from experiments.estimates import KS
from experiments.results import load_results
from experiments.studies.early_stopping import early_stopping_curve
from experiments.studies.rl import COMPARED, FORWARD, compare_rl_runs, mode_of
from minifork import config as configs
from minifork.storage.files import read_json
from tests.helpers.starts import Starts

SMALL = ["rl.updates=4", "rl.problems=16", "rl.prompts=4", "rl.lr=0.01"]


def test_compares_all_runs(copy, monkeypatch, capsys):
    """The whole command: it makes what is missing, measures it and compares every run with where it started."""
    starts, pipeline = Starts(monkeypatch), copy("base", "fork0.5", "fork1", measured=True)
    assert pipeline("contrast", *SMALL) == 0 and sorted(starts.commands) == ["rl"] * 15 + ["sft"]  # two at a time
    compared, config = read_json(pipeline.folder / "contrast.json"), pipeline.config(*SMALL)
    plans, results = study.plans(config, study.read_study("rl"), [0]), load_results(config)
    rows = {row["run"]: row for row in compared["runs"]}
    assert list(rows) == [plan.name for plan in plans]
    for plan, row in zip(plans, rows.values(), strict=True):
        rl, rate, mode = plan.config.rl, plan.config.sft.fork_rate, mode_of(plan)
        assert mode == {"FWD": "FWD", "REV": "REV", "free": None}[rl.mode]
        keys = {name: getattr(rl, name) for name in ("advantage", "k", "kl_form", "reduction", "source")}
        keys |= {"rl.mode": rl.mode, "rl.policy": rl.policy, "rl.problems": rl.problems}
        (first,) = results.select({"fork_rate": rate}, epoch=1)
        before, after = (results.record_pass_at_ks(record, KS, mode).mean(axis=1)
                         for record in (first, results.select({"fork_rate": rate} | keys, "rl")[-1]))  # fmt: skip
        assert row["start"] == pytest.approx(before) and row["end"] == pytest.approx(after)
        assert [change["mean"] for change in row["change"].values()] == pytest.approx(after - before)
    for names in COMPARED:
        first, second = (rows[name]["change"]["64"]["mean"] for name in names)
        difference = compared["differences"][f"({names[0]}) minus ({names[1]})"]["64"]
        assert difference["mean"] == pytest.approx(first - second)
    assert compared["above_grpo"].keys() == {name for name in rows if "forward" in name} - {FORWARD}
    line = early_stopping_curve(results, plans[0], "FWD")
    assert line.shape == (1 + 3, 1 + 3, 64) and (np.diff(line[:, 1:], axis=1) >= -1e-12).all()
    valid = load_results(pipeline.config(*SMALL, "eval.split=valid"))
    measured = {(record["identity"], record["epoch"]) for record in valid.records}
    forward = [plan for plan in plans if mode_of(plan) == "FWD"]
    assert {identity for identity, _ in measured} == {plans[0].start[0]} | {plan.identity for plan in forward}
    assert plans[0].start in measured and len(measured) == 1 + 3 + len(forward) - 1  # GRPO's snapshots, others' ends
    assert f"\n({FORWARD}) minus (reverse, GRPO), change: pass@1 " in capsys.readouterr().out


def test_compared_runs_differ_in_what_their_names_say():
    """Forward and reverse runs of a kind, and published RL on both sources, share all other keys, the pool too."""
    config = configs.load_config("star")
    plans = {plan.name: plan for plan in study.plans(config, study.read_study("rl"), [0])}
    for names in COMPARED[:4]:
        first, second = (configs.flat_values(plans[name].config) for name in names)
        differing = {key for key in first if first[key] != second[key]}
        forced = {"sft.fork_rate", "rl.mode"}
        assert differing == (forced if "reverse" in names[1] else {"rl.source"}), names


def test_a_missing_run_is_named(copy):
    config = copy("base", "fork1", measured=True).config(*SMALL)
    with pytest.raises(ValueError, match="no forward, GRPO of pair 0 to compare with"):
        compare_rl_runs(config, study.plans(config, study.read_study("rl"), [0]))
