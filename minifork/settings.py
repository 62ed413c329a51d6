"""The config sections that decide what a measurement gives: the model's shape and the evaluation's settings.

They stand apart from the other sections (`minifork.schema`), so that a change there leaves measurements valid.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

from data_gen.task import GRADINGS, Checked, Task


@dataclass(frozen=True)
class Rule:
    """A condition that every value of a key must meet, and the text in which an error asks for it."""

    holds: Callable[[Any], bool]
    need: str


def one_of(*words: str) -> Rule:
    """The rule of a key that has one of a few values."""
    return Rule(lambda value: value in words, f"choose {', '.join(words)}")


Count = Annotated[int, Rule(lambda value: value >= 1, "it must be at least 1")]
CountOrZero = Annotated[int, Rule(lambda value: value >= 0, "it must be at least 0")]


class Section(Checked):
    """The base of a config section: a frozen dataclass with a field for every key and the key's rules in its type.

    Raises ValueError naming the first key that breaks a rule.
    """

    def __post_init__(self) -> None:
        for key, kind in get_type_hints(type(self), include_extras=True).items():
            for rule in getattr(kind, "__metadata__", ()):
                self.require(key, rule.holds(getattr(self, key)), rule.need)


@dataclass(frozen=True)
class Shape(Section):
    """The model's size."""

    layers: Count
    width: Count
    heads: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("width", self.width % self.heads == 0, f"it must be a multiple of model.heads ({self.heads})")


@dataclass(frozen=True)
class Eval(Section):
    """Evaluation: the engine and the decoder, test problems, and the size of the cross-check."""

    split: Annotated[str, one_of("test", "valid", "confirm")]
    grading: Annotated[str, one_of(*GRADINGS)]
    forked: bool
    engine: Annotated[str, one_of("auto", "exact", "split", "rollout")]
    budget: Count
    rollouts: Annotated[Count, Rule(lambda value: value <= 10**9, "counts are exact up to 10^9 only")]
    bf16: bool
    policy: str
    max_tokens: CountOrZero
    stratify: Annotated[str, one_of("none", "first", "fork", "entropy")]
    strata: Count
    pool: Annotated[int, Rule(lambda value: value >= 0, "give 0 to deal samples in turn, or the samples of the pool")]
    problems: Count
    max_k: Count
    check_problems: Count
    check_rollouts: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        computed = self.stratify == "none" or self.engine in ("auto", "exact")
        self.require("engine", computed, "stratified decoders are computed, choose auto or exact")
        comparable = self.max_k >= 64 or self.pool > 0
        self.require("max_k", comparable, "give at least 64, where runs are compared, or the size of a pool, eval.pool")
        if self.pool:
            self.require("pool", self.stratify != "none", "it is of a stratified decoder, choose eval.stratify")
            enough = self.pool >= self.max_k
            self.require("pool", enough, f"pass@k up to eval.max_k={self.max_k} draws as many samples from it")
            enough = self.pool >= self.strata
            self.require("pool", enough, f"it needs a sample of each of eval.strata={self.strata}")
        enough = self.rollouts >= self.max_k
        self.require("rollouts", enough, f"pass@k up to eval.max_k={self.max_k} needs as many")
        enough = self.check_problems <= self.problems
        self.require("check_problems", enough, f"there are only eval.problems={self.problems}")

    def check_task(self, task: Task) -> None:
        """Raise ValueError naming the key that does not fit the task."""
        enough = self.stratify == "none" or self.strata <= task.vocab_size
        self.require("eval.strata", enough, f"there are only {task.vocab_size} tokens")
        fits = self.max_tokens <= task.trace_len
        self.require("eval.max_tokens", fits, f"the longest right trace has {task.trace_len} tokens; 0 means no cut")
        gradable = self.grading == "steps" or task.guessing_floor is not None
        self.require("eval.grading", gradable, "traces of this task end in no answer, choose steps")
