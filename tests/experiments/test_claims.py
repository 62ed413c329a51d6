"""Claims: the file that ships, numbers against hand-made results, verdicts from intervals, malformed files."""

from dataclasses import replace
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import yaml

from experiments import claims, study
from experiments.claims import Claim, Term
from experiments.results import Results
from minifork import config as configs
from minifork import evaluate, runs
from minifork.runs import Run
from minifork.statistics import intervals, passk
from minifork.storage import files

N = 400
RUNS = {"base": {}, "data": {}, "x": {"sft.loss": "gem=0.5"}}  # the base and two fine-tunings, by name


@lru_cache
def run_of(name: str, pair: int) -> Run:
    """A run of RUNS as its record has it, of a pair of seeds."""
    stage = "base" if name == "base" else "sft"
    config = configs.changed(configs.load("star"), RUNS[name] | {"seed": pair, "base_seed": pair})
    return Run(Path(f"{name}-seed{pair}"), {"stage": stage, "identity": runs.identity(config, stage)}, config)


def results_of(p: dict[tuple[str, int], np.ndarray], **arrays: np.ndarray) -> Results:
    """Results whose runs (name, pair) have these p; arrays are those of every run."""
    records, stored = [], {}
    for (name, pair), values in p.items():
        run = run_of(name, pair)
        record = {"run": run.name, "identity": run.identity, "base_seed": pair, "test_set": "plain", "n": None}
        record |= {"seed": None, "epoch": None} if name == "base" else {"seed": pair, "epoch": 1}
        records.append(record)
        stored |= {evaluate.array_name(record, what): array for what, array in (arrays | {"free": values}).items()}
    made = {f"{name}-seed{pair}": run_of(name, pair) for name, pair in p}
    return Results(configs.load("star"), made, records, stored, intervals.resamples(N, 10))


@pytest.fixture
def two_pairs():
    rng = np.random.default_rng(0)
    p = {("base", pair): rng.uniform(0.2, 0.3, N) for pair in (0, 1)}
    return results_of(p | {("data", pair): (rng.random(N) < 0.5 + 0.1 * pair) * 0.9 for pair in (0, 1)})


def claim(**terms) -> Claim:
    return Claim("x", "something", "star", "us", **terms)


def term(name: str, what: str) -> Term:
    """What of one of RUNS."""
    return Term({"stage": "base"} if name == "base" else {"fork_rate": 1, **RUNS[name]}, what)


BASE, DATA = term("base", "pass@4"), term("data", "pass@4")


def test_the_file_that_ships():
    wanted, listed = claims.read(claims.FILE)
    assert wanted == 5 and len({c.id for c in listed}) == len(listed) >= 20
    assert {c.of for c in listed} == {"star", "search", "arith"} and {c.by for c in listed} == {"paper", "us"}


@pytest.mark.parametrize(("name", "task", "preset"), [("star", "star", ""), ("search", "star", "search"),
                                                      ("arith", "arith", "")])  # fmt: skip
def test_claims_are_about_runs_that_studies_make(name, task, preset):
    """Every term's run is one of its study, of the RL study or one that these start from, on a test set of that run."""
    config = configs.load(task, [f"preset={preset}"] if preset else [])
    entries = [*study.read(name), *(study.read("rl") if name == "star" else [])]
    made = {(runs.identity(plan.config, stage), test_set) for plan in study.plans(config, entries, [0])
            for stage in ("base", "sft", plan.stage) for test_set in ("plain", plan.test_set)}  # fmt: skip
    for one in [claim for claim in claims.read(claims.FILE)[1] if claim.of == name]:
        for part in [part for part in (one.value, one.minus, one.over, *one.rising) if isinstance(part, Term)]:
            decide = runs.deciding_values(config, part.stage)
            keys = {configs.full_key(key, decide, one.id): value for key, value in part.keys.items()}
            wanted = configs.changed(config, keys | {"sft.allow_leak": True})
            assert (runs.identity(wanted, part.stage), part.test_set) in made, one.id
            assert part.epoch is None or part.epoch <= config.sft.epochs


def test_numbers_are_means_over_pairs(two_pairs):
    p = {key: two_pairs.array(next(r for r in two_pairs.records if r["run"] == f"{key[0]}-seed{key[1]}")) for key in
         (("base", 0), ("base", 1), ("data", 0), ("data", 1))}  # fmt: skip
    by_hand = {key: (1 - (1 - values) ** 4).mean() for key, values in p.items()}
    gap = np.mean([by_hand["base", pair] - by_hand["data", pair] for pair in (0, 1)])
    row = claims.judge(claim(value=BASE, minus=DATA, at_least=0.0), two_pairs, [0, 1])
    assert row["effect"] == pytest.approx(gap) and row["ci95"][0] < gap < row["ci95"][1]
    share = claims.judge(claim(value=DATA, minus=BASE, over=1, at_least=-0.5), two_pairs, [0, 1])
    mean = {run: np.mean([by_hand[run, pair] for pair in (0, 1)]) for run in ("base", "data")}
    assert share["effect"] == pytest.approx((mean["data"] - mean["base"]) / (1 - mean["base"]))
    steps = claims.judge(claim(rising=(DATA, BASE, DATA), at_least=0.0), two_pairs, [0, 1])
    assert steps["effect"] == pytest.approx(-abs(gap))
    index = claims.judge(claim(value=replace(DATA, what="index@16"), at_least=0.0), two_pairs, [0])
    assert index["effect"] == pytest.approx(
        passk.polarisation(p["data", 0].mean(), passk.pass_at_k(p["data", 0], [16]), [16])[1][0]
    )


