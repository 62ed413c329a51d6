"""Run folders stay whole: interrupted writes, full disks, damaged and hostile files, other people's folders."""

import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minifork import config as configs
from minifork import runs
from tests.pipeline import SFT, snapshot


def everything(folder: Path) -> set[str]:
    """Relative paths of all files, hidden ones included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def config(config_file, small, tmp_path):
    return configs.load(config_file, [*small, f"runs={tmp_path / 'runs'}"])


def changed(config, **values):
    return configs.from_tree({**configs.to_tree(config), **values}, "here")


# Atomic writes


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), OSError(30, "Read-only file system"), RuntimeError("write failed\nmore")],
)
def test_a_failed_write_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "deep" / "file.bin"
    runs.write_atomically(path, lambda file: file.write(b"old"))

    def half(file):
        file.write(b"new, but on")
        file.flush()
        raise error

    with pytest.raises(
        OSError, match=r"file\.bin: cannot be saved \((No space left on device|Read-only file system|write failed)\)"
    ) as raised:
        runs.write_atomically(path, half)
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == b"old" and everything(tmp_path) == {"deep/file.bin"}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("not about the disk")])
def test_other_errors_pass_unchanged(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def half(file):
        file.write(b"new")
        raise error

    with pytest.raises(type(error)) as raised:
        runs.write_atomically(path, half)
    assert raised.value is error
    assert path.read_bytes() == b"old" and everything(tmp_path) == {"file.bin"}


def test_the_new_file_appears_only_when_whole(tmp_path):
    path, seen = tmp_path / "file.bin", []
    path.write_bytes(b"old")

    def write(file):
        file.write(b"new")
        file.flush()
        seen.append(path.read_bytes())

    runs.write_atomically(path, write)
    assert seen == [b"old"] and path.read_bytes() == b"new" and everything(tmp_path) == {"file.bin"}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="cannot be saved") as raised:
        runs.write_json(tmp_path / "file" / "meta.json", {})
    assert str(tmp_path / "file" / "meta.json") in str(raised.value)


def test_json(tmp_path):
    path = tmp_path / "x.json"
    runs.write_json(path, {"a": [1, 2.5, None, True]})
    assert runs.read_json(path) == {"a": [1, 2.5, None, True]}
    with pytest.raises(ValueError):
        runs.write_json(path, {"a": float("nan")})
    assert runs.read_json(path) == {"a": [1, 2.5, None, True]}
    for broken in ("", '{"a": 1', "\xff"):
        path.write_text(broken, encoding="latin-1")
        with pytest.raises(ValueError, match=r"x\.json: not a JSON file"):
            runs.read_json(path)
    with pytest.raises(ValueError, match=r"none\.json: no such file"):
        runs.read_json(tmp_path / "none.json")


# A full disk


FILL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
from minifork.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
def test_a_full_disk_is_one_line(config_file, small, tmp_path):
    """A process that may write no more than 40 kB a file, less than a checkpoint, stands for a full disk."""
    command = ["pretrain", "--config", config_file, *small, f"runs={tmp_path}"]
    process = subprocess.run(
        [sys.executable, "-c", FILL, "40000", *command],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 1, process.stderr
    lines = process.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("minifork: ") and "Traceback" not in process.stderr
    assert "ckpt.pt" in lines[0] and "cannot be saved" in lines[0] and "runs=" in lines[0]
    assert everything(tmp_path) <= {"star/base-seed0/config.yaml", "star/base-seed0/metrics.jsonl"}


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on file sizes here")
@pytest.mark.parametrize(
    ("stage", "limit"), [("sft", 40_000), ("wise", 40_000), ("eval", 2_000), ("figures", 2_000), ("report", 20_000)]
)
def test_a_full_disk_loses_nothing(copy, stage, limit):
    """The stage fails in one line, what was there stays as it was, and with room again the command succeeds."""
    pipeline = copy("base-seed0", *([] if stage == "sft" else [*SFT, "eval.json", "eval.npz"]))
    overrides = ["eval.problems=48"] if stage == "eval" else []  # else it keeps what it knows, and writes nothing
    before = snapshot(pipeline.folder)
    process = subprocess.run(
        [sys.executable, "-c", FILL, str(limit), *pipeline.arguments(stage, *overrides)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 1, process.stderr
    assert process.stderr.startswith("minifork: ") and process.stderr.count("\n") == 1, process.stderr
    after = snapshot(pipeline.folder)
    assert {name: after[name] for name in before} == before
    resume = ["--resume"] if stage == "sft" else []
    assert pipeline(stage, *overrides, *resume) == 0


# Checkpoints


class Payload:
    """Unpickling this would run a command."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def refuses(path: Path) -> str:
    with pytest.raises(ValueError) as raised:
        runs.load_weights(path)
    message = str(raised.value)
    assert str(path) in message and "\n" not in message
    return message


