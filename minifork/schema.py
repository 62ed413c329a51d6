"""The keys of a config and their legal values: a dataclass for every section, with a field for every key.

The files in minifork/configs/ give every key its default and explain it; `minifork.config` reads and changes them.
Every section refuses values that make no sense with ValueError.
"""

import math
import os
from dataclasses import dataclass
from typing import Annotated

from data_gen.arith import Arith
from data_gen.layers import Layers
from data_gen.openers import Openers
from data_gen.sizes import Sizes
from data_gen.star import Star
from data_gen.streams import Mixture
from data_gen.task import Task
from minifork.settings import Count, CountOrZero, Eval, Rule, Section, Shape, one_of

TASKS: dict[str, type[Task]] = {"star": Star, "sizes": Sizes, "arith": Arith, "openers": Openers, "layers": Layers}

Share = Annotated[float, Rule(lambda value: 0 <= value <= 1, "it is a share, in [0, 1]")]
Positive = Annotated[float, Rule(lambda value: 0 < value < math.inf, "it must be positive and finite")]
NotNegative = Annotated[float, Rule(lambda value: 0 <= value < math.inf, "it must be finite and not negative")]
Seed = Annotated[int, Rule(lambda value: 0 <= value < 2**63, "it must be in [0, 2^63)")]


@dataclass(frozen=True)
class Walks(Section):
    """The base corpus of random walks. Shares and probabilities are in [0, 1]; seq_len counts tokens."""

    stop: Annotated[float, Rule(lambda value: 0 <= value < 1, "it is a probability below 1")]
    informed: Share
    seq_len: int

    def check_task(self, task: Task) -> None:
        """Raise ValueError unless a sequence has room for a prompt and its longest trace."""
        query = task.prompt_len + task.trace_len
        self.require("walks.seq_len", self.seq_len >= query, f"one query needs {query} tokens")


@dataclass(frozen=True)
class Optim(Section):
    """The optimizer: AdamW everywhere, or Muon for the matrices inside blocks. lr is the peak of a cosine to 0."""

    optimizer: Annotated[str, one_of("muon", "adamw")]
    muon: Annotated[str, one_of("minifork", "torch")]
    muon_lr: Positive
    lr: Positive
    warmup: Share
    weight_decay: NotNegative
    clip: Annotated[float, Rule(lambda value: value > 0, "it must be positive")]


@dataclass(frozen=True)
class Pretrain(Optim):
    """Pretraining: the number of steps, and how many sequences of walks each has."""

    steps: Count
    batch: Count


@dataclass(frozen=True)
class Anchor(Section):
    """What fine-tuning learns where a reference is undecided; `minifork.training.anchoring` says how.

    target: mask (nothing), renormalised (the reference's distribution) or uniform (all of its tokens alike). epoch: the
    run's own snapshot that is the reference; 0: the base. entropy: of the reference's next token, in nats, above which
    it is undecided. min_p: tokens below this share of its most probable one are left out of the target. mode: 1 if the
    first token of a trace, its mode, may be anchored too, else 0.
    """

    target: Annotated[str, one_of("mask", "renormalised", "uniform")]
    epoch: CountOrZero = 1
    entropy: NotNegative = 0.3
    min_p: Share = 0.2
    mode: Annotated[int, Rule(lambda value: value in (0, 1), "give 0 or 1")] = 0

    def __str__(self) -> str:
        return f"{self.target},epoch={self.epoch},entropy={self.entropy:g},min_p={self.min_p:g},mode={self.mode}"


def parse_anchor(text: str) -> Anchor | None:
    """The anchor written as "none" or "target,name=value,name=value"; raises ValueError naming what is wrong."""
    if text == "none":
        return None
    target, *words = (word.strip() for word in text.split(","))
    kinds: dict[str, type] = {"epoch": int, "entropy": float, "min_p": float, "mode": int}
    try:
        values = {name: kinds[name](value) for name, _, value in (word.partition("=") for word in words)}
    except (ValueError, KeyError):
        raise ValueError(f"anchor is {text!r}: write it as {Anchor('renormalised')}, or as none") from None
    try:
        return Anchor(target, **values)
    except ValueError as error:
        raise ValueError(f"anchor is {text!r}: its {error}") from None


