"""The library: train models on a task and compute their pass@k, from Python, on disk or in memory.

    import minifork as mf

    task = mf.Star(nodes=16, branches=2, length=4)
    base = mf.pretrain(task)                       # a Run in memory; with folder="runs", one that stays
    tuned = mf.sft(base, fork_rate=1.0)
    test = mf.problems(task, "test", 1000)
    result = mf.exact(tuned.model(), test)         # p of every problem, outcomes, certified bounds
    mf.pass_at_k(result.p_lo, [1, 16, 64])

Stages start from the values in the task's shipped file. A task of your own starts from the defaults. Arguments change
keys of the config, which `minifork config` lists. A short key is enough where it is clear. Several stages have ``lr``
and ``batch``: the stage's own is changed. Dotted keys are written ``**{"model.width": 64}``.
"""

import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from data_gen import streams
from data_gen.task import Task
from minifork import config as configs
from minifork import measure, runs
from minifork.decoding import exact as enumeration
from minifork.decoding import remainder as remaining
from minifork.decoding import split as splitting
from minifork.decoding.policy import Policy, parse_policy
from minifork.decoding.traces import EXACT, Result, TraceTree
from minifork.gpt import GPT
from minifork.gpu.backends import sample
from minifork.language.patterns import NON_LETTER
from minifork.measuring.problems import ProblemSet, problem_set
from minifork.runs import Checkpoint, Run
from minifork.schema import TASKS, Config
from minifork.training import stages
from minifork.values import expand_home

if TYPE_CHECKING:
    from minifork.language.causal_lm import CausalLM
    from minifork.language.questions import Questions

Value = str | int | float | bool | None


# training


def pretrain(task: Task, folder: Path | str | None = None, silent: bool = False, **changes: Value) -> Run:
    """A base model, trained on random walks on the task's graphs.

    folder: where the run is kept, resumed and found again; None keeps it in memory. Raises ValueError naming the key
    that does not fit, and for a folder that another process holds.
    """
    name = _registered(task)
    keys = _dotted(changes, "pretrain", name) | ({} if folder is None else {"runs": str(folder)})
    return _trained(configs.task_config(name, task, keys), "base", None, folder is None, silent)


def sft(base: Run, silent: bool = False, **changes: Value) -> Run:
    """The base model fine-tuned on traces, with weights after epochs 1, 2, 4, ...; kept where the base is.

    Raises ValueError for an unfinished base, for keys that do not fit, and for data that leaks.
    """
    _require(base, "base", ("base",))
    config = configs.with_changes(base.config, _dotted(changes, "sft", base.config.task), "sft")
    return _trained(config, "sft", _start(base, "base", config, None), base.memory is not None, silent)


def rl(tuned: Run, silent: bool = False, **changes: Value) -> Run:
    """A fine-tuned run's weights after ``epoch`` (or a base), trained further by rewards; kept where that run is.

    Raises ValueError for an unfinished run or one of another stage, and for keys that do not fit.
    """
    _require(tuned, "tuned", ("sft", "base"))
    keys = ({"rl.epoch": 0} if tuned.stage == "base" else {}) | _dotted(changes, "rl", tuned.config.task)
    config = configs.with_changes(tuned.config, keys, "rl")
    if (config.rl.epoch == 0) != (tuned.stage == "base"):
        raise ValueError(f"rl.epoch is {config.rl.epoch} and tuned of the stage {tuned.stage}: 0 is for a base alone")
    start = _start(tuned, "tuned", config, config.rl.epoch or None)
    return _trained(config, "rl", start, tuned.memory is not None, silent)


def load(folder: Path | str, task: type[Task] | None = None) -> Run:
    """The run in a folder, even if that was moved; task: the class of a task of your own.

    Raises ValueError naming the record when it is missing or damaged, or of an unknown task.
    """
    if task is not None:
        _register(task)
    run = runs.read_run(expand_home(folder))
    return replace(run, config=replace(run.config, runs=str(run.folder.resolve().parents[1])))


def _registered(task: Task) -> str:
    """The name of a task in configs and folders. A task of your own has its class's name in small letters."""
    kind = type(task)
    if "__dataclass_fields__" not in vars(kind):
        raise ValueError(f"task is a {kind.__name__}: give an object of a frozen dataclass derived from minifork.Task")
    shipped = [name for name, shipped_kind in TASKS.items() if shipped_kind is kind]
    return shipped[0] if shipped else _register(kind)


def _register(kind: type[Task]) -> str:
    """Put a task of your own into TASKS under the name that is returned; it replaces an earlier one of that name."""
    name = kind.__name__.lower()
    if configs.ships(name):
        raise ValueError(f"task is of the class {kind.__name__}: a task called {name} ships, rename the class")
    TASKS[name] = kind
    return name


