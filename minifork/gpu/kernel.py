"""Rollouts in one launch: what `decode.cu` needs to know, and how its answer is read.

The same source runs on a GPU (`minifork.gpu.driver`) and, in tests, on the CPU (its host twin). A *machine* compiles
it for a `Build` and launches it; everything here is common to both. docs/kernel.md describes the kernel itself.
"""

import ctypes
import math
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from minifork.decoding.policy import Policy
from minifork.decoding.traces import Result, Traces, Tree
from minifork.gpt import GPT

SOURCE = Path(__file__).parent / "decode.cu"
WIDTHS, HEAD_SIZES, MOST_LAYERS, MOST_TOKENS, LONGEST = (64, 128, 256), (16, 32, 64), 8, 256, 256
TILES = (64, 32, 16)  # rows a block may decode side by side, the best for large batches first
STEPS = {"temperature": 0, "top_k": 1, "top_p": 2, "min_p": 3}
MOST_STEPS = 4


@dataclass(frozen=True)
class Build:
    """What the kernel is compiled for: the model, the lengths of prompt and trace (tokens), rows a block, precision."""

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
        """Of weights, keys and values."""
        return torch.bfloat16 if self.bf16 else torch.float32


class Machine(Protocol):
    """Where the kernel runs."""

    def blocks(self, build: Build, work: int) -> int:
        """How many blocks to launch for so many rollouts."""

    def launch(self, build: Build, args: "Args", blocks: int) -> None:
        """Run the kernel; on return (or in stream order) its outputs are written."""


