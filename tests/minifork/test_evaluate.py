"""Evaluation with every engine and decoder, through the command line on the small trained pipeline.

Cross-checks have false-alarm rates of 1e-3 an evaluation, with fixed seeds.
"""

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from data_gen import streams
from minifork import evaluate, tables
from minifork import measure as measuring
from minifork.decoding import stratified
from minifork.decoding.rollout import rollout
from minifork.decoding.traces import Result, TraceTree
from minifork.evaluation import files as eval_files
from minifork.evaluation.files import array_name
from minifork.measuring import cross_check, quantities
from minifork.statistics import passk
from minifork.storage import files, locks
from tests.helpers.pipeline import BASE

COLD = "temperature=0.5,top_p=0.95"


def evaluated(pipeline, *overrides: str) -> tuple[dict, dict]:
    """What eval.json and eval.npz say once `eval` has run with overrides."""
    assert pipeline("eval", *overrides) == 0
    return pipeline.view(), pipeline.arrays()


@pytest.fixture
def two_runs(copy):
    """A base and a fine-tuning that were measured with the small config's settings."""
    return copy(BASE, "fork1", measured=True)


@pytest.mark.parametrize("engine", ["split", "rollout"])
def test_sampled_evaluations_estimate_the_computed_one(trained, two_runs, engine):
    """Estimates lie within 5 of their own standard errors of the computed pass@k."""
    computed = {(one["run"], one["epoch"]): one for one in trained.view()["records"]}
    sampled, arrays = evaluated(two_runs, f"eval.engine={engine}", "eval.rollouts=256")
    assert sampled["engine"] == engine
    for record in sampled["records"]:
        exact = computed[record["run"], record["epoch"]]
        assert record["n"] == 256 and record["pass_at_lo"] is None
        for k, value in exact["pass_at"].items():
            error = record["sampling_error"][k]
            assert abs(record["pass_at"][k] - value) <= 5 * error + 1e-3, (record["run"], k)
        counts, low, high = (arrays[array_name(record, what)] * 256 for what in ("free", "free_lo", "free_hi"))
        np.testing.assert_allclose(counts, np.rint(counts), atol=1e-9)
        assert (low <= counts + 0.5).all() and (high >= counts - 0.5).all()
        assert record["pass_at"]["16"] == pytest.approx(
            passk.unbiased_pass_at_k(np.rint(counts).astype(int), 256, 16).mean()
        )
        assert record["fork"] == exact["fork"] and record["mode"] == exact["mode"]
        assert sum(record["errors"].values()) + record["pass_at"]["1"] == pytest.approx(1, abs=1e-9)
        assert record["rho"] == pytest.approx(exact["rho"], abs=0.1)
    assert all(c["engine"] == engine and c["by"] != engine and c["agrees"] for c in sampled["checks"])


def test_auto_samples_the_remainder_when_the_budget_is_spent(trained, two_runs, capsys):
    """Estimates lie within the certified bounds, and within 5 of their own standard errors of the computed pass@k."""
    computed = {(one["run"], one["epoch"]): one for one in trained.view()["records"]}
    small, arrays = evaluated(two_runs, "eval.budget=100")
    assert small["engine"] == "remainder" and "certified within" not in capsys.readouterr().out
    assert all(c["engine"] == "remainder" and c["by"] == "rollout" and c["agrees"] for c in small["checks"])
    for record in small["records"]:
        exact = computed[record["run"], record["epoch"]]
        assert record["n"] == 1024 and sum(record["errors"].values()) + record["pass_at"]["1"] == pytest.approx(1)
        for k, value in exact["pass_at"].items():
            estimate, error = record["pass_at"][k], record["sampling_error"][k]
            assert record["pass_at_lo"][k] - 1e-6 <= min(value, estimate), (record["run"], k)
            assert max(value, estimate) <= record["pass_at_hi"][k] + 1e-6, (record["run"], k)
            assert abs(estimate - value) <= 5 * error + 1e-3, (record["run"], k)
        p, low, high = (arrays[array_name(record, what)] for what in ("free", "free_lo", "free_hi"))
        assert (low <= p).all() and (p <= high).all() and (low < high).any()
        assert record["rho"] == pytest.approx(exact["rho"], abs=0.1)


