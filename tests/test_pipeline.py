"""The real pipeline, small: pretrain, five fine-tunings, eval, figures, claims, and every way to break it.

Everything runs through the command line's ``main`` in a temporary folder. The rollout cross-check of the
one evaluation has a false-alarm rate of 1e-3, the leak audits 1e-3 each; their seeds are fixed.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from data_gen import star, streams, walks
from minifork import losses, runs, stages
from minifork.cli import main
from tests.pipeline import SFT

KS = [str(2**i) for i in range(7)]


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and content of every file, hidden ones included."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()
    }


def logged_steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def evaluation(trained):
    with np.load(trained.folder / "eval.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    return json.loads((trained.folder / "eval.json").read_text()), arrays


# A whole run


def test_every_stage_succeeds(trained):
    assert trained.codes == [0] * (1 + len(SFT) + 3)


@pytest.mark.parametrize("name", ["base-seed0", *SFT])
def test_artefacts_of_a_run(trained, name):
    folder, base = trained.folder / name, name.startswith("base")
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    epochs = set() if base else {"epochs/e1.pt", "epochs/e2.pt", "epochs/e4.pt"}
    assert files == {"config.yaml", "meta.json", "metrics.jsonl", "ckpt.pt"} | epochs
    meta = json.loads((folder / "meta.json").read_text())
    steps = 40 if base else 16
    assert meta["complete"] is True and meta["step"] == meta["steps"] == steps
    assert meta["stage"] == ("base" if base else "sft") and meta["base_seed"] == 0 and meta["name"] == name
    assert logged_steps(folder) == ([10, 20, 30, 40] if base else [10, 16])
    overrides = SFT.get(name, [])
    assert runs.read_config(folder) == trained.config(*overrides)
    if not base:
        last = runs.load_weights(folder / "epochs" / "e4.pt")["model"]
        assert all(torch.equal(last[k], v) for k, v in runs.load_weights(folder / "ckpt.pt")["model"].items())
        first = runs.load_weights(folder / "epochs" / "e1.pt")["model"]
        assert any(not torch.equal(first[k], v) for k, v in last.items())


def test_training_learns(trained):
    """The loss of the base falls below that of guessing a node, and fine-tuning lowers it further."""
    lines = (trained.folder / "base-seed0" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < losses[0] and losses[-1] < np.log(12)


def in_unit(values) -> bool:
    return all(0 <= v <= 1 for v in values)


def test_schema_of_the_evaluation(evaluation):
    result, _ = evaluation
    assert set(result) >= {
        "schema", "task", "engine", "policy", "grading", "split", "n_problems", "data_hash", "records",
    }  # fmt: skip
    assert (result["schema"], result["task"], result["engine"], result["n_problems"]) == (3, "star", "exact", 64)
    records = result["records"]
    assert [(r["run"], r["epoch"]) for r in records if r["stage"] == "base"] == [("base-seed0", None)]
    for name in SFT:
        for test_set in ("plain", "cue1") if name == "cued-seed0" else ("plain",):
            assert [r["epoch"] for r in records if r["run"] == name and r["test_set"] == test_set] == [1, 2, 4]
    assert len(records) == 1 + 3 * len(SFT) + 3


def test_records_of_the_evaluation(evaluation):
    for r in evaluation[0]["records"]:
        assert list(r["pass_at"]) == list(r["pass_at_lo"]) == list(r["pass_at_hi"]) == list(r["ci95"]) == KS
        passed = [r["pass_at"][k] for k in KS]
        assert in_unit(passed) and (np.diff(passed) >= -1e-12).all()
        for k in KS:
            assert r["pass_at_lo"][k] <= r["pass_at"][k] <= r["pass_at_hi"][k]
            low, high = r["ci95"][k]
            assert 0 <= low <= high <= 1 + 1e-12
            assert r["J"][k] >= 0
        assert 0 <= r["rho"] <= 1 and r["n"] is None and r["base_seed"] == 0
        for mode in ("FWD", "REV"):
            assert set(r["forced"][mode]) >= {"pass_at", "J", "rho"} and in_unit(r["forced"][mode]["pass_at"].values())
        assert set(r["errors"]) == set(star.SINKS[1:]) and in_unit(r["errors"].values())
        assert sum(r["errors"].values()) + r["pass_at"]["1"] == pytest.approx(1, abs=1e-9)
        fork = r["fork"]
        for name in ("p_right", "confidence_right", "confidence_wrong", "wrong_commit", "train_p_right"):
            assert fork[name] is None or 0 <= fork[name] <= 1
        assert 0 <= fork["entropy"] <= np.log(2) + 1e-9
        assert 0 <= r["mode"]["p_forward"] <= 1 and 0 <= r["mode"]["entropy"] <= np.log(2) + 1e-9
        if r["stage"] == "base":
            assert (r["seed"], r["fork_rate"], r["variant"], fork["train_p_right"]) == (None, None, "base", None)
        else:
            assert r["seed"] == 0 and fork["train_p_right"] is not None
    variants = {r["run"]: (r["variant"], r["fork_rate"]) for r in evaluation[0]["records"] if r["stage"] == "sft"}
    assert variants == {
        "sft-fork0.5-seed0": ("data", 0.5),
        "sft-fork1-seed0": ("data", 1.0),
        "sft-problem-seed0": ("problem", 0.5),
        "fresh-seed0": ("fresh", 1.0),
        "cued-seed0": ("cued", 1.0),
    }
    hashes = {r["run"]: r["config_hash"] for r in evaluation[0]["records"]}
    assert len(set(hashes.values())) == len(hashes)
    assert len({r["setup_hash"] for r in evaluation[0]["records"]}) == len(hashes)  # one seed: each its own


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


@pytest.mark.parametrize(("name", "epoch"), [("base-seed0", None), ("sft-fork0.5-seed0", 2), ("sft-fork1-seed0", 4)])
@torch.no_grad()
def test_p_is_teacher_forced_probability(trained, evaluation, name, epoch):
    """From the saved weights and the test stream alone: both accepted traces, the mode, the fork."""
    result, arrays = evaluation
    config = trained.config()
    task, problems = config.data, streams.test_problems(config.data, 64)
    model = stages.new_model(config, 0).eval()
    file = trained.folder / name / ("ckpt.pt" if epoch is None else f"epochs/e{epoch}.pt")
    model.load_state_dict(torch.load(file, weights_only=True)["model"])
    prompt = torch.from_numpy(task.prompts(problems))
    assert streams.data_hash(prompt.numpy()) == result["data_hash"]
    total, first = np.zeros(64), {}
    key = f"{name}/{'base' if epoch is None else f'e{epoch}'}/plain"
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
    record = next(r for r in result["records"] if r["run"] == name and r["epoch"] == epoch)
    expected = (first["FWD"] / (first["FWD"] + first["REV"])).mean()
    assert record["mode"]["p_forward"] == pytest.approx(expected, abs=1e-5)


def test_the_cross_check_covers_every_run(evaluation):
    checks = evaluation[0]["checks"]
    assert sorted(check["run"] for check in checks) == sorted(["base-seed0", *SFT])
    assert all(check["agrees"] and 0 <= check["p_value"] <= 1 for check in checks)


def test_evaluation_repeats_itself(copy, evaluation):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("eval") == 0
    again = json.loads((pipeline.folder / "eval.json").read_text())["records"]
    wanted = [r for r in evaluation[0]["records"] if r["run"] in ("base-seed0", "sft-fork1-seed0")]
    assert again == wanted


def test_evaluation_names_what_it_leaves_out(copy, capsys):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    meta = pipeline.folder / "sft-fork1-seed0" / "meta.json"
    meta.write_text(meta.read_text().replace('"complete": true', '"complete": false'))
    assert pipeline("eval") == 0
    assert "sft-fork1-seed0: left out, unfinished" in capsys.readouterr().out
    assert [r["run"] for r in json.loads((pipeline.folder / "eval.json").read_text())["records"]] == ["base-seed0"]


def test_figures(trained):
    drawn = {path.name: path.read_bytes() for path in (trained.folder / "figures").iterdir()}
    assert set(drawn) == {"crossing.png", "epochs.png", "dose.png", "fork.png"}
    assert all(image.startswith(b"\x89PNG\r\n") and len(image) > 10_000 for image in drawn.values())


def test_claims(trained):
    found = json.loads((trained.folder / "claims.json").read_text())
    rows = {row["id"]: row for row in found["claims"]}
    held, tested = (sum(row["verdict"] in of for row in rows.values()) for of in (["holds"], ["holds", "fails"]))
    assert f"{held} of {tested} claims hold on 1 pair of seeds; provisional, 5 pairs are wanted" in trained.printed
    missing = {name for name, row in rows.items() if row["verdict"] == "not run"}
    ran = {"gain", "loss-16", "loss-64", "cue", "repetition", "memorised", "guessed", "data-level", "problem-level"}
    assert ran < set(rows) - missing and {"no-forks", "dose", "scarcity", "rl-forward"} < missing
    records = json.loads((trained.folder / "eval.json").read_text())["records"]
    base, tuned = (next(r for r in reversed(records) if r["run"] == run) for run in ("base-seed0", "sft-fork1-seed0"))
    assert rows["gain"]["effect"] == pytest.approx(tuned["pass_at"]["1"] - base["pass_at"]["1"])
    assert rows["memorised"]["effect"] == pytest.approx(tuned["fork_train"]["accuracy"])
    assert rows["guessed"]["effect"] == pytest.approx(tuned["fork"]["accuracy"])


# Finished stages


def test_finished_stages_are_not_redone(trained, capsys):
    before = snapshot(trained.root)
    assert trained("pretrain") == trained("pretrain", "--resume") == 0
    for overrides in SFT.values():
        assert trained("sft", *overrides) == trained("sft", "--resume", *overrides) == 0
    assert capsys.readouterr().out.count("nothing to do") == 2 + 2 * len(SFT)
    assert snapshot(trained.root) == before


def test_fine_tuning_leaves_the_base_alone(copy):
    pipeline = copy("base-seed0")
    before = snapshot(pipeline.folder / "base-seed0")
    assert pipeline("sft", "seed=5") == 0
    assert snapshot(pipeline.folder / "base-seed0") == before


# Resuming, bit for bit


def assert_same_training(folder: Path, reference: Path) -> None:
    """Weights, optimizer state and random state equal bit for bit, every step logged once, same snapshots."""
    files = {str(p.relative_to(reference)) for p in reference.rglob("*.pt")}
    assert {str(p.relative_to(folder)) for p in folder.rglob("*.pt")} == files
    for file in files:
        assert_equal(runs.load_weights(folder / file), runs.load_weights(reference / file), file)
    assert logged_steps(folder) == logged_steps(reference)
    assert not [p for p in folder.rglob(".*") if p.is_file()]  # no temporary file is left
    assert json.loads((folder / "meta.json").read_text())["complete"] is True


def assert_equal(one, other, where: str) -> None:
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key != "seconds":
                assert_equal(one[key], other[key], f"{where}:{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_equal(a, b, f"{where}:{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@contextlib.contextmanager
def ctrl_c(moment: str, step: int):
    """Send this process SIGINT once, at a moment of a step (from 0) of the training loop.

    before: with the gradients still to be computed; between: when the first of two optimizers has stepped
    (or the only one); after: when the last has.
    """
    seen = {"losses": 0, "steps": 0}
    real = losses.LOSSES["cross_entropy"]

    def cross_entropy(*arguments):
        if seen["losses"] == step and moment == "before":
            signal.raise_signal(signal.SIGINT)
        seen["losses"] += 1
        seen["steps"] = 0
        return real[0](*arguments)

    def stepped(optimizer, *_):
        seen["steps"] += 1
        now = {"between": seen["steps"] == 1, "after": isinstance(optimizer, torch.optim.Muon)}
        if seen["losses"] == step + 1 and now.get(moment):
            signal.raise_signal(signal.SIGINT)

    hook = register_optimizer_step_post_hook(stepped)
    losses.LOSSES["cross_entropy"] = (cross_entropy, *real[1:])
    try:
        yield
    finally:
        losses.LOSSES["cross_entropy"] = real
        hook.remove()


@pytest.mark.parametrize(
    ("moment", "step"), [("before", 10), ("before", 0), ("between", 21), ("after", 17), ("after", 39)]
)
def test_pretraining_resumes_bit_for_bit(trained, copy, capsys, moment, step):
    pipeline = copy()
    with ctrl_c(moment, step):
        assert pipeline("pretrain") == 130
    assert "interrupted" in capsys.readouterr().err
    saved = runs.load_weights(pipeline.folder / "base-seed0" / "ckpt.pt")["step"]
    assert step <= saved <= step + 1
    assert pipeline("pretrain", "--resume") == 0
    assert_same_training(pipeline.folder / "base-seed0", trained.folder / "base-seed0")


@pytest.mark.parametrize("name", ["sft-fork1-seed0", "fresh-seed0"])
@pytest.mark.parametrize(("moment", "step"), [("before", 6), ("between", 3), ("between", 9)])
def test_fine_tuning_resumes_bit_for_bit(trained, copy, name, moment, step):
    """Step 3 ends epoch 1, whose snapshot must not be lost."""
    pipeline = copy("base-seed0")
    with ctrl_c(moment, step):
        assert pipeline("sft", *SFT[name]) == 130
    assert pipeline("sft", "--resume", *SFT[name]) == 0
    assert_same_training(pipeline.folder / name, trained.folder / name)


def test_interrupted_twice(trained, copy):
    pipeline = copy()
    for arguments, after in ((["pretrain"], 8), (["pretrain", "--resume"], 13)):
        with ctrl_c("before", after):
            assert pipeline(*arguments) == 130
    assert pipeline("pretrain", "--resume") == 0
    assert_same_training(pipeline.folder / "base-seed0", trained.folder / "base-seed0")


def test_interrupting_leaves_the_signal_handler_as_it_was(copy):
    before = signal.getsignal(signal.SIGINT)
    pipeline = copy()
    with ctrl_c("before", 2):
        assert pipeline("pretrain") == 130
    assert signal.getsignal(signal.SIGINT) is before


KILL = """
import os, signal, sys
from data_gen import walks
real = walks.walk_batch
def batch(task, stop, seq_len, seed, step, n, informed):
    if step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(task, stop, seq_len, seed, step, n, informed)
