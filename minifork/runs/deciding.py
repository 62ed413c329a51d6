"""The config keys that decide a run: those of its stage, and those of the run that it starts from."""

from pathlib import Path
from typing import Any

from data_gen.task import Task
from minifork import config as configs
from minifork.schema import Config
from minifork.storage import files

STAGES = ("base", "sft", "wise", "rl")  # in an order in which every stage comes after those it may start from
COMMAND_OF_STAGE = {"base": "pretrain", "sft": "sft", "wise": "wise", "rl": "rl"}
SEEDS = ("base_seed", "seed")
# The sections and keys that decide the weights of a stage. Those of its parent decide them too.
DECIDING = {
    "base": ("task", "base_seed", "data", "walks", "model", "pretrain"),
    "sft": ("seed", "sft"),
    "wise": ("wise",),
    "rl": ("seed", "rl"),
}
NOT_DECIDING = ("sft.allow_leak",)  # keys of these sections that decide nothing


def parent_stage(config: Config, stage: str) -> str | None:
    """The stage that a run starts from, None for a base."""
    return {"base": None, "sft": "base", "wise": "sft", "rl": "sft" if config.rl.epoch else "base"}[stage]


def epochs_of(config: Config, stage: str) -> list[int]:
    """The epochs after which a run keeps weights: 1, 2, 4, ... and the last; none of a base.

    In RL an epoch means an update.
    """
    last = {"base": 0, "rl": config.rl.updates}.get(stage, config.sft.epochs)
    first = config.wise.early if stage == "wise" else 0
    doublings = {2**i for i in range(last.bit_length())} | {last}
    return sorted(epoch for epoch in doublings if epoch > first)


def deciding_values(config: Config, stage: str) -> dict[str, Any]:
    """The keys that decide a run's weights, its parents' included, with their values."""
    parent = parent_stage(config, stage)
    return (deciding_values(config, parent) if parent else {}) | _stage_values(config, stage)


def _stage_values(config: Config, stage: str) -> dict[str, Any]:
    """The keys that decide this stage itself, with their values."""
    return {key: value for key, value in configs.flat_values(config).items() if _decides(key, stage, config.data)}


def _decides(key: str, stage: str, task: Task) -> bool:
    """True if a key decides the weights of a stage, by itself or with its section.

    Walks ignore some fields of the task, so these decide no base but what starts from it.
    """
    if key in {f"data.{name}" for name in task.unwalked}:
        return stage in ("sft", "rl")
    return key.split(".")[0] in DECIDING[stage] and key not in NOT_DECIDING


def identity(config: Config, stage: str) -> str:
    """Twelve hex digits, equal for configs that give the same run.

    A key does not count if it has the value from before it existed, so that older runs keep their identity (see
    `minifork.config.before`).
    """
    parent, before = parent_stage(config, stage), configs.before(config.task).items()
    values = dict(item for item in _stage_values(config, stage).items() if item not in before)
    return files.fingerprint([stage, identity(config, parent) if parent else None, values])


def task_folder(config: Config) -> Path:
    """<runs>/<task>, where all runs of a task live."""
    return Path(config.runs) / config.task


def label(config: Config, stage: str) -> str:
    """The name of a new run's folder: words for people, then eight digits of its identity."""
    rate = "" if stage == "base" else f"-fork{config.sft.fork_rate:g}"
    seed = config.base_seed if stage == "base" else config.seed
    return f"{config.name or f'{stage}{rate}-seed{seed}'}-{identity(config, stage)[:8]}"
