"""Rollouts in one launch: the arguments of `decode.cu`, and its outputs as a `Result`.

The same source runs on a GPU (`minifork.gpu.driver`) and, in tests, on the CPU (its host twin). A *machine* compiles it
for a `Build` and launches it; all that is here is common to both. docs/kernel.md describes the kernel itself.
"""

import ctypes
import math
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from minifork.decoding.policy import Policy
from minifork.decoding.traces import Result, Traces, TraceTree, sampled_result
from minifork.gpt import GPT

SOURCE = Path(__file__).parent / "decode.cu"
WIDTHS, HEAD_SIZES = (64, 128, 256), (16, 32, 64)
TILES = (64, 32, 16)  # rows that a block may decode side by side, the best for large batches first
KERNEL_STEPS = {"temperature": 0, "top_k": 1, "top_p": 2, "min_p": 3}  # the numbers of `enum Step` in decode.cu
MOST_STEPS = 4
# totals: as `TraceTree.zero_totals`; tokens, gap, total: one entry for every token of every rollout; outcome: one for
# every rollout. gap is the token's logit minus the largest logit, under the policy. total is the sum of exp(logit -
# largest logit) over the vocabulary. So a token's log-probability is gap - log(total).
OUTPUTS = ("totals", "tokens", "gap", "total", "outcome")
POINTERS = (*"logits prompt weights token position dfa forced ids given suffix".split(), *OUTPUTS, "bad")


class UnavailableError(Exception):
    """The kernel cannot be compiled, or cannot run this tree on this machine. The message says why, in one line."""


@dataclass(frozen=True)
class Build:
    """Constants at compile time: the model's shape, tokens of a prompt and a trace, rows of a block, precision."""

    width: int
    heads: int
    layers: int
    vocab: int
    prompt: int
    steps: int
    rows: int
    bf16: int

    def defines(self) -> list[str]:
        """The compiler's -D options."""
        return [f"-D{field.name.upper()}={getattr(self, field.name)}" for field in fields(self)]

    @property
    def dtype(self) -> torch.dtype:
        """The type of weights, keys and values."""
        return torch.bfloat16 if self.bf16 else torch.float32


class Machine(Protocol):
    """A device that the kernel is compiled for and launched on."""

    def blocks(self, build: Build, work: int) -> int:
        """The number of blocks to launch for ``work`` rollouts."""

    def launch(self, build: Build, args: "Args", blocks: int) -> None:
        """Run the kernel. Its outputs are written on return, or in the order of the stream."""


