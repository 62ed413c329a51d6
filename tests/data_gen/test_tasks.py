"""Every task and mode through the command line, small: pretrain, fine-tune, evaluate, figures, claims."""

from dataclasses import dataclass

import numpy as np
import pytest

from data_gen import streams
from data_gen.task import Task
from examples.new_task import Maze
from experiments.cli import main
from experiments.figures import fork
from experiments.results import load_results
from minifork import config as configs
from minifork.schema import TASKS, Config
from minifork.storage import files
from tests.conftest import SMALL
from tests.helpers.pipeline import Pipeline

GENERAL = [override for override in SMALL if not override.startswith(("data.", "walks."))]
FEW = ["sft.epochs=1", "eval.problems=32"]
ARITH = [*GENERAL, *FEW, "data.labels=8", "data.length=2", "data.modulus=5", "walks.seq_len=40"]
SEARCH = [*SMALL, *FEW, "data.modes=FWD,REV,SEARCH", "walks.seq_len=36"]
SIZES = [*GENERAL, *FEW, "data.nodes=8", "data.sizes=2x3,4x2", "walks.seq_len=30"]


class TaskPipeline(Pipeline):
    """The command line on a small config of a task, its base already trained."""

    def __init__(self, root, task: str, small: list[str]):
        super().__init__(root, small)
        self.task, self.folder = task, root / task
        assert self("pretrain") == 0

    def arguments(self, command: str, *overrides: str) -> list[str]:
        return super().arguments(command, f"--config={self.task}", *overrides)

    def config(self, *overrides: str) -> Config:
        return configs.load_config(self.task, [*self.small, *overrides])


PUBLISHED = ["data.branch_order=published", "sft.allow_leak=true"]
GRADED = ["eval.grading=answer", "eval.budget=200", "eval.rollouts=64"]


@pytest.fixture(scope="module")
def arith(tmp_path_factory):
    pipeline = TaskPipeline(tmp_path_factory.mktemp("arith"), "arith", ARITH)
    for overrides in ([], ["sft.fork_rate=0"], ["sft.modes=RAT"], PUBLISHED):
        assert pipeline("sft", *overrides) == 0
    assert pipeline("eval") == 0
    return pipeline


def test_arith(arith, capsys):
    assert arith("eval") == 0
    result = arith.view()
    assert result["task"] == "arith" and result["grading"] == "steps" and result["engine"] == "exact"
    assert all(check["agrees"] for check in result["checks"]) and len(result["checks"]) == 5
    sets = {(record["run"], record["test_set"]) for record in result["records"]}
    published = arith.at("sft", *PUBLISHED).name
    assert {name for name, test_set in sets if test_set == "published"} == {published}
    assert len(sets) == 6 and (published, "plain") in sets
    errors = set("malformed wrong_query look_up wrong_branch arithmetic early_stop too_long".split())
    for record in result["records"]:
        assert set(record["errors"]) == errors
        assert sum(record["errors"].values()) + record["pass_at"]["1"] == pytest.approx(1, abs=1e-6)
        assert 0 <= record["fork"]["p_rest"] <= 1 and set(record["mode"]["p"]) == {"FWD", "REV", "RAT"}
        wasted = [forced["wasted"] for forced in record["forced"].values()]
        assert all(waste is None or abs(waste) < 1e-4 for waste in wasted)  # in a mode, right traces have one length
    assert arith("figures") == arith("claims") == arith("report") == 0
    assert "computed, not estimated" in (arith.folder / "report.html").read_text(encoding="utf-8")
    out = capsys.readouterr().out
    assert "claims hold" in out and "on 1 pair" in out and "is missing" not in out


@pytest.mark.slow
def test_arith_graded_by_the_answer(arith, capsys):
    """Anything goes but for the last number: far more is accepted, a guess sometimes; a small budget is not enough."""
    assert arith("eval") == 0
    steps = {(r["run"], r["epoch"], r["test_set"]): r["pass_at"]["1"] for r in arith.view()["records"]}
    assert arith("eval", *GRADED) == arith("report", *GRADED) == 0  # far too many prefixes live to compute p again
    assert "a guess is right with probability 0.2" in capsys.readouterr().out
    assert "an unbiased estimate from samples" in (arith.folder / "report.html").read_text(encoding="utf-8")
    result = arith.view()
    assert result["grading"] == "answer" and result["guessing_floor"] == 0.2 and result["engine"] == "remainder"
    assert all(check["agrees"] for check in result["checks"])
    for record in result["records"]:
        graded, computed = record["pass_at"]["1"], steps[record["run"], record["epoch"], record["test_set"]]
        assert graded > computed - 0.07  # 32 x 64 rollouts: 6 standard errors
        assert "wrong_answer" in record["errors"] and "p_rest" not in record["fork"]


def test_bases_serve_both_orders_and_no_other_data(arith, capsys):
    assert arith("pretrain", "data.branch_order=published") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert arith.at("base", "data.branch_order=published") == arith.at("base")
    other = "data.modulus=7"
    assert f"{arith.at('base', other)}: no such finished run" in arith.refused(capsys, "sft", other)
    # An order that leaks needs leave.
    assert "first edge position" in arith.refused(capsys, "sft", "data.branch_order=published", "seed=1")


