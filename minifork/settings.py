"""The config sections that decide what a measurement gives: the model's shape and the evaluation's settings.

They stand apart from the other sections (`minifork.schema`), so that a change there leaves measurements valid.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from data_gen.task import GRADINGS

ENGINES = ("auto", "exact", "split", "rollout")
STRATIFY = ("none", "first", "fork", "entropy")


def require(condition: bool, key: str, value: Any, need: str) -> None:
    """Raise ValueError naming a config key, its value and what it needs to be, unless the condition holds."""
    if not condition:
        raise ValueError(f"{key} is {value!r}: {need}")


@dataclass(frozen=True)
class Shape:
    """The model's size. Raises ValueError when the width does not split into heads."""

    layers: int
    width: int
    heads: int

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "it must be at least 1")
        require(self.width % self.heads == 0, "model.width", self.width,
                f"it must be a multiple of model.heads ({self.heads})")  # fmt: skip


@dataclass(frozen=True)
class Eval:
    """Evaluation: the engine and the decoder, test problems, resamples, and the size of the cross-check."""

    split: str
    grading: str
    forked: bool
    engine: str
    budget: int
    rollouts: int
    bf16: bool
    policy: str
    stratify: str
    strata: int
    problems: int
    max_k: int
    bootstrap: int
    check_problems: int
    check_rollouts: int

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if field.type is int:
                require(getattr(self, field.name) >= 1, f"eval.{field.name}", getattr(self, field.name), "at least 1")
        choices = {"split": ("test", "valid"), "grading": GRADINGS, "engine": ENGINES, "stratify": STRATIFY}
        for name, words in choices.items():
            value = getattr(self, name)
            require(value in words, f"eval.{name}", value, f"choose {', '.join(words)}")
        require(self.stratify == "none" or self.engine in ("auto", "exact"), "eval.engine", self.engine,
                "stratified decoders are computed, choose auto or exact")  # fmt: skip
        require(self.max_k >= 64, "eval.max_k", self.max_k, "figures and claims read pass@64")
        require(self.rollouts >= self.max_k, "eval.rollouts", self.rollouts,
                f"pass@k up to eval.max_k={self.max_k} needs as many")  # fmt: skip
        require(self.rollouts <= 10**9, "eval.rollouts", self.rollouts, "counts are exact up to 10^9 only")
        require(self.check_problems <= self.problems, "eval.check_problems", self.check_problems,
                f"there are only eval.problems={self.problems}")  # fmt: skip
