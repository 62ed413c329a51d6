"""The bytes of every token of a tokenizer.

A byte-level tokenizer (GPT-2, Llama 3, SmolLM2) writes each byte of a token as a printable character. One with byte
fallback (Llama 2) writes a space as U+2581 and bytes outside its characters as "<0x0A>".
"""

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

PROBE = "In Côte d'Ivoire, 12 % of 日本 🙂 is\n\tnew."  # its tokens' bytes must be its own


@dataclass(frozen=True)
class Vocabulary:
    """The V tokens of a model: bytes uint8[V, L], of which the first ``length`` int64[V] count; ends bool[V].

    Tokens without bytes, such as special ones, have length 0. Those that end a text are marked in ``ends``.
    """

    bytes: np.ndarray
    length: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.length)


def vocabulary(texts: Collection[bytes], ends: Collection[int]) -> Vocabulary:
    """The vocabulary of tokens with these bytes, b"" for none; ends: the tokens that end a text."""
    length = np.array([len(text) for text in texts], dtype=np.int64)
    width = int(length.max(initial=1))
    padded = b"".join(text.ljust(width, b"\0") for text in texts)
    is_end = np.isin(np.arange(len(length)), [*ends])
    return Vocabulary(np.frombuffer(padded, np.uint8).reshape(-1, width), length * ~is_end, is_end)


def read_vocabulary(tokenizer: Any, size: int, ends: Collection[int]) -> Vocabulary:
    """The vocabulary of a fast tokenizer of transformers, for a model of ``size`` tokens.

    Raises ValueError when the tokenizer's tokens do not map to bytes.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    text_of = _byte_reader(json.loads(backend.to_str())["decoder"] if backend else None)
    added = tokenizer.added_tokens_decoder if backend else {}
    texts = []
    for token in range(size):
        name = tokenizer.convert_ids_to_tokens(token) if token < len(tokenizer) else None
        if token in added:
            texts.append(b"" if added[token].special else added[token].content.encode())
        else:
            texts.append(b"" if name is None else text_of(name))
    probe = tokenizer(PROBE, add_special_tokens=False)["input_ids"]
    if b"".join(texts[token] for token in probe) not in (PROBE.encode(), b" " + PROBE.encode()):
        raise ValueError(f"{_name(tokenizer)}: its tokens do not map to bytes; it needs another tokenizer")
    return vocabulary(texts, ends)


def _byte_reader(decoder: dict | None) -> Callable[[str], bytes]:
    """A function that gives the bytes of a token, b"" for one that has none."""
    kinds = {step["type"] for step in (decoder or {}).get("decoders", [decoder or {"type": ""}])}
    if "ByteLevel" in kinds:
        bytes_of = byte_characters()
        return lambda name: bytes(bytes_of.get(character, 0) for character in name)
    if "ByteFallback" in kinds:
        return _with_fallback
    return lambda name: b""


def byte_characters() -> dict[str, int]:
    """The byte that each character of a byte-level token stands for (Radford et al. 2019).

    Printable Latin-1 characters stand for themselves. The other bytes, in order, are the characters from U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unprintable = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(unprintable)}


def _with_fallback(name: str) -> bytes:
    if match := re.fullmatch("<0x([0-9A-F]{2})>", name):
        return bytes.fromhex(match[1])
    return name.replace("▁", " ").encode()


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
