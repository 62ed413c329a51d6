"""The real pipeline, small: pretrain, five fine-tunings, eval, figures, claims, and what they learn from.

Everything runs through the command line's ``main`` in a temporary folder. The rollout cross-check of the
one evaluation has a false-alarm rate of 1e-3, the leak audits 1e-3 each; their seeds are fixed.
"""

import json

import matplotlib
import numpy as np
import pytest
import torch

from data_gen import star, streams, walks
from minifork import models, runs
from minifork.storage import files
from minifork.storage.weights import load_weights
from minifork.training import stages
from tests.helpers.pipeline import BASE, SFT, logged_steps, seen_targets, snapshot

KS = [str(2**i) for i in range(7)]


@pytest.fixture(scope="module")
def evaluation(trained):
    return trained.view(), trained.arrays()


def records_of(pipeline, name: str) -> list[dict]:
    """The records in eval.json of a run, by name."""
    return [record for record in pipeline.view()["records"] if record["run"] == pipeline.run(name).name]


# A whole run


@pytest.mark.parametrize("name", [BASE, *SFT])
def test_artefacts_of_a_run(trained, name):
    folder = trained.run(name)
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.parent.name != "eval"}
    epochs = set() if name == BASE else {"epochs/e1.pt", "epochs/e2.pt", "epochs/e4.pt"}
    assert names == {"run.json", "metrics.jsonl", "ckpt.pt"} | epochs
    measured = {suffix: len([*folder.glob(f"eval/*.{suffix}")]) for suffix in ("json", "npz")}
    assert measured == dict.fromkeys(measured, 1 if name == BASE else 6 if name == "cued" else 3)
    assert logged_steps(folder) == ([10, 20, 30, 40] if name == BASE else [10, 16])
    if name != BASE:
        last = load_weights(folder / "epochs" / "e4.pt")["model"]
        assert all(torch.equal(last[k], v) for k, v in load_weights(folder / "ckpt.pt")["model"].items())
        first = load_weights(folder / "epochs" / "e1.pt")["model"]
        assert any(not torch.equal(first[k], v) for k, v in last.items())


