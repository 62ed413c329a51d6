"""What a config holds and what is legal: a dataclass for every section, with a field for every key.

The files in minifork/configs/ give every key its default and explain it.

Each refuses values that make no sense with ValueError, naming the key; `minifork.config` reads and changes them.
"""

import math
from dataclasses import dataclass

from data_gen.arith import Arith
from data_gen.sizes import Sizes
from data_gen.star import Star
from data_gen.streams import Mixture
from data_gen.task import Task
from minifork.settings import Eval, Shape, require

TASKS: dict[str, type[Task]] = {"star": Star, "mixed": Sizes, "arith": Arith}
ADVANTAGES = ("grpo", "passk", "exact")
PAIRS = 5  # of seeds that a study may use


@dataclass(frozen=True)
class Walks:
    """The base corpus: stop, the chance to stop before each step; informed, the share of walks whose query
    names their end; seq_len, tokens of a sequence."""

    stop: float
    informed: float
    seq_len: int

    def __post_init__(self) -> None:
        require(0 <= self.stop < 1, "walks.stop", self.stop, "it is a probability below 1")
        require(0 <= self.informed <= 1, "walks.informed", self.informed, "it is a share, in [0, 1]")


@dataclass(frozen=True)
class Optim:
    """How to optimise: AdamW everywhere, or Muon for the matrices inside blocks; lr at its peak, cosine to 0."""

    optimizer: str
    muon_lr: float
    lr: float
    warmup: float
    weight_decay: float
    clip: float

    def __post_init__(self) -> None:
        section = type(self).__name__.lower()
        rules = {
            "optimizer": (self.optimizer in ("muon", "adamw"), "choose muon or adamw"),
            "lr": (0 < self.lr < math.inf, "it must be positive and finite"),
            "muon_lr": (0 < self.muon_lr < math.inf, "it must be positive and finite"),
            "warmup": (0 <= self.warmup <= 1, "it is a share of the steps, in [0, 1]"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "it must be finite and not negative"),
            "clip": (self.clip > 0, "it must be positive"),
        }
        for name, (holds, need) in rules.items():
            require(holds, f"{section}.{name}", getattr(self, name), need)


@dataclass(frozen=True)
class Pretrain(Optim):
    """Pretraining: a number of steps, and how many fresh walks each has."""

    steps: int
    batch: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.batch >= 1, "pretrain.batch", self.batch, "it must be at least 1")
        require(self.steps >= 1, "pretrain.steps", self.steps, "it must be at least 1")


@dataclass(frozen=True)
class SFT(Optim, Mixture):
    """Fine-tuning: how many traces, in all and a step, how many epochs, and the Mixture they come from."""

    traces: int
    epochs: int
    batch: int
    prefix: int
    loss: str
    allow_leak: bool

    def __post_init__(self) -> None:
        Optim.__post_init__(self)
        Mixture.__post_init__(self)
        require(self.batch >= 1, "sft.batch", self.batch, "it must be at least 1")
        fits = self.traces >= self.batch
        require(fits, "sft.traces", self.traces, f"fill at least one batch (sft.batch={self.batch})")
        require(self.epochs >= 1, "sft.epochs", self.epochs, "it must be at least 1")
        require(self.prefix >= 0, "sft.prefix", self.prefix, "give how many integers, or 0 for no prefix")


@dataclass(frozen=True)
class RL(Optim):
    """Reinforcement learning: the snapshot it starts from, the objective, and how much of what an update samples."""

    epoch: int
    mode: str
    advantage: str
    k: int
    kl: float
    problems: int
    prompts: int
    group: int
    updates: int

    def __post_init__(self) -> None:
        super().__post_init__()
        rules = {
            "epoch": (self.epoch >= 0, "an epoch of the fine-tuned run, or 0 for the base"),
            "advantage": (self.advantage in ADVANTAGES, f"choose {', '.join(ADVANTAGES)}"),
            "k": (self.k >= 1, "it must be at least 1"),
            "kl": (0 <= self.kl < math.inf, "it must be finite and not negative"),
            "prompts": (1 <= self.prompts <= self.problems, f"give 1 to rl.problems={self.problems}"),
            "group": (self.group >= 2, "a group needs at least 2 rollouts"),
            "updates": (self.updates >= 1, "it must be at least 1"),
        }
        for name, (holds, need) in rules.items():
            require(holds, f"rl.{name}", getattr(self, name), need)
        fits = self.advantage != "passk" or self.k < self.group
        need = f"in a group of rl.group={self.group} only 1 to {self.group - 1} tell rollouts apart"
        require(fits, "rl.k", self.k, need)


