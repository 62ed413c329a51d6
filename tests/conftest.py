"""What several test files share: a small config, models with weights large enough to matter, thread counts."""

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterator

import pytest
import torch

from minifork.gpt import GPT
from minifork.settings import Shape
from minifork.storage import files, locks
from tests.helpers.pipeline import SFT, Pipeline

SMALL = """
    device=cpu save_every=3 data.nodes=8 data.branches=2 data.length=3 walks.seq_len=24
    model.layers=2 model.width=32 model.heads=1 pretrain.steps=40 pretrain.batch=16
    sft.traces=64 sft.epochs=4 sft.batch=16
    eval.problems=64 eval.max_k=64 eval.check_problems=32 eval.check_rollouts=16
""".split()


os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that tests start, as tests run side by side


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too (make test-all)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip slow tests unless they are asked for. Then run their files first, so that no core waits in the end."""
    slow = [item for item in items if item.get_closest_marker("slow")]
    if not config.getoption("--slow"):
        for item in slow:
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        return
    simulations = [item for item in items if "worlds" in getattr(item, "fixturenames", ())]
    first = {item.path for item in slow + simulations}
    items.sort(key=lambda item: item.path not in first)


@pytest.fixture(scope="session")
def worlds(request) -> int:
    """How many worlds are simulated: 4,000 with --slow, else 400."""
    return 4000 if request.config.getoption("--slow") else 400


@pytest.fixture(scope="session")
def small() -> list[str]:
    """Overrides of the shipped config that make every stage a matter of a second."""
    return SMALL


@pytest.fixture(scope="session")
def make_model() -> Callable[..., GPT]:
    """Random models whose attention and positions matter, so that a mistake in either moves the logits.

    (As initialised for training, the matrices are so small that attention hardly contributes.)
    """

    def make(seed: int, shape: Shape, vocab_size: int, context: int, scale: float = 0.3) -> GPT:
        with torch.random.fork_rng(devices=[]):
            model = GPT(shape, vocab_size, context)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = scale * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise if parameter.dim() == 2 else 1 + noise)
        return model.eval()

    return make


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The tensors here are tiny: on a busy machine more threads mostly wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, undone after the test."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, small):
    """A pipeline that ran every stage; never changed by a test. What it printed is in ``.printed``.

    It is made once: processes that run tests side by side share it.
    """
    shared = tmp_path_factory.getbasetemp()
    shared = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "trained"
    shared.mkdir(exist_ok=True)
    pipeline, path = Pipeline(shared / "runs", small), shared / "printed.json"
    with locks.locked(shared):
        if not path.exists():
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                codes = [pipeline("pretrain"), *(pipeline("sft", *overrides) for overrides in SFT.values())]
                codes += [pipeline(command) for command in ("eval", "figures", "claims")]
            files.write_json(path, {"codes": codes, "printed": out.getvalue()})
    pipeline.codes, pipeline.printed = files.read_json(path)["codes"], files.read_json(path)["printed"]
    return pipeline


@pytest.fixture
def copy(trained, tmp_path, small):
    """A function that gives a pipeline of its own with copies of some trained runs ("base" or names of SFT).

    measured: with what was measured of them.
    """

    def make(*names: str, measured: bool = False) -> Pipeline:
        for name in names:
            source = trained.run(name)
            ignore = None if measured else shutil.ignore_patterns("eval")
            shutil.copytree(source, tmp_path / "runs" / "star" / source.name, ignore=ignore)
        return Pipeline(tmp_path / "runs", small)

    return make


@pytest.fixture
def empty(tmp_path, small) -> Pipeline:
    """A pipeline without runs."""
    return Pipeline(tmp_path / "runs", small)
