"""Results: which records belong together, on a handful of runs that differ in one thing each."""

import shutil

import numpy as np
import pytest

from experiments import results, study
from experiments.results import ANY, Results
from minifork import evaluate, runs
from minifork.config import load_config
from minifork.evaluation import targets
from minifork.statistics import passk
from minifork.storage.files import read_json, write_json
from tests.helpers.pipeline import Pipeline, replace_weights

RL = ["rl.updates=2", "rl.problems=16", "rl.prompts=4"]
SMOOTHED, PREFIXED = ["sft.loss=label_smoothing=0.1"], ["sft.prefix=2"]
SECOND = ["seed=1", "base_seed=1"]


@pytest.fixture(scope="module")
def world(trained, small, tmp_path_factory):
    """The trained runs with smoothed and prefixed ones, a second pair, a fine-tuning of two seeds, WiSE-FT and RL."""
    pipeline = Pipeline(tmp_path_factory.mktemp("world"), small)
    shutil.copytree(trained.folder, pipeline.folder)
    codes = [pipeline("sft", *overrides) for overrides in (SMOOTHED, PREFIXED, ["seed=1"])]
    codes += [pipeline("pretrain", *SECOND), pipeline("sft", *SECOND), pipeline("wise", "wise.weights=0.25,0.75")]
    codes += [pipeline("rl", *RL, change) for change in ("rl.mode=FWD", "rl.mode=free", "rl.epoch=0")]
    assert not any([*codes, pipeline("eval")])
    return pipeline


@pytest.fixture(scope="module")
def loaded(world) -> Results:
    return results.load_results(world.config(*RL))


def names(records: list[dict]) -> set[str]:
    """The runs of records."""
    return {record["run"] for record in records}


@pytest.mark.parametrize(
    ("keys", "stage", "expected"),
    [
        ({}, "sft", [[], SECOND]),
        ({"fork_rate": 1.0, "fresh": False}, "sft", [[], SECOND]),  # not the cued, smoothed, prefixed and two-seed runs
        ({"fork_rate": 0.5, "allocation": "problem"}, "sft", [["sft.fork_rate=0.5", "sft.allocation=problem"]]),
        ({"sft.fresh": True}, "sft", [["sft.fresh=true"]]),
        ({"cue_rate": 1}, "sft", [["sft.cue_rate=1"]]),
        ({"loss": "label_smoothing=0.1"}, "sft", [SMOOTHED]),
        ({"prefix": 2}, "sft", [PREFIXED]),
        ({"prefix": 2, "cue_rate": 1}, "sft", []),
        ({"fork_rate": ANY}, "sft", [[], SECOND, ["sft.fork_rate=0.5"]]),
        ({"loss": ANY, "prefix": ANY}, "sft", [[], SECOND, SMOOTHED, PREFIXED]),
        ({"pretrain.steps": 41}, "sft", []),
        ({"base_seed": 1}, "sft", [SECOND]),
        ({}, "base", [[], SECOND]),
        ({"weights": ANY}, "wise", [["wise.weights=0.25"], ["wise.weights=0.75"]]),
        ({"rl.mode": "FWD"}, "rl", [["rl.mode=FWD"]]),
        ({"rl.mode": ANY, "fork_rate": 1}, "rl", [["rl.mode=FWD"], []]),
        ({"rl.epoch": 0}, "rl", [["rl.epoch=0"]]),
        ({"rl.epoch": ANY, "fork_rate": ANY}, "rl", [[], ["rl.epoch=0"]]),  # from a fine-tuning, and from the base
    ],
)
def test_selects_by_resolved_values(world, loaded, keys, stage, expected):
    """Named keys have their value, seeds are free, every other key has the study's value."""
    assert names(loaded.select(keys, stage)) == {world.at(stage, *RL, *overrides).name for overrides in expected}


def test_other_keys_have_the_values_of_the_study(world):
    """The label, the study, the number of workers and leave to leak are no part of a run."""
    assert not results.load_results(world.config()).select({"rl.mode": ANY}, "rl")  # whose RL has more updates
    of_half = results.load_results(world.config("sft.fork_rate=0.5", "name=cold"))
    assert names(of_half.select()) == names(of_half.tuned(0, 0.5)) == {world.run("fork0.5").name}
    same = results.load_results(world.config("reproduce.study=rl", "reproduce.workers=3", "sft.allow_leak=true"))
    assert names(same.select()) == {world.run("fork1").name, world.at("sft", *SECOND).name} and same.pairs() == [0, 1]