def test_training_learns(trained):
    """Every stage succeeds, and the loss of the base falls below that of guessing a node."""
    assert trained.codes == [0] * (1 + len(SFT) + 3)
    lines = (trained.run(BASE) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    logged = [json.loads(line)["loss"] for line in lines]
    assert logged[-1] < logged[0] and logged[-1] < np.log(12)


def test_schema_of_the_evaluation(trained, evaluation):
    result, _ = evaluation
    assert (result["schema"], result["task"], result["engine"], result["n_problems"]) == (5, "star", "exact", 64)
    assert records_of(trained, BASE) == [record for record in result["records"] if record["stage"] == "base"]
    assert [record["epoch"] for record in records_of(trained, BASE)] == [None]
    for name in SFT:
        for test_set in ("plain", "cue1") if name == "cued" else ("plain",):
            records = [record for record in records_of(trained, name) if record["test_set"] == test_set]
            assert [record["epoch"] for record in records] == [1, 2, 4]
    assert len(result["records"]) == 1 + 3 * len(SFT) + 3


def test_numbers_of_the_evaluation(evaluation):
    for r in evaluation[0]["records"]:
        assert list(r["pass_at"]) == list(r["pass_at_lo"]) == list(r["pass_at_hi"]) == list(r["ci95"]) == KS
        for k in KS:
            assert r["pass_at_lo"][k] <= r["pass_at"][k] <= r["pass_at_hi"][k]
            low, high = r["ci95"][k]
            assert 0 <= low <= high <= 1 + 1e-12
        assert set(r["errors"]) == set(star.OUTCOMES[1:])
        assert sum(r["errors"].values()) + r["pass_at"]["1"] == pytest.approx(1, abs=1e-9)
        fork = r["fork"]
        shares = [r["mode"]["p_forward"], fork["confidence_right"], fork["confidence_wrong"], fork["train_p_right"]]
        assert all(0 <= share <= 1 for share in [*shares, *r["errors"].values()] if share is not None)
        assert (fork["train_p_right"] is None) == (r["stage"] == "base")


RUNS = {  # tags and FORK_RATE
    BASE: ({}, None),
    "fork0.5": ({"sft.fork_rate": 0.5}, 0.5),
    "fork1": ({}, 1),
    "problem": ({"sft.fork_rate": 0.5, "sft.allocation": "problem"}, 0.5),
    "fresh": ({"sft.fresh": True}, 1),
    "cued": ({"sft.cue_rate": 1.0}, 1),
}


def test_runs_of_the_evaluation(trained, evaluation):
    for name, (tags, fork_rate) in RUNS.items():
        r = records_of(trained, name)[0]
        assert (r["n"], r["base_seed"], r["current"], r["seed"]) == (None, 0, True, None if name == BASE else 0)
        assert (r["tags"], r["fork_rate"]) == (tags, fork_rate)
    assert len({r["identity"] for r in evaluation[0]["records"]}) == 1 + len(SFT)
    hashes = {(r["run"], r["epoch"]): r["weights_hash"] for r in evaluation[0]["records"]}
    fork1, fresh = (hashes[trained.run(name).name, 1] for name in ("fork1", "fresh"))
    assert fork1 == fresh and len({*hashes.values()}) == len(hashes) - 1  # fresh traces begin with epoch 2


def test_arrays_are_what_the_records_say(evaluation):
    result, arrays = evaluation
    for r in result["records"]:
        epoch = "base" if r["epoch"] is None else f"e{r['epoch']}"
        key = f"{r['run']}/{epoch}/{r['test_set']}"
        for what, part in (("free", r), ("FWD", r["forced"]["FWD"]), ("REV", r["forced"]["REV"])):
            p = arrays[f"{key}/{what}"]
            assert p.shape == (64,) and p.dtype == np.float64 and (p >= 0).all() and (p <= 1 + 1e-9).all()
            for k in KS:
                passed = np.mean(1 - (1 - np.clip(p, 0, 1)) ** int(k))
                assert part["pass_at"][k] == pytest.approx(passed, abs=1e-9)
                ceiling = 1 - (1 - p.mean()) ** int(k)
                assert part["J"][k] == pytest.approx(max(ceiling - passed, 0), abs=1e-9)
            assert part["rho"] == pytest.approx(p.var() / (p.mean() * (1 - p.mean())), rel=1e-6)
        branches = arrays[f"{key}/fork"]
        np.testing.assert_allclose(branches.sum(axis=1), 1, atol=1e-12)
        assert r["fork"]["p_right"] == pytest.approx(branches[:, 0].mean())
        assert r["fork"]["wrong_commit"] == pytest.approx((branches[:, 0] < 0.05).mean())
        assert r["fork"]["entropy"] == pytest.approx(-(branches * np.log(branches)).sum(axis=1).mean())
        modes = arrays[f"{key}/modes"]
        assert r["mode"]["entropy"] == pytest.approx(-(modes * np.log(modes)).sum(axis=1).mean())


@pytest.mark.parametrize(("name", "epoch"), [(BASE, None), ("fork0.5", 2), ("fork1", 4)])
@torch.no_grad()
def test_p_is_teacher_forced_probability(trained, evaluation, name, epoch):
    """From the saved weights and the test stream alone: both accepted traces, the mode, the fork."""
    result, arrays = evaluation
    config = trained.config()
    task, problems = config.data, streams.test_problems(config.data, 64)
    model = models.new_model(config, 0).eval()
    folder = trained.run(name)
    file = folder / ("ckpt.pt" if epoch is None else f"epochs/e{epoch}.pt")
    model.load_state_dict(torch.load(file, weights_only=True)["model"])
    prompt = torch.from_numpy(task.prompts(problems))
    assert streams.data_hash(prompt.numpy()) == result["data_hash"]
    total, first = np.zeros(64), {}
    key = f"{folder.name}/{'base' if epoch is None else f'e{epoch}'}/plain"
    for mode in ("FWD", "REV"):
        trace = torch.from_numpy(task.traces(problems, 1 - np.full(64, mode == "FWD")))
        logits = model(torch.cat([prompt, trace], dim=1))[:, task.prompt_len - 1 : -1].double()
        each = torch.softmax(logits, dim=2).gather(2, trace[..., None])[..., 0].numpy()
        np.testing.assert_allclose(arrays[f"{key}/{mode}"], each[:, 1:].prod(axis=1), atol=1e-5)
        total, first[mode] = total + each.prod(axis=1), each[:, 0]
        if mode == "FWD":
            branch = torch.softmax(logits[:, 2].gather(1, torch.from_numpy(task.children(problems))), dim=1).numpy()
            np.testing.assert_allclose(arrays[f"{key}/fork"], branch, atol=1e-5)
    np.testing.assert_allclose(arrays[f"{key}/free"], total, atol=1e-5)
    record = next(r for r in records_of(trained, name) if r["epoch"] == epoch)
    expected = (first["FWD"] / (first["FWD"] + first["REV"])).mean()
    assert record["mode"]["p_forward"] == pytest.approx(expected, abs=1e-5)


def test_the_cross_check_covers_every_run(trained, evaluation):
    checks = evaluation[0]["checks"]
    assert sorted(check["run"] for check in checks) == sorted(trained.run(name).name for name in (BASE, *SFT))
    assert all(check["agrees"] and 0 <= check["p_value"] <= 1 for check in checks)


def test_figures(trained):
    drawn = {path.name: path.read_bytes() for path in (trained.folder / "figures").iterdir()}
    assert set(drawn) == {"crossing.png", "epochs.png", "dose.png", "fork.png", "front.png", "front-dark.png"}
    assert all(image.startswith(b"\x89PNG\r\n") and len(image) > 10_000 for image in drawn.values())


def test_figures_do_not_depend_on_a_users_matplotlibrc(copy, monkeypatch):
    """One that asks for LaTeX, which is not there, and for large letters."""
    pipeline, images = copy(BASE, "fork1", measured=True), []
    for settings in ({}, {"text.usetex": True, "font.size": 30, "figure.dpi": 20, "savefig.bbox": "tight"}):
        for name, value in settings.items():
            monkeypatch.setitem(matplotlib.rcParams, name, value)
        assert pipeline("figures") == 0
        images.append([path.read_bytes() for path in sorted((pipeline.folder / "figures").iterdir())])
    assert images[0] == images[1] and len(images[0]) >= 3


def test_claims(trained):
    rows = {row["id"]: row for row in files.read_json(trained.folder / "claims-star.json")["claims"]}
    verdicts = [row["verdict"] for row in rows.values()]
    holding, tested = verdicts.count("holds"), len(verdicts) - verdicts.count("not run")
    one_pair = "1 pair of seeds (intervals are about problems only); provisional, 5 pairs are wanted"
    assert f"{holding} of {tested} claims hold" in trained.printed and one_pair in trained.printed
    base, tuned = records_of(trained, BASE)[-1], records_of(trained, "fork1")[-1]
    assert rows["gain"]["effect"] == pytest.approx(tuned["pass_at"]["1"] - base["pass_at"]["1"])
    assert rows["memorised"]["effect"] == pytest.approx(tuned["fork_train"]["accuracy"])
    assert rows["guessed"]["effect"] == pytest.approx(tuned["fork"]["accuracy"])
    assert rows["dose"]["verdict"] == rows["rl-forward"]["verdict"] == "not run"


# Finished stages


def test_finished_stages_are_not_redone(trained, capsys):
    before = snapshot(trained.root)
    assert trained("pretrain") == trained("pretrain", "--resume") == 0
    for overrides in SFT.values():
        assert trained("sft", *overrides) == trained("sft", "--resume", *overrides) == 0
    assert capsys.readouterr().out.count("nothing to do") == 2 + 2 * len(SFT)
    assert snapshot(trained.root) == before


# What is learned from


@pytest.mark.parametrize("overrides", [[], ["sft.fresh=true"], ["sft.fork_rate=0.5"]])
def test_loss_is_on_whole_traces_each_once_an_epoch(copy, monkeypatch, overrides):
    pipeline, seen = copy(BASE), seen_targets(monkeypatch)
    assert pipeline("sft", *overrides) == 0
    config = pipeline.config(*overrides)
    prompt = config.data.prompt_len
    orders = set()
    for epoch, learned in enumerate(np.concatenate(seen).reshape(4, 64, -1)[..., prompt - 1 :].tolist()):
        assert sorted(learned) == sorted(stages.sft_data(config, epoch).tokens[:, prompt:].tolist())
        orders.add(str(learned))
    assert len(orders) == 4  # shuffled anew


def test_losses_and_seeds_matter(copy):
    """Each fine-tunes to other weights, in a folder of its own, and leaves the base alone."""
    pipeline = copy(BASE, "fork1")
    before = snapshot(pipeline.run(BASE))
    changes = ["seed=1", "sft.loss=label_smoothing=0.1", "sft.loss=coverage=8", "sft.loss=drop_tail=0.25"]
    assert [pipeline("sft", change) for change in changes] == [0] * len(changes)
    folders = [pipeline.run("fork1"), *(pipeline.at("sft", change) for change in changes)]
    hashes = {runs.read_run(folder).record["weights"]["ckpt.pt"] for folder in folders}
    assert len(hashes) == len(folders) and snapshot(pipeline.run(BASE)) == before


def test_base_batches_come_from_the_walks_stream(trained):
    """What the base was trained on shares no problem with the test set."""
    config = trained.config()
    seen = np.concatenate([streams.problems(config.data, 0, "walks", 16, step).labels for step in range(40)])
    inputs, _ = walks.walk_batch(config.data, config.walks.stop, config.walks.seq_len, 0, 0, 16)
    assert inputs.shape == (16, 24) and len(seen) == 640
    train_set = config.data.identity(stages.sft_data(config, 0).problems)
    test_set = config.data.identity(streams.test_problems(config.data, 64))
    assert not np.intersect1d(train_set, test_set).size