def test_weights_round_trip(tmp_path):
    path = tmp_path / "ckpt.pt"
    payload = {"model": {"w": torch.arange(6.0).view(2, 3)}, "step": 7, "rng": torch.arange(4, dtype=torch.uint8)}
    runs.save_weights(path, payload)
    loaded = runs.load_weights(path)
    assert loaded["step"] == 7 and torch.equal(loaded["model"]["w"], payload["model"]["w"])
    assert torch.equal(loaded["rng"], payload["rng"])


def test_damaged_weights(tmp_path):
    path = tmp_path / "ckpt.pt"
    assert "no such checkpoint" in refuses(path)
    runs.save_weights(path, {"model": {"w": torch.zeros(1000)}})
    whole = path.read_bytes()
    for size in (0, 1, 2, 10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refuses(path)
    path.write_bytes(b"not a checkpoint, just some text\n" * 50)
    refuses(path)
    path.unlink()
    path.mkdir()
    refuses(path)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 10**9), st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_harmless(tmp_path_factory, place, bit):
    """Anywhere in the file: refused by name, or the same weights are read (padding, dates)."""
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    weights = {"w": torch.arange(50.0)}
    runs.save_weights(path, {"model": weights})
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        found = runs.load_weights(path)
    except ValueError as error:
        assert "flipped.pt" in str(error)
    else:
        assert torch.equal(found["model"]["w"], weights["w"])


def test_foreign_weights(tmp_path):
    path = tmp_path / "ckpt.pt"
    foreign = [{"model": {"w": torch.zeros(2)}}, {"format": "other-1"}, [1, 2], torch.zeros(3), "minifork-1", None]
    for value in foreign:
        torch.save(value, path)
        refuses(path)
    for value in ([1], {"a": 1.5}, "words"):
        path.write_bytes(pickle.dumps(value, protocol=2))
        refuses(path)


def test_malicious_weights_run_nothing(tmp_path):
    path, marker = tmp_path / "ckpt.pt", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Payload(marker), protocol=2))
    refuses(path)
    torch.save({"format": runs.FORMAT, "model": {}, "extra": Payload(marker)}, path)
    refuses(path)
    torch.save(torch.nn.Linear(2, 2), path)
    refuses(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))  # the payload does work where it is let in
    assert marker.exists()


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(st.one_of(st.binary(max_size=40), st.binary(max_size=12).map(lambda tail: b"\x80\x02" + tail + b".")))
def test_random_bytes_are_refused(tmp_path, content):
    path = tmp_path / "ckpt.pt"
    path.write_bytes(content)
    refuses(path)


# Folders


def test_folders(config):
    sft = configs.to_tree(config)["sft"]
    root = Path(config.runs) / "star"
    assert runs.run_folder(config, "base") == root / "base-seed0"
    assert runs.run_folder(config, "sft") == root / "sft-fork1-seed0"
    assert (
        runs.run_folder(changed(config, seed=3, sft={**sft, "fork_rate": 0.25}), "sft") == root / "sft-fork0.25-seed3"
    )
    assert runs.run_folder(changed(config, sft={**sft, "fork_rate": 0.0}), "sft") == root / "sft-fork0-seed0"
    problem = changed(config, sft={**sft, "fork_rate": 0.5, "allocation": "problem"})
    assert runs.run_folder(problem, "sft") == root / "sft-problem-seed0"
    assert runs.run_folder(changed(config, name="mine"), "sft") == root / "mine"
    assert runs.base_folder(changed(config, name="mine", base_seed=2)) == root / "base-seed2"


def begin(config, complete: bool) -> Path:
    folder = runs.run_folder(config, "sft")
    assert runs.state_of(folder, config, "sft", False) == "new"
    runs.write_config(folder / "config.yaml", config)
    runs.save_weights(folder / "ckpt.pt", {"step": 3})
    runs.write_json(folder / "meta.json", {"stage": "sft", "complete": complete})
    return folder


def test_states_of_a_folder(config):
    folder = runs.run_folder(config, "sft")
    assert runs.state_of(folder, config, "sft", False) == "new" and not folder.exists()
    begin(config, complete=False)
    assert runs.read_config(folder) == config
    with pytest.raises(ValueError, match="unfinished run; continue it with --resume"):
        runs.state_of(folder, config, "sft", False)
    assert runs.state_of(folder, config, "sft", True) == "resume"
    assert not runs.is_complete(folder)
    runs.write_json(folder / "meta.json", {"stage": "sft", "complete": True})
    assert runs.is_complete(folder)
    assert runs.state_of(folder, config, "sft", False) == runs.state_of(folder, config, "sft", True) == "complete"


