"""Rollouts as one fixed sequence of torch operations, which a CUDA graph can replay.

Every row is decoded to the length limit, ended or not, so no step waits for the CPU. Prompts are shared and keys
and values of suffixes lie in fixed buffers. It is what `minifork.gpu.backends` uses on a GPU where the fused kernel
cannot run, and the baseline that the kernel is compared with.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from minifork.decoding.philox import uniform
from minifork.decoding.rollout import SAMPLE, draw
from minifork.decoding.traces import Result, Tree
from minifork.gpt import Prompts, Rows


def empty_rows(tree: Tree, n: int) -> Rows:
    """A KV cache of n rows for every problem."""
    return Rows(tree.prompts, torch.arange(len(tree), device=tree.dfa.device).repeat_interleave(n), tree.max_new)


@torch.no_grad()
def dense(tree: Tree, rows: Rows, first: Tensor, seed: int | None) -> tuple[Tensor, Tensor]:
    """Where rollouts first, first + 1, ... of every problem end, as many as it has rows (see `empty_rows`).

    Returns ends int64[2, B, sinks] (see `Tree.no_ends`), and whether all logits were finite, bool[]. first: int64[].
    seed: of the counter-based draws, which are those of every other backend; None for torch's own generator.
    """
    device, problem, rows.length = tree.dfa.device, rows.problem, 0
    rollout = first + torch.arange(len(rows), device=device) % (len(rows) // len(tree))
    ends, state = tree.no_ends(torch.int64), torch.zeros_like(problem)
    live, finite = torch.ones_like(problem, dtype=torch.bool), torch.ones((), dtype=torch.bool, device=device)
    logits = tree.prompts.logits[problem]
    for step in range(tree.max_new):
        finite = finite & (torch.isfinite(logits).all(dim=1) | ~live).all()
        if step < tree.forced_len:
            token = tree.forced[problem, step]
        else:
            ids = tree.ids[problem]
            u = torch.rand(len(problem), device=device) if seed is None else uniform(seed, rollout, step, ids, SAMPLE)
            token = draw(tree.policy(logits), u)
        state = torch.where(live, tree.dfa[problem, state, token], state)
        if step == tree.max_new - 1:
            state = state.where(state >= tree.first_sink, tree.dfa.shape[1] - 1)
        ended = live & (state >= tree.first_sink)
        place = problem * tree.sinks + (state - tree.first_sink).clamp(min=0)
        ends[0].view(-1).index_add_(0, place, ended.long())
        ends[1].view(-1).index_add_(0, place, ended * (step + 1))
        live = live & ~ended
        if step < tree.max_new - 1:
            logits = tree.model.decode(token, rows)
    return ends, finite


class Graph:
    """`dense` with n rows for each problem of a tree, recorded once and replayed for others of the same shape.

    run: `dense`, or a compiled one. On a CPU nothing is recorded, and every call runs the operations anew.
    """

    def __init__(self, tree: Tree, n: int, seed: int | None, run: Callable = dense) -> None:
        prompts = Prompts(*(tensor.clone() for tensor in (tree.prompts.logits, tree.prompts.k, tree.prompts.v)))
        forced = None if tree.forced is None else tree.forced.clone()
        self.tree = replace(tree, prompts=prompts, dfa=tree.dfa.clone(), forced=forced, ids=tree.ids.clone())
        self.rows, self.seed, self.run, self.graph = empty_rows(self.tree, n), seed, run, None
        self.first = torch.zeros((), dtype=torch.int64, device=tree.dfa.device)
        if self.first.is_cuda:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # allocate and tune outside of the graph
                for _ in range(2):
                    self._run()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.out = self._run()

    def _run(self) -> tuple[Tensor, Tensor]:
        return self.run(self.tree, self.rows, self.first, self.seed)

    def __call__(self, tree: Tree, first: int) -> tuple[Tensor, Tensor]:
        """What `dense` returns for these problems; overwritten by the next call."""
        self.first.fill_(first)
        for mine, theirs in zip(_inputs(self.tree), _inputs(tree), strict=True):
            mine.copy_(theirs)
        if self.graph is None:
            return self._run()
        self.graph.replay()
        return self.out


def _inputs(tree: Tree) -> list[Tensor]:
    inputs = [tree.prompts.logits, tree.prompts.k, tree.prompts.v, tree.dfa, tree.ids]
    return inputs if tree.forced is None else [*inputs, tree.forced]


def graphed(tree: Tree, n: int, seed: int | None, rows: int = 2**16) -> Result:
    """Where n rollouts a problem end, about ``rows`` of them at once; as `minifork.decoding.rollout.rollout`.

    Raises ValueError on logits that are not finite.
    """
    at_once = min(n, rows)
    problems = max(1, min(len(tree), rows // at_once))
    graphs: dict[tuple[int, int], Graph] = {}
    ends, finite = tree.no_ends(torch.int64), True
    for start in range(0, len(tree), problems):
        part = tree[start : start + problems]
        for first in range(0, n, at_once):
            shape = len(part), min(at_once, n - first)
            if shape not in graphs:
                graphs[shape] = Graph(part, shape[1], seed)
            some, fine = graphs[shape](part, first)
            ends[:, start : start + problems] += some
            finite = finite & fine
    if not bool(finite):
        raise ValueError("the model's logits are not finite")
    evaluated = int(ends[1].sum()) - len(tree) * n
    ends, tokens = ends.cpu().numpy() / n
    return Result("rollout", ends, np.zeros(len(tree)), n, evaluated, tokens)
