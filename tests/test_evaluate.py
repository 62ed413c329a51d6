"""Evaluation with every engine and decoder, through the command line on the small trained pipeline.

Cross-checks have false-alarm rates of 1e-3 an evaluation, with fixed seeds.
"""

import json
import os
import shutil
import threading

import numpy as np
import pytest

from minifork import evaluate, passk, policy, records, runs, strata
from minifork import measure as measuring
from minifork.exact import exact
from minifork.rollout import rollout
from minifork.tree import Result


def evaluated(pipeline, *overrides: str, name: str = "") -> tuple[dict, dict]:
    assert pipeline("eval", *overrides, *([f"name={name}"] if name else [])) == 0
    path = pipeline.folder / (f"eval-{name}.json" if name else "eval.json")
    with np.load(path.with_suffix(".npz")) as stored:
        return json.loads(path.read_text()), {key: stored[key] for key in stored.files}


@pytest.fixture
def two_runs(copy):
    return copy("base-seed0", "sft-fork1-seed0")


def test_sampled_evaluations_estimate_the_computed_one(two_runs):
    """Estimates lie within 5 of their own standard errors of the computed pass@k, for both samplers."""
    computed = evaluated(two_runs)[0]
    for engine in ("split", "rollout"):
        sampled, arrays = evaluated(two_runs, f"eval.engine={engine}", "eval.rollouts=256", name=engine)
        assert sampled["engine"] == engine and computed["engine"] == "exact"
        for want, got in zip(computed["records"], sampled["records"], strict=True):
            assert got["n"] == 256 and want["n"] is None and got["pass_at_lo"] is None
            for k, value in want["pass_at"].items():
                error = got["sampling_error"][k]
                assert abs(got["pass_at"][k] - value) <= 5 * error + 1e-3, (engine, got["run"], k)
            counts = arrays[records.array_key(got, None)] * 256
            np.testing.assert_allclose(counts, np.rint(counts), atol=1e-9)
            inside = [arrays[records.array_key(got, end)] * 256 for end in ("free_lo", "free_hi")]
            assert (inside[0] <= counts + 0.5).all() and (inside[1] >= counts - 0.5).all()
            assert got["pass_at"]["16"] == pytest.approx(passk.unbiased(np.rint(counts).astype(int), 256, 16).mean())
            assert got["fork"] == want["fork"] and got["mode"] == want["mode"]
            assert sum(got["errors"].values()) + got["pass_at"]["1"] == pytest.approx(1, abs=1e-9)
            assert got["rho"] == pytest.approx(want["rho"], abs=0.1)
        assert all(c["engine"] == engine and c["by"] != engine and c["agrees"] for c in sampled["checks"])


def test_auto_splits_when_the_budget_is_spent(two_runs):
    small, _ = evaluated(two_runs, "eval.budget=10", name="auto")
    assert small["engine"] == "split" and all(r["n"] == 1024 for r in small["records"])
    assert all(c["engine"] == "split" and c["by"] == "rollout" for c in small["checks"])


def test_exact_gives_certified_bounds_when_the_budget_is_spent(two_runs, capsys):
    full = evaluated(two_runs)[0]
    bounds, arrays = evaluated(two_runs, "eval.engine=exact", "eval.budget=100", name="bounds")
    for want, got in zip(full["records"], bounds["records"], strict=True):
        assert got["n"] is None
        for k, value in want["pass_at"].items():
            assert want["pass_at_lo"][k] == pytest.approx(value) == want["pass_at_hi"][k]
            assert 0 <= got["pass_at_lo"][k] <= value + 1e-6 and value - 1e-6 <= got["pass_at_hi"][k] <= 1
            assert got["pass_at"][k] == got["pass_at_lo"][k]
        assert (got["rho"] is None) == (got["pass_at_hi"]["1"] - got["pass_at_lo"]["1"] > 1e-6)
    assert any(r["pass_at_hi"]["1"] - r["pass_at_lo"]["1"] > 0.05 for r in bounds["records"])
    assert "pass@k is certified within" in capsys.readouterr().out
    assert (arrays["base-seed0/base/plain/free_hi"] >= arrays["base-seed0/base/plain/free"]).all()
    assert "not computed" in two_runs.refused(capsys, "figures", "name=bounds")