@pytest.mark.parametrize(
    ("rule", "verdict"),
    [
        ({"at_least": 0.0}, "holds"),
        ({"at_least": -0.1, "at_most": 0.5}, "holds"),
        ({"at_most": 0.0}, "fails"),
        ({"at_least": 0.16}, "fails"),  # the estimate is above, the interval is not
    ],
)
def test_the_whole_interval_decides(two_pairs, rule, verdict):
    row = claims.judge(claim(value=BASE, minus=DATA, **rule), two_pairs, [0])
    assert 0.16 < row["effect"] < 0.25 and row["verdict"] == verdict


def test_intervals_cover():
    """Of 200 worlds with five pairs and problems drawn anew, the 95 % interval holds the truth in 88 % or more (false
    alarm below 1e-4 at a true coverage of .95)."""
    rng, inside = np.random.default_rng(1), 0
    pairs = list(range(5))
    for _ in range(200):
        skill, ease = rng.normal(0, 0.05, 5), rng.normal(0, 0.1, N)
        world = results_of({("base", s): np.clip(0.5 + skill[s] + ease, 0, 1) for s in pairs})
        row = claims.judge(claim(value=term("base", "pass@1"), at_least=0.0), world, pairs)
        inside += row["ci95"][0] <= 0.5 <= row["ci95"][1]
    assert inside >= 176


def test_a_recovered_share_is_not_fooled_by_signs():
    """Worse than the tuned model, which is itself above the base: the ratio is positive, nothing was recovered."""
    rng = np.random.default_rng(3)
    flat = {
        run: np.clip(mean + rng.normal(0, 0.01, N), 0, 1) for run, mean in (("base", 0.95), ("data", 0.99), ("x", 0.9))
    }
    world = results_of({(run, 0): p for run, p in flat.items()})
    terms = {run: term(run, "pass@1") for run in flat}
    row = claims.judge(claim(value=terms["x"], minus=terms["data"], over=terms["base"], at_least=0.8), world, [0])
    assert row["verdict"] == "fails" and row["effect"] is None and "was lost" in row["why"]
    rows = [
        claims.judge(claim(value=terms[won], minus=terms["x"], over=terms["data"], at_least=0.5), world, [0])
        for won in ("base", "x")
    ]
    assert [row["verdict"] for row in rows] == ["holds", "fails"] and rows[0]["effect"] == pytest.approx(
        0.05 / 0.09, abs=0.03
    )


def test_statistics_at_the_fork():
    rng = np.random.default_rng(2)
    right = rng.random(N)
    fork = np.stack([right, 1 - right], axis=1)
    modes = np.full((N, 2), 0.5)
    world = results_of({("base", 0): right}, fork=fork, fork_train=fork[:50], modes=modes, rest=right)
    expected = {
        "fork accuracy": (right > 0.5).mean(),
        "train fork accuracy": (right[:50] > 0.5).mean(),
        "confidence right": right[right > 0.5].mean(),
        "confidence wrong": (1 - right[right <= 0.5]).mean(),
        "mode entropy": np.log(2),
        "rest": right.mean(),
    }
    for what, value in expected.items():
        row = claims.judge(claim(value=term("base", what), at_least=0.0), world, [0])
        assert row["effect"] == pytest.approx(value), what


def test_a_missing_run_is_not_run(two_pairs):
    row = claims.judge(claim(value=BASE, minus=term("x", "pass@4"), at_least=0.0), two_pairs, [0, 1])
    assert row["verdict"] == "not run" and row["effect"] is None
    assert row["why"] == "sft fork_rate=1 loss=gem=0.5 (plain) of pair 0 is missing"
    row = claims.judge(claim(value=replace(DATA, epoch=2), at_least=0.0), two_pairs, [0, 1])
    assert row["verdict"] == "not run" and "epoch 2" in row["why"]