class Args(ctypes.Structure):
    """`struct Args` of decode.cu, which explains the fields."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "logits", "prompt", "weights", "token", "position", "dfa", "forced", "ids", "given", "suffix",
            "ends", "tokens", "gap", "total", "sink", "bad",
        )),
        *((name, ctypes.c_longlong) for name in ("problems", "n")),
        *((name, ctypes.c_int) for name in ("states", "sinks", "forced_len", "policy_steps")),
        ("step", ctypes.c_int * MOST_STEPS),
        ("value", ctypes.c_float * MOST_STEPS),
        ("seed_lo", ctypes.c_uint),
        ("seed_hi", ctypes.c_uint),
    ]  # fmt: skip


def unsupported(tree: Tree) -> str | None:
    """Why the kernel cannot run this tree, or None if it can."""
    shape, length = tree.model.shape, tree.prompts.length + tree.max_new
    size = shape.width // shape.heads
    reasons = [
        (shape.width not in WIDTHS, f"a width of {shape.width} (it takes {', '.join(map(str, WIDTHS))})"),
        (size not in HEAD_SIZES, f"heads of {size} (it takes {', '.join(map(str, HEAD_SIZES))})"),
        (shape.layers > MOST_LAYERS, f"{shape.layers} layers (it takes {MOST_LAYERS})"),
        (tree.model.vocab_size > MOST_TOKENS, f"{tree.model.vocab_size} tokens (it takes {MOST_TOKENS})"),
        (length > LONGEST, f"sequences of {length} (it takes {LONGEST})"),
        (tree.dfa.shape[1] > 65536, f"automata of {tree.dfa.shape[1]} states (it takes 65536)"),
        (policy_steps(tree.policy) is None, f"the policy {tree.policy}"),
    ]
    return next((text for holds, text in reasons if holds), None)


def policy_steps(policy: Policy) -> list[tuple[int, float]] | None:
    """The steps of a policy as the kernel knows them, None if it does not know one or there are too many."""
    steps = []
    for name, value in policy.steps:
        if name == "greedy" or (name, value) == ("temperature", 0):
            name, value = "top_k", 1.0
        if name not in STEPS:
            return None
        if (name, value) != ("top_p", 1.0):
            steps.append((STEPS[name], max(value, 1e-30) if name == "top_p" else value))
    return steps if len(steps) <= MOST_STEPS else None


def build_for(tree: Tree, rows: int, bf16: bool) -> Build:
    """The build that runs this tree."""
    shape, vocab = tree.model.shape, tree.model.vocab_size
    return Build(
        shape.width, shape.heads, shape.layers, vocab, tree.prompts.length, tree.max_new, rows, int(bf16)
    )  # fmt: skip


@torch.no_grad()
def pack(model: GPT, bf16: bool) -> Tensor:
    """All matrices [bf16 or fp32, flat], each as the kernel reads it, with gains and the scale of scores folded in.

    A layer is q, k, v, out, then four times the part of ``up`` and ``down`` that a quarter of the hidden layer
    needs; the head is last, padded to whole tiles of 8 tokens.
    """
    width, parts = model.shape.width, []
    for block in model.blocks:
        q, k, v = (block.qkv.weight * block.norm_attention.weight).split(width)
        up = (block.up.weight * block.norm_mlp.weight).split(width)
        down = block.down.weight.split(width, dim=1)
        scale = 1 / math.sqrt(width // model.shape.heads)
        parts += [q * scale, k, v, block.out.weight]
        parts += [matrix for quarter in zip(up, down, strict=True) for matrix in quarter]
    head = model.head.weight * model.norm.weight
    parts.append(torch.nn.functional.pad(head, (0, 0, 0, -len(head) % 8)))
    return torch.cat([(fragments(part) if bf16 else part.T).flatten() for part in parts]).contiguous()


def fragments(matrix: Tensor) -> Tensor:
    """A matrix float[N, K] (out, in) as bf16, in the order in which lanes hold the B operand of mma.m16n8k16.

    For each 8 columns and 32 inputs, every lane has 16 bytes: two mma's two registers of two inputs each (PTX ISA,
    "Matrix fragments for mma.m16n8k16").
    """
    order = "(tile column) (block mma register quad pair) -> tile block (column quad) mma register pair"
    return rearrange(matrix.bfloat16(), order, column=8, mma=2, register=2, quad=4, pair=2)


def run(
    tree: Tree, n: int, seed: int, machine: Machine, rows: int = 64, bf16: bool = True, traces: bool = False
) -> Result:
    """Where n rollouts a problem end, as `minifork.decoding.rollout.rollout`, by the kernel.

    Where the machine's memory runs out, the problems are halved until they fit, and this is said.
    """
    size = len(tree)
    while True:
        try:
            parts = [
                _run(tree[start : start + size], n, seed, machine, build_for(tree, rows, bf16), traces)
                for start in range(0, len(tree), size)
            ]
            break
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = -(-size // 2)
    if size < len(tree):
        warnings.warn(f"out of memory with {len(tree)} problems at once: ran {size} at a time", stacklevel=2)
    joined = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ("ends", "unknown", "tokens")}
    kept = Traces(*(torch.cat([getattr(p.traces, f.name) for p in parts]) for f in fields(Traces))) if traces else None
    return Result("rollout", n=n, evaluated=sum(part.evaluated for part in parts), traces=kept, **joined)


def _run(tree: Tree, n: int, seed: int, machine: Machine, build: Build, traces: bool) -> Result:
    out = _launch(tree, n, seed, machine, build, None, traces)
    ends, tokens = out["ends"].cpu().numpy() / n
    kept = Traces(out["tokens"].long(), _logp(out).float(), out["sink"].long()) if traces else None
    evaluated = int(out["ends"][1].sum()) - len(tree) * n
    return Result("rollout", ends, np.zeros(len(tree)), n, evaluated, tokens, kept)


def score(tree: Tree, tokens: Tensor, machine: Machine, rows: int = 64, bf16: bool = True) -> Tensor:
    """Teacher-forced log-probabilities float64[B, n, max_new] of traces int64[B, n, max_new] (-1 past the end).

    In the kernel's own arithmetic, under the tree's policy; 0 past the end and for the tree's forced tokens.
    """
    out = _launch(tree, tokens.shape[1], 0, machine, build_for(tree, rows, bf16), tokens, True)
    return _logp(out)


def _logp(out: dict[str, Tensor]) -> Tensor:
    return out["gap"].double() - out["total"].double().log()


def _launch(
    tree: Tree, n: int, seed: int, machine: Machine, build: Build, given: Tensor | None, traces: bool
) -> dict[str, Tensor]:
    """Lay everything out, launch the kernel, and return what it wrote, by name."""
    made, args, blocks = lay_out(tree, n, seed, machine, build, given, traces)
    machine.launch(build, args, blocks)
    bad = int(made["bad"])
    if bad >= 0:
        raise ValueError(f"problem {int(tree.ids[bad])}: the model's logits are not finite")
    return made


@torch.no_grad()
def lay_out(
    tree: Tree, n: int, seed: int, machine: Machine, build: Build, given: Tensor | None, traces: bool
) -> tuple[dict[str, Tensor], Args, int]:
    """The tensors that the kernel reads and writes, by name, the arguments that point to them, and how many blocks to
    launch. The tensors must live as long as the kernel runs; ``ends`` is added to."""
    count, device, model = len(tree), tree.dfa.device, tree.model
    tree.require_finite(tree.prompts.logits, torch.arange(count, device=device))
    blocks = machine.blocks(build, count * n)
    keys_values = torch.stack([tree.prompts.k, tree.prompts.v])
    positions = model.position.weight[build.prompt : build.prompt + build.steps]
    missing = build.steps - len(positions)  # the last token of a trace is never decoded and may have no position
    made = {
        "logits": tree.prompts.logits.float(),
        "prompt": rearrange(keys_values, "two l b h p d -> b l two p (h d)").to(build.dtype),
        "weights": pack(model, bool(build.bf16)),
        "token": model.token.weight.float(),
        "position": torch.nn.functional.pad(positions.float(), (0, 0, 0, missing)),
        "dfa": tree.dfa.to(torch.int16),  # the bits of uint16
        "forced": None if tree.forced is None else tree.forced.int(),
        "ids": tree.ids.int(),
        "given": None if given is None else given.int(),
        "suffix": torch.empty(
            (blocks, build.layers, 2, build.rows, build.steps, build.width), dtype=build.dtype, device=device
        ),
        "ends": torch.zeros(2, count, tree.sinks, dtype=torch.int64, device=device),
        "bad": torch.full((1,), -1, dtype=torch.int32, device=device),
    }  # fmt: skip
    if traces:
        shape = count, n, build.steps
        made["tokens"] = torch.full(shape, -1, dtype=torch.int32, device=device)
        made["gap"], made["total"] = torch.zeros(shape, device=device), torch.ones(shape, device=device)
        made["sink"] = torch.full(shape[:2], -1, dtype=torch.int32, device=device)
    made = {name: None if tensor is None else tensor.contiguous() for name, tensor in made.items()}
    steps = policy_steps(tree.policy)
    args = Args(
        **{name: None if tensor is None else tensor.data_ptr() for name, tensor in made.items()},
        problems=count, n=n, states=tree.dfa.shape[1], sinks=tree.sinks, forced_len=tree.forced_len,
        policy_steps=len(steps), seed_lo=seed & 0xFFFFFFFF, seed_hi=seed >> 32 & 0xFFFFFFFF,
    )  # fmt: skip
    for i, (step, value) in enumerate(steps):
        args.step[i], args.value[i] = step, value
    return made, args, blocks