def test_decoders_change_what_is_measured(two_runs):
    """Greedy p is 0 or 1 and pass@k does not grow; fork statistics are the model's, whatever the decoder."""
    plain = evaluated(two_runs)[0]
    greedy, arrays = evaluated(two_runs, "eval.policy=greedy", name="greedy")
    cold = evaluated(two_runs, "eval.policy=temperature=0.5,top_p=0.95", name="cold")[0]
    assert (plain["policy"], greedy["policy"], cold["policy"]) == (
        "temperature=1", "greedy", "temperature=0.5,top_p=0.95",
    )  # fmt: skip
    assert all(set(np.unique(p)) <= {0.0, 1.0} for key, p in arrays.items() if key.endswith("free"))
    for one, mid, all_ in zip(greedy["records"], cold["records"], plain["records"], strict=True):
        assert len(set(one["pass_at"].values())) == 1
        assert one["pass_at"]["64"] != mid["pass_at"]["64"] != all_["pass_at"]["64"]
        forks = [{k: v for k, v in record["fork"].items() if k != "p_rest"} for record in (one, mid, all_)]
        assert forks[0] == forks[1] == forks[2]


@pytest.mark.parametrize("where", ["first", "fork", "entropy"])
def test_stratified_decoders(two_runs, where):
    result, arrays = evaluated(two_runs, f"eval.stratify={where}", "eval.strata=3", name=where)
    assert result["policy"] == f"temperature=1 {where}=3"
    for record in result["records"]:
        p = arrays[records.array_key(record, "strata")]
        assert p.shape == (64, 3) and record["rho"] is record["forced"] is None
        assert record["pass_at"]["16"] == pytest.approx(strata.solve_rate(p, [16]).mean())
        assert (record["hit_rate"] is not None) == (where == "entropy")
    assert all(check["agrees"] for check in result["checks"])


def test_strata_are_checked_with_draws_of_their_own(two_runs, monkeypatch):
    """Or the p-values of one problem's strata would depend on each other, and the false-alarm rate would not hold."""
    seeds, real = [], measuring.sample
    monkeypatch.setattr(measuring, "sample", lambda tree, n, seed: seeds.append(seed) or real(tree, n, seed))
    evaluated(two_runs, "eval.stratify=first", "eval.strata=3", name="first")
    assert seeds and len(set(seeds[:3])) == 3 and measuring.SEED not in seeds


def test_nothing_ends_within_the_budget():
    """Then no trace has a length, and bounds say nothing."""
    result = Result("exact", np.zeros((4, 3)), np.ones(4), None, 1, np.zeros((4, 3)))
    record = records.coverage(result, [1, 2], passk.resamples(4, 10))
    assert record["tokens"] is None and record["pass_at_lo"] == {"1": 0, "2": 0} and record["pass_at_hi"]["2"] == 1
    row = {"run": "x", "test_set": "plain", "forced": {"FWD": record | {"wasted": None}}}
    assert records.mode_table([row]).splitlines()[1].split() == ["x", "0.000", "-", "-"]


def test_two_evaluations_that_end_at_once_wait_for_each_other(tmp_path):
    path = tmp_path / "eval.json"
    writer = threading.Thread(target=evaluate.save, args=(path, {"n": 1}, {"p": np.zeros(2)}))
    with runs.alone(tmp_path):
        writer.start()
        writer.join(0.3)
        assert writer.is_alive() and not path.exists()
    writer.join(30)
    assert path.exists() and path.with_suffix(".npz").exists()


def test_stratified_decoders_keep_the_budget(two_runs):
    """With too few prefixes p_ij is bounded, and the bounds hold the p_ij that are computed with enough."""
    whole, _ = evaluated(two_runs, "eval.stratify=first", "eval.strata=3", name="whole")
    result, _ = evaluated(two_runs, "eval.stratify=first", "eval.strata=3", "eval.budget=70", name="few")
    for record, known in zip(result["records"], whole["records"], strict=True):
        low, high = (record[f"pass_at_{end}"]["16"] for end in ("lo", "hi"))
        assert low < high and low <= known["pass_at"]["16"] <= high
    assert all(check["agrees"] for check in result["checks"])


def test_a_run_that_lost_a_snapshot_is_left_out(two_runs, capsys):
    (two_runs.folder / "sft-fork1-seed0" / "epochs" / "e4.pt").unlink()
    assert two_runs("eval") == 0
    out = capsys.readouterr().out
    assert "sft-fork1-seed0: left out, epochs/e4.pt is missing" in out and "sft-fork1-seed0  " not in out


