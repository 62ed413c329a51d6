"""Rollouts as one fixed sequence of torch operations, which a CUDA graph can replay.

Every row is decoded to the length limit, even after its end, so no step waits for the CPU. Prompts are shared, and keys
and values of suffixes lie in fixed buffers. `minifork.gpu.backends` uses it on a GPU if the fused kernel cannot run,
and benchmarks compare the kernel with it.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from minifork.decoding.automata import Tables
from minifork.decoding.philox import uniform
from minifork.decoding.rollout import SAMPLE, draw_token
from minifork.decoding.traces import Result, TraceTree, add_totals, sampled_result
from minifork.gpt import Prompts, Rows


def empty_rows(tree: TraceTree, n: int) -> Rows:
    """A KV cache of n rows for every problem."""
    problem = torch.arange(len(tree), device=tree.device).repeat_interleave(n)
    return Rows(tree.prompts, problem, tree.max_new, shared=True)


@torch.no_grad()
def roll_to_limit(tree: TraceTree, rows: Rows, first: Tensor, seed: int | None) -> tuple[Tensor, Tensor]:
    """Totals int64[2, B, outcomes] (`TraceTree.zero_totals`) of rollouts, and bool[]: True if all logits were finite.

    The rollouts have the numbers first, first + 1, ..., one for each row of a problem (see `empty_rows`). first:
    int64[]. seed: of the counter-based draws, the same as in every other backend; None for torch's own generator.
    """
    device, problem, rows.length = tree.device, rows.problem, 0
    rollout = first + torch.arange(len(rows), device=device) % (len(rows) // len(tree))
    totals, state = tree.zero_totals(torch.int64), torch.zeros_like(problem)
    live, finite = torch.ones_like(problem, dtype=torch.bool), torch.ones((), dtype=torch.bool, device=device)
    logits = tree.prompts.logits[problem]
    for step in range(tree.max_new):
        finite = finite & (torch.isfinite(logits).all(dim=1) | ~live).all()
        if step < tree.forced_len:
            token = tree.forced[problem, step]
        else:
            ids = tree.ids[problem]
            u = torch.rand(len(problem), device=device) if seed is None else uniform(seed, rollout, step, ids, SAMPLE)
            token = draw_token(tree.policy(logits), u)
        state = torch.where(live, tree.step(problem, state, token, step + 1), state)
        ended = live & (state >= tree.first_outcome)
        add_totals(totals, problem, (state - tree.first_outcome).clamp(min=0), ended.long(), step + 1)
        live = live & ~ended
        if step < tree.max_new - 1:
            logits = tree.model.decode(token, rows)
    return totals, finite


class Graph:
    """`roll_to_limit` with n rows for each problem of a tree, recorded once and replayed for trees of the same shape.

    run: `roll_to_limit` itself, or compiled. On a CPU nothing is recorded, and every call runs the operations anew.
    """

    def __init__(self, tree: TraceTree, n: int, seed: int | None, run: Callable = roll_to_limit) -> None:
        logits, k, v, dfa, ids, forced = (tensor.clone() for tensor in _inputs(tree))
        self.tree = replace(
            tree, prompts=Prompts(logits, k, v), automata=Tables(dfa, tree.outcome_count), forced=forced, ids=ids
        )
        self.rows, self.seed, self.run, self.graph = empty_rows(self.tree, n), seed, run, None
        self.first = torch.zeros((), dtype=torch.int64, device=tree.device)
        if self.first.is_cuda:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # allocate and tune outside of the graph
                self._run()
                self._run()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self.out = self._run()

    def _run(self) -> tuple[Tensor, Tensor]:
        return self.run(self.tree, self.rows, self.first, self.seed)

    def __call__(self, tree: TraceTree, first: int) -> tuple[Tensor, Tensor]:
        """The return value of `roll_to_limit` for these problems. The next call overwrites it."""
        self.first.fill_(first)
        for fixed, new in zip(_inputs(self.tree), _inputs(tree), strict=True):
            fixed.copy_(new)
        if self.graph is None:
            return self._run()
        self.graph.replay()
        return self.out


def _inputs(tree: TraceTree) -> list[Tensor]:
    return [tree.prompts.logits, tree.prompts.k, tree.prompts.v, tree.dfa, tree.ids, tree.forced]


def graph_rollout(tree: TraceTree, n: int, seed: int | None, rows: int = 2**16) -> Result:
    """The result of n rollouts a problem, about ``rows`` of them at once; as `minifork.decoding.rollout.rollout`.

    Raises ValueError on logits that are not finite.
    """
    at_once = min(n, rows)
    problems = max(1, min(len(tree), rows // at_once))
    graphs: dict[tuple[int, int], Graph] = {}
    totals, finite = tree.zero_totals(torch.int64), torch.ones((), dtype=torch.bool, device=tree.device)
    for start in range(0, len(tree), problems):
        batch = tree[start : start + problems]
        for first in range(0, n, at_once):
            shape = len(batch), min(at_once, n - first)
            if shape not in graphs:
                graphs[shape] = Graph(batch, shape[1], seed)
            batch_totals, batch_finite = graphs[shape](batch, first)
            totals[:, start : start + problems] += batch_totals
            finite &= batch_finite
    if not finite:
        raise ValueError("the model's logits are not finite")
    return sampled_result("rollout", totals, n, int(totals[1].sum()) - len(tree) * n)