def test_a_wrong_remainder_fails_the_cross_check(two_runs, monkeypatch):
    real = measuring.sample_remainder

    def too_large(*arguments) -> Result:
        result = real(*arguments)
        outcomes = result.outcomes.copy()
        outcomes[:, 0] = result.p_hi
        return replace(result, outcomes=outcomes)

    monkeypatch.setattr(measuring, "sample_remainder", too_large)
    assert two_runs("eval", "eval.budget=10", "eval.check_problems=64", "eval.check_rollouts=64") == 1


def test_exact_gives_certified_bounds_when_the_budget_is_spent(trained, two_runs, capsys):
    computed = {(one["run"], one["epoch"]): one for one in trained.view()["records"]}
    bounds, arrays = evaluated(two_runs, "eval.engine=exact", "eval.budget=20")
    for record in bounds["records"]:
        for k, value in computed[record["run"], record["epoch"]]["pass_at"].items():
            low, high = record["pass_at_lo"][k], record["pass_at_hi"][k]
            assert 0 <= low <= value + 1e-6 and value - 1e-6 <= high <= 1 and record["pass_at"][k] == low
        assert (record["rho"] is None) == (record["pass_at_hi"]["1"] - record["pass_at_lo"]["1"] > 1e-6)
    assert any(record["pass_at_hi"]["64"] - record["pass_at_lo"]["64"] > 0.05 for record in bounds["records"])
    assert "pass@k is certified within" in capsys.readouterr().out
    low, high = (arrays[array_name(bounds["records"][0], what)] for what in ("free", "free_hi"))
    assert (high >= low).all() and (high > low).any()
    assert "not computed" in two_runs.refused(capsys, "figures", "eval.engine=exact", "eval.budget=20")


def test_decoders_change_what_is_measured(two_runs):
    """Greedy p is 0 or 1 and pass@k does not grow; fork statistics but r and p_rest are the model's."""
    plain = evaluated(two_runs)[0]
    greedy, arrays = evaluated(two_runs, "eval.policy=greedy")
    cold = evaluated(two_runs, f"eval.policy={COLD}")[0]
    assert [view["policy"] for view in (plain, greedy, cold)] == ["temperature=1", "greedy", COLD]
    assert all(set(np.unique(p)) <= {0.0, 1.0} for key, p in arrays.items() if key.endswith("free"))
    for one, mid, all_ in zip(greedy["records"], cold["records"], plain["records"], strict=True):
        assert len(set(one["pass_at"].values())) == 1
        assert one["pass_at"]["64"] != mid["pass_at"]["64"] != all_["pass_at"]["64"]
        forks = [
            {k: v for k, v in record["fork"].items() if k not in ("p_rest", "r", "corr_r")}
            for record in (one, mid, all_)
        ]
        assert forks[0] == forks[1] == forks[2]


@pytest.mark.parametrize("where", ["first", "fork", "entropy"])
def test_stratified_decoders(two_runs, monkeypatch, where):
    """Strata are checked with draws of their own.

    Or the p-values of one problem's strata would depend on each other, and the false-alarm rate would not hold.
    """
    seeds, real = [], cross_check.sample
    monkeypatch.setattr(cross_check, "sample", lambda tree, n, seed: seeds.append(seed) or real(tree, n, seed))
    result, arrays = evaluated(two_runs, f"eval.stratify={where}", "eval.strata=3")
    assert result["policy"] == f"temperature=1 {where}=3"
    for record in result["records"]:
        p = arrays[array_name(record, "strata")]
        assert p.shape == (64, 3) and record["rho"] is record["forced"] is None
        assert record["pass_at"]["16"] == pytest.approx(stratified.dealt_pass_at_k(p, [16]).mean())
        assert (record["hit_rate"] is not None) == (where == "entropy")
    assert all(check["agrees"] for check in result["checks"])
    assert seeds and len(set(seeds[:3])) == 3 and measuring.SEED not in seeds


