"""Everything that must be refused: one line that names it, exit code 1, nothing lost."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from experiments.cli import main
from minifork import runs
from minifork.storage import weights
from tests.helpers.pipeline import ctrl_c, snapshot


def test_what_a_kill_left_behind_is_removed(copy):
    pipeline = copy("base")
    folder = pipeline.at("sft", "sft.epochs=1")
    for litter in (folder / ".run.json.x1y2_abc.tmp", folder / "epochs" / ".e1.pt.0123abcd.tmp"):
        litter.parent.mkdir(parents=True, exist_ok=True)
        litter.write_bytes(b"half")
        assert pipeline("sft", "--resume", "sft.epochs=1") == 0 and not litter.exists()
        (folder / runs.RECORD).unlink()


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


def test_a_damaged_audit_is_made_anew(copy):
    pipeline = copy("base")
    assert pipeline("sft", "sft.epochs=1") == 0
    (path,) = (pipeline.folder / "audits").iterdir()
    whole = path.read_text(encoding="utf-8")
    for epochs, content in enumerate(["", "{}", '{"leaks": 3}'], start=2):
        path.write_text(content, encoding="utf-8")
        assert pipeline("sft", f"sft.epochs={epochs}") == 0 and path.read_text(encoding="utf-8") == whole


def test_audit_command(empty, capsys):
    pipeline = empty
    assert pipeline("audit") == 0
    assert "nothing on the surface" in capsys.readouterr().out
    assert pipeline("audit", "sft.cue_rate=1") == 1
    assert "LEAK" in capsys.readouterr().out
    assert not pipeline.root.exists()


def test_bad_overrides(empty, capsys):
    for command in ("pretrain", "sft", "eval", "rl"):
        assert "did you mean sft.fork_rate?" in empty.refused(capsys, command, "sft.frok_rate=0.5")
        assert "device is 'tpu'" in empty.refused(capsys, command, "device=tpu") and not empty.root.exists()


def test_a_folder_is_no_config(tmp_path, capsys):
    """What Python says of a file that cannot be read is one line too."""
    assert main(["pretrain", "--config", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"minifork: {tmp_path}: Is a directory\n"


def test_debug_shows_tracebacks_wherever_it_stands(tmp_path):
    missing = str(tmp_path / "none.yaml")
    for words in (["--debug", "eval", "--config", missing], ["eval", "--debug", "--config", missing]):
        with pytest.raises(ValueError, match="none.yaml"):
            main(words)


SPOILED = {  # changes of a checkpoint; None damages the file
    "truncated": None,
    "other shape": lambda saved: saved["model"].update({"head.weight": torch.zeros(3, 3)}),
    "other bits": lambda saved: saved["model"]["head.weight"].mul_(1.001),
    "a weight short": lambda saved: saved["model"].popitem(),
}


def spoil(path: Path, change: Callable[[dict], object] | None) -> None:
    """Change what a checkpoint holds, or cut its file short."""
    if change is None:
        os.truncate(path, path.stat().st_size // 2)
    else:
        saved = weights.load_weights(path)
        change(saved)
        weights.save_weights(path, saved)


@pytest.mark.parametrize("how", SPOILED)
def test_spoiled_checkpoints(copy, capsys, how):
    pipeline = copy("base", "fork1")
    spoil(pipeline.run("base") / "ckpt.pt", SPOILED[how])
    assert f"{pipeline.run('base')}/ckpt.pt" in pipeline.refused(capsys, "sft", "seed=7")
    shutil.rmtree(pipeline.run("base"))
    spoil(pipeline.run("fork1") / "epochs" / "e2.pt", SPOILED[how])
    capsys.readouterr()
    assert pipeline("eval") == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("minifork: ") and "epochs/e2.pt" in lines[-1]
    assert not (pipeline.folder / "eval.json").exists()


UNFIT = {name: SPOILED[name] for name in ("truncated", "a weight short")}
UNFIT["no optimizer"] = lambda saved: saved.update(optimizers=[])


def test_an_unfinished_run_needs_resume(empty, capsys):
    """And a checkpoint that fits."""
    with ctrl_c("before", 5):
        empty("pretrain")
    before, folder = snapshot(empty.root), empty.run("base")
    for command, way_out in {"pretrain": "--resume", "sft": "minifork pretrain"}.items():
        error = empty.refused(capsys, command)
        assert str(folder) in error and way_out in error
    assert snapshot(empty.root) == before
    path = folder / "ckpt.pt"
    whole = path.read_bytes()
    for how, change in UNFIT.items():
        path.write_bytes(whole)
        spoil(path, change)
        assert str(path) in empty.refused(capsys, "pretrain", "--resume"), how


def test_weights_that_are_not_finite_are_not_kept(empty, capsys):
    """The loss of the last step is finite, what it leaves is not."""
    pipeline = empty
    overrides = ["pretrain.lr=1e38", "pretrain.steps=1", "pretrain.warmup=0"]
    path = pipeline.at("base", *overrides) / "ckpt.pt"
    assert f"{path}: the weights are not finite" in pipeline.refused(capsys, "pretrain", *overrides)
    assert not path.exists()


# What results need


def test_stages_out_of_order(copy, capsys):
    pipeline = copy()
    assert "minifork pretrain" in pipeline.refused(capsys, "eval")
    pipeline = copy("base", "fork1")
    for command in ("figures", "claims", "report"):
        assert "run `minifork eval` with them first" in pipeline.refused(capsys, command)


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
