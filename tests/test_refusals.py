"""Everything that must be refused: one line that names it, exit code 1, nothing lost."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import sweep
from minifork import records, runs
from minifork.cli import main
from tests.pipeline import ctrl_c, snapshot


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


@pytest.mark.parametrize("content", ["", "{}", '{"leaks": 3}'])
def test_a_damaged_audit_is_made_anew(copy, content):
    pipeline = copy("base-seed0")
    assert pipeline("sft", "sft.epochs=1") == 0
    (kept,) = (pipeline.folder / "audits").iterdir()
    whole = kept.read_text()
    kept.write_text(content)
    assert pipeline("sft", "sft.epochs=2", "name=again") == 0 and kept.read_text() == whole


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


def test_files_of_another_kind(tmp_path, capsys):
    assert main(["pretrain", "--config", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"minifork: {tmp_path}: Is a directory\n"


def test_debug_shows_tracebacks_wherever_it_stands(tmp_path):
    missing = str(tmp_path / "none.yaml")
    for words in (["--debug", "eval", "--config", missing], ["eval", "--debug", "--config", missing]):
        with pytest.raises(ValueError, match="none.yaml"):
            main(words)


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
    elif how in MARKED:
        torch.save({"format": runs.FORMAT, "step": 3, **MARKED[how]}, path)
    else:
        payload = runs.load_weights(path)
        payload["model"].popitem()
        runs.save_weights(path, payload)


MARKED = {
    "no model": {},
    "a number": {"model": 3},
    "numbers": {"model": {"head.weight": 1}},
    "half precision": {"model": {"head.weight": torch.zeros(3, 3, dtype=torch.bfloat16)}},
    "nowhere": {"model": {"head.weight": torch.zeros(3, 3, device="meta")}},
    "infinite": {"model": {"head.weight": torch.full((3, 3), torch.inf)}},
}


@pytest.mark.parametrize("how", ["truncated", "empty", "foreign", "one bit", "other shape", "a weight short", *MARKED])
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
    for change in ({"optimizers": []}, {"optimizers": [{}, {}]}, {"seconds": None}):
        runs.save_weights(path, {**whole, **change})
        assert "base-seed0/ckpt.pt" in pipeline.refused(capsys, "pretrain", "--resume")


def first_state(saved: dict, which: int = 0) -> dict:
    return saved["optimizers"][which]["state"][0]


@pytest.mark.parametrize(
    "spoilt",
    [
        lambda saved: first_state(saved).update(exp_avg=torch.zeros(2)),
        lambda saved: first_state(saved, 1).update(momentum_buffer=torch.zeros(2)),
        lambda saved: first_state(saved).pop("exp_avg"),
        lambda saved: saved["optimizers"][0]["state"].clear(),
        lambda saved: saved["optimizers"][0]["param_groups"][0].pop("peak"),
        lambda saved: saved["optimizers"][0]["param_groups"][0].update(peak="x"),
        lambda saved: saved.update(step=9999),
        lambda saved: saved.update(step=-5),
        lambda saved: saved.update(step=float("inf")),
        lambda saved: saved.update(seconds=float("nan")),
    ],
)
def test_an_optimizer_that_would_not_fit_is_refused(copy, capsys, spoilt):
    """torch's fused steps take what they are given: of a wrong shape they read past its end."""
    pipeline = copy()
    with ctrl_c("before", 5):
        pipeline("pretrain", "pretrain.optimizer=muon")
    path = pipeline.folder / "base-seed0" / "ckpt.pt"
    saved = runs.load_weights(path)
    spoilt(saved)
    runs.save_weights(path, saved)
    assert "base-seed0/ckpt.pt" in pipeline.refused(capsys, "pretrain", "--resume", "pretrain.optimizer=muon")


def test_weights_that_are_not_finite_are_not_kept(copy, capsys):
    """The loss of the last step is finite, what it leaves is not."""
    pipeline = copy()
    error = pipeline.refused(capsys, "pretrain", "pretrain.lr=1e38", "pretrain.steps=1", "pretrain.warmup=0")
    assert "base-seed0/ckpt.pt: the weights are not finite" in error
    assert not (pipeline.folder / "base-seed0" / "ckpt.pt").exists()


def test_runs_that_are_not_what_their_folder_says_are_left_out(copy, capsys):
    """A run that was moved, a meta.json of another one, a snapshot that it never made."""
    pipeline = copy("base-seed0", "sft-fork1-seed0", "sft-fork0.5-seed0", "sft-problem-seed0", "fresh-seed0")
    (pipeline.folder / "sft-fork1-seed0").rename(pipeline.folder / "old")
    meta = pipeline.folder / "sft-fork0.5-seed0" / "meta.json"
    runs.write_json(meta, runs.read_json(meta) | {"fork_rate": 1.0})
    meta = pipeline.folder / "sft-problem-seed0" / "meta.json"
    runs.write_json(meta, runs.read_json(meta) | {"stage": [3]})
    epochs = pipeline.folder / "fresh-seed0" / "epochs"
    shutil.copy(epochs / "e4.pt", epochs / "e9.pt")
    assert pipeline("eval") == 0
    said = capsys.readouterr().out
    for name, why in (("old", "do not belong together"), ("sft-fork0.5-seed0", "do not belong together"),
                      ("sft-problem-seed0", "damaged"), ("fresh-seed0", "e9.pt is no snapshot")):  # fmt: skip
        assert re.search(rf"/{name}: left out, .*{why}", said), name
    assert len(runs.read_json(pipeline.folder / "eval.json")["records"]) == 1


