"""Claims: the file that ships, and malformed files."""

import json

import pytest

from experiments import claims, study
from minifork import config as configs
from minifork import runs


def test_the_file_that_ships():
    pairs, listed = claims.read_claims(claims.FILE)
    assert pairs == 5 and len({c.id for c in listed}) == len(listed) >= 20
    assert sum(c.primary for c in listed) == claims.MAX_PRIMARY
    assert {c.of for c in listed} == {*CONFIGS} and {c.by for c in listed} == {"paper", "us"}


CONFIGS = {  # of the studies that claims are about
    "star": "star", "arith": "arith", "openers": "openers", "anchoring": "star", "search": "star preset=search",
    "rationale": "star preset=rationale", "flips": "star", "spread": "star", "law": "star",
    "competence": "arith preset=competence", "layers": "layers", "rl_lab": "star",
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_claims_are_about_runs_that_studies_make(name):
    """Every term's run is one of its study, of the RL study or one that these start from, on a test set of that run."""
    source, *words = CONFIGS[name].split()
    config = configs.load_config(source, words)
    plans = study.plans(config, [*study.read_study(name), *(study.read_study("rl") if name == "star" else [])], [0])
    planned = {(runs.identity(plan.config, stage), test_set) for plan in plans
            for stage in ("base", "sft", plan.stage) for test_set in ("plain", plan.test_set)}  # fmt: skip
    for claim in [claim for claim in claims.read_claims(claims.FILE)[1] if claim.of == name]:
        for part in claim.terms.values():
            decide = runs.deciding_values(config, part.stage)
            keys = {configs.full_key(key, decide, claim.id): value for key, value in part.keys.items()}
            run_config = configs.with_changes(config, keys | {"sft.allow_leak": True})
            assert (runs.identity(run_config, part.stage), part.test_set) in planned, claim.id
            assert part.epoch is None or part.epoch <= config.sft.epochs


VALUE = {"run": {"stage": "base"}, "what": "pass@1"}
GOOD = {"id": "a", "says": "b", "of": "star", "by": "us", "at_least": 0, "value": VALUE}


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"at_lest": 1}, "unexpected keyword argument 'at_lest'"),
        ({"at_least": None}, "give at_least or at_most"),
        ({"at_least": float("nan")}, "give at_least or at_most"),
        ({"at_least": 0.5, "at_most": 0.1}, "give at_least or at_most"),
        ({"value": VALUE | {"what": "passk"}}, "what is 'passk'"),
        ({"value": VALUE | {"what": "pass@0"}}, "what is 'pass@0'"),
        ({"value": VALUE | {"what": "fork accuracy", "mode": "FWD"}}, "may have a mode"),
        ({"value": {"run": {}}}, "missing 1 required positional argument: 'what'"),
        ({"value": VALUE | {"run": {"stage": "tuned"}}}, "run has the stage 'tuned': choose base, sft"),
        ({"value": 3}, "give value"),
        ({"value": None, "rising": [VALUE]}, "give value"),
        ({"rising": [VALUE, VALUE]}, "give value"),
        ({"value": None, "rising": [VALUE] * 2, "minus": VALUE}, "give value"),
        ({"each": True, "value": None, "rising": [VALUE] * 2}, "each needs value"),
        ({"minus": 0}, "minus must be a term, over a term or a number"),
        ({"minus": VALUE, "over": "1"}, "minus must be a term, over a term or a number"),
        ({"over": 1, "minus": VALUE, "at_most": 1}, "over needs minus and at_least only"),
    ],
)
def test_malformed_claims_are_named(tmp_path, changes, error):
    entry, path = {key: value for key, value in (GOOD | changes).items() if value is not None}, tmp_path / "claims.yaml"
    path.write_text(json.dumps({"pairs": 5, "claims": [entry]}).replace("NaN", ".nan"), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"claims.yaml: claim {{'id': 'a'.*{error}"):
        claims.read_claims(path)


@pytest.mark.parametrize("text", ["", "claims: []", "{a: [}", "pairs: 5\nclaims: 3", "pairs: 5\nclaims: [7]"])
def test_malformed_files_are_named(tmp_path, text):
    path = tmp_path / "claims.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"claims\.yaml: (give pairs|not a YAML file|claim 7)"):
        claims.read_claims(path)


def test_at_most_ten_primary_claims(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text(json.dumps({"pairs": 5, "claims": [GOOD | {"primary": True}] * 11}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"claims\.yaml: 11 claims are primary: at most 10 can be"):
        claims.read_claims(path)
