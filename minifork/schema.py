"""What a config holds and what is legal: dataclasses with a field for every key of the YAML file, which explains them.

Each refuses values that make no sense with ValueError, naming the key; `minifork.config` reads and changes them.
"""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from data_gen.arith import Arith
from data_gen.mixed import Mixed
from data_gen.star import Star
from data_gen.streams import Mixture
from data_gen.task import GRADINGS

TASKS = {"star": Star, "mixed": Mixed, "arith": Arith}
ENGINES = ("auto", "exact", "split", "rollout")
ADVANTAGES = ("grpo", "passk", "exact")
STRATIFY = ("none", "first", "fork", "entropy")


def _require(condition: bool, key: str, value: Any, need: str) -> None:
    if not condition:
        raise ValueError(f"{key} is {value!r}: {need}")


@dataclass(frozen=True)
class Walks:
    """The base corpus: stop, the chance to stop before each step; informed, the share of walks whose query
    names their end; seq_len, tokens of a sequence."""

    stop: float
    informed: float
    seq_len: int

    def __post_init__(self) -> None:
        _require(0 <= self.stop < 1, "walks.stop", self.stop, "it is a probability below 1")
        _require(0 <= self.informed <= 1, "walks.informed", self.informed, "it is a share, in [0, 1]")


@dataclass(frozen=True)
class Shape:
    """The model's size. Raises ValueError when the width does not split into heads."""

    layers: int
    width: int
    heads: int

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}: it must be at least 1")
        if self.width % self.heads:
            raise ValueError(f"model.width is {self.width}: it must be a multiple of model.heads ({self.heads})")


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
            _require(holds, f"{section}.{name}", getattr(self, name), need)


@dataclass(frozen=True)
class Pretrain(Optim):
    """Pretraining: a number of steps, and how many fresh walks each has."""

    steps: int
    batch: int

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.batch >= 1, "pretrain.batch", self.batch, "it must be at least 1")
        _require(self.steps >= 1, "pretrain.steps", self.steps, "it must be at least 1")


@dataclass(frozen=True)
class SFT(Optim):
    """Fine-tuning: how many traces, in all and a step, how many epochs, and the Mixture they come from."""

    traces: int
    epochs: int
    batch: int
    modes: str
    fork_rate: float
    cue_rate: float
    fork_in_graph: bool
    allocation: str
    fresh: bool
    prefix: int
    loss: str
    allow_leak: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.batch >= 1, "sft.batch", self.batch, "it must be at least 1")
        _require(
            self.traces >= self.batch, "sft.traces", self.traces, f"fill at least one batch (sft.batch={self.batch})"
        )
        _require(self.epochs >= 1, "sft.epochs", self.epochs, "it must be at least 1")
        _require(self.prefix >= 0, "sft.prefix", self.prefix, "give how many integers, or 0 for no prefix")
        _ = self.mixture

    @property
    def mixture(self) -> Mixture:
        """What the traces are drawn from."""
        return Mixture(self.modes, self.fork_rate, self.cue_rate, self.fork_in_graph, self.allocation, self.fresh)


@dataclass(frozen=True)
class RL(Optim):
    """Reinforcement learning: the snapshot it starts from, the objective, and how much of what an update samples."""

    start: str
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
            "start": ("/" not in self.start and self.start not in (".", ".."), "give the name of a run's folder"),
        }
        for name, (holds, need) in rules.items():
            _require(holds, f"rl.{name}", getattr(self, name), need)
        fits = self.advantage != "passk" or self.k < self.group
        need = f"in a group of rl.group={self.group} only 1 to {self.group - 1} tell rollouts apart"
        _require(fits, "rl.k", self.k, need)


@dataclass(frozen=True)
class Wise:
    """Interpolation of weights: shares of the later model, comma-separated; the epoch of the earlier (0: the base)."""

    weights: str
    early: int

    def __post_init__(self) -> None:
        try:
            names = {f"{share:g}" for share in self.shares}  # of their folders
            fine = all(0 <= share <= 1 for share in self.shares) and len(names) == len(self.shares)
        except ValueError:
            fine = False
        _require(fine, "wise.weights", self.weights, "list different shares in [0, 1], such as 0.25,0.5,0.75")
        _require(self.early >= 0, "wise.early", self.early, "give an epoch, or 0 for the base")

    @property
    def shares(self) -> list[float]:
        """The shares as numbers; raises ValueError where one is none."""
        return [float(word) for word in self.weights.split(",")]


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
                _require(getattr(self, field.name) >= 1, f"eval.{field.name}", getattr(self, field.name), "at least 1")
        _require(self.split in ("test", "valid"), "eval.split", self.split, "choose test or valid")
        _require(self.grading in GRADINGS, "eval.grading", self.grading, f"choose {', '.join(GRADINGS)}")
        _require(self.engine in ENGINES, "eval.engine", self.engine, f"choose {', '.join(ENGINES)}")
        _require(self.stratify in STRATIFY, "eval.stratify", self.stratify, f"choose {', '.join(STRATIFY)}")
        _require(self.stratify == "none" or self.engine in ("auto", "exact"), "eval.engine", self.engine,
                 "stratified decoders are computed, choose auto or exact")  # fmt: skip
        _require(self.max_k >= 64, "eval.max_k", self.max_k, "figures and claims read pass@64")
        _require(self.rollouts >= self.max_k, "eval.rollouts", self.rollouts,
                 f"pass@k up to eval.max_k={self.max_k} needs as many")  # fmt: skip
        _require(self.rollouts <= 10**9, "eval.rollouts", self.rollouts, "counts are exact up to 10^9 only")
        _require(self.check_problems <= self.problems, "eval.check_problems", self.check_problems,
                 f"there are only eval.problems={self.problems}")  # fmt: skip


