"""Claims: the file that ships, numbers against hand-made results, verdicts from intervals, malformed files."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import yaml

from experiments import claims, sweep
from experiments.claims import Claim, Term
from experiments.results import Results, complete_pairs, load
from minifork import config as configs
from minifork import passk, records, runs
from minifork.config import fingerprint
from minifork.runs import digest

N = 400


def results_of(p: dict[tuple[str, int], np.ndarray], **arrays: np.ndarray) -> Results:
    """Results whose runs (variant, pair) have these p; arrays are those of every run."""
    found, stored = [], {}
    for (variant, pair), values in p.items():
        base = variant == "base"
        record = {"run": f"{variant}-seed{pair}", "stage": "base" if base else "sft", "variant": variant}
        record |= {"base_seed": pair, "seed": None if base else pair, "fork_rate": None if base else 1.0}
        record |= {
            "epoch": None if base else 1,
            "test_set": "plain",
            "n": None,
            "setup_hash": variant,
            "recipe_hash": variant,
        }
        found.append(record)
        stored[records.array_key(record, None)] = values
        stored |= {records.array_key(record, name): array for name, array in arrays.items()}
    return Results(found, stored, passk.resamples(N, 10))


@pytest.fixture
def two_pairs():
    rng = np.random.default_rng(0)
    p = {("base", pair): rng.uniform(0.2, 0.3, N) for pair in (0, 1)}
    return results_of(p | {("data", pair): (rng.random(N) < 0.5 + 0.1 * pair) * 0.9 for pair in (0, 1)})


def claim(**terms) -> Claim:
    return Claim("x", "something", "star", "us", **terms)


BASE, DATA = Term("base", "pass@4"), Term("data", "pass@4", 1.0)


def test_the_file_that_ships():
    wanted, listed = claims.read(claims.FILE)
    assert wanted == 5 and len({c.id for c in listed}) == len(listed) >= 20
    assert {c.of for c in listed} == {"star", "search", "arith"} and {c.by for c in listed} == {"paper", "us"}
    assert {c.of for c in listed} <= {path.stem for path in sweep.FOLDER.glob("*.yaml")}


def test_numbers_are_means_over_pairs(two_pairs):
    p = {key: two_pairs.p(next(r for r in two_pairs.records if r["run"] == f"{key[0]}-seed{key[1]}")) for key in
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
        row = claims.judge(claim(value=Term("base", "pass@1"), at_least=0.0), world, pairs)
        inside += row["ci95"][0] <= 0.5 <= row["ci95"][1]
    assert inside >= 176


def test_a_recovered_share_is_not_fooled_by_signs():
    """Worse than the tuned model, which is itself above the base: the ratio is positive, nothing was recovered."""
    rng = np.random.default_rng(3)
    flat = {
        run: np.clip(mean + rng.normal(0, 0.01, N), 0, 1) for run, mean in (("base", 0.95), ("data", 0.99), ("x", 0.9))
    }
    world = results_of({(run, 0): p for run, p in flat.items()})
    terms = {run: Term(run, "pass@1") for run in flat}
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
        row = claims.judge(claim(value=Term("base", what), at_least=0.0), world, [0])
        assert row["effect"] == pytest.approx(value), what


def test_a_missing_run_is_not_run(two_pairs):
    row = claims.judge(claim(value=BASE, minus=Term("fresh", "pass@4", 1.0), at_least=0.0), two_pairs, [0, 1])
    assert row["verdict"] == "not run" and "fresh at FORK_RATE 1 (plain) of pair 0" in row["why"]
    row = claims.judge(claim(value=replace(DATA, epoch=2), at_least=0.0), two_pairs, [0, 1])
    assert row["verdict"] == "not run" and "epoch 2" in row["why"]


def test_a_term_that_could_mean_several_runs_is_refused(two_pairs):
    more = [record | {"fork_rate": 0.5} for record in two_pairs.records if record["variant"] == "data"]
    several = replace(two_pairs, records=[*two_pairs.records, *more])
    with pytest.raises(ValueError, match=r"was run at FORK_RATEs 0\.5, 1: name one"):
        claims.judge(claim(value=replace(DATA, fork_rate=None), at_least=0.0), several, [0, 1])


def test_pairs_that_lack_runs_of_the_sweep_do_not_count(config_file):
    """A pair of which another command made a few runs leaves the others' verdicts alone; without a whole one all
    count."""
    config = configs.load(config_file, [])
    planned = [(configs.changed(config, job.overrides), job.stage) for job in sweep.read(config, [0])]
    names = [runs.run_folder(*one).name for one in planned]
    results = results_of({(kind, pair): np.full(N, 0.5) for kind in ("base", "data") for pair in (0, 1)})
    assert complete_pairs(config, results) == [0, 1]
    whole = [{"run": name, "variant": "", "base_seed": 0, "seed": 0, "stage": "sft"} for name in names]
    assert complete_pairs(config, replace(results, records=[*results.records, *whole])) == [0]


class Plain(yaml.SafeDumper):
    """YAML as people write it, without aliases."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def dumped(listed: list[dict]) -> str:
    return yaml.dump({"pairs": 5, "claims": listed}, Dumper=Plain)