@dataclass(frozen=True)
class Wise:
    """Interpolation of weights: shares of the later model, comma-separated; the epoch of the earlier (0: the base)."""

    weights: str
    early: int

    def __post_init__(self) -> None:
        try:
            fine = all(0 <= share <= 1 for share in self.shares) and len(set(self.shares)) == len(self.shares)
        except ValueError:
            fine = False
        require(fine, "wise.weights", self.weights, "list different shares in [0, 1], such as 0.25,0.5,0.75")
        require(self.early >= 0, "wise.early", self.early, "give an epoch, or 0 for the base")
        object.__setattr__(self, "weights", ",".join(f"{share!r}".removesuffix(".0") for share in self.shares))

    @property
    def shares(self) -> list[float]:
        """The shares as numbers; raises ValueError where one is none."""
        return [float(word) for word in self.weights.split(",")]


@dataclass(frozen=True)
class Reproduce:
    """A study: which runs, for how many pairs of base and SFT seeds; workers, runs side by side (0: one a core)."""

    study: str
    pairs: int
    workers: int

    def __post_init__(self) -> None:
        require(1 <= self.pairs <= PAIRS, "reproduce.pairs", self.pairs,
                f"give 1 to {PAIRS}: later pairs are kept for a confirmation that nobody has looked at")  # fmt: skip
        require(self.workers >= 0, "reproduce.workers", self.workers, "it must not be negative")


@dataclass(frozen=True)
class Config:
    """Everything a command needs to know; minifork/configs/ says what each key means."""

    task: str
    preset: str
    runs: str
    name: str
    seed: int
    base_seed: int
    device: str
    compile: bool
    save_every: int
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
        unknown = [name for name in self.sft.mode_names if name not in self.data.mode_names]
        require(not unknown, "sft.modes", self.sft.modes, f"data.modes has {self.data.modes} only")
        modes = ("free", *self.data.mode_names)
        require(self.rl.mode in modes, "rl.mode", self.rl.mode, f"choose {', '.join(modes)}")
        one_trace = self.rl.advantage != "exact" or "SEARCH" not in self.data.mode_names
        require(one_trace, "rl.advantage", self.rl.advantage,
                 "it needs every accepted trace, and SEARCH has several for a problem")  # fmt: skip
        vocab = self.data.vocab_size
        require(self.eval.strata <= vocab or self.eval.stratify == "none", "eval.strata", self.eval.strata,
                 f"there are only {vocab} tokens")  # fmt: skip
        answers = self.data.guessing_floor is not None
        require(self.eval.grading == "steps" or answers, "eval.grading", self.eval.grading,
                 f"traces of {self.task} end in no answer, choose steps")  # fmt: skip
        for name in ("seed", "base_seed"):
            require(0 <= getattr(self, name) < 2**63, name, getattr(self, name), "it must be in [0, 2^63)")
        require(self.device in ("auto", "cpu", "cuda"), "device", self.device, "choose auto, cpu or cuda")
        require(self.save_every >= 1, "save_every", self.save_every, "it must be at least 1")
        fine = "/" not in self.name and self.name.isprintable() and not self.name.startswith(".")
        require(fine, "name", self.name, "it becomes part of a folder's name, give letters and digits")
        require(bool(self.runs) and self.runs.isprintable(), "runs", self.runs, "name a folder")
        labels, key = self.data.label_count, self.data.label_key
        have = f"data.{key} is {labels}" if key else f"{self.task} has none"
        require(self.sft.prefix <= labels, "sft.prefix", self.sft.prefix, f"labels serve as its integers, and {have}")
        query, length = self.data.prompt_len + self.data.trace_len, self.walks.seq_len
        require(length >= query, "walks.seq_len", length, f"one query needs {query} tokens")

    @property
    def context(self) -> int:
        """Positions the model can see: a pretraining sequence, which has room for a full trace."""
        return self.walks.seq_len
