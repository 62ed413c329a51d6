"""Studies: lists of runs in one notation.

A study is a list of mappings, in YAML (experiments/studies/) or in Python. Each is a run and the config keys that it
changes. Where a key has several values, every one is run, for every pair of seeds:

    - {as: "FORK_RATE {sft.fork_rate}", sft.fork_rate: [0, 0.5, 1]}     # three fine-tunings
    - {as: forward RL, stage: rl, sft.fork_rate: 1, rl.mode: FWD}       # one RL run

Values x4 and /4 mean four times the config's value and a quarter of it. An entry may also give `as`, the run's name in
results; `stage`, by default sft; `test_set`, the test set of its results, by default plain; `needs`, a mode that the
task must have; `choose`, a key whose best value a study picks; `pairs`, if it is run only for so many pairs.
"""

import itertools
import math
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from minifork import config as configs
from minifork import runs
from minifork.evaluate import require_policy
from minifork.evaluation.targets import test_sets
from minifork.schema import Config
from minifork.training import losses, stages
from minifork.values import expand_home, override_text

STUDIES = Path(__file__).parent / "studies"
WORDS = ("as", "stage", "test_set", "needs", "choose")
K = TypeVar("K")
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """One run of a study: its name in results, its stage and config, the test set of its results, and the key whose
    value is to be chosen, if any."""

    name: str
    stage: str
    config: Config
    test_set: str = "plain"
    choose: str = ""

    @property
    def identity(self) -> str:
        """The identity of its run."""
        return runs.identity(self.config, self.stage)

    @property
    def start(self) -> tuple[str, int | None] | None:
        """The identity and the epoch of the checkpoint that its run starts from; None for a base."""
        stage = runs.parent_stage(self.config, self.stage)
        if stage is None:
            return None
        epoch = None if stage == "base" else self.config.rl.epoch if self.stage == "rl" else self.config.sft.epochs
        return runs.identity(self.config, stage), epoch

    @property
    def command(self) -> list[str]:
        """The command that makes its run or continues it."""
        resume = [] if self.stage == "wise" else ["--resume"]  # `minifork wise` takes a second and has no --resume
        words = [runs.COMMAND_OF_STAGE[self.stage], *resume, *configs.arguments(self.config)]
        return [sys.executable, "-m", "minifork", *words]

    @property
    def log(self) -> Path:
        """The file for the output of its command."""
        folder = runs.folder_of(self.config, self.stage)
        return folder.parent / "logs" / f"{folder.name}.log"

    @property
    def value(self) -> Any:
        """The value of the key that is to be chosen."""
        return configs.flat_values(self.config)[self.choose]


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by their key, in the order in which the keys first occur."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def by_name(plans: Iterable[Plan]) -> dict[str, list[Plan]]:
    """The plans of every run of a study, one of each pair of seeds, by the name of the run.

    Raises ValueError naming two runs of one name.
    """
    groups = grouped(plans, lambda plan: plan.name)
    for name, of_run in groups.items():
        if len({plan.config.seed for plan in of_run}) < len(of_run):
            raise ValueError(f"several runs of the study are called {name!r}: give them names by `as`")
    return groups


def read_study(name: str) -> list[dict]:
    """The entries of a study, a YAML file or the name of one in experiments/studies/.

    Raises ValueError naming the file when it holds none.
    """
    path = path_of(name)
    try:
        entries = configs.read_yaml(path)
    except FileNotFoundError:
        names = ", ".join(sorted(p.stem for p in STUDIES.glob("*.yaml")))
        raise ValueError(f"{path}: no such study; reproduce.study is a YAML file or one of {names}") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: a study is a list of mappings, such as - {{sft.fork_rate: [0, 1]}}")
    if not_text := [key for entry in entries for key in entry if not isinstance(key, str)]:
        raise ValueError(f"{path}: {not_text[0]!r} is no key; a list of values is in brackets, such as [0, 1]")
    return entries


def path_of(name: str) -> Path:
    """The file of a study."""
    return expand_home(name) if name.endswith(".yaml") else STUDIES / f"{name}.yaml"


