"""The problems that models are measured on: drawn from their streams, then as tensors."""

from dataclasses import dataclass, replace
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
    """Problems of a task as tensors: prompts [n, P], automata [n, S, V] with their sinks' names, fork prefix [n, F],
    branches [n, d], right first.

    prefixes: how many rows, one after the other, are the same problem with another random integer before its trace
    (`sft.prefix`). A sample draws one of them, so a problem's probabilities are the means over its rows.
    """

    task: Task
    prompts: Tensor
    dfa: Tensor
    fork: Tensor
    branches: Tensor
    sinks: tuple[str, ...]
    prefixes: int = 1

    @cached_property
    def shortest(self) -> Tensor:
        """int64[n, S]: the fewest tokens from each state of the automata to acceptance."""
        return torch.from_numpy(DFA(self.dfa.cpu().numpy(), self.sinks).shortest())


def draw(task: Task, settings: Eval, order: str = "shuffled", cue_rate: float = 0.0) -> Problems:
    """The problems that an evaluation asks for, their branches printed in an order, a share of them cued."""
    printed = replace(task, branch_order=order)
    return streams.test_problems(printed, settings.problems, cue_rate, forked=settings.forked, stream=settings.split)


def training_forks(task: Task, mixture: streams.Mixture, seed: int, traces: int, most: int) -> Problems | None:
    """The (first) fine-tuning problems whose trace passed the fork, None if there are none."""
    data = streams.sft_examples(task, mixture, seed, traces, 0)
    forward = data.mode == task.mode_names.index("FWD")
    crossed = (forward & data.problems.forked).nonzero()[0][:most]
    return data.problems[crossed] if len(crossed) else None


def problem_set(task: Task, problems: Problems, device: str, grading: str = "steps", prefix: int = 0) -> ProblemSet:
    """The tensors of a batch of problems, graded by steps or by the answer alone; prefix as `sft.prefix`."""
    dfa = task.answer_dfa(problems) if grading == "answer" else task.dfa(problems)
    arrays = [task.prompts(problems), dfa.next.astype(np.int64), task.fork_prefix(problems), task.children(problems)]
    if prefix:
        arrays = [np.repeat(array, prefix, axis=0) for array in arrays]
        arrays[0] = np.insert(arrays[0], task.prompt_len, np.arange(len(arrays[0])) % prefix, axis=1)
    prompts, automata, fork, branches = (torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays)
    return ProblemSet(task, prompts, automata, fork, branches, dfa.sinks, max(1, prefix))


def over_prefixes(problems: ProblemSet, values: np.ndarray) -> np.ndarray:
    """The means [n / prefixes, ...] over the rows of every problem, from values of all rows [n, ...]."""
    return values.reshape(-1, problems.prefixes, *values.shape[1:]).mean(axis=1)
