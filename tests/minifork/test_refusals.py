"""Everything that must be refused: one line that names it, exit code 1, nothing lost."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import executors, study
from experiments.cli import main
from minifork import runs
from minifork.storage import files, weights
from tests.helpers.pipeline import ctrl_c, edit_record, replace_weights, snapshot


def test_an_unfinished_run_needs_resume(copy, capsys):
    pipeline = copy()
    with ctrl_c("before", 5):
        pipeline("pretrain")
    before = snapshot(pipeline.root)
    error = pipeline.refused(capsys, "pretrain")
    assert str(pipeline.run("base")) in error and "--resume" in error
    error = pipeline.refused(capsys, "sft")
    assert str(pipeline.run("base")) in error and "minifork pretrain" in error
    assert snapshot(pipeline.root) == before


def test_what_a_kill_left_behind_is_removed(copy):
    pipeline = copy("base")
    folder = pipeline.at("sft", "sft.epochs=1")
    for litter in (folder / ".run.json.x1y2_abc", folder / "epochs" / ".e1.pt.0123abcd"):
        litter.parent.mkdir(parents=True, exist_ok=True)
        litter.write_bytes(b"half")
        assert pipeline("sft", "--resume", "sft.epochs=1") == 0 and not litter.exists()
        (folder / runs.RECORD).unlink()


def test_two_processes_in_one_folder(copy, capsys):
    """The second is refused and changes nothing; the lock ends with its holder, even one that was killed."""
    pipeline = copy("base")
    folder = pipeline.run("fork1")
    folder.mkdir()
    holder = "import sys, time; from pathlib import Path; from minifork import files\n"
    holder += "with files.locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", holder, str(folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        assert f"{folder}: another process is working on this run" in pipeline.refused(capsys, "sft")
        assert not list(folder.iterdir())
        process.kill()
    assert pipeline("sft") == 0


def test_sft_without_its_base(copy, capsys):
    """Another seed's or another model's, as the config has it."""
    pipeline = copy("base")
    before = snapshot(pipeline.root)
    for override in ("base_seed=3", "model.width=16", "data.nodes=9", "pretrain.batch=8"):
        error = pipeline.refused(capsys, "sft", override)
        assert pipeline.at("base", override).name in error and "`minifork pretrain base_seed=" in error
    assert snapshot(pipeline.root) == before


def test_a_leaking_set_is_refused(copy, capsys):
    pipeline = copy("base")
    error = pipeline.refused(capsys, "sft", "sft.cue_rate=1")
    assert "first edge order" in error and "sft.allow_leak=true" in error
    assert not pipeline.at("sft", "sft.cue_rate=1").exists()
    assert "first edge order" in pipeline.refused(capsys, "sft", "sft.cue_rate=1")  # from the cached audit
    assert pipeline("sft", "sft.cue_rate=1", "sft.allow_leak=true") == 0


@pytest.mark.parametrize("content", ["", "{}", '{"leaks": 3}'])
def test_a_damaged_audit_is_made_anew(copy, content):
    pipeline = copy("base")
    assert pipeline("sft", "sft.epochs=1") == 0
    (path,) = (pipeline.folder / "audits").iterdir()
    whole = path.read_text()
    path.write_text(content)
    assert pipeline("sft", "sft.epochs=2") == 0 and path.read_text() == whole


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
        (["walks.stop=1.5"], "walks.stop is 1.5"),
        (["walks.seq_len=12"], "walks.seq_len is 12"),
        (["device=tpu"], "device is 'tpu'"),
    ],
)
def test_bad_overrides(copy, capsys, overrides, named):
    pipeline = copy()
    assert named in pipeline.refused(capsys, "sft", *overrides)
    assert not pipeline.root.exists()


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
        payload = weights.load_weights(path)
        payload["model"]["head.weight"] = torch.zeros(3, 3)
        weights.save_weights(path, payload)
    elif how in MARKED:
        torch.save({"format": weights.FORMAT, "step": 3, **MARKED[how]}, path)
    elif how == "other bits":
        payload = weights.load_weights(path)
        payload["model"]["head.weight"] *= 1.001
        weights.save_weights(path, payload)
    else:
        payload = weights.load_weights(path)
        payload["model"].popitem()
        weights.save_weights(path, payload)


MARKED = {
    "no model": {},
    "a number": {"model": 3},
    "numbers": {"model": {"head.weight": 1}},
    "half precision": {"model": {"head.weight": torch.zeros(3, 3, dtype=torch.bfloat16)}},
    "nowhere": {"model": {"head.weight": torch.zeros(3, 3, device="meta")}},
    "infinite": {"model": {"head.weight": torch.full((3, 3), torch.inf)}},
}


HOW = ["truncated", "empty", "foreign", "one bit", "other shape", "other bits", "a weight short", *MARKED]


@pytest.mark.parametrize("how", HOW)
def test_spoiled_checkpoints(copy, capsys, how):
    pipeline = copy("base", "fork1")
    spoil(pipeline.run("base") / "ckpt.pt", how)
    assert f"{pipeline.run('base')}/ckpt.pt" in pipeline.refused(capsys, "sft", "seed=7")
    shutil.rmtree(pipeline.run("base"))
    spoil(pipeline.run("fork1") / "epochs" / "e2.pt", how)
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
    path = pipeline.run("base") / "ckpt.pt"
    spoil(path, how)
    assert str(path) in pipeline.refused(capsys, "pretrain", "--resume")


def test_resuming_from_a_checkpoint_without_optimizer(copy, capsys):
    pipeline = copy()
    with ctrl_c("before", 5):
        pipeline("pretrain")
    path = pipeline.run("base") / "ckpt.pt"
    whole = weights.load_weights(path)
    for change in ({"optimizers": []}, {"optimizers": [{}, {}]}, {"seconds": None}):
        weights.save_weights(path, {**whole, **change})
        assert str(path) in pipeline.refused(capsys, "pretrain", "--resume")


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
    path = pipeline.at("base", "pretrain.optimizer=muon") / "ckpt.pt"
    saved = weights.load_weights(path)
    spoilt(saved)
    weights.save_weights(path, saved)
    assert str(path) in pipeline.refused(capsys, "pretrain", "--resume", "pretrain.optimizer=muon")


def test_weights_that_are_not_finite_are_not_kept(copy, capsys):
    """The loss of the last step is finite, what it leaves is not."""
    pipeline = copy()
    overrides = ["pretrain.lr=1e38", "pretrain.steps=1", "pretrain.warmup=0"]
    path = pipeline.at("base", *overrides) / "ckpt.pt"
    assert f"{path}: the weights are not finite" in pipeline.refused(capsys, "pretrain", *overrides)
    assert not path.exists()


# What does not belong together


def test_runs_that_cannot_be_measured_are_left_out_by_name(copy, capsys):
    """A damaged record, one of a newer version, one of another project, a snapshot that is gone, an unfinished run."""
    names = {"fork0.5": "damaged", "fork1": "newer version", "problem": "not the record of a minifork run"}
    names |= {"fresh": "no such weights", "cued": "unfinished"}
    pipeline = copy("base", *names)
    edit_record(pipeline.run("fork0.5"), stage=[3])
    edit_record(pipeline.run("fork1"), version=runs.VERSION + 1)
    edit_record(pipeline.run("problem"), format="another")
    (pipeline.run("fresh") / "epochs" / "e2.pt").unlink()
    edit_record(pipeline.run("cued"), complete=False)
    folders = {name: pipeline.run(name) for name in names}
    assert pipeline("eval") == 0
    printed = capsys.readouterr().out
    for name, why in names.items():
        assert re.search(rf"{folders[name]}: left out, .*{why}", printed), name
    assert [record["stage"] for record in pipeline.view()["records"]] == ["base"]


def test_a_run_whose_base_was_made_anew_is_named(copy, capsys):
    """Same config, other bits: another machine, say."""
    pipeline = copy("base", "fork1")
    replace_weights(pipeline.run("base"), "ckpt.pt")
    message = f"{pipeline.run('fork1')} started from other weights than"
    assert message in pipeline.refused(capsys, "sft", "--resume")
    with pytest.raises(ValueError, match=message):
        executors.run(study.plans(pipeline.config(), [{}], [0]))
    capsys.readouterr()
    assert pipeline("eval") == 0
    printed = capsys.readouterr().out
    assert f"{pipeline.run('fork1')}: left out, " in printed and message in printed


@pytest.mark.parametrize(("name", "file"), [("fork1", "epochs/e1.pt"), ("base", "ckpt.pt")])
def test_rl_whose_start_was_made_anew_is_named(copy, capsys, name, file):
    """Also where there is nothing left to do, and where what was made anew is two steps back."""
    pipeline = copy("base", "fork1")
    learn = ["rl", "--resume", "rl.updates=1", "rl.problems=16", "rl.prompts=4"]
    assert pipeline(*learn) == pipeline(*learn) == 0
    replace_weights(pipeline.run(name), file)
    later = pipeline.at("rl", *learn[2:]) if name == "fork1" else pipeline.run("fork1")
    assert f"{later} started from other weights than" in pipeline.refused(capsys, *learn)


# What results need


def test_stages_out_of_order(copy, capsys):
    pipeline = copy()
    assert "minifork pretrain" in pipeline.refused(capsys, "eval")
    pipeline = copy("base", "fork1")
    for command in ("figures", "claims", "report"):
        assert "run `minifork eval` with them first" in pipeline.refused(capsys, command)


@pytest.mark.parametrize("how", ["truncated", "empty", "missing", "foreign", "one bit"])
@pytest.mark.parametrize("kind", ["json", "npz"])
def test_spoiled_measurements(copy, capsys, kind, how):
    """Results name the file; evaluating again measures again."""
    pipeline = copy("base", "fork1", measured=True)
    path = sorted((pipeline.run("fork1") / "eval").glob(f"*.{kind}"))[1]
    whole = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "foreign":
        path.write_text("{}") if kind == "json" else np.savez(path, a=np.zeros(3))
    else:
        spoil(path, how)
    if (kind, how) != ("json", "missing"):  # then there is no measurement
        for command in ("figures", "claims"):
            assert path.stem in pipeline.refused(capsys, command)
    capsys.readouterr()
    assert pipeline("eval") == 0 and "1 of them not measured yet" in capsys.readouterr().out
    assert files.read_json(path.with_suffix(".json"), "checksum") and (kind == "json" or path.read_bytes() == whole)


def test_figures_are_of_the_configs_own_fine_tuning(copy, capsys):
    pipeline = copy("base", "fork1", "fresh", measured=True)
    assert pipeline("figures") == pipeline("figures", "sft.fresh=true") == 0
    assert "no pair of a base and its fine-tuning" in pipeline.refused(capsys, "figures", "sft.loss=gem=0.7")


@pytest.mark.parametrize("names", [["base"], ["base", "problem"], ["fork1"]])
def test_results_that_figures_need_and_lack(copy, capsys, names):
    """Nothing tuned, no plain fine-tuning, no base: one line says what is missing."""
    pipeline = copy(*names, measured=True)
    for command in ("figures", "claims", "report"):
        assert "no pair of a base and its fine-tuning was measured" in pipeline.refused(capsys, command)


def test_figures_of_reverse_traces_alone(copy):
    """At FORK_RATE 0 no training problem passed the fork."""
    pipeline = copy("base", measured=True)
    assert pipeline("sft", "sft.fork_rate=0", "sft.epochs=1") == pipeline("eval") == 0
    assert pipeline("figures", "sft.epochs=1") == 0
