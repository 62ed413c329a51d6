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


def refuses(path: Path) -> str:
    with pytest.raises(ValueError) as raised:
        weights.load_weights(path)
    message = str(raised.value)
    assert str(path) in message and "\n" not in message
    return message


def test_round_trip(tmp_path):
    path = tmp_path / "ckpt.pt"
    payload = {"model": {"w": torch.arange(6.0).view(2, 3)}, "step": 7, "rng": torch.arange(4, dtype=torch.uint8)}
    digits = weights.save_weights(path, payload)
    loaded = weights.load_weights(path)
    assert loaded["step"] == 7 and torch.equal(loaded["model"]["w"], payload["model"]["w"])
    assert torch.equal(loaded["rng"], payload["rng"])
    assert digits == weights.weights_hash(path) == weights.hash_of(payload["model"]) and len(digits) == 12


def test_the_hash_names_the_weights_and_nothing_else(tmp_path):
    model = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2)}
    digits = weights.save_weights(tmp_path / "one.pt", {"model": model, "step": 1})
    assert weights.save_weights(tmp_path / "two.pt", {"model": dict(reversed(model.items())), "step": 2}) == digits
    assert weights.hash_of(model | {"a": model["a"].t().contiguous().t()}) == digits
    for other in (model | {"b": torch.tensor([1.0, 1 + 2**-23])}, {"a": model["a"], "c": model["b"]}):
        assert weights.hash_of(other) != digits


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_neither_kept_nor_read(tmp_path, value):
    path = tmp_path / "ckpt.pt"
    weights.save_weights(path, {"model": {"w": torch.zeros(2)}})
    spoiled = {"model": {"w": torch.tensor([1.0, value])}}
    with pytest.raises(ValueError, match=r"ckpt\.pt: the weights are not finite"):
        weights.save_weights(path, spoiled)
    assert torch.equal(weights.load_weights(path)["model"]["w"], torch.zeros(2))
    torch.save({"format": weights.FORMAT} | spoiled, path)
    assert "not finite" in refuses(path)


def test_damaged_files(tmp_path):
    path = tmp_path / "ckpt.pt"
    assert "no such checkpoint" in refuses(path)
    weights.save_weights(path, {"model": {"w": torch.zeros(1000)}})
    whole = path.read_bytes()
    cut = [whole[:size] for size in (0, 1, 2, 10, 100, len(whole) // 2, len(whole) - 1)]
    for content in (*cut, b"not a checkpoint, just some text\n" * 50):
        path.write_bytes(content)
        refuses(path)
    path.unlink()
    path.mkdir()
    refuses(path)


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


def test_foreign_files(tmp_path):
    path = tmp_path / "ckpt.pt"
    foreign = [{"model": {"w": torch.zeros(2)}}, {"format": "other-1"}, [1, 2], torch.zeros(3), "minifork-1", None]
    tensors = [[torch.zeros(2)], {1: torch.zeros(2)}, {"w": [0.0]}, {"w": torch.zeros(2, dtype=torch.float16)}, 3]
    tensors += [{"w": 1}, {"w": torch.zeros(2, dtype=torch.bfloat16)}, {"w": torch.zeros(2, device="meta")}]
    models = [{"format": weights.FORMAT, "model": model} for model in tensors]
    for value in [*foreign, {"format": weights.FORMAT}, *models]:
        torch.save(value, path)
        refuses(path)
    for value in ([1], {"a": 1.5}, "words"):
        path.write_bytes(pickle.dumps(value, protocol=2))
        refuses(path)


def test_hostile_files_run_nothing(tmp_path):
    path, marker = tmp_path / "ckpt.pt", tmp_path / "executed"
    path.write_bytes(pickle.dumps(Payload(marker), protocol=2))
    refuses(path)
    torch.save({"format": weights.FORMAT, "model": {}, "extra": Payload(marker)}, path)
    refuses(path)
    torch.save(torch.nn.Linear(2, 2), path)
    refuses(path)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))  # the payload does work where it is let in
    assert marker.exists()


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(st.one_of(st.binary(max_size=40), st.binary(max_size=12).map(lambda tail: b"\x80\x02" + tail + b".")))
def test_random_bytes_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "random.pt"
    path.write_bytes(content)
    refuses(path)


# Checkpoints of a run


def test_weights_are_those_that_their_run_recorded(copy, capsys):
    """A whole file of another epoch in its place is refused by all that read it."""
    pipeline = copy("base", "fork1")
    tuned = runs.read_run(pipeline.run("fork1"))
    assert weights.hash_of(tuned.checkpoint(1).state()) == tuned.record["weights"]["epochs/e1.pt"]
    shutil.copy(tuned.folder / "epochs" / "e4.pt", tuned.folder / "epochs" / "e1.pt")
    with pytest.raises(ValueError, match=r"e1\.pt: holds other weights than its run recorded"):
        tuned.model(1)
    small = ["rl.updates=1", "rl.problems=8", "rl.prompts=4"]
    for command in (["rl", *small], ["wise"], ["eval"]):
        assert "e1.pt: holds other weights than its run recorded" in pipeline.refused(capsys, *command)