walks.walk_batch = batch
from minifork.cli import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize("step", [20, 2])
def test_resumes_bit_for_bit_after_a_kill(trained, copy, step):
    """Checkpoints lie at every third step: at 20 two steps are lost, one of them logged; at 2 all are."""
    pipeline = copy()
    process = subprocess.run(
        [sys.executable, "-c", KILL, str(step), *pipeline.arguments("pretrain")],
        capture_output=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    assert process.returncode == -signal.SIGKILL, process.stderr
    checkpoint = pipeline.folder / "base-seed0" / "ckpt.pt"
    assert runs.load_weights(checkpoint)["step"] == 18 if step == 20 else not checkpoint.exists()
    assert pipeline("pretrain", "--resume") == 0
    assert_same_training(pipeline.folder / "base-seed0", trained.folder / "base-seed0")


def test_a_failed_save_at_the_end_is_resumed(trained, copy, monkeypatch, capsys):
    """The disk is full at the last checkpoint; with room again the run goes on from the one before."""
    pipeline, real = copy(), torch.save

    def full(payload, file):
        if payload.get("step") == 40:
            file.write(b"half of")
            raise OSError(28, "No space left on device")
        real(payload, file)

    monkeypatch.setattr(torch, "save", full)
    assert "No space left on device" in pipeline.refused(capsys, "pretrain")
    monkeypatch.undo()
    assert "--resume" in pipeline.refused(capsys, "pretrain")
    assert pipeline("pretrain", "--resume") == 0
    assert_same_training(pipeline.folder / "base-seed0", trained.folder / "base-seed0")


# Refusals


def test_an_unfinished_run_needs_resume(copy, capsys):
    pipeline = copy()
    with ctrl_c("before", 5):
        pipeline("pretrain")
    before = snapshot(pipeline.root)
    error = pipeline.refused(capsys, "pretrain")
    assert "base-seed0" in error and "--resume" in error
    error = pipeline.refused(capsys, "sft")
    assert "base-seed0" in error and "minifork pretrain" in error
    assert snapshot(pipeline.root) == before


def test_what_a_kill_left_behind_is_removed(copy):
    pipeline = copy("base-seed0")
    folder = pipeline.folder / "sft-fork1-seed0"
    for litter in (folder / ".config.yaml.x1y2_abc", folder / "epochs" / ".e1.pt.0123abcd"):
        litter.parent.mkdir(parents=True, exist_ok=True)
        litter.write_bytes(b"half")
        assert pipeline("sft", "--resume", "sft.epochs=1") == 0 and not litter.exists()
        (folder / "meta.json").unlink()


def test_two_processes_in_one_folder(copy, capsys):
    """The second is refused and changes nothing; the lock ends with its holder, even one that was killed."""
    pipeline = copy("base-seed0")
    folder = pipeline.folder / "sft-fork1-seed0"
    holder = "import sys, time; from pathlib import Path; from minifork import runs\n"
    holder += "with runs.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holder, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert "another process is training there" in pipeline.refused(capsys, "sft")
        assert not list(folder.iterdir())
        process.kill()
    assert pipeline("sft") == 0


def test_sft_without_a_base(copy, capsys):
    pipeline = copy()
    error = pipeline.refused(capsys, "sft", "base_seed=3")
    assert "base-seed3" in error and "minifork pretrain" in error and "base_seed=3" in error
    assert not pipeline.root.exists()


def test_sft_on_a_base_of_another_shape(trained, capsys):
    before = snapshot(trained.root)
    for override, named in (("model.width=16", "model.width: 32 -> 16"), ("data.nodes=9", "data.nodes: 8 -> 9")):
        assert named in trained.refused(capsys, "sft", override, "name=other")
    assert snapshot(trained.root) == before


def test_a_folder_of_another_config(trained, capsys):
    before = snapshot(trained.root)
    error = trained.refused(capsys, "sft", "sft.lr=0.125")
    assert "sft-fork1-seed0" in error and f"sft.lr: {trained.config().sft.lr} -> 0.125" in error and "name=" in error
    error = trained.refused(capsys, "pretrain", "pretrain.batch=8")
    assert "base-seed0" in error and "pretrain.batch: 16 -> 8" in error
    assert snapshot(trained.root) == before


@pytest.mark.parametrize("command", [["sft", "name=base-seed0"], ["pretrain", "name=sft-fork1-seed0"]])
def test_a_folder_of_another_stage(trained, capsys, command):
    """The configs are equal, the runs are not: saying "nothing to do" would be wrong."""
    before = snapshot(trained.root)
    assert command[1].removeprefix("name=") in trained.refused(capsys, *command)
    assert snapshot(trained.root) == before


def test_a_leaking_set_is_refused(copy, capsys):
    pipeline = copy("base-seed0")
    error = pipeline.refused(capsys, "sft", "sft.cue_rate=1")
    assert "first edge order" in error and "sft.allow_leak=true" in error
    assert not (pipeline.folder / "sft-fork1-seed0").exists()
    assert "first edge order" in pipeline.refused(capsys, "sft", "sft.cue_rate=1")  # from the cached audit
    assert pipeline("sft", "sft.cue_rate=1", "sft.allow_leak=true") == 0


def test_audit_command(copy, capsys):
    pipeline = copy()
    assert pipeline("audit") == 0
    assert "nothing on the surface" in capsys.readouterr().out
    assert pipeline("audit", "sft.cue_rate=1") == 1
    assert "LEAK" in capsys.readouterr().out
    assert not pipeline.root.exists()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["sft.frok_rate=0.5"], "did you mean sft.fork_rate?"),
        (["FORK_RATE=1.5"], "FORK_RATE"),
        (["sft.fork_rate=1.5"], "sft.fork_rate is 1.5"),
        (["sft.fork_rate=half"], "sft.fork_rate must be a number"),
        (["sft.epochs=1.5"], "sft.epochs must be a whole number"),
        (["just-words"], "key=value"),
    ],
)
def test_bad_overrides(copy, capsys, overrides, named):
    pipeline = copy()
    assert named in pipeline.refused(capsys, "sft", *overrides)
    assert not pipeline.root.exists()


