"""minifork: why do fine-tuned reasoning models lose coverage? What others may use (see `minifork.library`).

Names are imported when they are first used, so that ``import minifork`` alone imports neither torch nor numpy.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_gen.arith import Arith as Arith
    from data_gen.sizes import Sizes as Sizes
    from data_gen.star import Star as Star
    from data_gen.task import Task as Task
    from minifork.decoding.policy import Policy as Policy
    from minifork.library import exact as exact
    from minifork.library import load as load
    from minifork.library import pretrain as pretrain
    from minifork.library import problems as problems
    from minifork.library import rl as rl
    from minifork.library import rollout as rollout
    from minifork.library import sft as sft
    from minifork.library import split as split
    from minifork.runs import Run as Run
    from minifork.statistics import intervals as intervals
    from minifork.statistics.passk import pass_at_k as pass_at_k

HOMES = {
    "Arith": "data_gen.arith",
    "Sizes": "data_gen.sizes",
    "Star": "data_gen.star",
    "Task": "data_gen.task",
    "Policy": "minifork.decoding.policy",
    "Run": "minifork.runs",
    "intervals": "minifork.statistics",
    "pass_at_k": "minifork.statistics.passk",
} | dict.fromkeys(("exact", "load", "pretrain", "problems", "rl", "rollout", "sft", "split"), "minifork.library")
__all__ = sorted(HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    """What a public name stands for, from its module."""
    if name not in HOMES:
        raise AttributeError(f"module 'minifork' has no attribute {name!r}")
    home = importlib.import_module(HOMES[name])
    return getattr(home, name) if hasattr(home, name) else importlib.import_module(f"{HOMES[name]}.{name}")


def __dir__() -> list[str]:
    return __all__