def test_named_evaluations_stay_apart(two_runs, capsys):
    evaluated(two_runs)
    before = (two_runs.folder / "eval.json").read_bytes()
    evaluated(two_runs, "eval.policy=greedy", name="greedy")
    assert (two_runs.folder / "eval.json").read_bytes() == before
    assert two_runs("figures", "name=greedy") == two_runs("claims", "name=greedy", "eval.policy=greedy") == 0
    assert (two_runs.folder / "claims-greedy.json").exists() and not (two_runs.folder / "claims.json").exists()
    assert (two_runs.folder / "figures-greedy" / "crossing.png").exists()
    evaluated(two_runs, "eval.stratify=fork", "eval.strata=2", name="fork")
    assert "stratified" in two_runs.refused(capsys, "figures", "name=fork")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("eval.engine=fast", "eval.engine"),
        ("eval.budget=0", "eval.budget"),
        ("eval.rollouts=0", "eval.rollouts"),
        ("eval.rollouts=63", "eval.max_k=64"),
        ("eval.policy=top_p=1.5", "eval.policy: policy top_p is 1.5"),
        ("eval.policy=top_p=0", "top_p is 0"),
        ("eval.policy=temperature=-1", "temperature is -1"),
        ("eval.policy=top_k=0", "top_k is 0"),
        ("eval.policy=warm=1", "'warm' does not exist"),
        ("eval.policy=", "policy"),
        ("eval.stratify=second", "eval.stratify"),
        ("eval.strata=0", "eval.strata"),
    ],
)
def test_bad_values(two_runs, capsys, override, named):
    assert named in two_runs.refused(capsys, "eval", override)
    assert not (two_runs.folder / "eval.json").exists()


def test_stratified_decoders_are_not_sampled(two_runs, capsys):
    assert "eval.engine" in two_runs.refused(capsys, "eval", "eval.stratify=first", "eval.engine=split")


def test_the_valid_stream_is_another_set(two_runs):
    assert two_runs("eval") == two_runs("eval", "eval.split=valid", "name=valid") == 0
    test, valid = (json.loads((two_runs.folder / name).read_text()) for name in ("eval.json", "eval-valid.json"))
    assert (test["split"], valid["split"]) == ("test", "valid") and test["data_hash"] != valid["data_hash"]
    assert test["records"][0]["pass_at"]["1"] != valid["records"][0]["pass_at"]["1"]


def test_a_wrong_result_fails_the_cross_check(two_runs, monkeypatch, capsys):
    """An engine whose p are a little too large: eval says which runs disagree and exits with 1."""

    def too_large(engine, tree, budget, n, seed, bf16):
        result = exact(tree)
        ends = result.ends.copy()
        ends[:, 0] = ends[:, 0] * 0.7 + 0.3
        return Result("exact", ends, result.unknown, None, 0, result.tokens)

    monkeypatch.setattr(measuring, "solve", too_large)
    assert two_runs("eval", "eval.check_problems=64", "eval.check_rollouts=64") == 1
    assert "exact against rollout" in (out := capsys.readouterr().out) and "DISAGREE" in out


def test_bounds_that_rollouts_contradict_fail_the_cross_check(two_runs, monkeypatch):
    def inverted(engine, tree, budget, n, seed, bf16):
        ends = 1 - rollout(tree, 64, 5).ends
        return Result("exact", ends * 0.9, np.full(len(tree), 0.05), None, 0, np.ones_like(ends))

    monkeypatch.setattr(measuring, "solve", inverted)
    assert two_runs("eval") == 1


def test_agreement(trained, copy, capsys):
    """The whole grid of engines, models and policies on the small pipeline; false alarms below 1e-3."""
    pipeline = copy("base-seed0", "sft-fork0.5-seed0", "sft-fork1-seed0")
    assert "sft-fork0-seed0" in pipeline.refused(capsys, "agreement")
    assert pipeline("sft", "sft.fork_rate=0") == 0
    assert pipeline("agreement") == 0
    assert capsys.readouterr().out.count("agree   ") == 16
    tests = json.loads((pipeline.folder / "agreement.json").read_text())["tests"]
    assert {t["test"] for t in tests} == {"exact/split", "exact/rollout", "split/rollout"}
    assert len({t["sink"] for t in tests}) > 3 and len(tests) > 100


def test_bench(copy, monkeypatch, capsys):
    """The benchmark runs, and its last line is JSON."""
    from experiments import bench

    monkeypatch.setattr(bench, "ROUNDS", 1)
    pipeline = copy("base-seed0")
    assert "model.width: 32 -> 48" in pipeline.refused(capsys, "bench", "model.width=48")
    assert pipeline("bench") == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"prefill", "exact", "split", "rollout", "recompute"} <= set(result["engines"])
    assert all(job["seconds"] > 0 for job in result["engines"].values())
    assert result["rollout_against"]["recompute"] > 0


