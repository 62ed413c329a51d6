"""A causal language model of Hugging Face as a model of the engines: prefill, decode, and rows of a KV cache.

Prompts are padded on the left to one length, and share their keys and values as everywhere in `minifork.decoding`. A
row keeps those of its suffix only. For each decoded batch, every layer in turn joins a copy of the prompts' to them.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.cache_utils import Cache, DynamicLayer

from minifork.gpt import PREFILL_BATCH, Prompts, Rows
from minifork.language.vocabulary import Vocabulary, read_vocabulary

MEMORY = 2**30  # bytes for one batch of decoded rows
BYTES_A_TOKEN = 80  # of the vocabulary, in every row: logits, probabilities in fp64, and the row's children


@dataclass(frozen=True)
class PaddedPrompts(Prompts):
    """Prompts whose first ``padding`` int64[B] positions are empty."""

    padding: Tensor

    def __getitem__(self, index: slice | Tensor) -> "PaddedPrompts":
        return PaddedPrompts(self.logits[index], self.k[:, index], self.v[:, index], self.padding[index])


class CausalLM:
    """A language model with its tokenizer, in fp32.

    memory: bytes that a batch of decoded rows may take. vocabulary: the bytes of its tokens. Raises ValueError for a
    model whose cache the engines cannot fill, and as `read_vocabulary` does.
    """

    def __init__(self, model: Any, tokenizer: Any, memory: int = MEMORY) -> None:
        self.model, self.tokenizer, self.memory = model.float().eval(), tokenizer, memory
        self.vocab_size, self.context = model.config.vocab_size, model.config.max_position_embeddings
        self.vocabulary: Vocabulary = read_vocabulary(tokenizer, self.vocab_size, _end_tokens(model, tokenizer))
        self._cache = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
        self._check_cache()

    @property
    def device(self) -> torch.device:
        return self.model.device

    def rows_at_once(self, length: int) -> int:
        """How many rows of sequences of ``length`` tokens fit into the memory."""
        config = self.model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        # A layer's keys and values are joined for all heads; a row's own suffix is kept for every layer.
        cached = 8 * size * length * (3 * config.num_attention_heads + config.num_hidden_layers)
        return max(1, self.memory // (BYTES_A_TOKEN * self.vocab_size + cached))

    @torch.no_grad()
    def prefill(self, prompts: Sequence[Sequence[int]]) -> PaddedPrompts:
        """Encode prompts, which may differ in length, once."""
        longest = max(map(len, prompts))
        padding = torch.tensor([longest - len(prompt) for prompt in prompts], device=self.device)
        tokens = torch.tensor([[0] * (longest - len(prompt)) + [*prompt] for prompt in prompts], device=self.device)
        batches = [
            self._prefill(*batch)
            for batch in zip(tokens.split(PREFILL_BATCH), padding.split(PREFILL_BATCH), strict=True)
        ]
        logits, k, v = zip(*batches, strict=True)
        return PaddedPrompts(torch.cat(logits), torch.cat(k, dim=1), torch.cat(v, dim=1), padding)

    def _prefill(self, tokens: Tensor, padding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cache = Cache(layers=[DynamicLayer() for _ in range(self.model.config.num_hidden_layers)])
        positions = torch.arange(tokens.shape[1], device=self.device)
        logits = self._forward(tokens, positions.expand_as(tokens), padding, cache)
        k, v = (torch.stack([getattr(layer, name) for layer in cache.layers]) for name in ("keys", "values"))
        return logits, k, v

    @torch.no_grad()
    def decode(self, tokens: Tensor, rows: Rows) -> Tensor:
        """Append one token int64[R] to every row and return the next logits, float32[R, V]."""
        assert isinstance(rows.prompts, PaddedPrompts)
        cache = Cache(layers=[_RowsLayer(rows, layer) for layer in range(len(rows.k))])
        position = torch.full_like(tokens, rows.prompts.length + rows.length)[:, None]
        logits = self._forward(tokens[:, None], position, rows.prompts.padding[rows.problem], cache)
        rows.length += 1
        return logits

    def _forward(self, tokens: Tensor, position: Tensor, padding: Tensor, cache: Cache) -> Tensor:
        """The logits float32[R, V] after tokens int64[R, T] at positions [R, T], padding included."""
        filled = torch.arange(int(position.max()) + 1, device=self.device) >= padding[:, None]
        options = {self._cache: cache, "attention_mask": None if filled.all() else filled.long()}
        position = (position - padding[:, None]).clamp(min=0)
        output = self.model(tokens, position_ids=position, use_cache=True, logits_to_keep=1, **options)
        return output.logits[:, -1].float()

    def _check_cache(self) -> None:
        """Raise ValueError unless decoding with the cache gives what the whole sequence gives.

        Layers that forget early keys and values would pass on the few tokens that are tried. The config names them.
        """
        forgetful = {*(getattr(self.model.config, "layer_types", None) or [])} - {"full_attention"}
        try:
            prompts = self.prefill([[0, 1]])
            rows = Rows(prompts, torch.zeros(1, dtype=torch.int64, device=self.device), 1)
            fits = torch.allclose(
                self.decode(torch.tensor([1], device=self.device), rows), self.prefill([[0, 1, 1]]).logits, atol=1e-2
            )
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
            fits = False
        if forgetful or not fits:
            name = type(self.model).__name__
            raise ValueError(f"{name} has no cache of keys and values that the engines can fill: choose another model")


class _RowsLayer(DynamicLayer):
    """One layer of a cache of rows: the prompts' keys and values, then those of the rows."""

    def __init__(self, rows: Rows, layer: int) -> None:
        super().__init__()
        self.rows, self.layer, self.is_initialized = rows, layer, True

    def get_seq_length(self) -> int:
        return self.rows.prompts.length + self.rows.length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        """Add the new token's keys and values [R, H, 1, D] to the rows; returns those of the whole sequence."""
        rows, prompts, end = self.rows, self.rows.prompts, self.rows.length + 1
        joined = []
        for ours, of_prompts, new in ((rows.k, prompts.k, key_states), (rows.v, prompts.v, value_states)):
            ours[self.layer, :, :, rows.length] = new[:, :, 0]
            joined.append(torch.cat([of_prompts[self.layer][rows.problem], ours[self.layer, :, :, :end]], dim=2))
        return joined[0], joined[1]


def load_language_model(name: str, memory: int = MEMORY) -> CausalLM:
    """The language model in a local folder, or of this name on the hub.

    Raises ValueError naming it when there is no such model, or if it would run code of its own.
    """
    options = {"trust_remote_code": False}
    try:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, KeyError, ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        if "custom code" in reason:
            raise ValueError(f"{name} runs code of its own, which is refused: choose another model") from None
        problem = "no causal language model is in this folder" if Path(name).is_dir() else "no such folder or model"
        raise ValueError(f"{name}: {problem} ({reason[:200]})") from None
    return CausalLM(model, tokenizer, memory)


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a text."""
    ends = getattr(model, "generation_config", model.config).eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    return {*ends, *([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])}