@dataclass(frozen=True)
class Reproduce:
    """The reproduction: which runs (a sweep), for how many pairs of base and SFT seeds; workers, runs side by side
    (0: one a core)."""

    sweep: str
    pairs: int
    workers: int

    def __post_init__(self) -> None:
        _require(self.pairs >= 1, "reproduce.pairs", self.pairs, "it must be at least 1")
        _require(self.workers >= 0, "reproduce.workers", self.workers, "it must not be negative")


@dataclass(frozen=True)
class Config:
    """Everything a command needs to know; see experiments/configs/star.yaml for what each key means."""

    task: str
    runs: str
    name: str
    seed: int
    base_seed: int
    device: str
    compile: bool
    save_every: int
    data: Star | Mixed | Arith
    walks: Walks
    model: Shape
    pretrain: Pretrain
    sft: SFT
    rl: RL
    wise: Wise
    eval: Eval
    reproduce: Reproduce

    def __post_init__(self) -> None:
        unknown = [name for name in self.sft.mixture.mode_names if name not in self.data.mode_names]
        _require(not unknown, "sft.modes", self.sft.modes, f"data.modes has {self.data.modes} only")
        modes = ("free", *self.data.mode_names)
        _require(self.rl.mode in modes, "rl.mode", self.rl.mode, f"choose {', '.join(modes)}")
        one_trace = self.rl.advantage != "exact" or "SEARCH" not in self.data.mode_names
        _require(one_trace, "rl.advantage", self.rl.advantage,
                 "it needs every accepted trace, and SEARCH has several for a problem")  # fmt: skip
        vocab = self.data.vocab_size
        _require(self.eval.strata <= vocab or self.eval.stratify == "none", "eval.strata", self.eval.strata,
                 f"there are only {vocab} tokens")  # fmt: skip
        answers = hasattr(self.data, "answer_dfa")
        _require(self.eval.grading == "steps" or answers, "eval.grading", self.eval.grading,
                 f"traces of {self.task} end in no answer, choose steps")  # fmt: skip
        for name in ("seed", "base_seed"):
            _require(0 <= getattr(self, name) < 2**63, name, getattr(self, name), "it must be in [0, 2^63)")
        _require(self.device in ("auto", "cpu", "cuda"), "device", self.device, "choose auto, cpu or cuda")
        _require(self.save_every >= 1, "save_every", self.save_every, "it must be at least 1")
        taken = (".", "..", "audits", "configs", "figures", "logs")
        own = self.name.endswith((".json", ".npz", ".html", ".next"))  # as the files beside the runs
        fine = "/" not in self.name and self.name.isprintable() and self.name not in taken and not own
        _require(fine, "name", self.name, "choose another folder name")
        kind = re.sub(r"-seed\d+$", "", self.name)  # would pass for what runs without a name are called
        derived = (
            re.fullmatch(f"base|rl-({'|'.join(ADVANTAGES)}).*", kind) and self.name != f"base-seed{self.base_seed}"
        )
        _require(not derived, "name", self.name, f"results would take it for the run that is called {kind} by itself")
        _require(bool(self.runs) and self.runs.isprintable(), "runs", self.runs, "name a folder")
        labels = self.data.label_count
        _require(self.sft.prefix <= labels, "sft.prefix", self.sft.prefix,
                 f"labels serve as its integers, and {self.data.label_key} is {labels}")  # fmt: skip
        query, length = self.data.prompt_len + self.data.trace_len, self.walks.seq_len
        _require(length >= query, "walks.seq_len", length, f"one query needs {query} tokens")

    @property
    def context(self) -> int:
        """Positions the model can see: a pretraining sequence, which has room for a full trace."""
        return self.walks.seq_len
