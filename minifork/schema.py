"""What a config holds and what is legal: a dataclass for every section, with a field for every key.

The files in minifork/configs/ give every key its default and explain it; `minifork.config` reads and changes them. All
sections refuse values that make no sense with ValueError.
"""

import math
from dataclasses import dataclass
from typing import Annotated

from data_gen.arith import Arith
from data_gen.sizes import Sizes
from data_gen.star import Star
from data_gen.streams import Mixture
from data_gen.task import Task
from minifork.settings import Count, Eval, Rule, Section, Shape, one_of, require
from minifork.values import expanded

TASKS: dict[str, type[Task]] = {"star": Star, "sizes": Sizes, "mixed": Sizes, "arith": Arith}
ALIASES = {"mixed": "sizes"}  # the name of a task in version 0.1, whose runs keep it

Share = Annotated[float, Rule(lambda value: 0 <= value <= 1, "it is a share, in [0, 1]")]
Positive = Annotated[float, Rule(lambda value: 0 < value < math.inf, "it must be positive and finite")]
NotNegative = Annotated[float, Rule(lambda value: 0 <= value < math.inf, "it must be finite and not negative")]
Epoch = Annotated[int, Rule(lambda value: value >= 0, "give an epoch, or 0 for the base")]
Seed = Annotated[int, Rule(lambda value: 0 <= value < 2**63, "it must be in [0, 2^63)")]


@dataclass(frozen=True)
class Walks(Section):
    """The base corpus: stop, the chance to stop before each step; informed, the share of walks whose query
    names their end; seq_len, tokens of a sequence."""

    stop: Annotated[float, Rule(lambda value: 0 <= value < 1, "it is a probability below 1")]
    informed: Share
    seq_len: int


@dataclass(frozen=True)
class Optim(Section):
    """How to optimise: AdamW everywhere, or Muon for the matrices inside blocks; lr at its peak, cosine to 0."""

    optimizer: Annotated[str, one_of("muon", "adamw")]
    muon: Annotated[str, one_of("minifork", "torch")]
    muon_lr: Positive
    lr: Positive
    warmup: Share
    weight_decay: NotNegative
    clip: Annotated[float, Rule(lambda value: value > 0, "it must be positive")]


@dataclass(frozen=True)
class Pretrain(Optim):
    """Pretraining: a number of steps, and how many fresh walks each has."""

    steps: Count
    batch: Count


@dataclass(frozen=True)
class SFT(Optim, Mixture):
    """Fine-tuning: how many traces, in all and a step, how many epochs, and the Mixture they come from."""

    traces: Count
    epochs: Count
    batch: Count
    prefix: Annotated[int, Rule(lambda value: value >= 0, "give how many integers, or 0 for no prefix")]
    loss: str
    allow_leak: bool

    def __post_init__(self) -> None:
        Optim.__post_init__(self)
        Mixture.__post_init__(self)
        need = f"fill at least one batch (sft.batch={self.batch})"
        require(self.traces >= self.batch, "traces", self.traces, need)


@dataclass(frozen=True)
class RL(Optim):
    """Reinforcement learning: the snapshot it starts from, the objective, and how much of what an update samples."""

    epoch: Epoch
    mode: str
    advantage: Annotated[str, one_of("grpo", "passk", "exact")]
    k: Count
    kl: NotNegative
    problems: Count
    prompts: Count
    group: Annotated[int, Rule(lambda value: value >= 2, "a group needs at least 2 rollouts")]
    updates: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        need = f"there are only rl.problems={self.problems}"
        require(self.prompts <= self.problems, "prompts", self.prompts, need)
        need = f"in a group of rl.group={self.group} only 1 to {self.group - 1} tell rollouts apart"
        require(self.advantage != "passk" or self.k < self.group, "k", self.k, need)


@dataclass(frozen=True)
class Wise(Section):
    """Interpolation of weights: shares of the later model, comma-separated; the epoch of the earlier (0: the base)."""

    weights: str
    early: Epoch

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            fine = all(0 <= share <= 1 for share in self.shares) and len(set(self.shares)) == len(self.shares)
        except ValueError:
            fine = False
        require(fine, "weights", self.weights, "list different shares in [0, 1], such as 0.25,0.5,0.75")
        object.__setattr__(self, "weights", ",".join(f"{share!r}".removesuffix(".0") for share in self.shares))

    @property
    def shares(self) -> list[float]:
        """The shares as numbers; raises ValueError where one is none."""
        return [float(word) for word in self.weights.split(",")]


@dataclass(frozen=True)
class Reproduce(Section):
    """What commands that make many runs read: which runs, for how many pairs of base and SFT seeds, and how many
    processes side by side (0: one a core)."""

    study: str
    pairs: Annotated[int, Rule(lambda value: 1 <= value <= 5, "give 1 to 5: later seeds are kept for a confirmation")]
    workers: Annotated[int, Rule(lambda value: value >= 0, "it must not be negative")]


def _is_label(name: str) -> bool:
    return "/" not in name and name.isprintable() and not name.startswith(".")


def is_path(value: str) -> bool:
    """Whether a text can be a path; bytes that the terminal's encoding lacks stand in it as lone surrogates."""
    return value != "" and all(char.isprintable() or "\udc80" <= char <= "\udcff" for char in value)


@dataclass(frozen=True)
class Config(Section):
    """Everything a command needs to know; minifork/configs/ says what each key means."""

    task: str
    preset: str
    runs: Annotated[str, Rule(is_path, "name a folder")]
    name: Annotated[str, Rule(_is_label, "it becomes part of a folder's name, give letters and digits")]
    seed: Seed
    base_seed: Seed
    device: Annotated[str, one_of("auto", "cpu", "cuda")]
    compile: bool
    save_every: Count
    data: Task
    walks: Walks
    model: Shape
    pretrain: Pretrain
    sft: SFT
    rl: RL
    wise: Wise
    eval: Eval
    reproduce: Reproduce

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "runs", str(expanded(self.runs)) if self.runs.startswith("~") else self.runs)
        data, rl, grading = self.data, self.rl, self.eval.grading
        fits = {*self.sft.mode_names} <= {*data.mode_names}
        require(fits, "sft.modes", self.sft.modes, f"data.modes has {data.modes} only")
        modes = ("free", *data.mode_names)
        require(rl.mode in modes, "rl.mode", rl.mode, f"choose {', '.join(modes)}")
        one_trace = rl.advantage != "exact" or "SEARCH" not in data.mode_names
        need = "it needs every accepted trace, and SEARCH has several for a problem"
        require(one_trace, "rl.advantage", rl.advantage, need)
        fits = self.eval.strata <= data.vocab_size or self.eval.stratify == "none"
        require(fits, "eval.strata", self.eval.strata, f"there are only {data.vocab_size} tokens")
        need = f"traces of {self.task} end in no answer, choose steps"
        require(grading == "steps" or data.guessing_floor is not None, "eval.grading", grading, need)
        have = f"data.{data.label_key} is {data.label_count}" if data.label_key else f"{self.task} has none"
        need = f"labels serve as its integers, and {have}"
        require(self.sft.prefix <= data.label_count, "sft.prefix", self.sft.prefix, need)
        query, length = data.prompt_len + data.trace_len, self.walks.seq_len
        require(length >= query, "walks.seq_len", length, f"one query needs {query} tokens")

    @property
    def context(self) -> int:
        """Positions the model can see: a pretraining sequence, which has room for a full trace."""
        return self.walks.seq_len
