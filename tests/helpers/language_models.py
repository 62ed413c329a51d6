"""A tiny vocabulary with tokens that are not UTF-8 by themselves, and models that use it."""

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from minifork.language.causal_lm import CausalLM
from minifork.language.vocabulary import byte_characters

MERGED = ["ab", "é", " b", "a b"]  # the tokens of more than one byte
EOS = "<|end|>"


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of the 256 bytes, MERGED and EOS."""
    of_byte = {byte: character for character, byte in byte_characters().items()}
    spelled = {text: [of_byte[byte] for byte in text.encode()] for text in MERGED}
    vocabulary = {character: i for i, character in enumerate(of_byte[byte] for byte in range(256))}
    merges = []
    for characters in spelled.values():
        for end in range(2, len(characters) + 1):
            left, right = "".join(characters[: end - 1]), characters[end - 1]
            vocabulary.setdefault(left + right, len(vocabulary))
            if (left, right) not in merges:
                merges.append((left, right))
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)


def tiny_lm(kind: str = "llama", seed: int = 0, context: int = 64, **options) -> CausalLM:
    """A random model of ``context`` positions whose positions and attention matter, with `byte_tokenizer`."""
    tokenizer = byte_tokenizer()
    set_seed(seed)
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.eos_token_id}
    common = {"vocab_size": len(tokenizer), "initializer_range": 0.3, **ends}
    if kind == "gpt2":
        config = GPT2Config(n_positions=context, n_embd=32, n_layer=2, n_head=4, **common)
        return CausalLM(GPT2LMHeadModel(config), tokenizer, **options)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(max_position_embeddings=context, intermediate_size=64, **shape, **common)
    return CausalLM(LlamaForCausalLM(config), tokenizer, **options)