class Plain(yaml.SafeDumper):
    """YAML as people write it, without aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def dumped(listed: list[dict]) -> str:
    return yaml.dump({"pairs": 5, "claims": listed}, Dumper=Plain)


GOOD = {"id": "a", "says": "b", "of": "star", "by": "us", "at_least": 0}
GOOD["value"] = {"run": {"stage": "base"}, "what": "pass@1"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"at_lest": 1}, "unknown key 'at_lest'"),
        ({"at_least": None}, "what would refute it"),
        ({"value": {"run": {}, "what": "passk"}}, "what is 'passk'"),
        ({"value": {"run": {}, "what": "pass@0"}}, "what is 'pass@0'"),
        ({"value": {"run": {}}}, "missing key 'what'"),
        ({"value": {"run": {}, "what": "pass@1", "rate": 1}}, "unknown key 'rate'"),
        ({"value": None}, "give value"),
        ({"rising": [GOOD["value"], GOOD["value"]]}, "give value"),
        ({"value": None, "rising": [7]}, "7 is no mapping"),
        ({"over": 1}, "over needs minus"),
        ({"over": 1, "minus": GOOD["value"], "at_most": 1}, "over needs minus"),
        ({"at_least": "high"}, "at_least is 'high'"),
        ({"at_least": True}, "at_least is True"),
        ({"value": {"run": "base", "what": "pass@1"}}, "run is 'base'"),
        ({"value": {"run": {"stage": "tuned"}, "what": "pass@1"}}, "run has the stage 'tuned': choose base, sft"),
        ({"by": "them"}, "by is 'them'"),
        ({"of": "starr"}, "of is 'starr'"),
        ({"at_least": float("nan")}, "no number is > nan"),
        ({"at_least": 0.5, "at_most": 0.1}, "no number is in (0.5, 0.1)"),
        ({"at_least": date(2026, 1, 1)}, "at_least is datetime.date(2026, 1, 1)"),
        ({"value": GOOD["value"] | {"epoch": 1.5}}, "epoch is 1.5"),
        ({"value": {"run": {}, "what": "fork accuracy", "mode": "FWD"}}, "only pass@K and index@K"),
        ({"value": None, "rising": [GOOD["value"]] * 2, "minus": GOOD["value"]}, "minus has no meaning beside rising"),
    ],
)
def test_malformed_claims_are_named(tmp_path, changes, named):
    path = tmp_path / "claims.yaml"
    path.write_text(dumped([{key: value for key, value in (GOOD | changes).items() if value is not None}]))
    with pytest.raises(ValueError, match="claims.yaml: claim 'a'") as error:
        claims.read(path)
    assert named in str(error.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "claims: []",
        "{a: [}",
        "pairs: null\nclaims: []",
        "pairs: 0\nclaims: []",
        "pairs: 5\nclaims: 3",
        "pairs: 5\nclaims: [7]",
    ],
)
def test_malformed_files_are_named(tmp_path, text):
    path = tmp_path / "claims.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"claims\.yaml"):
        claims.read(path)


def test_two_claims_of_one_id(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(dumped([GOOD, GOOD]))
    with pytest.raises(ValueError, match="there are two of this id"):
        claims.read(path)


@pytest.mark.parametrize(
    ("run", "named"),
    [
        ({"frok_rate": 1}, "unknown key 'frok_rate'; did you mean sft.fork_rate?"),
        ({"stage": "base", "fork_rate": 1}, "unknown key 'fork_rate'"),
        ({"lr": 1}, "'lr' is short for pretrain.lr, sft.lr"),
    ],
)
def test_runs_that_cannot_be_looked_up_are_named(copy, tmp_path, capsys, monkeypatch, run, named):
    path, pipeline = tmp_path / "claims.yaml", copy("base", "fork1", measured=True)
    path.write_text(dumped([GOOD, GOOD | {"id": "b", "value": {"run": run, "what": "pass@1"}}]))
    monkeypatch.setattr(claims, "FILE", path)
    error = pipeline.refused(capsys, "claims")
    assert "claims.yaml: claim 'b': " in error and named in error


def test_the_command_judges_the_runs_of_its_config_only(copy, capsys):
    """Runs of another config are another pair or none; a label and unfinished studies change nothing."""
    pipeline = copy("base", "fork0.5", "fork1", measured=True)
    assert pipeline("claims", "name=cold") == 0
    judged = files.read_json(pipeline.folder / "claims.json")
    verdicts = {row["id"]: row["verdict"] for row in judged["claims"]}
    assert {"gain", "no-forks", "rl-forward"} <= verdicts.keys() and "search" not in verdicts
    assert verdicts["gain"] == "fails" and verdicts["no-forks"] == verdicts["rl-forward"] == "not run"
    assert (judged["study"], judged["pairs"], judged["wanted"]) == ("star", 1, 5)
    assert "1 pair of seeds; provisional, 5 pairs are wanted" in capsys.readouterr().out
    for override in ("pretrain.steps=41", "sft.epochs=5"):
        assert "no pair of a base and its fine-tuning was measured" in pipeline.refused(capsys, "claims", override)
    assert "nothing was measured with these settings" in pipeline.refused(capsys, "claims", "eval.policy=temperature=2")
    assert pipeline("claims", "reproduce.study=mixed") == 0
    assert "no claims are made about the study mixed" in capsys.readouterr().out