def test_selects_by_pair_epoch_and_test_set(world, loaded):
    pairs_and_epochs = [(record["base_seed"], record["epoch"]) for record in loaded.select({"fork_rate": 1})]
    assert pairs_and_epochs == [(pair, epoch) for pair in (0, 1) for epoch in (1, 2, 4)]
    assert [record["epoch"] for record in loaded.select(pair=1)] == [1, 2, 4]
    assert [record["base_seed"] for record in loaded.select(epoch=2)] == [0, 1]
    (record,) = loaded.select({"cue_rate": 1}, pair=0, epoch=4, test_set="cue1")
    assert (record["run"], record["test_set"]) == (world.run("cued").name, "cue1")
    assert not loaded.select(epoch=3) and not loaded.select(pair=2) and not loaded.select(test_set="cue1")


@pytest.mark.parametrize(
    ("key", "stage", "error"),
    [
        ("frok_rate", "sft", r"select\(stage='sft'\): unknown key 'frok_rate'; did you mean sft.fork_rate\?"),
        ("lr", "sft", "'lr' is short for pretrain.lr, sft.lr"),
        ("sft.fork_rate", "base", "unknown key 'sft.fork_rate'"),
        ("allow_leak", "sft", "unknown key 'allow_leak'"),
    ],
)
def test_keys_that_decide_nothing_are_refused(loaded, key, stage, error):
    with pytest.raises(ValueError, match=error):
        loaded.select({key: ANY}, stage)


def test_a_run_that_is_there_twice_is_refused(copy):
    pipeline = copy("base", "fork0.5", "fork1", measured=True)
    folder = pipeline.run("fork1")
    again = shutil.copytree(folder, folder.with_name(f"my-copy-{folder.name[-8:]}"))
    loaded = results.load_results(pipeline.config())
    (plan,) = study.plans(loaded.config, [{"sft.fork_rate": 1}], [0])
    for selection in (loaded.select, lambda: loaded.select({"fork_rate": ANY}), lambda: loaded.records_of(plan)):
        with pytest.raises(ValueError, match="are copies of one run; remove one") as error:
            selection()
        assert str(again) in str(error.value) and str(folder) in str(error.value)
    assert names(loaded.select({"fork_rate": 0.5})) == {pipeline.run("fork0.5").name}


def test_the_records_of_a_plan(world, loaded):
    """They are those of its run, on its test set, whatever the study's config is."""
    entries = [
        {"test_set": "cue1", "sft.cue_rate": 1, "sft.allow_leak": True},
        {"sft.loss": "label_smoothing=0.1"},
        {"stage": "wise", "wise.weights": "0.75"},
        {"stage": "rl", "rl.mode": "FWD"},
        {"stage": "base"},
        {"sft.lr": 0.5},
    ]
    records = [loaded.records_of(plan) for plan in study.plans(world.config(*RL), entries, [0])]
    assert [[record["epoch"] for record in of_plan] for of_plan in records] == [[1, 2, 4]] * 3 + [[1, 2], [None], []]
    assert {(record["run"], record["test_set"]) for record in records[0]} == {(world.run("cued").name, "cue1")}


def test_pairs_of_a_study(world, tmp_path):
    """A pair that lacks a run of the study does not count, unless all pairs lack one."""
    mine = tmp_path / "mine.yaml"
    loaded = results.load_results(world.config(f"reproduce.study={mine}"))
    for text, pairs in {"[1]": [0, 1], "[0.5, 1]": [0], "[0, 0.5, 1]": [0, 1]}.items():
        mine.write_text(f"- {{sft.fork_rate: {text}}}\n", encoding="utf-8")
        assert loaded.complete_pairs() == pairs
    assert loaded.pairs() == [0, 1] and loaded.fork_rates(0) == [0.5, 1] and loaded.fork_rates(1) == [1]
    assert loaded.base(1)["run"] == world.at("base", *SECOND).name
    with pytest.raises(ValueError, match="no pair of a base and its fine-tuning was measured"):
        results.load_results(world.config("sft.epochs=5")).complete_pairs()