class Args(ctypes.Structure):
    """`struct Args` of decode.cu, which explains the fields."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_longlong) for name in ("problems", "n")),
        *((name, ctypes.c_int) for name in ("states", "outcomes", "forced_len", "policy_steps")),
        ("step", ctypes.c_int * MOST_STEPS),
        ("value", ctypes.c_float * MOST_STEPS),
        *((name, ctypes.c_uint) for name in ("seed_lo", "seed_hi")),
    ]


def require_supported(tree: TraceTree) -> None:
    """Raise UnavailableError, saying why, if the kernel cannot run this tree."""
    shape, vocab, states = tree.gpt.shape, tree.model.vocab_size, tree.dfa.shape[1]
    size, length = shape.width // shape.heads, tree.prompts.length + tree.max_new
    supported = {
        f"width {shape.width} (it takes {WIDTHS})": shape.width in WIDTHS,
        f"heads of {size} (it takes {HEAD_SIZES})": size in HEAD_SIZES,
        f"{shape.layers} layers (it takes 8)": shape.layers <= 8,
        f"a vocabulary of {vocab} tokens (it takes 256)": vocab <= 256,
        f"sequences of {length} tokens (it takes 256)": length <= 256,
        f"automata of {states} states (it takes 65536)": states <= 65536,
    }
    for feature, fits in supported.items():
        if not fits:
            raise UnavailableError(feature)
    policy_steps(tree.policy)


def policy_steps(policy: Policy) -> list[tuple[int, float]]:
    """The steps of a policy as the kernel numbers them. Raises UnavailableError for one it lacks, or for too many."""
    greedy = {("greedy", 1.0), ("temperature", 0.0)}
    steps = [("top_k", 1.0) if step in greedy else step for step in policy.steps if step != ("top_p", 1.0)]
    if len(steps) > MOST_STEPS or any(name not in KERNEL_STEPS for name, _ in steps):
        raise UnavailableError(f"the policy {policy}")
    return [(KERNEL_STEPS[name], value) for name, value in steps]


def build_for(tree: TraceTree, rows: int, bf16: bool) -> Build:
    """The build that runs this tree."""
    shape, lengths = tree.gpt.shape, (tree.prompts.length, tree.max_new)
    return Build(shape.width, shape.heads, shape.layers, tree.model.vocab_size, *lengths, rows, int(bf16))


@torch.no_grad()
def pack(model: GPT, bf16: bool) -> Tensor:
    """All matrices in the kernel's order, bf16 or fp32, flat. Gains and the scale of the scores are folded in.

    A layer is q, k, v, out, then for every quarter of the hidden layer its parts of ``up`` and ``down``. The head is
    last, padded to whole tiles of 8 tokens.
    """
    width, matrices = model.shape.width, list[Tensor]()
    for block in model.blocks:
        q, k, v = (block.qkv.weight * block.norm_attention.weight).split(width)
        up = (block.up.weight * block.norm_mlp.weight).split(width)
        down = block.down.weight.split(width, dim=1)
        scale = 1 / math.sqrt(width // model.shape.heads)
        matrices += [q * scale, k, v, block.out.weight]
        for quarter in zip(up, down, strict=True):
            matrices += quarter
    head = model.head.weight * model.norm.weight
    matrices.append(F.pad(head, (0, 0, 0, -len(head) % 8)))
    return torch.cat([(fragments(matrix) if bf16 else matrix.T).flatten() for matrix in matrices]).contiguous()


def fragments(matrix: Tensor) -> Tensor:
    """A matrix float[N, K] (out, in) as bf16, in the order in which lanes hold the B operand of mma.m16n8k16.

    For each 8 columns and 32 inputs, every lane has 16 bytes: two registers of two inputs for each of two mma (PTX
    ISA, "Matrix fragments for mma.m16n8k16").
    """
    order = "(tile column) (block mma register quad pair) -> tile block (column quad) mma register pair"
    return rearrange(matrix.bfloat16(), order, column=8, mma=2, register=2, quad=4, pair=2)


def run_kernel(
    tree: TraceTree, n: int, seed: int, machine: Machine, rows: int = 64, bf16: bool = True, traces: bool = False
) -> Result:
    """The result of n rollouts a problem by the kernel, as `minifork.decoding.rollout.rollout`.

    On out-of-memory it halves the problems and retries, with a warning.
    """
    out = _launch(tree, n, seed, machine, build_for(tree, rows, bf16), None, traces)
    sampled = Traces(out["tokens"].long(), _logp(out).float(), out["outcome"].long()) if traces else None
    return sampled_result("rollout", out["totals"], n, int(out["totals"][1].sum()) - len(tree) * n, sampled)


def score(tree: TraceTree, tokens: Tensor, machine: Machine, rows: int = 64, bf16: bool = True) -> Tensor:
    """Teacher-forced log-probabilities float64[B, n, max_new] of traces int64[B, n, max_new] (-1 past the end).

    In the kernel's own arithmetic, under the tree's policy. Forced tokens and -1 score 0, so a trace without tokens
    scores 0 throughout: it generates nothing, with probability 1.
    """
    return _logp(_launch(tree, tokens.shape[1], 0, machine, build_for(tree, rows, bf16), tokens, True))


def _logp(out: dict[str, Tensor]) -> Tensor:
    """The log-probability float64[B, n, max_new] of every token, from the kernel's outputs (see OUTPUTS)."""
    return out["gap"].double() - out["total"].double().log()