def _trained(config: Config, stage: str, start: Checkpoint | None, memory: bool, silent: bool) -> Run:
    """The run that a config asks for, in memory or in its folder."""
    if memory:
        return stages.train_to_end(runs.in_memory(config, stage, start, silent), start)
    with runs.hold_run(config, stage, start, resume=True) as run:
        return stages.train_to_end(replace(run, silent=silent), start)


def _dotted(changes: dict[str, Value], section: str, task: str) -> dict[str, Value]:
    """Changes by dotted key. A short key means the section's own where the section has it."""
    if "preset" in changes:
        raise ValueError(f"{section}: preset applies on the command line only; give the keys that it changes")
    valid = configs.keys(Config, task=task)
    if section == "pretrain":  # the base's seed; `seed` in a config is the seed of fine-tuning and RL
        changes = {"base_seed" if name == "seed" else name: value for name, value in changes.items()}
    dotted = {name: f"{section}.{name}" if f"{section}.{name}" in valid else name for name in changes}
    return {configs.full_key(dotted[name], valid, section): value for name, value in changes.items()}


def _require(run: Run, argument: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError naming the argument unless it is a finished run of one of these stages."""
    if run.stage not in allowed:
        raise ValueError(f"{argument} is a run of the stage {run.stage}: give one of the stage {' or '.join(allowed)}")
    if not run.complete:
        raise ValueError(f"{argument} is unfinished ({run.folder}): make it again with the same keys to complete it")


def _start(run: Run, argument: str, config: Config, epoch: int | None) -> Checkpoint:
    """The weights to start from; raises ValueError naming a key whose value differs from the run's own."""
    values = runs.deciding_values(config, run.stage)
    for key, value in run.values.items():
        if values.get(key) != value:
            raise ValueError(f"{key} is {values.get(key)!r}, but {argument} was made with {value!r}: leave it out")
    return run.checkpoint(epoch)


# pass@k


def problems(task: Task, stream: str = "test", n: int = 1000, device: str = "cpu") -> ProblemSet:
    """The first n different problems of a task's stream (walks, train, valid or test) as tensors.

    A stream that holds fewer gives all it has, with a warning. Raises ValueError for a stream that does not exist, and
    when the task has too few graphs for the stream to hold any.
    """
    if stream not in streams.STREAMS:
        raise ValueError(f"stream is {stream!r}: choose {', '.join(streams.STREAMS)}")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}: torch sees no CUDA device here; give cpu")
    batch = streams.distinct_problems(task, 0, stream, n)
    if len(batch) < n:
        warnings.warn(f"the {stream} stream holds {len(batch)} different problems, not {n}: all are used", stacklevel=2)
    return problem_set(task, batch, device)


def exact(
    model: "GPT | CausalLM", problems: "ProblemSet | Questions", policy: Policy | str = "temperature=1",
    mode: str | None = None, max_prefixes: float = math.inf, width: float = EXACT,
) -> Result:  # fmt: skip
    """The probability that a sampled trace is accepted, and of each way to fail, for every problem.

    policy: how traces are sampled; mode: the mode that every trace begins with, or None to let the model choose.
    Decodes every prefix that may still be accepted, the likeliest first, ``max_prefixes`` at most: then p lies between
    ``p_lo`` and ``p_hi`` for certain. It stops once these are at most ``width`` apart. A model does not know its task:
    give it problems of the task that it was trained on, and a language model questions of `ask`. Raises ValueError
    naming the argument that does not fit.
    """
    return _run(model, problems, policy, mode, lambda tree, share: enumeration.exact(tree, max_prefixes * share, width))


def remainder(
    model: "GPT | CausalLM", problems: "ProblemSet | Questions", max_prefixes: float, n: int, seed: int = 0,
    policy: Policy | str = "temperature=1", mode: str | None = None,
) -> Result:  # fmt: skip
    """The bounds of `exact` with this budget, and an unbiased estimate from n sampled traces of what they leave open.

    Other arguments as `exact`.
    """
    return _run(
        model, problems, policy, mode, lambda tree, share: remaining.remainder(tree, max_prefixes * share, n, seed)
    )


def split(
    model: "GPT | CausalLM", problems: "ProblemSet | Questions", n: int, seed: int = 0,
    policy: Policy | str = "temperature=1", mode: str | None = None,
) -> Result:  # fmt: skip
    """The counts of outcomes among n sampled traces a problem.

    Each prefix is decoded once, however many traces share it. Other arguments as `exact`.
    """
    return _run(model, problems, policy, mode, lambda tree, _: splitting.split(tree, n, seed))