def test_a_bad_value_leaves_no_folder_behind(copy, capsys):
    """Else the corrected command would be refused as another config."""
    pipeline = copy()
    assert "walks.stop" in pipeline.refused(capsys, "pretrain", "walks.stop=1.5")
    assert "walks.seq_len" in pipeline.refused(capsys, "pretrain", "walks.seq_len=12")
    assert "device" in pipeline.refused(capsys, "pretrain", "device=tpu")
    assert not (pipeline.folder / "base-seed0").exists()


def test_bad_config_files(tmp_path, capsys):
    for text in (None, "task: [", "words"):
        path = tmp_path / "my.yaml"
        if text is not None:
            path.write_text(text)
        assert main(["pretrain", "--config", str(path)]) == 1
        error = capsys.readouterr().err
        assert "my.yaml" in error and error.count("\n") == 1


def spoil(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "one bit":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 16
        path.write_bytes(content)
    elif how == "foreign":
        torch.save({"w": torch.zeros(3)}, path)
    elif how == "other shape":
        payload = runs.load_weights(path)
        payload["model"]["head.weight"] = torch.zeros(3, 3)
        runs.save_weights(path, payload)
    else:
        payload = runs.load_weights(path)
        payload["model"].popitem()
        runs.save_weights(path, payload)


@pytest.mark.parametrize("how", ["truncated", "empty", "foreign", "one bit", "other shape", "a weight short"])
def test_spoiled_checkpoints(copy, capsys, how):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    spoil(pipeline.folder / "base-seed0" / "ckpt.pt", how)
    assert "base-seed0/ckpt.pt" in pipeline.refused(capsys, "sft", "seed=7")
    snapshot_file = pipeline.folder / "sft-fork1-seed0" / "epochs" / "e2.pt"
    shutil.rmtree(pipeline.folder / "base-seed0")
    spoil(snapshot_file, how)
    capsys.readouterr()
    assert pipeline("eval") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("minifork: ") and "epochs/e2.pt" in lines[-1]
    assert not (pipeline.folder / "eval.json").exists()


@pytest.mark.parametrize("how", ["truncated", "foreign", "one bit", "a weight short"])
def test_resuming_from_a_spoiled_checkpoint(copy, capsys, how):
    pipeline = copy()
    with ctrl_c("before", 5):
        pipeline("pretrain")
    spoil(pipeline.folder / "base-seed0" / "ckpt.pt", how)
    assert "base-seed0/ckpt.pt" in pipeline.refused(capsys, "pretrain", "--resume")


def test_resuming_from_a_checkpoint_without_optimizer(copy, capsys):
    pipeline = copy()
    with ctrl_c("before", 5):
        pipeline("pretrain")
    path = pipeline.folder / "base-seed0" / "ckpt.pt"
    whole = runs.load_weights(path)
    for change in ({"optimizers": []}, {"optimizers": [{}, {}]}, {"rng": None}):
        runs.save_weights(path, {**whole, **change})
        assert "base-seed0/ckpt.pt" in pipeline.refused(capsys, "pretrain", "--resume")


def test_stages_out_of_order(copy, capsys):
    pipeline = copy()
    assert "minifork pretrain" in pipeline.refused(capsys, "eval")
    for command in ("figures", "claims"):
        assert "eval.json" in pipeline.refused(capsys, command)


def test_a_config_that_is_not_the_runs_own(copy, capsys):
    """A flipped digit in config.yaml is noticed: the run is named and left out."""
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    path = pipeline.folder / "sft-fork1-seed0" / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.001", "lr: 0.009"))
    assert pipeline("eval") == 0
    assert "sft-fork1-seed0: left out, its config.yaml and meta.json" in capsys.readouterr().out


def test_results_of_another_version_are_refused(copy, capsys):
    pipeline = copy("eval.json", "eval.npz")
    path = pipeline.folder / "eval.json"
    path.write_text(path.read_text().replace('"schema": 3', '"schema": 1'))
    for command in ("figures", "claims"):
        assert "not an evaluation of this version" in pipeline.refused(capsys, command)


@pytest.mark.parametrize("how", ["truncated", "empty", "missing", "foreign", "one bit"])
@pytest.mark.parametrize("file", ["eval.npz", "eval.json"])
def test_spoiled_evaluations(copy, capsys, file, how):
    pipeline = copy("eval.json", "eval.npz")
    path = pipeline.folder / file
    if how == "missing":
        path.unlink()
    elif how == "foreign":
        path.write_text("{}") if file == "eval.json" else np.savez(path, a=np.zeros(3))
    else:
        spoil(path, how)
    for command in ("figures", "claims"):
        assert file in pipeline.refused(capsys, command)


@pytest.mark.parametrize(
    ("names", "overrides"),
    [
        (["base-seed0"], []),  # nothing tuned
        (["base-seed0", "fresh-seed0"], []),  # no data-level run
        (["sft-fork1-seed0"], []),  # no base
    ],
)
def test_results_that_some_figures_need_and_lack(copy, capsys, names, overrides):
    """Each command does what it can or says in one line what is missing."""
    pipeline = copy(*names)
    assert pipeline("eval", *overrides) == 0
    for command in ("figures", "claims"):
        capsys.readouterr()
        code, error = pipeline(command, *overrides), capsys.readouterr().err
        assert code == 0 or (code == 1 and error.startswith("minifork: ") and error.count("\n") == 1)


def test_figures_of_reverse_traces_alone(copy, capsys):
    """At FORK_RATE 0 no training problem passed the fork."""
    pipeline = copy("base-seed0")
    assert pipeline("sft", "sft.fork_rate=0", "sft.epochs=1") == pipeline("eval") == 0
    capsys.readouterr()
    code, error = pipeline("figures"), capsys.readouterr().err
    assert code == 0 or (code == 1 and error.startswith("minifork: ") and error.count("\n") == 1)


# What is learned from


@pytest.mark.parametrize("overrides", [[], ["sft.fresh=true"], ["sft.fork_rate=0.5"]])
def test_loss_is_on_whole_traces_each_once_an_epoch(copy, monkeypatch, overrides):
    pipeline, seen, real = copy("base-seed0"), [], losses.cross_entropy

    def cross_entropy(logits, targets, value):
        seen.append(targets.numpy())
        return real(logits, targets)

    monkeypatch.setitem(losses.LOSSES, "cross_entropy", (cross_entropy, *losses.LOSSES["cross_entropy"][1:]))
    assert pipeline("sft", *overrides) == 0
    config = pipeline.config(*overrides)
    prompt = config.data.prompt_len
    targets = np.concatenate(seen).reshape(4, 64, -1)
    assert (targets[..., : prompt - 1] == walks.IGNORE).all()
    orders = set()
    for epoch, learned in enumerate(targets[..., prompt - 1 :].tolist()):
        assert sorted(learned) == sorted(stages.sft_data(config, epoch).tokens[:, prompt:].tolist())
        orders.add(str(learned))
    assert len(orders) == 4  # shuffled anew


@pytest.mark.parametrize("loss", ["label_smoothing=0.1", "gem=0.7", "coverage=8", "drop_tail=0.25"])
def test_fine_tunes_with_every_loss(copy, loss):
    """In a folder of its own, to other weights."""
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("sft", f"sft.loss={loss}") == 0
    folder = pipeline.folder / f"sft-fork1-{loss.replace('=', '')}-seed0"
    weights = [
        torch.load(path / "ckpt.pt", weights_only=True)["model"] for path in (folder, folder.parent / "sft-fork1-seed0")
    ]
    assert not torch.equal(weights[0]["head.weight"], weights[1]["head.weight"])


def test_impossible_losses_are_refused_before_anything_is_made(copy, capsys):
    pipeline = copy("base-seed0")
    assert "coverage is 0.5" in pipeline.refused(capsys, "sft", "sft.loss=coverage=0.5")
    assert "does not exist" in pipeline.refused(capsys, "sft", "sft.loss=hinge")
    assert sorted(path.name for path in pipeline.folder.iterdir()) == ["base-seed0"]


# Other seeds


def test_seeds_matter_and_thread_through(copy):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("sft", "seed=1", "sft.epochs=1") == 0
    one = runs.load_weights(pipeline.folder / "sft-fork1-seed1" / "ckpt.pt")["model"]
    zero = runs.load_weights(pipeline.folder / "sft-fork1-seed0" / "epochs" / "e1.pt")["model"]
    assert any(not torch.equal(one[k], v) for k, v in zero.items())
    assert json.loads((pipeline.folder / "sft-fork1-seed1" / "meta.json").read_text())["seed"] == 1


def test_base_batches_come_from_the_walks_stream(trained):
    """What the base was trained on shares no problem with the test set."""
    config = trained.config()
    seen = np.concatenate([streams.problems(config.data, 0, "walks", 16, step).labels for step in range(40)])
    inputs, _ = walks.walk_batch(config.data, config.walks.stop, config.walks.seq_len, 0, 0, 16)
    assert inputs.shape == (16, 24) and len(seen) == 640
    train_set = config.data.identity(stages.sft_data(config, 0).problems)
    test_set = config.data.identity(streams.test_problems(config.data, 64))
    assert not np.intersect1d(train_set, test_set).size
