"""What travels to a worker and back: enough to go on from, and no more."""

import pytest

from experiments import study, transfer
from experiments.study import Plan
from minifork import config as configs
from minifork import runs
from minifork.runs import RECORD
from minifork.storage import locks
from minifork.storage.files import read_json
from tests.helpers.pipeline import weights_hash


def planned(config: configs.Config, *entries: dict) -> list[Plan]:
    return study.plans(config, [*entries], [0])


@pytest.mark.parametrize(
    ("entry", "starts"),
    [
        ({"stage": "base"}, []),
        ({}, [("base", None)]),
        ({"stage": "rl", "rl.epoch": 2}, [("sft", 2)]),
        ({"stage": "rl", "rl.epoch": 0}, [("base", None)]),
        ({"stage": "wise", "sft.epochs": 4}, [("base", None), ("sft", 1), ("sft", 2), ("sft", 4)]),
        ({"stage": "wise", "sft.epochs": 4, "wise.early": 1}, [("sft", 1), ("sft", 2), ("sft", 4)]),
    ],
)
def test_what_a_run_reads(entry, starts):
    (plan,) = planned(configs.load_config("star"), {"wise.weights": "0.5"} | entry)
    assert transfer.starts_of(plan) == starts


def test_a_run_that_came_back(copy, trained):
    """It is stored once, with its measurements and the weights of all epochs, which another study may start from."""
    (plan,), made = planned(copy("base").config(), {}), runs.read_run(trained.run("fork1"))
    files = transfer.result_files(made)
    stored = {path.partition("/")[2] for path in files}
    assert {path for path in stored if path.endswith(".pt")} == {f"epochs/e{epoch}.pt" for epoch in (1, 2, 4)}
    assert len({path for path in stored if path.startswith("eval/")}) == 6 and "metrics.jsonl" in stored
    folder = runs.folder_of(plan.config, "sft")
    with locks.locked(folder), pytest.raises(ValueError, match="is working here"):
        transfer.store(plan, files)
    transfer.store(plan, files)
    run = runs.require_run(plan.config, "sft")
    assert run.record == made.record | {"config": made.record["config"] | {"runs": plan.config.runs}}
    assert all(checkpoint.is_here for checkpoint in run.checkpoints())
    assert run.checkpoint(2).tensors().keys() == made.checkpoint(2).tensors().keys()
    record = (folder / RECORD).stat().st_mtime_ns
    transfer.store(plan, files)
    assert (folder / RECORD).stat().st_mtime_ns == record
    assert len(read_json(folder / RECORD, "weights")["weights"]) == 4


def test_what_a_run_starts_from_is_enough_to_make_it(copy, trained, tmp_path, small):
    """In a folder with nothing else: the same weights."""
    pipeline = copy("base")
    (plan,) = planned(pipeline.config(), {})
    files = transfer.start_files(plan)
    assert len(files) == 2
    elsewhere = type(pipeline)(tmp_path / "worker", small)
    transfer.write_files(files, elsewhere.folder)
    assert elsewhere("sft", "--measure") == 0
    assert len([*(elsewhere.run("fork1") / "eval").glob("*.json")]) == 3
    for epoch in (1, 2, 4):
        file = f"epochs/e{epoch}.pt"
        assert weights_hash(elsewhere.run("fork1") / file) == weights_hash(trained.run("fork1") / file)


def test_weights_that_are_missing_are_named(copy):
    pipeline = copy("base", "fork1")
    lost = pipeline.run("fork1") / "epochs" / "e2.pt"
    lost.unlink()
    (plan,) = planned(pipeline.config(), {"stage": "rl", "rl.epoch": 2})
    with pytest.raises(ValueError, match=f"{lost}: no such weights"):
        transfer.start_files(plan)