def test_settings_lie_side_by_side(copy, capsys):
    """Measurements under other settings are not mixed in; without any the command that makes them is named."""
    pipeline, hot = copy("base", "fork1", measured=True), "eval.policy=temperature=3"
    for command in ("figures", "claims", "report"):
        assert "run `minifork eval` with them first" in pipeline.refused(capsys, command, hot)
    evaluate.measure_missing(pipeline.config(hot), lambda checkpoint: checkpoint.run.stage == "base")
    cold, warm = (results.load_results(pipeline.config(*words)) for words in ([], [hot]))
    assert names(warm.records) == {pipeline.run("base").name} and not warm.select()
    assert names(cold.records) == {pipeline.run("base").name, pipeline.run("fork1").name}
    assert (cold.problem_p(cold.base(0)) != warm.problem_p(warm.base(0))).any() and cold.fingerprint != warm.fingerprint


def test_measurements_belong_to_weights(copy):
    """Measurements of a checkpoint count neither for new weights nor for runs that started from the old ones."""
    pipeline = copy("base", "fork0.5", "fork1", measured=True)
    replace_weights(pipeline.run("fork1"), "epochs/e4.pt")
    loaded = results.load_results(pipeline.config())
    assert [record["epoch"] for record in loaded.tuned(0, 1)] == [1, 2]
    (plan,) = study.plans(pipeline.config(), [{}], [0])
    with pytest.raises(ValueError, match="its last weights were not measured; run `minifork eval`"):
        loaded.last_record(plan)
    assert loaded.is_last(loaded.base(0)) and loaded.is_last(loaded.tuned(0, 0.5)[-1])
    assert pipeline("claims") == 0
    verdicts = {row["id"]: row["verdict"] for row in read_json(pipeline.folder / "claims-star.json")["claims"]}
    assert verdicts["gain"] == verdicts["loss-16"] == "not run"
    replace_weights(pipeline.run("base"), runs.WEIGHTS)
    with pytest.raises(ValueError, match="nothing was measured with these settings"):
        results.load_results(pipeline.config())


def test_runs_of_one_name_are_told():
    plans = study.plans(load_config("star"), [{"sft.fork_rate": [0.5, 1]}], [0, 1])
    with pytest.raises(ValueError, match="several runs of the study are called 'sft': give them names by `as`"):
        study.by_name(plans)


def test_what_figures_cannot_use_is_refused(copy, capsys):
    pipeline = copy("base")
    for override, error in (("eval.stratify=first", "i.i.d. samples"), ("eval.budget=70", "a larger eval.budget")):
        assert pipeline("eval", override, "eval.engine=exact") == 0
        assert error in pipeline.refused(capsys, "claims", override, "eval.engine=exact")


def test_records_of_another_version_are_counted_and_unreadable_runs_left_out(copy, capsys, monkeypatch):
    pipeline = copy("base", "fork1", measured=True)
    write_json(pipeline.folder / "junk" / runs.RECORD, {})
    monkeypatch.setattr(targets, "version_of", lambda *_: "another")
    assert results.load_results(pipeline.config()).pairs() == [0]
    printed = capsys.readouterr().out
    assert "4 of 4 records are of another version of the code" in printed and "junk: left out" in printed


def test_arrays(copy):
    """p and the share of problems that k samples solve, computed, sampled and both, free and forced."""
    pipeline, sampled = copy("base", measured=True), ["eval.engine=split", "eval.rollouts=64"]
    assert pipeline("eval", *sampled) == 0
    exact, split = (results.load_results(pipeline.config(*words)) for words in ([], sampled))
    computed, drawn = exact.base(0), split.base(0)
    for mode in (None, "FWD"):
        p = exact.problem_p(computed, mode)
        np.testing.assert_allclose(exact.record_pass_at_k(computed, 16, mode), 1 - (1 - p) ** 16)
        counts = np.rint(split.problem_p(drawn, mode) * 64).astype(int)
        np.testing.assert_allclose(split.record_pass_at_k(drawn, 16, mode), passk.unbiased_pass_at_k(counts, 64, 16))
    spent = ["eval.budget=100", "eval.rollouts=64"]
    assert pipeline("eval", *spent) == 0
    rest = results.load_results(pipeline.config(*spent))
    assert rest.base(0)["engine"] == "remainder"
    for loaded, record in ((exact, computed), (split, drawn), (rest, rest.base(0))):
        solved = loaded.record_pass_at_ks(record, (1, 64)).mean(axis=1)
        assert solved == pytest.approx([record["pass_at"][k] for k in ("1", "64")])
    with pytest.raises(ValueError, match="the evaluation holds no .*/base/plain/fork_train"):
        exact.array(computed, "fork_train")
