"""Verdicts: numbers against hand-made results, and what intervals decide."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from experiments import claims, verdicts
from experiments.claims import Claim, Reported, Term
from experiments.results import Results, load_results, write_result
from minifork import config as configs
from minifork import runs
from minifork.evaluation.files import array_name
from minifork.runs import Run
from minifork.statistics import passk
from minifork.storage import files

N = 400
RUNS = {"base": {}, "data": {}, "x": {"sft.loss": "gem=0.5"}}  # the base and two fine-tunings, by name


@lru_cache
def run_of(name: str, pair: int) -> Run:
    """A run of RUNS as its record has it, of a pair of seeds."""
    stage = "base" if name == "base" else "sft"
    config = configs.with_changes(configs.load_config("star"), RUNS[name] | {"seed": pair, "base_seed": pair})
    return Run(Path(f"{name}-seed{pair}"), {"stage": stage, "identity": runs.identity(config, stage)}, config)


def results_of(p: dict[tuple[str, int], np.ndarray], **arrays: np.ndarray) -> Results:
    """Results whose runs (name, pair) have these p; arrays are those of every run."""
    named, records, stored = {}, [], {}
    for (name, pair), values in p.items():
        run, (seed, epoch) = run_of(name, pair), (None, None) if name == "base" else (pair, 64)
        record = {"run": run.name, "identity": run.identity, "base_seed": pair, "seed": seed, "epoch": epoch}
        records.append(record | {"test_set": "plain", "n": None})
        named[run.name] = run
        for what, array in (arrays | {"free": values}).items():
            stored[array_name(records[-1], what)] = array
    return Results(configs.load_config("star"), named, records, stored)


def judged(results: Results, pairs: int, **terms) -> dict:
    """The verdict on a claim with these terms over the first pairs."""
    return verdicts.judge(Claim("x", "something", "star", "us", **terms), results, list(range(pairs)))


def term(name: str, what: str) -> Term:
    """The term of a quantity of one of RUNS."""
    return Term({"stage": "base"} if name == "base" else {"fork_rate": 1, **RUNS[name]}, what)


BASE, DATA = term("base", "pass@4"), term("data", "pass@4")


@pytest.fixture(scope="module")
def two_pairs():
    rng = np.random.default_rng(0)
    p = {("base", pair): rng.uniform(0.2, 0.3, N) for pair in (0, 1)}
    return results_of(p | {("data", pair): (rng.random(N) < 0.5 + 0.1 * pair) * 0.9 for pair in (0, 1)})


def test_numbers_are_means_over_pairs(two_pairs):
    p = {name: np.stack([two_pairs.arrays[f"{name}-seed{pair}/{epoch}/plain/free"] for pair in (0, 1)])
         for name, epoch in (("base", "base"), ("data", "e64"))}  # fmt: skip
    base, data = ((1 - (1 - p[name]) ** 4).mean() for name in ("base", "data"))
    row = judged(two_pairs, 2, value=BASE, minus=DATA, at_least=0.0)
    assert row["effect"] == pytest.approx(base - data) and row["interval"][0] < base - data < row["interval"][1]
    share = judged(two_pairs, 2, value=DATA, minus=BASE, over=1, at_least=-0.5)
    assert share["effect"] == pytest.approx((data - base) / (1 - base))
    steps = judged(two_pairs, 2, rising=(DATA, BASE, DATA), at_least=0.0)
    assert steps["effect"] == pytest.approx(-abs(base - data))
    assert [step["mean"] for step in steps["steps"]] == pytest.approx([base - data, data - base])
    index = judged(two_pairs, 1, value=replace(DATA, what="index@16"), at_least=0.0)["effect"]
    first = p["data"][0]
    assert index == pytest.approx(passk.polarisation(first.mean(), passk.pass_at_k(first, [16]), [16])[1][0])


def test_estimates_that_studies_have_written(tmp_path):
    """They are judged as they are, a list of them together. Missing files, those of other pairs, settings or hands, a
    gain too small for shares and an ambiguous row are told apart."""
    results, share = results_of({}), Reported("stops", "gains", {"k": 16}, "share")
    results = replace(results, config=configs.with_changes(results.config, {"runs": str(tmp_path)}))
    path = runs.task_folder(results.config) / "stops.json"

    def verdict(rows: list[dict], **rule) -> dict:
        write_result(results.config, "stops", {"gains": rows})
        return judged(results, 1, reported=share, **rule)

    missing = "stops.json with these settings, of pairs 0, is missing"
    assert missing in judged(results, 1, reported=share, at_least=0.5)["why"]
    rows = [{"k": k, "share": {"mean": 0.6, "ci95": [0.5 + k / 1000, 0.7]}} for k in (4, 16)]
    assert [verdict(rows, at_least=end)["verdict"] for end in (0.51, 0.52, 0.7)] == ["holds", "undecided", "refuted"]
    assert verdict(rows, at_least=0.5)["interval"] == [0.516, 0.7]
    assert "of pairs 0, 1, is missing" in judged(results, 2, reported=share, at_least=0.5)["why"]
    others = replace(results, config=configs.with_changes(results.config, {"eval.split": "valid"}))
    assert missing in judged(others, 1, reported=share, at_least=0.5)["why"]
    files.write_json(path, files.read_json(path) | {"gains": []})
    assert missing in judged(results, 1, reported=share, at_least=0.5)["why"]
    several = [{"k": 16, "share": [{"mean": 0.6, "ci95": ends} for ends in ([0.55, 0.7], [0.52, 0.65])]}]
    assert verdict(several, at_least=0.5)["interval"] == [0.52, 0.65]
    assert [verdict(several, at_least=end)["verdict"] for end in (0.53, 0.66)] == ["undecided", "refuted"]
    assert verdict([{"k": 16, "share": None}], at_least=0.5)["verdict"] == "not run"
    with pytest.raises(ValueError, match="claim 'x': the study has written no ci99.5, which a primary claim needs"):
        verdict(rows, at_least=0.5, primary=True)
    for wrong in (rows + rows, rows[:1], [{"k": 16}]):
        with pytest.raises(
            ValueError, match="claim 'x'.*stops.json must have one row with {'k': 16} and share in gains"
        ):
            verdict(wrong, at_least=0.5)


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ({"at_least": 0.0}, "holds"),
        ({"at_least": -0.1, "at_most": 0.5}, "holds"),
        ({"at_most": 0.0}, "refuted"),
        ({"at_least": 0.3}, "refuted"),
        ({"at_least": 0.3, "at_most": 0.5}, "refuted"),
        ({"at_least": 0.16}, "undecided"),  # the estimate is above, its interval is not
        ({"at_least": 0.1, "at_most": 0.21}, "undecided"),
    ],
)
def test_the_whole_interval_decides(two_pairs, rule, verdict):
    row = judged(two_pairs, 1, value=BASE, minus=DATA, **rule)
    assert 0.16 < row["effect"] < 0.21 and row["verdict"] == verdict


def test_primary_claims_have_wider_intervals(two_pairs):
    """Of one estimate, the interval at 99.5 % is 1.43 times as wide as that at 95 %, by the quantiles of a normal."""
    wide, narrow = (judged(two_pairs, 1, value=BASE, minus=DATA, at_least=0.15, primary=p) for p in (True, False))
    (low, high), (inner_low, inner_high) = wide["interval"], narrow["interval"]
    assert (high - low) / (inner_high - inner_low) == pytest.approx(2.807 / 1.960, rel=0.02)
    assert (wide["level"], narrow["level"]) == (0.995, 0.95) and wide["effect"] == narrow["effect"]
    text = verdicts.verdicts_text([narrow, wide]).splitlines()
    assert text[0] == "primary claims, 99.5 % intervals" and text[2] == "descriptive claims, 95 % intervals"


def test_each_pair_by_itself():
    """A pair that fails is seen, though the mean over pairs holds."""
    rng = np.random.default_rng(5)
    p = {("base", pair): np.clip(mean + rng.normal(0, 0.01, N), 0, 1) for pair, mean in enumerate((0.9, 0.9, 0.6))}
    verdict = {each: judged(results_of(p), 3, value=term("base", "pass@1"), at_least=0.7, each=each) for each in (0, 1)}
    assert (verdict[1]["verdict"], len(verdict[1]["steps"])) == ("refuted", 3)
    assert verdict[1]["effect"] == pytest.approx(0.6, abs=0.01) and verdict[0]["effect"] == pytest.approx(0.8, abs=0.01)


def test_every_step_of_a_rising_claim_has_its_own_interval():
    """Steps of .05 that are sure hold; one that is not leaves the claim undecided, however sure the others are."""
    rng = np.random.default_rng(4)
    means = {"base": 0.4, "data": 0.45, "x": 0.5}
    sure = {(run, pair): mean + rng.normal(0, 0.01, N) for run, mean in means.items() for pair in range(5)}
    rising = tuple(term(run, "pass@1") for run in means)
    row = judged(results_of(sure), 5, rising=rising, at_least=0)
    assert row["verdict"] == "holds" and all(step["ci95"][0] > 0.04 for step in row["steps"])
    noisy = sure | {("x", pair): np.clip(0.47 + rng.normal(0, 0.1) + 0 * sure["x", pair], 0, 1) for pair in range(5)}
    row = judged(results_of(noisy), 5, rising=rising, at_least=0)
    assert row["verdict"] == "undecided" and row["steps"][0]["ci95"][0] > 0.04 > 0 > row["steps"][1]["ci95"][0]
    assert row["interval"] == row["steps"][1]["ci95"]  # of the step that is undecided, though it is not the smallest


def test_a_step_that_refutes_counts_beside_one_without_an_interval():
    steps = [{"mean": -0.3, "ci95": [-0.35, -0.25]}, {"mean": 0.1, "ci95": None, "by_pair": [0.1]}]
    claim = Claim("x", "something", "star", "us", rising=(BASE, DATA, BASE), at_least=0)
    assert verdicts._interval_verdict(claim, steps)["verdict"] == "refuted"
    assert verdicts._interval_verdict(claim, steps[1:])["verdict"] == "undecided"


def test_pairs_that_differ_too_much_have_no_interval():
    p = {("base", pair): np.full(N, value) for pair, value in enumerate((1.0, 0.999, 0.9, 0.99, 1.0))}
    row = judged(results_of(p), 5, value=term("base", "pass@1"), at_least=0.5)
    assert (row["verdict"], row["interval"]) == ("undecided", None) and row["effect"] == pytest.approx(0.9778)
    assert "pairs differ too much for an interval (pairs: 1.000, 0.999, 0.900" in verdicts.claim_line(row)


def test_terms_about_different_problems_are_refused():
    right = np.random.default_rng(2).random(N)
    fork = np.stack([right, 1 - right], axis=1)
    world = results_of({("base", 0): right}, fork=fork, fork_train=fork[:50])
    with pytest.raises(ValueError, match="claim 'x': its terms are about different problems"):
        judged(world, 1, value=term("base", "fork accuracy"), minus=term("base", "train fork accuracy"), at_least=0)


def test_intervals_cover():
    """Of 200 worlds with five pairs and problems drawn anew, the 95 % interval holds the truth in 88 % or more (false
    alarm below 1e-4 at a true coverage of .95)."""
    rng, inside = np.random.default_rng(1), 0
    for _ in range(200):
        skill, ease = rng.normal(0, 0.05, 5), rng.normal(0, 0.1, N)
        world = results_of({("base", s): np.clip(0.5 + skill[s] + ease, 0, 1) for s in range(5)})
        row = judged(world, 5, value=term("base", "pass@1"), at_least=0.0)
        inside += row["interval"][0] <= 0.5 <= row["interval"][1]
    assert inside >= 176


@pytest.mark.parametrize(
    ("value", "minus", "over", "at_least", "verdict", "effect"),
    [
        ("x", "data", "base", 0.8, "undecided", None),  # worse than the tuned model, itself above the base: ratio > 0
        ("base", "x", "data", 0.4, "holds", 0.05 / 0.09),
        ("x", "x", "data", 0.5, "refuted", 0.0),
    ],
)
def test_a_recovered_share_is_not_fooled_by_signs(value, minus, over, at_least, verdict, effect):
    rng, means = np.random.default_rng(3), {"base": 0.95, "data": 0.99, "x": 0.9}
    world = results_of({(run, 0): np.clip(mean + rng.normal(0, 0.01, N), 0, 1) for run, mean in means.items()})
    terms = {"value": term(value, "pass@1"), "minus": term(minus, "pass@1"), "over": term(over, "pass@1")}
    row = judged(world, 1, **terms, at_least=at_least)
    assert row["verdict"] == verdict and row["effect"] == (effect and pytest.approx(effect, abs=0.03))
    assert effect is not None or "too little to recover" in row["why"]


def test_statistics_at_the_fork():
    right = np.random.default_rng(2).random(N)
    fork, modes = np.stack([right, 1 - right], axis=1), np.full((N, 2), 0.5)
    world = results_of({("base", 0): right}, fork=fork, fork_train=fork[:50], modes=modes, rest=right, skill=right / 2)
    logit = np.log(right) - np.log(1 - right)
    expected = {
        "fork accuracy": (right > 0.5).mean(),
        "fork entropy": -(fork * np.log(fork)).sum(axis=1).mean(),
        "train fork accuracy": (right[:50] > 0.5).mean(),
        "confidence right": right[right > 0.5].mean(),
        "confidence wrong": (1 - right[right <= 0.5]).mean(),
        "mode entropy": np.log(2),
        "rest": right.mean(),
        "skill": right.mean() / 2,
        "sigma": logit.std(),
        "train sigma": logit[:50].std(),
    }
    assert expected.keys() | {"pass", "index"} == claims.QUANTITIES.keys()
    for what, value in expected.items():
        assert judged(world, 1, value=term("base", what), at_least=0.0)["effect"] == pytest.approx(value), what


def test_a_missing_run_is_not_run(two_pairs):
    row = judged(two_pairs, 2, value=BASE, minus=term("x", "pass@4"), at_least=0.0)
    why = "sft fork_rate=1 loss=gem=0.5 (plain) of pair 0 is missing"
    assert (row["verdict"], row["effect"], row["why"]) == ("not run", None, why)
    assert judged(two_pairs, 2, value=replace(DATA, epoch=2), at_least=0.0)["verdict"] == "not run"


def test_runs_that_cannot_be_looked_up_are_named(two_pairs):
    with pytest.raises(ValueError, match="claims.yaml: claim 'x': .*unknown key 'frok_rate'; did you mean sft.fork_r"):
        judged(two_pairs, 1, value=Term({"frok_rate": 1}, "pass@1"), at_least=0.0)


def test_the_command_judges_the_runs_of_its_config_only(copy, capsys):
    """Runs of another config are another pair or none; a label and unfinished studies change nothing."""
    pipeline = copy("base", "fork0.5", "fork1", measured=True)
    assert pipeline("claims", "name=cold") == 0
    written = files.read_json(pipeline.folder / "claims-star.json")
    by_id = {row["id"]: row["verdict"] for row in written["claims"]}
    assert "search" not in by_id
    assert [by_id[name] for name in ("gain", "no-forks", "rl-forward")] == ["refuted", "not run", "not run"]
    assert (written["study"], written["seeds"], written["wanted"]) == ("star", [0], 5)
    assert written["train_minutes"] == load_results(pipeline.config()).train_minutes
    assert "on 1 pair of seeds" in (out := capsys.readouterr().out) and "provisional, 5 pairs are wanted" in out
    assert "no pair of a base and its fine-tuning" in pipeline.refused(capsys, "claims", "sft.epochs=5")
    assert pipeline("claims", "reproduce.study=sizes") == 0
    assert "no claims are made about the study sizes" in capsys.readouterr().out