def _launch(
    tree: TraceTree, n: int, seed: int, machine: Machine, build: Build, target: Tensor | None, traces: bool
) -> dict[str, Tensor]:
    """Lay everything out, launch the kernel, and return its OUTPUTS by name."""
    try:
        tensors, args, blocks = lay_out(tree, n, seed, machine, build, target, traces)
        machine.launch(build, args, blocks)
        bad = int(tensors["bad"])
        if bad >= 0:
            raise ValueError(f"problem {int(tree.ids[bad])}: the model's logits are not finite")
        return {name: tensors[name] for name in OUTPUTS if name in tensors}
    except torch.OutOfMemoryError:
        if len(tree) == 1:
            raise
    half = -(-len(tree) // 2)
    warnings.warn(f"out of memory with {len(tree)} problems at once: trying {half}", stacklevel=3)
    halves = [
        _launch(tree[problems], n, seed, machine, build, None if target is None else target[problems], traces)
        for problems in (slice(half), slice(half, None))
    ]
    return {name: torch.cat([out[name] for out in halves], dim=int(name == "totals")) for name in halves[0]}


@torch.no_grad()
def lay_out(
    tree: TraceTree, n: int, seed: int, machine: Machine, build: Build, target: Tensor | None, traces: bool
) -> tuple[dict[str, Tensor], Args, int]:
    """The arguments of a launch: tensors by name, the `Args` that point to them, and the number of blocks.

    target: int64[B, n, max_new], traces to score, or None to sample. The tensors must live as long as the kernel runs.
    It reads most of them, writes OUTPUTS and ``bad``, and adds to ``totals``.
    """
    model, count, device, steps = tree.gpt, len(tree), tree.device, policy_steps(tree.policy)
    tree.require_finite(tree.prompts.logits, torch.arange(count, device=device))
    blocks = machine.blocks(build, count * n)
    positions = model.position.weight[build.prompt : build.prompt + build.steps].float()
    tensors = {
        "logits": tree.prompts.logits.float(),
        "prompt": rearrange([tree.prompts.k, tree.prompts.v], "two l b h p d -> b l two p (h d)").to(build.dtype),
        "weights": pack(model, bool(build.bf16)),
        "token": model.token.weight.float(),
        # The last token of a trace is never decoded and may have no position.
        "position": F.pad(positions, (0, 0, 0, build.steps - len(positions))),
        "dfa": tree.dfa.to(torch.int16),  # the bits of uint16
        "forced": tree.forced.int(),
        "ids": tree.ids.int(),
        "totals": tree.zero_totals(torch.int64),
        "bad": torch.full((1,), -1, dtype=torch.int32, device=device),
    }
    scratch = blocks, build.layers, 2, build.rows, build.steps, build.width
    tensors["suffix"] = torch.empty(scratch, dtype=build.dtype, device=device)
    if target is not None:
        tensors["given"] = target.int()
    if traces:
        shape = count, n, build.steps
        tensors["tokens"] = torch.full(shape, -1, dtype=torch.int32, device=device)
        tensors["gap"], tensors["total"] = torch.zeros(shape, device=device), torch.ones(shape, device=device)
        tensors["outcome"] = torch.full(shape[:2], -1, dtype=torch.int32, device=device)
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    args = Args(
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
        problems=count, n=n, states=tree.dfa.shape[1], outcomes=tree.outcome_count, forced_len=tree.forced_len,
        policy_steps=len(steps), seed_lo=seed & 0xFFFFFFFF, seed_hi=seed >> 32 & 0xFFFFFFFF,
    )  # fmt: skip
    for i, (step, value) in enumerate(steps):
        args.step[i], args.value[i] = step, value
    return tensors, args, blocks
