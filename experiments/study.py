"""Studies: what to run, in one notation, and the runner that makes what is missing.

A study is a list of mappings, in YAML (experiments/studies/) or in Python. Each is a run and what it changes in the
config; of a key with several values every one is run, for every pair of seeds:

    - {as: "FORK_RATE {sft.fork_rate}", sft.fork_rate: [0, 0.5, 1]}     # three fine-tunings
    - {as: forward RL, stage: rl, sft.fork_rate: 1, rl.mode: FWD}       # one RL run

Beside keys of the config (x4 and /4 mean four times the config's value and a quarter of it) an entry may give `as`,
what results call the run; `stage`, sft if none is given; `test_set`, which one results are about, plain if none is
given; `needs`, a mode that the task must have; `choose`, a key whose best value a study picks.
"""

import itertools
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minifork import config as configs
from minifork import runs
from minifork.config import read_yaml
from minifork.evaluate import require_policy
from minifork.schema import Config
from minifork.training import losses
from minifork.values import expanded, word

FOLDER = Path(__file__).parent / "studies"
WORDS = ("as", "stage", "test_set", "needs", "choose")


@dataclass(frozen=True)
class Plan:
    """One run of a study: what results call it, its stage and config, the test set that results are about, and the
    key whose value is to be chosen, if any."""

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
    def command(self) -> list[str]:
        """The command that makes its run or goes on with it."""
        resume = [] if self.stage == "wise" else ["--resume"]  # mixing weights takes a second and has no such flag
        return [sys.executable, "-m", "minifork", runs.COMMANDS[self.stage], *resume, *configs.arguments(self.config)]

    @property
    def log(self) -> Path:
        """Where the output of that command goes."""
        folder = runs.folder_of(self.config, self.stage)
        return folder.parent / "logs" / f"{folder.name}.log"

    @property
    def value(self) -> Any:
        """The value of the key that is to be chosen."""
        return configs.flat(self.config)[self.choose]


# notation


def read_study(name: str) -> list[dict]:
    """The entries of a study, a YAML file or the name of one in experiments/studies/.

    Raises ValueError naming the file when it holds none.
    """
    path = path_of(name)
    try:
        entries = read_yaml(path)
    except FileNotFoundError:
        names = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise ValueError(f"{path}: no such study; reproduce.study is a YAML file or one of {names}") from None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path}: a study is a list of mappings, such as - {{sft.fork_rate: [0, 1]}}")
    return entries


def path_of(name: str) -> Path:
    """The file of a study."""
    return expanded(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"


def plans(config: Config, entries: list[dict], pairs: Iterable[int]) -> list[Plan]:
    """The runs of entries for pairs of seeds; those that need a mode that the task has not are left out.

    Raises ValueError naming the entry that is wrong.
    """
    return [plan for pair in pairs for entry in entries for plan in _expanded(config, entry, pair)]


def _expanded(config: Config, entry: dict, pair: int) -> list[Plan]:
    """The runs of one entry for a pair of seeds: the product of its values."""
    words = {name: entry[name] for name in WORDS if name in entry}
    changes = {key: value if isinstance(value, list) else [value] for key, value in entry.items() if key not in WORDS}
    stage, where = words.get("stage", "sft"), f"entry {entry}"
    if stage not in runs.STAGES:
        raise ValueError(f"{where}: stage is {stage!r}: choose {', '.join(runs.STAGES)}")
    if not all(isinstance(text, str) for text in words.values()):
        raise ValueError(f"{where}: {', '.join(words)} must be words")
    if words.get("needs", "FWD") not in config.data.mode_names:
        return []
    if seeds := changes.keys() & set(runs.SEEDS):
        raise ValueError(f"{where}: {min(seeds)} is that of the pair")
    if "choose" in words and words["choose"] not in changes:
        raise ValueError(f"{where}: choose is {words['choose']!r}, which is none of its keys")
    if [] in changes.values():
        raise ValueError(f"{where}: an empty list makes no run")
    expanded = []
    for values in itertools.product(*changes.values()):
        one = _scaled(config, dict(zip(changes, values, strict=True))) | {"seed": pair, "base_seed": pair}
        changed = configs.changed(config, one, where)
        _check(changed, stage, where)
        name = _filled(words.get("as", stage), configs.flat(changed), where)
        expanded.append(Plan(name, stage, changed, words.get("test_set", "plain"), words.get("choose", "")))
    return expanded


def _scaled(config: Config, changes: dict) -> dict:
    """Changes with x4 and /4 replaced by four times and a quarter of the config's value."""
    values, scaled = configs.flat(config), dict(changes)
    for key, text in changes.items():
        match = re.fullmatch(r"([x/])([1-9]\d*)", text) if isinstance(text, str) else None
        if match and type(values.get(key)) is int:
            factor = int(match[2])
            scaled[key] = values[key] * factor if match[1] == "x" else max(1, values[key] // factor)
    return scaled


def _check(config: Config, stage: str, where: str) -> None:
    """Raise ValueError for what a stage or the evaluation would refuse hours later."""
    try:
        losses.parse_loss(config.sft.loss)
        require_policy(config)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if stage == "wise" and len(config.wise.shares) > 1:
        raise ValueError(f"{where}: wise.weights is {config.wise.weights!r}: a run has one share, give a list of words")


def _filled(text: str, values: dict[str, Any], where: str) -> str:
    """A name with the keys in braces replaced by their values."""

    def fill(match: re.Match) -> str:
        if match[1] not in values:
            raise ValueError(f"{where}: {match[0]!r} is no key of the config")
        value = values[match[1]]
        return f"{value:g}" if isinstance(value, float) else word(value)

    return re.sub(r"\{([^}]*)\}", fill, text)
