"""The library: what it gives is what the command line gives, in memory or on disk, and it refuses in one line."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import minifork as mf
from minifork import runs
from minifork.schema import TASKS
from tests.conftest import SMALL

TASK = mf.Star(nodes=8, branches=2, length=3)
TINY = {"silent": True, "steps": 1, "batch": 1, "layers": 1, "width": 32, "heads": 1}
PUBLISHED = mf.Star(nodes=8, branches=2, length=3, branch_order="published")


class Other:
    """A place for a task of a shipped one's name."""

    @dataclass(frozen=True)
    class Star(mf.Star):
        pass


def sections(*names: str) -> dict[str, int]:
    """The small config's keys of some sections."""
    keys = dict(word.split("=") for word in SMALL)
    return {key: int(value) for key, value in keys.items() if key.split(".")[0] in names}


@pytest.fixture(scope="module")
def base() -> mf.Run:
    return mf.pretrain(TASK, silent=True, **sections("walks", "model", "pretrain"))


@pytest.fixture(scope="module")
def tuned(base) -> mf.Run:
    return mf.sft(base, silent=True, fork_rate=1.0, **sections("sft"))


@pytest.fixture(scope="module")
def test() -> object:
    return mf.problems(TASK, "test", 64)


def assert_same_weights(run: mf.Run, reference: mf.Run) -> None:
    """Their hashes are equal, too."""
    assert run.identity == reference.identity and run.record["weights"] == reference.record["weights"]
    for mine, theirs in zip(run.checkpoints(), reference.checkpoints(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.tensors().values(), theirs.tensors().values(), strict=True))


def test_problems_are_all_different():
    """A stream that holds fewer problems than asked for gives all it has, with a warning."""
    with pytest.warns(UserWarning, match="the test stream holds [0-9]+ different problems, not 1000: all are used"):
        problems = mf.problems(mf.Star(8, 2, 2), "test", 1000)
    assert len(problems.prompts) == len(problems.prompts.unique(dim=0)) < 60


def test_runs_in_memory_are_those_of_the_command_line(base, tuned, trained):
    assert_same_weights(base, runs.read_run(trained.run("base")))
    assert_same_weights(tuned, runs.read_run(trained.run("fork1")))
    assert not Path(base.folder).exists() and [line["step"] for line in base.memory[runs.METRICS]] == [10, 20, 30, 40]


def test_a_folder_keeps_them_and_finds_them_again(base, tuned, tmp_path, capsys):
    first, second = [mf.pretrain(TASK, folder=tmp_path, **sections("walks", "model", "pretrain")) for _ in range(2)]
    assert "nothing to do" in capsys.readouterr().out and first.folder == second.folder
    saved = mf.sft(mf.load(first.folder), fork_rate=1.0, **sections("sft"))
    assert_same_weights(mf.load(saved.folder), tuned)
    assert saved.folder.parent == tmp_path / "star"


