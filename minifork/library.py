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

import math
import operator
import warnings
from dataclasses import replace
from pathlib import Path

import torch

from data_gen import streams
from data_gen.task import Task
from minifork import config as configs
from minifork import measure, runs
from minifork.decoding import exact as enumeration
from minifork.decoding import split as splitting
from minifork.decoding.policy import Policy, parse_policy
from minifork.decoding.traces import EXACT, Result, TraceTree
from minifork.gpt import GPT
from minifork.gpu.backends import sample
from minifork.measuring.problems import ProblemSet, problem_set
from minifork.runs import Checkpoint, Run
from minifork.schema import TASKS, Config
from minifork.training import stages
from minifork.values import expanded

Value = str | int | float | bool | None


# training


def pretrain(task: Task, folder: Path | str | None = None, silent: bool = False, **changes: Value) -> Run:
    """A base model, trained on random walks on the task's graphs.

    folder: where the run is kept, resumed and found again; None keeps it in memory. Raises ValueError naming the key
    that does not fit, and for a folder that another process holds.
    """
    name = _registered(_require_task(task))
    keys = _dotted(changes, "pretrain", name) | ({} if folder is None else {"runs": str(folder)})
    return _made(configs.of_task(name, task, keys), "base", None, folder is None, silent)


def sft(base: Run, silent: bool = False, **changes: Value) -> Run:
    """The base model fine-tuned on traces, with weights after epochs 1, 2, 4, ...; kept where the base is.

    Raises ValueError for a base that is none or unfinished, for keys that do not fit, and for data that leaks.
    """
    _require(base, "base", ("base",))
    config = configs.changed(base.config, _dotted(changes, "sft", base.config.task), "sft")
    return _made(config, "sft", _start(base, "base", config, None), base.memory is not None, silent)


def rl(tuned: Run, silent: bool = False, **changes: Value) -> Run:
    """A fine-tuned run's weights after ``epoch`` (or a base), trained on by rewards; kept where that run is.

    Raises ValueError for a run that is neither or unfinished, and for keys that do not fit.
    """
    _require(tuned, "tuned", ("sft", "base"))
    keys = ({"rl.epoch": 0} if tuned.stage == "base" else {}) | _dotted(changes, "rl", tuned.config.task)
    config = configs.changed(tuned.config, keys, "rl")
    start = _start(tuned, "tuned", config, config.rl.epoch or None)
    return _made(config, "rl", start, tuned.memory is not None, silent)


def load(folder: Path | str, task: type[Task] | None = None) -> Run:
    """The run in a folder, wherever that was moved to; task: the class of a task of your own.

    Raises ValueError naming the record when it is missing or damaged, or of a task that is not known here.
    """
    if task is not None:
        _register(task)
    run = runs.read_run(expanded(folder))
    return replace(run, config=replace(run.config, runs=str(run.folder.resolve().parents[1])))


def _require_task(task: Task) -> Task:
    """The task; raises ValueError unless it is one."""
    if not isinstance(task, Task) or "__dataclass_fields__" not in vars(type(task)):
        what = f"the class {task.__name__}" if isinstance(task, type) else f"a {type(task).__name__}"
        raise ValueError(f"task is {what}: give an object of a frozen dataclass that derives from minifork.Task")
    return task


def _registered(task: Task) -> str:
    """The name of a task in configs and folders: of one of your own, its class's in small letters."""
    shipped = next((name for name, kind in TASKS.items() if kind is type(task)), None)
    return shipped or _register(type(task))


def _register(kind: type[Task]) -> str:
    """Make a task of your own known by name; one of the same name that was defined before is replaced."""
    name = kind.__name__.lower()
    if configs.ships(name):
        raise ValueError(f"task is of the class {kind.__name__}: a task called {name} ships, rename the class")
    TASKS[name] = kind
    return name


def _made(config: Config, stage: str, start: Checkpoint | None, memory: bool, silent: bool) -> Run:
    if memory:
        return stages.complete(runs.in_memory(config, stage, start, silent), start)
    with runs.hold(config, stage, start, resume=True) as run:
        return stages.complete(replace(run, silent=silent), start)


def _dotted(changes: dict[str, Value], section: str, task: str) -> dict[str, Value]:
    """Changes by dotted key; a short one is the section's own, where it has it."""
    valid = configs.keys(Config, task=task)
    if section == "pretrain":  # its seed is the base's; `seed` is that of fine-tuning
        changes = {"base_seed" if name == "seed" else name: value for name, value in changes.items()}
    dotted = {name: f"{section}.{name}" if f"{section}.{name}" in valid else name for name in changes}
    return {configs.full_key(dotted[name], valid, section): value for name, value in changes.items()}