def rollout(
    model: "GPT | CausalLM", problems: "ProblemSet | Questions", n: int, seed: int = 0,
    policy: Policy | str = "temperature=1", mode: str | None = None, traces: bool = False,
) -> Result:  # fmt: skip
    """The counts of outcomes among n sampled traces a problem, and with ``traces`` the traces themselves.

    Other arguments as `exact`. On a GPU the fused kernel runs them in fp32.
    """
    return _run(model, problems, policy, mode, lambda tree, _: sample(tree, n, seed, traces))


def _run(
    model: "GPT | CausalLM", problems: "ProblemSet | Questions", policy: Policy | str, mode: str | None,
    engine: Callable[[TraceTree, float], Result],
) -> Result:  # fmt: skip
    """The result of an engine, which is called with trees and with the share of the problems that each has."""
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    if isinstance(problems, ProblemSet):
        if not isinstance(model, GPT):
            raise ValueError("problems are of a task, but the model is a language model: give it questions of mf.ask")
        return engine(_tree(model, problems, policy, mode), 1.0)
    if mode is not None:
        raise ValueError(f"mode is {mode!r}, but a language model has none: begin its answers with mf.ask(opening=...)")
    return _language("questions").run_by_parts(model, problems, policy, engine)


def _tree(model: GPT, problems: ProblemSet, policy: Policy, mode: str | None) -> TraceTree:
    """The traces of a model on problems; raises ValueError naming the argument that does not fit."""
    task, device = problems.task, next(model.parameters()).device
    if problems.prompts.device != device:
        raise ValueError(f"problems lie on {problems.prompts.device}, the model on {device}: move one of them")
    length = problems.prompts.shape[1] + task.trace_len - 1
    if task.vocab_size != model.vocab_size or length > model.context:
        raise ValueError(
            f"problems have {task.vocab_size} tokens and sequences of {length}, "
            f"the model takes {model.vocab_size} and {model.context}: they are of another task"
        )
    with torch.no_grad():
        tree = measure.trace_tree(model, problems, policy)
    if mode is None:
        return tree
    if mode not in task.first_tokens:
        raise ValueError(f"mode is {mode!r}: choose {', '.join(task.first_tokens)}, or None")
    return measure.force_mode(tree, task, mode)


# language models


def language_model(name: str, memory: int = 2**30) -> "CausalLM":
    """A causal language model in fp32, from a folder or of this name on the hub of Hugging Face.

    memory: bytes that a batch of decoded rows may take. Raises ValueError naming a model that cannot be used, and
    without the extra hf.
    """
    return _language("causal_lm").load_language_model(name, memory)


def ask(
    lm: "CausalLM", questions: Sequence[str], answers: Sequence[str], opening: str | Sequence[str] = "",
    follow: str | None = NON_LETTER, max_new: int = 24,
) -> "Questions":  # fmt: skip
    """Questions to a language model in its chat format, for the engines; see `minifork.language.questions.ask`.

    answers: for each an expression that accepted answers begin with. opening: how the model's answers begin, one text
    or one a question. follow: an expression for what may come after an accepted answer, by default no letter. max_new:
    the longest answer in tokens.
    """
    return _language("questions").ask(lm, questions, answers, opening, follow, max_new)


def to_hf(run: Run, folder: Path | str, epoch: int | None = None) -> None:
    """Write a run's model, the last or that of an epoch, as a GPT-2 of Hugging Face with a word-level tokenizer.

    Raises ValueError for a run without these weights and without the extra hf, and OSError for a folder that cannot be
    written.
    """
    _language("export").export_run(run, expand_home(folder), epoch)


def export_command(run: str, to: str, folder: str) -> None:
    """The command `export`: `to_hf` on the run in a folder; raises ValueError for another library than hf."""
    if to != "hf":
        raise ValueError(f"--to is {to!r}: choose hf")
    to_hf(load(run), folder)
    print(f"{folder}: load it with AutoModelForCausalLM and AutoTokenizer")


def convert_gguf(file: str, folder: str) -> None:
    """The command `convert-gguf`: write the model of a GGUF file into a new folder.

    Raises ValueError as `minifork.language.gguf.convert_gguf` does and without the extra hf.
    """
    _language("gguf").convert_gguf(file, folder)


def _language(module: str) -> ModuleType:
    """A module of `minifork.language`; raises ValueError without the extra hf."""
    try:
        return importlib.import_module(f"minifork.language.{module}")
    except ImportError as error:
        raise ValueError(f"language models need the package {error.name}: pip install 'minifork[hf]'") from None
