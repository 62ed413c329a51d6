"""Files of weights: what is damaged, foreign or hostile is refused by name, and nothing in a file is executed."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minifork import runs
from minifork.storage import weights


class Payload:
    """Unpickling this would run a command."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "ckpt.pt"


def assert_refused(path: Path) -> None:
    with pytest.raises(ValueError) as raised:
        weights.load_weights(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_round_trip(path):
    payload = {"model": {"w": torch.arange(6.0).view(2, 3)}, "step": 7, "rng": torch.arange(4, dtype=torch.uint8)}
    digits = weights.save_weights(path, payload)
    loaded = weights.load_weights(path)
    assert loaded["step"] == 7 and torch.equal(loaded["model"]["w"], payload["model"]["w"])
    assert torch.equal(loaded["rng"], payload["rng"])
    assert digits == weights.hash_of(payload["model"]) and len(digits) == 12


def test_the_hash_names_the_weights_and_nothing_else(path):
    model = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
    digits = weights.save_weights(path, {"model": model, "step": 1})
    assert weights.save_weights(path, {"model": dict(reversed(model.items())), "step": 2}) == digits
    assert weights.hash_of(model | {"a": model["a"].t().contiguous().t()}) == digits
    for changed in (model | {"b": torch.tensor([1.0, 1 + 2**-23])}, {"a": model["a"], "c": model["b"]}):
        assert weights.hash_of(changed) != digits


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_kept(path, value):
    weights.save_weights(path, {"model": {"w": torch.zeros(2)}})
    with pytest.raises(ValueError, match=r"ckpt\.pt: the weights are not finite"):
        weights.save_weights(path, {"model": {"w": torch.tensor([1.0, value])}})
    assert torch.equal(weights.load_weights(path)["model"]["w"], torch.zeros(2))


def test_damaged_files(path):
    assert_refused(path)
    weights.save_weights(path, {"model": {"w": torch.zeros(1000)}})
    whole = path.read_bytes()
    cut = [whole[:size] for size in (0, 1, 100, len(whole) // 2, len(whole) - 1)]
    for content in (*cut, b"not a checkpoint, just some text\n" * 50):
        path.write_bytes(content)
        assert_refused(path)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 10**9), st.integers(0, 7))
def test_a_flipped_bit_is_noticed_or_harmless(tmp_path_factory, place, bit):
    """Anywhere in the file: refused by name, or the same weights are read (padding, dates)."""
    path = tmp_path_factory.getbasetemp() / "flipped.pt"
    model = {"w": torch.arange(50.0)}
    weights.save_weights(path, {"model": model})
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        loaded = weights.load_weights(path)
    except ValueError as error:
        assert "flipped.pt" in str(error)
    else:
        assert torch.equal(loaded["model"]["w"], model["w"])


def test_foreign_files(path):
    for value in ({"model": {"w": torch.zeros(2)}}, {"format": "other-1"}, [1, 2], torch.zeros(3), "minifork-1"):
        torch.save(value, path)
        assert_refused(path)
    path.write_bytes(pickle.dumps({"a": 1.5}, protocol=2))
    assert_refused(path)


def test_hostile_files_run_nothing(path, tmp_path):
    marker = tmp_path / "executed"
    path.write_bytes(pickle.dumps(Payload(marker), protocol=2))
    assert_refused(path)
    for value in ({"format": weights.WEIGHTS_FORMAT, "model": {}, "extra": Payload(marker)}, torch.nn.Linear(2, 2)):
        torch.save(value, path)
        assert_refused(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))  # the payload does work where it is let in
    assert marker.exists()


def test_weights_are_those_that_their_run_recorded(copy, capsys):
    """A whole file of another epoch in its place is refused by all that read it."""
    pipeline = copy("base", "fork1")
    epochs = pipeline.run("fork1") / "epochs"
    shutil.copy(epochs / "e4.pt", epochs / "e1.pt")
    with pytest.raises(ValueError, match=r"e1\.pt: holds other weights than its run recorded"):
        runs.read_run(pipeline.run("fork1")).model(1)
    for command in (["rl", "rl.updates=1", "rl.problems=8", "rl.prompts=4"], ["wise"], ["eval"]):
        assert "e1.pt: holds other weights than its run recorded" in pipeline.refused(capsys, *command)
