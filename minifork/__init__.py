"""minifork: why do fine-tuned reasoning models lose coverage? Its public names; `minifork.library` shows their use.

The rooms, from the bottom up; a room imports only from those below it:

    data_gen       problems, traces, automata, walks, leak audit
    config, gpt    what a config holds and how it is read; the model
    runs, storage  what a run is; its files, locks, and the measurements that are kept with it
    training       the loop and the stages that make a run
    decoding, gpu  the engines: where the traces of problems end, with what probability
    statistics     pass@k and intervals from these probabilities
    measuring      the parts of one measurement; `minifork.measure` makes it: one model on one set of problems
    language       models that were trained elsewhere, and verifiers that read text
    evaluation     its targets and files; `minifork.evaluate` is the command that measures all that is missing
    experiments    studies, claims, figures

Names are imported when they are first used, so that ``import minifork`` alone imports neither torch nor numpy.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_gen.arith import Arith
    from data_gen.layers import Layers
    from data_gen.openers import Openers
    from data_gen.sizes import Sizes
    from data_gen.star import Star
    from data_gen.task import Task
    from minifork.decoding.policy import Policy
    from minifork.language.patterns import any_of
    from minifork.library import (
        ask,
        exact,
        language_model,
        load,
        pretrain,
        problems,
        remainder,
        rl,
        rollout,
        sft,
        split,
        to_hf,
    )  # fmt: skip
    from minifork.runs import Run
    from minifork.statistics import intervals
    from minifork.statistics.passk import pass_at_k

__version__ = "0.2.0"
__all__ = [
    "Arith", "Layers", "Openers", "Policy", "Run", "Sizes", "Star", "Task", "any_of", "ask", "exact", "intervals",
    "language_model", "load", "pass_at_k", "pretrain", "problems", "remainder", "rl", "rollout", "sft", "split",
    "to_hf",
]  # fmt: skip
HOMES = {  # the module of every name that minifork.library does not define
    "Arith": "data_gen.arith", "Sizes": "data_gen.sizes", "Star": "data_gen.star", "Task": "data_gen.task",
    "Layers": "data_gen.layers", "Openers": "data_gen.openers",
    "Policy": "minifork.decoding.policy", "any_of": "minifork.language.patterns",
    "Run": "minifork.runs", "pass_at_k": "minifork.statistics.passk",
}  # fmt: skip


def __getattr__(name: str) -> object:
    """A public name's object, from the module that defines it."""
    if name not in __all__:
        raise AttributeError(f"module 'minifork' has no attribute {name!r}")
    if name == "intervals":
        return importlib.import_module("minifork.statistics.intervals")
    return getattr(importlib.import_module(HOMES.get(name, "minifork.library")), name)


def __dir__() -> list[str]:
    return __all__