GOOD = {"id": "a", "says": "b", "of": "star", "by": "us", "value": {"run": "base", "what": "pass@1"}, "at_least": 0}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"at_lest": 1}, "unknown key 'at_lest'"),
        ({"at_least": None}, "what would refute it"),
        ({"value": {"run": "base", "what": "passk"}}, "what is 'passk'"),
        ({"value": {"run": "base", "what": "pass@0"}}, "what is 'pass@0'"),
        ({"value": {"run": "base"}}, "missing key 'what'"),
        ({"value": {"run": "base", "what": "pass@1", "rate": 1}}, "unknown key 'rate'"),
        ({"value": None}, "give value"),
        ({"rising": [GOOD["value"], GOOD["value"]]}, "give value"),
        ({"over": 1}, "over needs minus"),
        ({"over": 1, "minus": GOOD["value"], "at_most": 1}, "over needs minus"),
        ({"at_least": "high"}, "at_least must be a number"),
        ({"rising": None, "value": {"run": 7, "what": "pass@1"}}, "run must be words"),
        ({"by": "them"}, "by is 'them'"),
        ({"of": "starr"}, "of is 'starr'"),
        ({"at_least": float("nan")}, "no number is > nan"),
        ({"at_least": 0.5, "at_most": 0.1}, "no number is in (0.5, 0.1)"),
        ({"at_least": date(2026, 1, 1)}, "at_least must be a number"),
        ({"value": GOOD["value"] | {"epoch": 1.5}}, "epoch must be a whole number"),
        ({"value": {"run": "data", "what": "fork accuracy", "mode": "FWD"}}, "only pass@K and index@K"),
        ({"value": None, "rising": [GOOD["value"]] * 2, "minus": GOOD["value"]}, "minus has no meaning beside rising"),
    ],
)
def test_malformed_claims_are_named(tmp_path, changes, named):
    path = tmp_path / "claims.yaml"
    path.write_text(dumped([GOOD | changes]))
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


@pytest.mark.parametrize("task", ["star", "arith", "mixed"])
def test_plans_of_every_shipped_config_can_be_made(task, config_file):
    """Whatever RL runs a task lacks."""
    path = config_file.replace("star", task)
    for preset in ("", *yaml.safe_load(Path(path).read_text())["presets"]):
        config = configs.load(path, [f"preset={preset}"] if preset else [])
        claims.require_planned(config, Results([], {}, np.ones(1)), [0], set())


def test_the_name_of_an_evaluation_changes_no_plan(trained, copy, capsys):
    named = trained.config("name=cold")
    assert complete_pairs(named, load(trained.config())) == [0]
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("eval", "name=cold") == 0
    error = pipeline.refused(capsys, "claims", "name=cold", "sft.epochs=5")
    assert "was made with a config that is not the sweep's" in error


def test_results_of_other_configs_are_refused(copy, trained, capsys):
    """A base of another config, or a second pair that differs in more than its seeds, is named and not mixed in."""
    pipeline = copy("eval.json", "eval.npz")
    assert pipeline("claims") == 0
    assert "base-seed0 was made with a config that" in pipeline.refused(capsys, "claims", "pretrain.steps=41")
    assert "was made with a config that is not the sweep's" in pipeline.refused(capsys, "claims", "sft.epochs=5")
    assert "made with other settings" in pipeline.refused(capsys, "claims", "eval.policy=temperature=2")
    learned = next(r for r in load(pipeline.config()).records if r["run"] == "sft-fork1-seed0")
    learned |= {"stage": "rl", "variant": "rl-grpo-FWD-fork1-epoch1", "setup_hash": "fewer updates"}
    with pytest.raises(ValueError, match="not the sweep's"):
        claims.require_planned(pipeline.config(), Results([learned], {}, np.ones(1)), [0], {learned["variant"]})
    for others in ({"seed": 7}, {"variant": "of-no-claim"}):  # which no claim reads
        claims.require_planned(
            pipeline.config(), Results([learned | others], {}, np.ones(1)), [0], {learned["variant"]}
        )
    evaluation = json.loads((pipeline.folder / "eval.json").read_text())
    for record in [dict(r) for r in evaluation["records"] if r["variant"] in ("base", "data")]:
        again = record | {"base_seed": 1, "run": record["run"].replace("seed0", "seed1")}
        again["seed"] = None if record["seed"] is None else 1
        again["setup_hash"] = record["setup_hash"] if record["fork_rate"] != 0.5 else "another"
        evaluation["records"].append(again)
    with np.load(pipeline.folder / "eval.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays |= {name.replace("seed0", "seed1"): array for name, array in arrays.items()}
    np.savez(pipeline.folder / "eval.npz", **arrays)
    del evaluation["checksum"]
    evaluation["npz_hash"] = digest((pipeline.folder / "eval.npz").read_bytes())
    evaluation["checksum"] = fingerprint(evaluation)
    (pipeline.folder / "eval.json").write_text(json.dumps(evaluation))
    assert load(pipeline.config()).pairs() == [0, 1]
    assert "sft-fork0.5-seed1 was made with a config that is not the sweep's" in pipeline.refused(capsys, "claims")