def test_a_run_killed_before_its_first_checkpoint_starts_anew(config):
    folder = begin(config, complete=False)
    (folder / "ckpt.pt").unlink()
    (folder / "meta.json").unlink()
    for resume in (False, True):
        assert runs.state_of(folder, config, "sft", resume) == "new"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("sft", "lr", 0.125),
        ("sft", "fork_rate", 1.0000001),
        ("sft", "fresh", True),
        ("data", "nodes", 9),
        ("model", "layers", 3),
        ("walks", "stop", 0.5),
        ("pretrain", "steps", 41),
    ],
)
def test_a_folder_of_another_config_is_refused(config, section, key, value):
    tree = configs.to_tree(config)
    if key == "fork_rate":  # prints as %g like its neighbour, and is still another run
        config = changed(config, sft={**tree["sft"], "fork_rate": 0.5})
        value = 0.5000001
        tree = configs.to_tree(config)
    folder = begin(config, complete=True)
    other = changed(config, **{section: {**tree[section], key: value}})
    for resume in (False, True):
        with pytest.raises(ValueError) as raised:
            runs.state_of(folder, other, "sft", resume)
        assert str(folder) in str(raised.value) and f"{section}.{key}: {tree[section][key]} -> {value}" in str(
            raised.value
        )
    assert runs.read_config(folder) == config


def test_a_folder_of_another_base_seed_is_refused(config):
    folder = begin(config, complete=True)
    with pytest.raises(ValueError, match="base_seed: 0 -> 1"):
        runs.state_of(folder, changed(config, base_seed=1), "sft", False)


def test_what_does_not_change_a_run_does_not_change_its_identity(config):
    folder = begin(config, complete=True)
    tree = configs.to_tree(config)
    other = changed(config, save_every=7, device="auto", eval={**tree["eval"], "problems": 500})
    assert runs.state_of(folder, other, "sft", False) == "complete"
    base = runs.identity(config, "base")
    assert base == runs.identity(changed(config, seed=5, sft={**tree["sft"], "lr": 0.125}), "base")


def test_a_run_of_another_stage_is_refused(config):
    """A base may be asked for in the folder of a fine-tuning and the reverse: their configs can be equal."""
    folder = Path(config.runs) / "star" / "mine"
    named = changed(config, name="mine")
    runs.write_config(folder / "config.yaml", named)
    runs.save_weights(folder / "ckpt.pt", {"step": 3})
    runs.write_json(folder / "meta.json", {"stage": "base", "complete": True})
    with pytest.raises(ValueError, match="mine"):
        runs.state_of(folder, named, "sft", False)


def test_folders_without_a_readable_config(config):
    folder = runs.run_folder(config, "sft")
    folder.mkdir(parents=True)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"config\.yaml"):
        runs.state_of(folder, config, "sft", False)
    for text in ("", "a: [", "task: star\n", "- 1\n"):
        (folder / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"config\.yaml"):
            runs.state_of(folder, config, "sft", True)
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("content", ["[]", "3", "null", '"complete"'])
def test_a_foreign_meta_is_no_finished_run(config, content):
    """Valid JSON that is no mapping: refused by name, or taken for unfinished, but no crash."""
    folder = begin(config, complete=True)
    (folder / "meta.json").write_text(content)
    try:
        assert not runs.is_complete(folder)
    except ValueError as error:
        assert "meta.json" in str(error)


def test_config_files_are_plain_yaml(config):
    folder = begin(config, complete=True)
    assert configs.from_tree(yaml.safe_load((folder / "config.yaml").read_text()), "here") == config


# Metrics


def test_keep_metrics_until(tmp_path):
    runs.keep_metrics_until(tmp_path, 20)  # nothing to do
    assert everything(tmp_path) == set()
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.5}) for step in (10, 20, 30, 40)]
    path.write_text("\n".join(lines) + '\n{"step": 50, "lo')
    runs.keep_metrics_until(tmp_path, 20)
    assert path.read_text() == "".join(line + "\n" for line in lines[:2])
    runs.keep_metrics_until(tmp_path, 0)
    assert path.read_text() == "" and everything(tmp_path) == {"metrics.jsonl"}


def test_keep_metrics_drops_what_is_no_metric(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 10}\n[]\n3\n\n{"loss": 1}\n{"step": "a"}\n{"step": null}\n{"step": 20}\n')
    path.write_bytes(path.read_bytes() + b"\xff\xfe\n")
    runs.keep_metrics_until(tmp_path, 100)
    assert path.read_text() == '{"step": 10}\n{"step": 20}\n'