def test_a_moved_folder_keeps_what_goes_on_from_it(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    base = mf.pretrain(TASK, folder="runs", **TINY)
    (tmp_path / "there" / "runs").rename(tmp_path / "moved")
    tuned = mf.sft(mf.load(tmp_path / "moved" / base.folder.relative_to("runs")), silent=True, epochs=1, traces=32)
    assert tuned.folder.parent == tmp_path / "moved" / "star"
    assert runs.require_run(tuned.config, "base").name == base.name


def test_a_task_of_ones_own(tmp_path):
    """One defined anew is the one that is trained, and a run of it is read where its class is given."""
    runs_of = []
    for goal_first in (False, True):

        @dataclass(frozen=True)
        class Mine(mf.Star):
            modes: str = "REV,FWD" if goal_first else "FWD,REV"

        runs_of.append(mf.pretrain(Mine(8, 2, 3), folder=tmp_path, **TINY))
        assert runs_of[-1].config.data.modes == runs_of[-1].config.sft.modes == Mine.modes
    del TASKS["mine"]
    with pytest.raises(ValueError, match="'mine': the tasks are: .* into minifork.schema.TASKS first"):
        mf.load(runs_of[1].folder)
    assert mf.load(runs_of[1].folder, Mine).config.data == Mine(8, 2, 3)
    del TASKS["mine"]


def test_the_seed_of_a_base(capsys):
    """`seed` is the base's. Torch's own generator is left alone, and silent runs print nothing."""
    state = torch.get_rng_state()
    seeded, plain = mf.pretrain(TASK, seed=5, **TINY), mf.pretrain(TASK, **TINY)
    assert seeded.config.base_seed == 5 and seeded.record["weights"] != plain.record["weights"]
    assert torch.equal(torch.get_rng_state(), state)
    assert capsys.readouterr() == ("", "")


def test_exact_p_and_pass_at_k(tuned, trained, test):
    measured = np.load(trained.folder / "eval.npz")
    for mode in (None, "FWD", "REV"):
        p = mf.exact(tuned.model(), test, mode=mode).p_lo
        stored = measured[f"{trained.run('fork1').name}/e4/plain/{mode or 'free'}"]
        np.testing.assert_allclose(p, stored, atol=1e-6)
    expected = [float(np.mean(1 - (1 - p) ** k)) for k in (1, 16)]
    assert mf.pass_at_k(p, [1, 16]) == pytest.approx(expected)


def test_the_other_engines_and_policies(tuned, test):
    """Means over 64 problems x 400 samples: within 5 standard errors (less than .004 each), 1e-6 to object falsely."""
    for policy in ("temperature=1", mf.Policy((("top_p", 0.9),))):
        p = mf.exact(tuned.model(2), test, policy).p_lo
        for engine in (mf.split, mf.rollout):
            counts = engine(tuned.model(2), test, 400, seed=1, policy=policy).p_lo
            error = np.sqrt(np.sum(p * (1 - p) / 400)) / len(p)
            assert abs(counts.mean() - p.mean()) < 5 * error + 1e-9
    assert mf.rollout(tuned.model(), test, 3, traces=True).traces.tokens.shape == (64, 3, TASK.trace_len)


def test_rl_goes_on_from_a_snapshot_or_the_base(base, tuned):
    keys = {"updates": 2, "problems": 16, "prompts": 4, "silent": True}
    from_tuned, from_base = mf.rl(tuned, epoch=2, **keys), mf.rl(base, **keys)
    assert from_tuned.record["parent"] == {
        "run": tuned.name, "file": "epochs/e2.pt", "weights": tuned.checkpoint(2).weights_hash,
    }  # fmt: skip
    assert from_base.record["parent"]["run"] == base.name and from_tuned.epochs == [1, 2]


REFUSED = [
    (lambda r: mf.pretrain(TASK, stepz=1), "did you mean pretrain.steps"),
    (lambda r: mf.pretrain(TASK, lr="fast"), "pretrain.lr must be a number"),
    (lambda r: mf.sft(r["base"], fork_rate=2), "sft.fork_rate is 2"),
    (lambda r: mf.sft(r["base"], problems=1), "rl.problems, eval.problems"),
    (lambda r: mf.sft(r["base"], width=64), "model.width is 64, but base was made with 32"),
    (lambda r: mf.rl(r["tuned"], epoch=0), "rl.epoch is 0 and tuned of the stage sft: 0 is for a base alone"),
    (lambda r: mf.rl(r["base"], epoch=1), "rl.epoch is 1 and tuned of the stage base"),
    (lambda r: mf.sft(r["tuned"]), "base is a run of the stage sft"),
    (lambda r: mf.sft(r["unfinished"]), "base is unfinished"),
    (lambda r: mf.pretrain(type("Mine", (mf.Star,), {})(8, 2, 3)), "task is a Mine: give an object of a frozen"),
    (lambda r: mf.pretrain(Other.Star(8, 2, 3)), "a task called star ships"),
    (lambda r: mf.rl(mf.pretrain(PUBLISHED, silent=True, steps=1, batch=1)), "data.branch_order gives"),
    (lambda r: r["unfinished"].model(), "no such weights of a finished run"),
    (lambda r: r["tuned"].model(3), "e3.pt: no such weights"),
    (lambda r: mf.load("nowhere"), "nowhere/run.json"),
    (lambda r: mf.problems(TASK, "tset"), "stream is 'tset': choose walks, train, valid, test"),
    (lambda r: mf.problems(TASK, "test", 0), "n is 0"),
    (lambda r: mf.problems(TASK, "test", 4, "cuda"), "no CUDA device"),
    (lambda r: mf.exact(r["tuned"].model().to("meta"), r["test"]), "problems lie on cpu, the model on meta"),
    (lambda r: mf.exact(r["tuned"].model(), mf.problems(mf.Star(16, 2, 4), "test", 4)), "of another task"),
    (lambda r: mf.exact(r["tuned"].model(), r["test"], mode="UP"), "mode is 'UP': choose FWD, REV"),
    (lambda r: mf.exact(r["tuned"].model(), r["test"], "top_q=1"), "top_q"),
    (lambda r: mf.split(r["tuned"].model(), r["test"], 0), "n is 0"),
    (lambda r: mf.pass_at_k(np.ones(3), [0]), "ks"),
]


@pytest.mark.parametrize(("call", "text"), REFUSED)
def test_refusals_name_the_argument(call, text, base, tuned, test):
    unfinished = runs.in_memory(base.config, "base", None, silent=True)
    with pytest.raises(ValueError, match=re.escape(text)) as error:
        call({"base": base, "tuned": tuned, "test": test, "unfinished": unfinished})
    assert "\n" not in str(error.value)


def test_public_names_are_those_that_type_checkers_see():
    tree = ast.parse(Path(mf.__file__).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    assert sorted(alias.name for node in guarded.body for alias in node.names) == mf.__all__ == dir(mf)
    assert all(getattr(mf, name).__doc__ for name in mf.__all__)
    with pytest.raises(AttributeError, match="no attribute 'pretrian'"):
        mf.pretrian  # noqa: B018