def plans(config: Config, entries: list[dict], pairs: Iterable[int]) -> list[Plan]:
    """The runs of entries for pairs of seeds, without those that need a mode that the task lacks.

    Raises ValueError naming the entry that is wrong.
    """
    all_plans = []
    for pair, entry in itertools.product(pairs, entries):
        try:
            all_plans += _plans_of(config, entry, pair)
        except ValueError as error:
            raise ValueError(f"entry {entry}: {error}") from None
    return all_plans


def _plans_of(config: Config, entry: dict, pair: int) -> list[Plan]:
    """The runs of one entry for a pair of seeds: the product of its values."""
    words = {name: entry[name] for name in WORDS if name in entry}
    keys = [key for key in entry if key not in (*WORDS, "pairs")]
    values = {key: entry[key] if isinstance(entry[key], list) else [entry[key]] for key in keys}
    limit, stage = entry.get("pairs", math.inf), words.get("stage", "sft")
    if not (limit == math.inf or type(limit) is int and limit > 0):
        raise ValueError(f"pairs is {limit!r}: it is an integer of 1 or more")
    if not all(isinstance(text, str) for text in words.values()):
        raise ValueError(f"{', '.join(words)} must be words")
    if stage not in runs.STAGES:
        raise ValueError(f"stage is {stage!r}: choose {', '.join(runs.STAGES)}")
    if "choose" in words and words["choose"] not in values:
        raise ValueError(f"choose is {words['choose']!r}, which is none of the entry's keys")
    if [] in values.values():
        raise ValueError("an empty list makes no run")
    if "preset" in values:
        raise ValueError("preset applies on the command line only: give the keys that it changes")
    if values.keys() & set(runs.SEEDS):
        raise ValueError("the seeds are those of the pair: leave seed and base_seed out")
    if words.get("needs", "FWD") not in config.data.mode_names or pair - config.reproduce.first_pair >= limit:
        return []
    all_plans = []
    for combination in itertools.product(*values.values()):
        changes = _scaled(config, dict(zip(values, combination, strict=True))) | dict.fromkeys(runs.SEEDS, pair)
        changed = configs.with_changes(config, changes, "its keys")
        _check(changed, stage, words.get("test_set", "plain"))
        name = _filled(words.get("as", stage), configs.flat_values(changed))
        all_plans.append(Plan(name, stage, changed, words.get("test_set", "plain"), words.get("choose", "")))
    return all_plans


def _scaled(config: Config, changes: dict) -> dict:
    """Changes with x4 and /4 replaced by four times and a quarter of the config's value."""
    values, scaled = configs.flat_values(config), dict(changes)
    for key, text in changes.items():
        match = re.fullmatch(r"([x/])([1-9]\d*)", text) if isinstance(text, str) else None
        if match and type(values.get(key)) is int:
            factor = int(match[2])
            scaled[key] = values[key] * factor if match[1] == "x" else max(1, values[key] // factor)
    return scaled


def _check(config: Config, stage: str, test_set: str) -> None:
    """Raise ValueError for values that a stage or the evaluation would refuse hours later."""
    sets = [of_run.name for of_run in test_sets(config, stage)]
    if test_set not in sets:
        raise ValueError(f"test_set is {test_set!r}: such a run has {', '.join(sets)}")
    losses.parse_loss(config.sft.loss)
    require_policy(config)
    if stage == "rl":
        stages.check_rl(config)
    if stage == "wise" and len(config.wise.shares) > 1:
        raise ValueError(f"wise.weights is {config.wise.weights!r}: a run has one share, give a list of words")
    if stage == "wise" and config.wise.early not in (epochs := [0, *runs.epochs_of(config, "sft")[:-1]]):
        raise ValueError(f"wise.early is {config.wise.early}: give one of {', '.join(map(str, epochs))} (0: the base)")


def _filled(text: str, values: dict[str, Any]) -> str:
    """A name with the keys in braces replaced by their values."""

    def fill(match: re.Match) -> str:
        if match[1] not in values:
            raise ValueError(f"{match[0]!r} is no key of the config")
        value = values[match[1]]
        return f"{value:g}" if isinstance(value, float) else override_text(value)

    return re.sub(r"\{([^}]*)\}", fill, text)