def test_search(tmp_path, capsys):
    pipeline = TaskPipeline(tmp_path, "star", SEARCH)
    third = ["sft.modes=FWD,REV,SEARCH", "sft.fork_rate=0.3333"]
    levels = [third, [*third, "sft.allocation=problem"]]
    assert [pipeline("sft", *overrides) for overrides in levels] == [0, 0]
    for override in ("eval.forked=true", "eval.forked=false"):
        assert pipeline("eval", override) == 0
        assert "SEARCH pass@1  tokens wasted" in capsys.readouterr().out
        result = pipeline.view()
        assert all(check["agrees"] for check in result["checks"])
        for record in result["records"]:
            assert set(record["forced"]) == {"FWD", "REV", "SEARCH"}
            assert record["mode"]["p_forward"] == record["mode"]["p"]["FWD"]
            assert sum(record["mode"]["p"].values()) == pytest.approx(1)
            wasted = {mode: forced["wasted"] for mode, forced in record["forced"].items()}
            assert abs(wasted["FWD"]) < 1e-5 > abs(wasted["REV"]) and -1e-5 < wasted["SEARCH"] <= 3 + 1e-5
    names = {record["run"] for record in pipeline.view()["records"]}
    assert names == {pipeline.at("base").name, *(pipeline.at("sft", *overrides).name for overrides in levels)}
    study = [*third, "reproduce.study=search"]
    assert pipeline("figures", *study) == pipeline("claims", *study) == pipeline("report", *study) == 0
    out = capsys.readouterr().out
    assert "claims hold" in out and "on 1 pair" in out and "is missing" not in out


def test_rationales(tmp_path, capsys):
    """The study of the preset, with everything that `reproduce` makes of its runs."""
    pipeline = TaskPipeline(tmp_path, "star", [*SMALL, *FEW, "preset=rationale", "reproduce.workers=1"])
    assert pipeline("reproduce") == 0
    out = capsys.readouterr().out
    rows = files.read_json(pipeline.folder / "summary.json")["rows"]
    assert [row["name"] for row in rows] == ["base", "forward", "RAT", "NAME", "BOTH"] and "is missing" not in out
    result = pipeline.view()
    assert result["engine"] == "exact" and len(result["checks"]) == 5 and all(c["agrees"] for c in result["checks"])
    for record in result["records"]:
        assert set(record["forced"]) == {"FWD", "REV", "RAT", "NAME", "BOTH"}
        plain = record["stage"] == "sft" and "sft.modes" not in record["tags"]
        assert (record["fork_train"] is not None) == plain


def test_sizes(tmp_path):
    pipeline = TaskPipeline(tmp_path, "sizes", SIZES)
    assert pipeline("sft") == pipeline("eval") == 0
    result = pipeline.view()
    assert all(check["agrees"] for check in result["checks"]) and result["task"] == "sizes"
    assert pipeline("claims") == 0
    config = pipeline.config()
    figure = fork(load_results(config), [0])
    (words,) = [text for text in figure.axes[1].texts if "equally likely" in text.get_text()]
    branches = np.array([2, 4])[streams.test_problems(config.data, config.eval.problems).size]
    assert words.get_text() == "mean ln d: all branches equally likely" and words.xy[1] == pytest.approx(
        np.log(branches).mean()
    )
    for engine in ("split", "rollout"):
        assert pipeline("eval", f"eval.engine={engine}", "eval.rollouts=64") == 0


@dataclass(frozen=True)
class Corridor(Maze):
    """Mazes that declare no fork, whose base learns from whole prompts and right traces."""

    fork_prefix, children, walks = Task.fork_prefix, Task.children, Task.walks
    graph_len, prompt_len = 0, property(lambda self: 4 * self.steps + 3)


def test_a_task_without_a_fork(tmp_path, capsys, monkeypatch):
    """Trains, is audited and evaluated; what is said of the fork is left out."""
    monkeypatch.setitem(TASKS, "maze", Corridor)
    small = [*GENERAL, "data.side=4", "data.steps=2", "sft.traces=32", "walks.seq_len=50", f"runs={tmp_path}"]

    def run(command: str, *overrides: str) -> int:
        return main([command, "--config", "examples/new_task.yaml", *small, *overrides])

    assert run("pretrain") == run("sft") == run("sft", "sft.fork_rate=0") == run("audit") == 0
    assert "no fork declared" in capsys.readouterr().out
    assert run("eval") == run("eval", "eval.stratify=entropy", "eval.strata=4") == run("eval") == 0
    base = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("base-")]
    assert any(words[-3:] == ["-", "-", "-"] for words in base)
    view = files.read_json(tmp_path / "maze" / "eval.json")
    assert all(record["fork"] is record["fork_train"] is None and record["forced"] for record in view["records"])
    assert not any("fork" in name.split("/")[-1] for name in np.load(tmp_path / "maze" / "eval.npz").files)
    cases = "eval.stratify=fork:declares no fork,eval.grading=answer:end in no answer,sft.prefix=2:has 0 of them,"
    cases += "sft.cue_rate=1:prints no cue,eval.forked=false:without a fork,sft.fork_in_graph=true:without a fork"
    for override, words in (case.split(":") for case in cases.split(",")):
        assert run(override.partition(".")[0], override) == 1 and words in capsys.readouterr().err


def test_modes_that_a_task_lacks(tmp_path, capsys):
    pipeline = Pipeline(tmp_path / "runs", SMALL)
    assert "sft.modes" in pipeline.refused(capsys, "sft", "sft.modes=FWD,SEARCH")
    assert "data.modes" in pipeline.refused(capsys, "pretrain", "data.modes=FWD,CODE")
    assert "eval.grading" in pipeline.refused(capsys, "eval", "eval.grading=answer")