@dataclass(frozen=True)
class SFT(Optim, Mixture):
    """Fine-tuning: how many traces, in all and a step, how many epochs, the Mixture they come from, and the loss."""

    traces: Count
    epochs: Count
    batch: Count
    prefix: CountOrZero
    wrong_forks: Share
    loss: str
    anchor: str
    allow_leak: bool

    def __post_init__(self) -> None:
        Optim.__post_init__(self)
        Mixture.__post_init__(self)
        self.require("traces", self.traces >= self.batch, f"fill at least one batch (sft.batch={self.batch})")
        if anchor := parse_anchor(self.anchor):
            has_snapshot = anchor.epoch < self.epochs and anchor.epoch & (anchor.epoch - 1) == 0
            self.require(
                "anchor", has_snapshot, f"its epoch must be 0 or a snapshot (1, 2, 4, ...) before epoch {self.epochs}"
            )
            self.require("anchor", self.loss == "cross_entropy", f"it needs loss=cross_entropy, not {self.loss}")
            object.__setattr__(self, "anchor", str(anchor))

    @property
    def problem_count(self) -> int:
        """The number of distinct problems in an epoch."""
        return -(-self.traces // (len(self.mode_names) if self.allocation == "problem" else 1))

    def check_task(self, task: Task) -> None:
        """Raise ValueError naming the key that does not fit the task."""
        valid = {*self.mode_names} <= {*task.mode_names}
        self.require("sft.modes", valid, f"data.modes has {','.join(task.mode_names)} only")
        enough = self.prefix <= task.label_count
        self.require("sft.prefix", enough, f"labels serve as its integers, and the task has {task.label_count} of them")


@dataclass(frozen=True)
class RL(Optim):
    """Reinforcement learning: the snapshot it starts from, the objective, and how much an update samples."""

    epoch: CountOrZero
    mode: str
    advantage: Annotated[str, one_of("grpo", "centred", "maxrl", "passk", "passk_sampled", "exact")]
    k: Count
    kl: NotNegative
    kl_form: Annotated[str, one_of("sequence", "k3")]
    reduction: Annotated[str, one_of("sequence_mean", "token_mean", "none")]
    policy: str
    source: Annotated[str, one_of("fresh", "sft")]
    problems: Count
    prompts: Count
    group: Annotated[int, Rule(lambda value: value >= 2, "a group needs at least 2 rollouts")]
    updates: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("prompts", self.prompts <= self.problems, f"there are only rl.problems={self.problems}")
        fits = self.advantage != "passk" or self.k < self.group
        self.require("k", fits, f"advantage=passk needs k below rl.group={self.group}")
        fits = self.advantage != "passk_sampled" or self.group % self.k == 0 and self.k < self.group
        self.require("k", fits, f"advantage=passk_sampled needs a k that divides rl.group={self.group} and is below it")

    def check_task(self, task: Task) -> None:
        """Raise ValueError naming the key that does not fit the task."""
        modes = ("free", *task.first_tokens)
        self.require("rl.mode", self.mode in modes, f"choose {', '.join(modes)}")


@dataclass(frozen=True)
class Wise(Section):
    """Interpolation between the weights of two models.

    weights: shares of the later model, comma-separated, as text. early: the epoch of the earlier model (0: the base).
    """

    weights: str
    early: CountOrZero

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            valid = all(0 <= share <= 1 for share in self.shares) and len(set(self.shares)) == len(self.shares)
        except ValueError:
            valid = False
        self.require("weights", valid, "list different shares in [0, 1], such as 0.25,0.5,0.75")
        object.__setattr__(self, "weights", ",".join(f"{share!r}".removesuffix(".0") for share in self.shares))

    @property
    def shares(self) -> list[float]:
        """The shares as numbers; raises ValueError for text that is no number."""
        return [float(word) for word in self.weights.split(",")]


def _is_cluster(address: str) -> bool:
    """True for an address with a port, local:<workers>, and an empty text."""
    host, colon, port = address.rpartition(":")
    return address == "" or bool(host and colon and port.isdecimal() and int(port))


@dataclass(frozen=True)
class Reproduce(Section):
    """The keys of commands that make many runs.

    study: the file that lists the runs; pairs: the number of pairs of base and SFT seeds; first_pair: the seeds of the
    first; workers: the number of processes side by side (0: one a core); cluster: the Dask scheduler whose workers make
    the runs (empty: none).
    """

    study: str
    pairs: Annotated[int, Rule(lambda value: 1 <= value <= 5, "give 1 to 5")]
    first_pair: Annotated[int, Rule(lambda value: value in (0, 5), "give 0, or 5 for a confirmation")]
    workers: CountOrZero
    cluster: Annotated[str, Rule(_is_cluster, "give the address of a Dask scheduler, tcp://host:8786, or local:4")]

    @property
    def seeds(self) -> range:
        """The seeds of the pairs: base and fine-tuning of a pair have the same."""
        return range(self.first_pair, self.first_pair + self.pairs)


def _is_label(name: str) -> bool:
    return "/" not in name and name.isprintable() and not name.startswith(".")


def _is_path(text: str) -> bool:
    """True if a text can be a path. Lone surrogates stand for bytes that the terminal's encoding lacks."""
    return text != "" and all(char.isprintable() or "\udc80" <= char <= "\udcff" for char in text)


@dataclass(frozen=True)
class Config(Section):
    """Everything a command needs to know; minifork/configs/ says what each key means."""

    task: str
    preset: str
    runs: Annotated[str, Rule(_is_path, "name a folder")]
    name: Annotated[str, Rule(_is_label, "it becomes part of a folder's name, give letters and digits")]
    seed: Seed
    base_seed: Seed
    device: Annotated[str, one_of("auto", "cpu", "cuda")]
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
        object.__setattr__(self, "runs", os.path.expanduser(self.runs))
        for section in (self.walks, self.sft, self.rl, self.eval):
            section.check_task(self.data)

    @property
    def context(self) -> int:
        """Positions the model can see: a pretraining sequence, which has room for a full trace."""
        return self.walks.seq_len
