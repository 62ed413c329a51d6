"""The problems that models are measured on: they are drawn from their streams, then become tensors."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from data_gen import streams
from data_gen.task import PAD, Batch, P, Task
from data_gen.verifier import DFA
from minifork.settings import Eval


@dataclass(frozen=True)
class ProblemSet:
    """Problems of a task as tensors: prompts [n, P], automata [n, S, V] and the names of their outcomes.

    fork, branches: the trace up to the fork [n, F] and the branches [n, d], the right one first; None if the task
    declares no fork. integers: how many rows in turn are the same problem with another integer before its trace
    (`sft.prefix`). A sample draws one of these integers, so a problem's probabilities are the means over its rows.
    """

    task: Task
    prompts: Tensor
    dfa: Tensor
    fork: Tensor | None
    branches: Tensor | None
    outcome_names: tuple[str, ...]
    integers: int = 1

    @cached_property
    def shortest(self) -> np.ndarray:
        """int64[n, S]: the fewest tokens from each state of the automata to acceptance."""
        return DFA(self.dfa.cpu().numpy(), self.outcome_names).shortest()

    def shortest_trace(self, mode_name: str) -> np.ndarray:
        """int64[n / integers]: the tokens of the shortest accepted trace of each problem in a mode.

        mode_name: one of the task's ``first_tokens``.
        """
        after_mode = self.dfa[:, 0, self.task.first_tokens[mode_name]].cpu().numpy()
        return 1 + self.shortest[np.arange(len(after_mode)), after_mode][:: self.integers]

    def at_fork(self) -> tuple[Tensor, Tensor]:
        """The fork prefix and the branches; raises ValueError if the task declares no fork."""
        if self.fork is None or self.branches is None:
            raise ValueError(f"{type(self.task).__name__} declares no fork")
        return self.fork, self.branches


def evaluation_problems(task: Task[P], settings: Eval, order: str = "shuffled", cue_rate: float = 0.0) -> P:
    """The eval.problems problems of a split, with branches printed in this order and this share of problems cued."""
    task = task.printed(order)
    return streams.test_problems(task, settings.problems, cue_rate, forked=settings.forked, stream=settings.split)


def training_forks(task: Task, mixture: streams.Mixture, seed: int, traces: int, limit: int) -> Batch | None:
    """The fine-tuning problems whose trace passed the fork, the first ``limit`` of them; None if there are none."""
    data = streams.sft_examples(task, mixture, seed, traces, 0)
    crossed = task.crosses(data.problems, data.tokens[:, task.prompt_len :]).nonzero()[0][:limit]
    return data.problems[crossed] if len(crossed) else None


def problem_set(task: Task, problems: Batch, device: str, grading: str = "steps", prefix: int = 0) -> ProblemSet:
    """The tensors of a batch of problems, graded by "steps" or by the "answer" alone; prefix as `sft.prefix`."""
    dfa = task.answer_dfa(problems) if grading == "answer" else task.dfa(problems)
    prompts, count = task.prompts(problems), max(1, prefix)
    if prefix:
        integers = np.tile(np.arange(prefix), len(prompts))
        prompts = np.insert(np.repeat(prompts, prefix, axis=0), task.prompt_len, integers, axis=1)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.repeat(array, count, axis=0)).to(device)

    at_fork = task.fork_prefix(problems), task.children(problems)
    fork, branches = (None if array is None else tensor(array) for array in at_fork)
    automata = tensor(dfa.next.astype(np.int64))
    return ProblemSet(task, torch.from_numpy(prompts).to(device), automata, fork, branches, dfa.outcome_names, count)


def branch_shares(problems: ProblemSet, logits: Tensor, branches: Tensor) -> np.ndarray:
    """The probabilities of branches int64[n, d] (PAD where there are fewer), renormalised over them, float64[m, d].

    logits: the model's own [n, V] at the fork. The m = n / integers rows are those of the problems.
    """
    at_branches = logits.double().gather(1, branches.clamp(min=0)).masked_fill(branches == PAD, -torch.inf)
    return mean_over_integers(problems, torch.softmax(at_branches, dim=1).cpu().numpy())


def mean_over_integers(problems: ProblemSet, values: np.ndarray) -> np.ndarray:
    """The means [n / integers, ...] over the rows of every problem, from values of all rows [n, ...]."""
    return values.reshape(-1, problems.integers, *values.shape[1:]).mean(axis=1)