def test_a_pool_of_samples(two_runs):
    """The same strata as without one, scored as k of 8 samples without replacement; k may then end below 64."""
    words = ["eval.stratify=first", "eval.strata=3"]
    _, dealt = evaluated(two_runs, *words)
    result, arrays = evaluated(two_runs, *words, "eval.pool=8", "eval.max_k=8")
    assert result["policy"] == "temperature=1 first=3 pool=8"
    for record in result["records"]:
        name = array_name(record, "strata")
        assert np.array_equal(arrays[name], dealt[name]) and [*record["pass_at"]] == ["1", "2", "4", "8"]
        passes = stratified.pooled_pass_at_k(arrays[name], [3, 3, 2], [1, 2, 4, 8]).mean(axis=0)
        assert [*record["pass_at"].values()] == pytest.approx(passes)


def test_more_problems_than_there_are(two_runs, capsys):
    """Evaluation uses all there are and says so; training refuses."""
    count = len(streams.distinct_problems(two_runs.config().data, 0, "test", 10**4))
    view, arrays = evaluated(two_runs, "eval.problems=1000")
    assert view["n_problems"] == count == len(arrays[f"{view['records'][0]['run']}/base/plain/free"]) < 1000
    assert f"the test stream holds {count} different problems, not eval.problems=1000" in capsys.readouterr().out
    assert "different problems, and 1000 are asked for" in two_runs.refused(capsys, "sft", "sft.traces=1000")
    refused = two_runs.refused(capsys, "rl", "rl.problems=1000", "rl.updates=2", "rl.mode=FWD")
    assert "different problems, and 1000 are asked for" in refused


def test_nothing_ends_within_the_budget():
    """Then no trace has a length, and bounds say nothing."""
    result = Result("exact", np.zeros((4, 3)), np.ones(4), None, 1, np.zeros((4, 3)))
    record = quantities.pass_statistics(result, [1, 2])
    assert record["tokens"] is None and record["pass_at_lo"] == {"1": 0, "2": 0} and record["pass_at_hi"]["2"] == 1
    row = {"run": "x", "tags": {}, "test_set": "plain", "forced": {"FWD": record | {"wasted": None}}}
    assert tables.mode_table([row]).splitlines()[1].split() == ["x", "0.000", "-", "-"]


def test_two_evaluations_that_end_at_once_wait_for_each_other(two_runs):
    """Or eval.json would be of one and eval.npz of the other."""
    config = two_runs.config()
    evaluations = evaluate.measure_missing(config)
    writer = threading.Thread(target=eval_files.write_eval_files, args=(config, evaluations))
    with locks.locked(two_runs.folder):
        writer.start()
        writer.join(0.3)
        assert writer.is_alive() and not [*two_runs.folder.glob("eval.*")]
    writer.join(30)
    assert two_runs.view()["npz_hash"] == files.digest((two_runs.folder / "eval.npz").read_bytes())


def test_stratified_decoders_keep_the_budget(two_runs):
    """With too few prefixes p_ij is bounded, and the bounds hold the p_ij that are computed with enough."""
    whole, _ = evaluated(two_runs, "eval.stratify=first", "eval.strata=3")
    result, _ = evaluated(two_runs, "eval.stratify=first", "eval.strata=3", "eval.budget=70")
    for record, computed in zip(result["records"], whole["records"], strict=True):
        low, high = (record[f"pass_at_{end}"]["16"] for end in ("lo", "hi"))
        assert low < high and low <= computed["pass_at"]["16"] <= high
    assert all(check["agrees"] for check in result["checks"])


