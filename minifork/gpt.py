"""A GPT in the manner of nanoGPT: pre-LN, learned positions, tanh GELU, no biases.

Training, prefill and decode run the same blocks. They differ only in how queries meet keys. So the caller passes
``attend``: causal attention over the whole sequence, or one query against a shared prompt and the row's own suffix.

Shapes use B problems (or sequences), R rows (rollouts or live prefixes), T tokens of a sequence, P of a
prompt, S of a suffix, H heads of size D, V tokens of the vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from minifork.settings import Shape

TILE = 16  # rows are decoded in multiples of this, because BLAS computes left-over rows in another way
ROWS = 2048  # prefixes or rollouts decoded at once: the best size measured on two cores
PREFILL_BATCH = 128  # prompts that are encoded at once; larger batches do not fit the caches of a CPU
MIN_UNIT_ROWS = 4  # rows that meet a shared prompt in one product, so that a row's bits do not depend on other rows

SLOPE, CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715  # constants of the tanh GELU

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


class Block(nn.Module):
    """One pre-LN transformer block: attention, then a tanh-GELU MLP four times as wide."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.norm_attention = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, layer: int, attend: Attend, selection: "Selection | None" = None) -> Tensor:
        """float[..., width] to the same shape, or [B, T, width] to the M selected positions, [M, width].

        ``attend`` maps the layer's q [..., H, D], k and v to what the queries read, [..., H, D].
        """
        normed, width = self.norm_attention(x), x.shape[-1]
        if selection is None:
            q, k, v = rearrange(self.qkv(normed), "... (three h d) -> three ... h d", three=3, h=self.heads)
        else:
            queries, entries = self.qkv.weight.split([width, 2 * width])
            q = rearrange(F.linear(normed[:, selection.first :], queries), "b t (h d) -> b t h d", h=self.heads)
            k, v = rearrange(F.linear(normed, entries), "b t (two h d) -> two b t h d", two=2, h=self.heads)
        mixed = rearrange(attend(layer, q, k, v), "... h d -> ... (h d)")
        if selection is not None:
            x, mixed = selection.pick(x[:, selection.first :]), selection.pick(mixed)
        x = x + self.out(mixed)
        return x + self.down(gelu(self.up(self.norm_mlp(x))))


class Selection:
    """The positions of sequences [B, T] whose logits are computed, from a mask bool[B, T] on the CPU.

    At all other positions the last block computes keys and values only.
    """

    def __init__(self, mask: Tensor, device: torch.device) -> None:
        self.shape, self.first = mask.shape, int(mask.any(dim=0).int().argmax())
        self.place = mask[:, self.first :].flatten().nonzero()[:, 0].to(device)

    def pick(self, x: Tensor) -> Tensor:
        """The selected positions [M, ...] of x [B, T - first, ...]."""
        return x.flatten(0, 1).index_select(0, self.place)

    def spread(self, x: Tensor) -> Tensor:
        """The inverse of `pick`, [B, T, ...], with 0 at all other positions."""
        count, length = self.shape
        late = x.new_zeros(count * (length - self.first), *x.shape[1:]).index_copy(0, self.place, x)
        return F.pad(late.unflatten(0, (count, -1)), (0, 0, self.first, 0))


class _Gelu(torch.autograd.Function):
    """x sigmoid(2 u), which is the tanh GELU x (1 + tanh u) / 2 with u = sqrt(2/pi) (x + .044715 x^3).

    Faster than torch's on a CPU, whose tanh is slow.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate = (x * x).mul_(CUBIC * SLOPE).add_(SLOPE).mul_(x).sigmoid_()
        ctx.save_for_backward(x, gate)
        return x * gate

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        x, gate = ctx.saved_tensors  # the derivative is gate (1 + (1 - gate) x (2u)')
        slope = (x * x).mul_(3 * CUBIC * SLOPE).add_(SLOPE).mul_(x)
        return slope.addcmul_(slope, gate, value=-1).add_(1).mul_(gate).mul_(gradients[0])


def gelu(x: Tensor) -> Tensor:
    """The tanh GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
    return F.gelu(x, approximate="tanh") if x.is_cuda else _Gelu.apply(x)