def test_what_is_known_is_kept(copy, trained, capsys, monkeypatch):
    """A second evaluation measures only what changed; its file is what a whole one writes, but for timings."""
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("eval") == 0
    before = json.loads((pipeline.folder / "eval.json").read_text())
    measured, real = [], evaluate.measure_one

    def counted(config, checkpoint, *rest):
        measured.append(str(checkpoint.path.relative_to(pipeline.folder)))
        return real(config, checkpoint, *rest)

    monkeypatch.setattr(evaluate, "measure_one", counted)
    capsys.readouterr()
    assert pipeline("eval") == 0 and not measured
    assert "4 of 4 results are the last evaluation's" in capsys.readouterr().out
    assert json.loads((pipeline.folder / "eval.json").read_text()) == before

    weights = pipeline.folder / "sft-fork1-seed0" / "epochs" / "e2.pt"
    saved = runs.load_weights(weights)
    saved["model"]["head.weight"] *= 1.5
    runs.save_weights(weights, saved)
    assert pipeline("eval") == 0 and measured == ["sft-fork1-seed0/epochs/e2.pt"]
    shutil.copy(trained.folder / "sft-fork1-seed0" / "epochs" / "e2.pt", weights)
    measured.clear()
    assert pipeline("eval", "eval.bootstrap=51") == 0 and len(measured) == 4  # other settings
    measured.clear()
    assert pipeline("eval") == 0 and len(measured) == 4
    measured.clear()
    monkeypatch.setitem(policy.STEPS, "mine", policy.STEPS["top_k"])  # its file is known: the same code
    assert pipeline("eval") == 0 and not measured
    monkeypatch.setattr(evaluate, "_code", lambda config: "other code")
    assert pipeline("eval") == 0 and len(measured) == 4
    assert json.loads((pipeline.folder / "eval.json").read_text())["records"] == before["records"]


def test_only_what_is_wanted_is_measured(two_runs, capsys):
    """What was found before stays, wanted or not, and what is measured is what a whole evaluation measures."""

    def epochs(wanted) -> list[int | None]:
        assert evaluate.evaluate(two_runs.config(), wanted) == 0
        return [record["epoch"] for record in json.loads((two_runs.folder / "eval.json").read_text())["records"]]

    assert epochs(lambda checkpoint: checkpoint.final) == [None, 4]
    assert "evaluating 2 of 4 checkpoints" in capsys.readouterr().out
    assert epochs(lambda checkpoint: checkpoint.epoch == 1) == [None, 1, 4]
    partial, _ = evaluated(two_runs)
    assert [record["epoch"] for record in partial["records"]] == [None, 1, 2, 4]
    (two_runs.folder / "eval.json").unlink()
    assert evaluated(two_runs)[0]["records"] == partial["records"]


def test_a_policy_that_loses_all_probability_is_refused(two_runs, capsys):
    assert "not finite" in two_runs.refused(capsys, "eval", "eval.policy=temperature=1e-20,temperature=1e-20")


@pytest.mark.parametrize("stopped", [0, 1, 2])
def test_a_pair_can_be_read_wherever_saving_stops(two_runs, monkeypatch, stopped):
    """Killed before the arrays are there, before eval.json is, or before the arrays have their last name: the old pair
    or the new one can be read, and the next evaluation goes on."""
    evaluated(two_runs)
    old = evaluate.read_evaluation(two_runs.folder / "eval.json")[0]
    moved, real = [], os.replace

    def replace_or_stop(*paths):
        moved.append(paths)
        if len(moved) > stopped:
            raise KeyboardInterrupt
        real(*paths)

    monkeypatch.setattr(os, "replace", replace_or_stop)
    assert two_runs("eval", "eval.bootstrap=51") == 130
    monkeypatch.setattr(os, "replace", real)
    found, arrays = evaluate.read_evaluation(two_runs.folder / "eval.json")
    assert (found == old) == (stopped < 2) and arrays
    for bootstrap in ("eval.bootstrap=51", "eval.bootstrap=52"):
        evaluated(two_runs, bootstrap)
        assert not (two_runs.folder / f"eval{evaluate.COMING}").exists()
        evaluate.read_evaluation(two_runs.folder / "eval.json")


@pytest.mark.parametrize("file", ["eval.json", "eval.npz"])
def test_a_damaged_evaluation_is_made_anew(copy, file):
    pipeline = copy("base-seed0")
    assert pipeline("eval") == 0
    before = json.loads((pipeline.folder / "eval.json").read_text())["records"]
    (pipeline.folder / file).write_bytes((pipeline.folder / file).read_bytes()[:-40])
    assert pipeline("eval") == 0
    assert json.loads((pipeline.folder / "eval.json").read_text())["records"] == before
