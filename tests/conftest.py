"""What several test files share: a small config, models with weights large enough to matter, thread counts."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from minifork.config import Shape
from minifork.model import GPT

CONFIG = Path(__file__).parent.parent / "experiments" / "configs" / "star.yaml"
SMALL = """
    device=cpu save_every=3 data.nodes=8 data.branches=2 data.length=3 walks.seq_len=24
    model.layers=2 model.width=32 model.heads=1 pretrain.steps=40 pretrain.batch=16
    sft.traces=64 sft.epochs=4 sft.batch=16
    eval.problems=64 eval.max_k=64 eval.bootstrap=50 eval.check_problems=32 eval.check_rollouts=16
""".split()


@pytest.fixture(scope="session")
def config_file() -> str:
    """The shipped config."""
    return str(CONFIG)


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
def one_thread() -> Iterator[None]:
    """The tensors here are tiny: on a busy machine more threads mostly wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