class GPT(nn.Module):
    """A transformer: tokens int64[B, T] to next-token logits float[B, T, V], T <= context.

    mask: bool[B, T] on the CPU, the positions whose logits are computed. At all other positions the output is 0, which
    is not what the model predicts there: do not read these logits.
    """

    def __init__(self, shape: Shape, vocab_size: int, context: int) -> None:
        super().__init__()
        self.shape, self.vocab_size, self.context = shape, vocab_size, context
        self.token = nn.Embedding(vocab_size, shape.width)
        self.position = nn.Embedding(context, shape.width)
        self.blocks = cast(Sequence[Block], nn.ModuleList(Block(shape) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        self.head = nn.Linear(shape.width, vocab_size, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        # Walking is looking labels up by content and position. With embeddings that start ten times larger than the
        # head, the base learns it in half the steps (at the shipped learning rates).
        nn.init.normal_(self.token.weight, std=0.2)
        nn.init.normal_(self.position.weight, std=0.2)
        for block in self.blocks:  # as in GPT-2, so that the residual stream does not grow with depth
            for matrix in (block.out, block.down):
                nn.init.normal_(matrix.weight, std=0.02 / math.sqrt(2 * shape.layers))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        if mask is None:
            return self._run(tokens, positions, _causal)
        selection = Selection(mask, tokens.device)
        return selection.spread(self._run(tokens, positions, _causal, selection))

    def _run(self, tokens: Tensor, positions: Tensor, attend: Attend, selection: Selection | None = None) -> Tensor:
        """Logits of all positions, [..., V], or of the selected ones, [M, V]."""
        x = self.token(tokens) + self.position(positions)
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, attend, selection if layer == self.shape.layers - 1 else None)
        return self.head(self.norm(x))

    def prefill(self, tokens: Tensor) -> "Prompts":
        """Encode prompts int64[B, P] once; rollouts and prefixes then share their keys and values."""
        logits, k, v = zip(*(self._prefill(batch) for batch in tokens.split(PREFILL_BATCH)), strict=True)
        return Prompts(torch.cat(logits), torch.cat(k, dim=1), torch.cat(v, dim=1))

    def _prefill(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keys, values = [], []

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys.append(rearrange(k, "b p h d -> b h p d"))
            values.append(rearrange(v, "b p h d -> b h p d"))
            return _causal(layer, q, k, v)

        positions = torch.arange(tokens.shape[1])
        last = Selection((positions == len(positions) - 1).expand(tokens.shape), tokens.device)
        logits = self._run(tokens, positions.to(tokens.device), attend, last)
        return logits, torch.stack(keys), torch.stack(values)

    def rows_at_once(self, length: int) -> int:
        """How many prefixes or rollouts of sequences of ``length`` tokens to decode at once."""
        return ROWS

    def decode(self, tokens: Tensor, rows: "Rows") -> Tensor:
        """Append one token int64[R] to every row and return the next logits, float[R, V]."""
        count, spare = len(tokens), -len(tokens) % TILE
        tokens = F.pad(tokens, (0, spare))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.pad(rows.attend(layer, q[:count], k[:count], v[:count]), (0, 0, 0, 0, 0, spare))

        logits = self._run(tokens, torch.full_like(tokens, rows.prompts.length + rows.length), attend)[:count]
        rows.length += 1
        return logits


def _causal(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention: queries [B, T', H, D] of the last T' positions, keys and values [B, T, H, D] of all T."""
    q, k, v = (rearrange(x, "b t h d -> b h t d") for x in (q, k, v))
    queries, length = q.shape[2], k.shape[2]
    if queries == length:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        earlier = torch.ones(queries, length, dtype=torch.bool, device=q.device).tril(length - queries)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=earlier)
    return rearrange(out, "b h t d -> b t h d")


@dataclass(frozen=True)
class Prompts:
    """Encoded prompts: logits float[B, V] of the first generated token, keys and values [L, B, H, P, D]."""

    logits: Tensor
    k: Tensor
    v: Tensor

    def __len__(self) -> int:
        return len(self.logits)

    @property
    def length(self) -> int:
        return self.k.shape[3]

    def __getitem__(self, index: slice | Tensor) -> "Prompts":
        return Prompts(self.logits[index], self.k[:, index], self.v[:, index])


class Rows:
    """The KV cache of R rows that share B prompts: each row has the keys and values of its suffix only.

    problem: int64[R], ascending, the prompt of each row; capacity: the longest suffix, in tokens; shared: if True, the
    rows of a problem meet its prompt in one product, which is faster for many rows a problem and slower for few.

    Rows are packed into U units of ``unit_rows`` rows of one problem each. unit: int64[U], the problem of each unit
    (None: one unit for each prompt); slot: int64[R], the place of each row among the U * unit_rows.
    """

    def __init__(self, prompts: Prompts, problem: Tensor, capacity: int, shared: bool = False) -> None:
        layers, _, heads, _, size = prompts.k.shape
        self.prompts, self.problem, self.length, self.shared = prompts, problem, 0, shared
        self.k = prompts.k.new_empty(layers, len(problem), heads, capacity, size)
        self.v = torch.empty_like(self.k)
        pack = _pack_rows if shared else _single_rows
        self.unit_rows, self.unit, self.slot = pack(problem, len(prompts))

    def __len__(self) -> int:
        return len(self.problem)

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def take(self, rows: Tensor, shared: bool | None = None) -> "Rows":
        """A new cache of the rows int64[R'] (ascending, repeats allowed: a prefix may have several children)."""
        shared = self.shared if shared is None else shared
        result = Rows(self.prompts, self.problem[rows], self.k.shape[3], shared)
        result.length = self.length
        for ours, copy in ((self.k, result.k), (self.v, result.v)):
            torch.index_select(ours[..., : self.length, :], 1, rows, out=copy[..., : self.length, :])
        return result

    def copy(self) -> "Rows":
        """A new cache of all rows. Decoding extends a cache in place, so each continuation needs its own."""
        return self.take(torch.arange(len(self), device=self.problem.device))

    @staticmethod
    def join(parts: "Sequence[Rows]") -> "Rows":
        """A new cache of the rows of all parts, which have the same prompts, length and capacity."""
        first, length, start = parts[0], parts[0].length, 0
        result = Rows(first.prompts, torch.cat([part.problem for part in parts]), first.k.shape[3])
        result.length = length
        for part in parts:
            place = slice(start, start + len(part))
            result.k[:, place, :, :length] = part.k[..., :length, :]
            result.v[:, place, :, :length] = part.v[..., :length, :]
            start += len(part)
        return result

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """One new query a row, [R, H, D], against its prompt and its suffix, the new token included."""
        self.k[layer, :, :, self.length], self.v[layer, :, :, self.length] = k, v
        end = self.length + 1
        prompt_k, prompt_v = self.prompts.k[layer], self.prompts.v[layer]
        if self.unit is not None:
            prompt_k, prompt_v = prompt_k[self.unit], prompt_v[self.unit]
        suffix_k, suffix_v = self.k[layer, :, :, :end], self.v[layer, :, :, :end]

        grouped = rearrange(self._group(q), "u w h d -> u h w d")
        on_prompt = self._ungroup(rearrange(grouped @ prompt_k.mT, "u h w p -> u w h p"))
        on_suffix = (suffix_k @ q[..., None])[..., 0]
        scores = torch.cat([on_prompt, on_suffix], dim=-1) / math.sqrt(q.shape[-1])
        weights = torch.softmax(scores.float(), dim=-1).to(q.dtype)
        on_prompt, on_suffix = weights.split([self.prompts.length, end], dim=-1)

        grouped = rearrange(self._group(on_prompt), "u w h p -> u h w p")
        from_prompt = self._ungroup(rearrange(grouped @ prompt_v, "u h w d -> u w h d"))
        return from_prompt + (on_suffix[..., None] * suffix_v).sum(dim=2)

    def _group(self, x: Tensor) -> Tensor:
        """[R, ...] to [U, unit_rows, ...], with zeros if a unit has fewer rows."""
        places = self.unit_rows * (len(self.prompts) if self.unit is None else len(self.unit))
        if len(x) < places:
            x = x.new_zeros(places, *x.shape[1:]).index_copy_(0, self.slot, x)
        return x.view(-1, self.unit_rows, *x.shape[1:])

    def _ungroup(self, x: Tensor) -> Tensor:
        """The inverse of `_group`."""
        flat = x.flatten(0, 1)
        return flat if len(flat) == len(self.slot) else flat[self.slot]


def _single_rows(problem: Tensor, prompts: int) -> tuple[int, Tensor | None, Tensor]:
    """unit_rows, unit and slot (see `Rows`) with a unit for every row."""
    slot = torch.arange(len(problem), device=problem.device)
    return 1, None if len(problem) == prompts and torch.equal(problem, slot) else problem, slot


def _pack_rows(problem: Tensor, prompts: int) -> tuple[int, Tensor | None, Tensor]:
    """unit_rows >= MIN_UNIT_ROWS, unit and slot (see `Rows`) with little padding beyond MIN_UNIT_ROWS."""
    rows_of = torch.bincount(problem, minlength=prompts)
    rank = torch.arange(len(problem), device=problem.device) - (rows_of.cumsum(0) - rows_of)[problem]
    present, largest = int((rows_of > 0).sum()), max(MIN_UNIT_ROWS, int(rows_of.max()))
    if prompts * largest <= 2 * max(MIN_UNIT_ROWS * present, len(problem)):
        return largest, None, problem * largest + rank
    unit_rows = max(MIN_UNIT_ROWS, -(-len(problem) // max(1, present)))
    units_of = (rows_of + unit_rows - 1) // unit_rows
    unit = torch.arange(prompts, device=problem.device).repeat_interleave(units_of)
    return unit_rows, unit, (units_of.cumsum(0) - units_of)[problem] * unit_rows + rank