def _require(run: Run, argument: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError naming the argument unless it is a finished run of one of these stages."""
    if not isinstance(run, Run) or run.stage not in allowed:
        what = f"a run of the stage {run.stage}" if isinstance(run, Run) else f"a {type(run).__name__}"
        raise ValueError(f"{argument} is {what}: give a run of the stage {' or '.join(allowed)}")
    if not run.complete:
        raise ValueError(f"{argument} is unfinished ({run.folder}): make it again with the same keys to complete it")


def _start(run: Run, argument: str, config: Config, epoch: int | None) -> Checkpoint:
    """The weights to start from; raises ValueError naming a key that the run itself has otherwise."""
    values = runs.deciding_values(config, run.stage)
    differing = [key for key, value in run.values.items() if values.get(key) != value]
    if differing:
        key = differing[0]
        raise ValueError(f"{key} is {values.get(key)!r}, but {argument} was made with {run.values[key]!r}")
    return run.checkpoint(epoch)


# pass@k


def problems(task: Task, stream: str = "test", n: int = 1000, device: str = "cpu") -> ProblemSet:
    """The first n different problems of a task's stream (walks, train, valid or test) as tensors.

    Where the stream holds fewer, there are fewer, with a warning. Raises ValueError for a stream that does not exist,
    and when the task has too few graphs for the stream to hold any.
    """
    if stream not in streams.STREAMS:
        raise ValueError(f"stream is {stream!r}: choose {', '.join(streams.STREAMS)}")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}: torch sees no CUDA device here; give cpu")
    drawn = streams.distinct_problems(_require_task(task), 0, stream, _whole("n", n))
    if len(drawn) < n:
        warnings.warn(f"the {stream} stream holds {len(drawn)} different problems, not {n}: all are used", stacklevel=2)
    return problem_set(task, drawn, device)


def exact(
    model: GPT, problems: ProblemSet, policy: Policy | str = "temperature=1", mode: str | None = None,
    max_prefixes: float = math.inf,
) -> Result:  # fmt: skip
    """The probability that a sampled trace is accepted, and of each way to fail, for every problem.

    policy: how traces are sampled; mode: what every trace begins with, or None to let the model choose. Computed by
    decoding every prefix that may still be accepted, the likeliest first, ``max_prefixes`` at most: then p lies between
    ``p_lo`` and ``p_hi`` for certain. A model does not know its task: give it problems of the task that it was trained
    on. Raises ValueError naming the argument that does not fit.
    """
    return enumeration.exact(_tree(model, problems, policy, mode), max_prefixes, width=EXACT)


def split(
    model: GPT, problems: ProblemSet, n: int, seed: int = 0, policy: Policy | str = "temperature=1",
    mode: str | None = None,
) -> Result:  # fmt: skip
    """Where n sampled traces a problem end, each prefix decoded once however many share it; arguments as `exact`."""
    return splitting.split(_tree(model, problems, policy, mode), _whole("n", n), _whole("seed", seed))


def rollout(
    model: GPT, problems: ProblemSet, n: int, seed: int = 0, policy: Policy | str = "temperature=1",
    mode: str | None = None, traces: bool = False,
) -> Result:  # fmt: skip
    """Where n sampled traces a problem end, and with ``traces`` what they are; other arguments as `exact`.

    On a GPU the fused kernel runs them in fp32.
    """
    return sample(_tree(model, problems, policy, mode), _whole("n", n), _whole("seed", seed), traces)


def _whole(name: str, value: int) -> int:
    """A whole number below 2^63; raises ValueError naming the argument when it is none."""
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} is {value!r}: give a whole number") from None
    if not 0 <= number < 2**63:
        raise ValueError(f"{name} is {value!r}: give a whole number in [0, 2^63)")
    return number


def _tree(model: GPT, problems: ProblemSet, policy: Policy | str, mode: str | None) -> TraceTree:
    if not isinstance(model, GPT):
        raise ValueError(f"model is a {type(model).__name__}: give a GPT, such as run.model()")
    if not isinstance(problems, ProblemSet):
        raise ValueError(f"problems is a {type(problems).__name__}: give minifork.problems(task, ...)")
    if not isinstance(policy, (Policy, str)):
        raise ValueError(
            f"policy is a {type(policy).__name__}: give a Policy, or text such as temperature=0.7,top_p=0.95"
        )
    task, device = problems.task, next(model.parameters()).device
    if problems.prompts.device != device:
        raise ValueError(f"problems lie on {problems.prompts.device}, the model on {device}: move one of them")
    if task.vocab_size != model.vocab_size or problems.prompts.shape[1] + task.trace_len - 1 > model.context:
        raise ValueError(
            f"problems have {task.vocab_size} tokens and sequences of {problems.prompts.shape[1] + task.trace_len}, "
            f"the model takes {model.vocab_size} and {model.context + 1}: they are of another task"
        )
    with torch.no_grad():
        tree = measure.trace_tree(model, problems, parse_policy(policy) if isinstance(policy, str) else policy)
    if mode is None:
        return tree
    if mode not in task.mode_names:
        raise ValueError(f"mode is {mode!r}: choose {', '.join(task.mode_names)}, or None")
    return measure.force_mode(tree, task, mode)