def test_a_checkpoint_without_its_weights_keeps_its_measurement(two_runs, capsys):
    """Under other settings it cannot be measured, and is left out."""
    lost = two_runs.run("fork1") / "epochs" / "e4.pt"
    lost.unlink()
    assert len(evaluated(two_runs)[0]["records"]) == 4
    records = evaluated(two_runs, "eval.policy=greedy")[0]["records"]
    assert f"1 checkpoints are left out: their weights are not here, such as {lost}" in capsys.readouterr().out
    assert [record["epoch"] for record in records] == [None, 1, 2]


def test_runs_of_other_data_are_left_out(two_runs, capsys):
    """Their order of branches apart, which plain test sets ignore."""
    smaller = ["data.length=2", "pretrain.steps=1"]
    assert two_runs("pretrain", *smaller) == two_runs("eval", "data.branch_order=published") == 0
    assert f"{two_runs.folder}: 1 runs of other data are left out" in capsys.readouterr().out
    assert len(two_runs.view()["records"]) == 4
    (record,) = evaluated(two_runs, *smaller)[0]["records"]
    assert record["run"] == two_runs.at("base", *smaller).name
    assert "2 runs of other data are left out" in capsys.readouterr().out


def test_figures_are_of_the_settings_that_they_are_given(two_runs, capsys):
    """Results with other settings do not stand in for them."""
    greedy, stratified = ["eval.policy=greedy"], ["eval.stratify=fork", "eval.strata=2"]
    assert "nothing was measured with these settings" in two_runs.refused(capsys, "claims", *greedy)
    evaluated(two_runs, *stratified)
    assert "stratified" in two_runs.refused(capsys, "claims", *stratified)


def test_a_bad_policy_is_named(two_runs, capsys):
    assert "eval.policy: policy top_p is 1.5" in two_runs.refused(capsys, "eval", "eval.policy=top_p=1.5")
    assert not (two_runs.folder / "eval.json").exists()


def test_the_valid_stream_is_another_set(two_runs):
    test, valid = evaluated(two_runs)[0], evaluated(two_runs, "eval.split=valid")[0]
    assert (test["split"], valid["split"]) == ("test", "valid") and test["data_hash"] != valid["data_hash"]
    assert test["records"][0]["pass_at"]["1"] != valid["records"][0]["pass_at"]["1"]


def change_results(monkeypatch, change: Callable[[TraceTree, Result], Result]) -> None:
    """Have the enumeration answer with changed results."""
    real = measuring.exact_by_prefix

    def changed(tree, *arguments):
        return {name: replace(one, result=change(tree, one.result)) for name, one in real(tree, *arguments).items()}

    monkeypatch.setattr(measuring, "exact_by_prefix", changed)


def test_a_wrong_result_fails_the_cross_check(two_runs, monkeypatch, capsys):
    """An engine whose p are a little too large: eval says which runs disagree and exits with 1."""

    def too_large(tree: TraceTree, result: Result) -> Result:
        outcomes = result.outcomes.copy()
        outcomes[:, 0] = outcomes[:, 0] * 0.7 + 0.3
        return replace(result, outcomes=outcomes)

    change_results(monkeypatch, too_large)
    assert two_runs("eval", "eval.check_problems=64", "eval.check_rollouts=64") == 1
    assert "exact against rollout" in (out := capsys.readouterr().out) and "DISAGREE" in out


def test_bounds_that_rollouts_contradict_fail_the_cross_check(two_runs, monkeypatch):
    def inverted(tree: TraceTree, result: Result) -> Result:
        return replace(result, outcomes=0.9 * (1 - rollout(tree, 64, 5).outcomes), unknown=np.full(len(tree), 0.05))

    change_results(monkeypatch, inverted)
    assert two_runs("eval", "eval.engine=exact", "eval.check_rollouts=64") == 1
