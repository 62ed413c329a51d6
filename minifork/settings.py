"""The config sections that decide what a measurement gives: the model's shape and the evaluation's settings.

They stand apart from the other sections (`minifork.schema`), so that a change there leaves measurements valid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, get_type_hints

from data_gen.task import GRADINGS


def require(condition: bool, key: str, value: object, need: str) -> None:
    """Raise ValueError naming a key, its value and what it needs to be, unless the condition holds."""
    if not condition:
        raise ValueError(f"{key} is {value!r}: {need}")


@dataclass(frozen=True)
class Rule:
    """What every value of a key must fulfil, and the words in which an error asks for it."""

    holds: Callable[..., bool]
    need: str


def one_of(*words: str) -> Rule:
    """The rule of a key with a few values."""
    return Rule(lambda value: value in words, f"choose {', '.join(words)}")


Count = Annotated[int, Rule(lambda value: value >= 1, "it must be at least 1")]


class Section:
    """A dataclass of config keys, with their rules beside their types.

    Raises ValueError naming the key without its section, which `minifork.config` puts in front.
    """

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            for rule in getattr(kind, "__metadata__", ()):
                require(rule.holds(getattr(self, name)), name, getattr(self, name), rule.need)


@dataclass(frozen=True)
class Shape(Section):
    """The model's size."""

    layers: Count
    width: Count
    heads: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = self.width % self.heads == 0
        require(fits, "width", self.width, f"it must be a multiple of model.heads ({self.heads})")


@dataclass(frozen=True)
class Eval(Section):
    """Evaluation: the engine and the decoder, test problems, and the size of the cross-check."""

    split: Annotated[str, one_of("test", "valid")]
    grading: Annotated[str, one_of(*GRADINGS)]
    forked: bool
    engine: Annotated[str, one_of("auto", "exact", "split", "rollout")]
    budget: Count
    rollouts: Annotated[Count, Rule(lambda value: value <= 10**9, "counts are exact up to 10^9 only")]
    bf16: bool
    policy: str
    stratify: Annotated[str, one_of("none", "first", "fork", "entropy")]
    strata: Count
    problems: Count
    max_k: Annotated[int, Rule(lambda value: value >= 64, "give at least 64, where runs are compared")]
    check_problems: Count
    check_rollouts: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        computed = self.stratify == "none" or self.engine in ("auto", "exact")
        require(computed, "engine", self.engine, "stratified decoders are computed, choose auto or exact")
        need = f"pass@k up to eval.max_k={self.max_k} needs as many"
        require(self.rollouts >= self.max_k, "rollouts", self.rollouts, need)
        need = f"there are only eval.problems={self.problems}"
        require(self.check_problems <= self.problems, "check_problems", self.check_problems, need)