def test_a_run_whose_base_was_made_anew_is_named(copy, capsys):
    """Same config, other bits: another machine, say."""
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    base = pipeline.folder / "base-seed0" / "ckpt.pt"
    saved = runs.load_weights(base)
    saved["model"]["head.weight"] *= 1.001
    runs.save_weights(base, saved)
    assert "sft-fork1-seed0 was trained from other weights than" in pipeline.refused(capsys, "sft", "--resume")
    with pytest.raises(ValueError, match="sft-fork1-seed0 was trained from other weights than"):
        sweep.finished(pipeline.config(), sweep.Job("sft", ()))
    assert pipeline("eval") == 0
    assert "sft-fork1-seed0: left out, " in capsys.readouterr().out


def test_rl_whose_start_was_made_anew_is_named(copy, capsys):
    """Also where there is nothing left to do."""
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    learn = ["rl", "--resume", "rl.updates=1", "rl.problems=16", "rl.prompts=4"]
    assert pipeline(*learn) == pipeline(*learn) == 0
    start = pipeline.folder / "sft-fork1-seed0" / "epochs" / "e1.pt"
    saved = runs.load_weights(start)
    saved["model"]["head.weight"] *= 1.001
    runs.save_weights(start, saved)
    assert "was trained from other weights than" in pipeline.refused(capsys, *learn)


@pytest.mark.parametrize("name", ["base", "base-seed7", "rl-grpo-FWD-fork1-epoch1-seed0", "a\nb", "\udcff"])
def test_names_that_results_would_confuse(copy, capsys, name):
    assert "name" in copy().refused(capsys, "sft", f"name={name}")


def test_stages_out_of_order(copy, capsys):
    pipeline = copy()
    assert "minifork pretrain" in pipeline.refused(capsys, "eval")
    for command in ("figures", "claims", "report"):
        assert "run `minifork eval` first" in pipeline.refused(capsys, command)


def test_a_config_that_is_not_the_runs_own(copy, capsys):
    """A flipped digit in config.yaml is noticed: the run is named and left out."""
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    path = pipeline.folder / "sft-fork1-seed0" / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.001", "lr: 0.009"))
    assert pipeline("eval") == 0
    assert "sft-fork1-seed0: left out, its name, config.yaml and meta.json" in capsys.readouterr().out


def test_results_of_another_version_are_refused(copy, capsys):
    pipeline = copy("eval.json", "eval.npz")
    path = pipeline.folder / "eval.json"
    path.write_text(path.read_text().replace(f'"schema": {records.SCHEMA}', '"schema": 1'))
    for command in ("figures", "claims"):
        assert "not an evaluation of this version" in pipeline.refused(capsys, command)


@pytest.mark.parametrize("key", [*records.KINDS, "settings", "checks"])
@pytest.mark.parametrize("value", [None, [3]])
def test_evaluations_of_another_shape_are_refused(copy, capsys, key, value):
    """Even with a checksum that holds: what other code wrote is no evaluation of this one."""
    pipeline = copy("eval.json", "eval.npz")
    with pipeline.edited_evaluation() as evaluation:
        where = evaluation if key in evaluation else evaluation["records"][0]
        where |= {key: value}
        if value is None:
            del where[key]
    for command in ("figures", "claims", "report"):
        assert "eval.json: " in pipeline.refused(capsys, command)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe_hash": "other"}, "sft-fork0.5-seed0 and sft-fork1-seed0 differ in more than FORK_RATE and seeds"),
        ({"fork_rate": 0.5}, "sft-fork0.5-seed0 and sft-fork1-seed0 would pass for one run (data, seed 0)"),
    ],
)
def test_fine_tunings_that_do_not_belong_together_are_refused(copy, capsys, change, named):
    pipeline = copy("eval.json", "eval.npz")
    with pipeline.edited_evaluation() as evaluation:
        for record in evaluation["records"]:
            record |= change if record["run"] == "sft-fork1-seed0" else {}
    for command in ("figures", "claims", "report"):
        assert named in pipeline.refused(capsys, command)


def test_figures_are_of_the_configs_own_fine_tuning(copy, capsys):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("sft", "sft.fresh=true") == pipeline("eval") == 0
    assert pipeline("figures") == pipeline("figures", "sft.fresh=true") == 0
    assert "no fine-tuning of this config (data-gem0.7)" in pipeline.refused(capsys, "figures", "sft.loss=gem=0.7")


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
