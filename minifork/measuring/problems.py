"""The problems that models are measured on: drawn from their streams, then as tensors."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from data_gen import streams
from data_gen.task import Problems, Task
from data_gen.verifier import DFA
from minifork.settings import Eval


@dataclass(frozen=True)
class ProblemSet:
    """Problems of a task as tensors: prompts [n, P], automata [n, S, V] and the names of their outcomes, fork prefix
    [n, F] and branches [n, d], right first, or None for both where the task declares no fork.

    prefixes: how many rows, one after the other, are the same problem with another random integer before its trace
    (`sft.prefix`). A sample draws one of them, so a problem's probabilities are the means over its rows.
    """

    task: Task
    prompts: Tensor
    dfa: Tensor
    fork: Tensor | None
    branches: Tensor | None
    outcomes: tuple[str, ...]
    prefixes: int = 1

    @cached_property
    def shortest(self) -> Tensor:
        """int64[n, S]: the fewest tokens from each state of the automata to acceptance."""
        return torch.from_numpy(DFA(self.dfa.cpu().numpy(), self.outcomes).shortest())

    def at_fork(self) -> tuple[Tensor, Tensor]:
        """The fork prefix and the branches; raises ValueError where the task declares no fork."""
        if self.fork is None or self.branches is None:
            raise ValueError(f"{type(self.task).__name__} declares no fork")
        return self.fork, self.branches


def evaluation_problems(task: Task, settings: Eval, order: str = "shuffled", cue_rate: float = 0.0) -> Problems:
    """The problems that an evaluation asks for, their branches printed in an order, a share of them cued."""
    task = task.printed(order)
    return streams.test_problems(task, settings.problems, cue_rate, forked=settings.forked, stream=settings.split)


def training_forks(task: Task, mixture: streams.Mixture, seed: int, traces: int, most: int) -> Problems | None:
    """The (first) fine-tuning problems whose trace passed the fork, None if there are none."""
    data = streams.sft_examples(task, mixture, seed, traces, 0)
    prefix = task.fork_prefix(data.problems)
    if prefix is None:
        return None
    passed = (data.tokens[:, task.prompt_len :][:, : prefix.shape[1]] == prefix).all(axis=1)
    crossed = (passed & task.forked(data.problems)).nonzero()[0][:most]
    return data.problems[crossed] if len(crossed) else None


def problem_set(task: Task, problems: Problems, device: str, grading: str = "steps", prefix: int = 0) -> ProblemSet:
    """The tensors of a batch of problems, graded by steps or by the answer alone; prefix as `sft.prefix`."""
    dfa = task.answer_dfa(problems) if grading == "answer" else task.dfa(problems)
    prompts = task.prompts(problems)
    if prefix:
        integers = np.tile(np.arange(prefix), len(prompts))
        prompts = np.insert(np.repeat(prompts, prefix, axis=0), task.prompt_len, integers, axis=1)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.repeat(array, max(1, prefix), axis=0)).to(device)

    fork, branches = (
        None if array is None else tensor(array) for array in (task.fork_prefix(problems), task.children(problems))
    )
    automata = tensor(dfa.next.astype(np.int64))
    return ProblemSet(
        task, torch.from_numpy(prompts).to(device), automata, fork, branches, dfa.outcomes, max(1, prefix)
    )


def over_prefixes(problems: ProblemSet, values: np.ndarray) -> np.ndarray:
    """The means [n / prefixes, ...] over the rows of every problem, from values of all rows [n, ...]."""
    return values.reshape(-1, problems.prefixes, *values.shape[1:]).mean(axis=1)
