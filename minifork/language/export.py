"""A model that was trained here as a GPT-2 of Hugging Face, with a word-level tokenizer.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("3 7 7 1 3 4 4 2 3 1 SEP", return_tensors="pt")
    tokenizer.decode(model.generate(**prompt, do_sample=True, top_k=0)[0])      # top_k is 50 by default

GPT-2 has biases, which are zero here, and ties its head to its embeddings, which is turned off.
"""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from transformers.utils import logging

from data_gen.task import Task
from minifork.gpt import GPT
from minifork.runs import Run


def export_run(run: Run, folder: Path, epoch: int | None = None) -> None:
    """Write a run's model, the last or that of an epoch, and its tokenizer into a folder.

    Raises ValueError when the run has no such weights, and OSError when the folder cannot be written.
    """
    logging.set_verbosity_error()
    model, tokenizer = gpt2(run.model(epoch), run.config.data), word_tokenizer(run.config.data)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@torch.no_grad()
def gpt2(model: GPT, task: Task) -> GPT2LMHeadModel:
    """The same function of tokens as a GPT-2, which ends texts with the task's EOS."""
    shape = model.shape
    config = GPT2Config(
        vocab_size=model.vocab_size, n_positions=model.context, n_embd=shape.width, n_layer=shape.layers,
        n_head=shape.heads, activation_function="gelu_new", tie_word_embeddings=False,
        bos_token_id=task.eos, eos_token_id=task.eos, pad_token_id=task.eos,
    )  # fmt: skip
    twin = GPT2LMHeadModel(config).eval()
    weights = {name: torch.zeros_like(tensor) for name, tensor in twin.state_dict().items()}
    weights |= {
        "transformer.wte.weight": model.token.weight,
        "transformer.wpe.weight": model.position.weight,
        "transformer.ln_f.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for i, block in enumerate(model.blocks):
        weights |= {
            f"transformer.h.{i}.{name}": tensor
            for name, tensor in {
                "ln_1.weight": block.norm_attention.weight,
                "attn.c_attn.weight": block.qkv.weight.T,  # GPT-2 keeps matrices as [in, out]
                "attn.c_proj.weight": block.out.weight.T,
                "ln_2.weight": block.norm_mlp.weight,
                "mlp.c_fc.weight": block.up.weight.T,
                "mlp.c_proj.weight": block.down.weight.T,
            }.items()
        }
    twin.load_state_dict(weights)
    return twin


def word_tokenizer(task: Task) -> PreTrainedTokenizerFast:
    """A tokenizer that reads and writes the task's tokens as words with spaces between, such as "3 7 7 1"."""
    names = {task.decode(np.array([token])): token for token in range(task.vocab_size)}
    tokenizer = Tokenizer(WordLevel(names, unk_token=None))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    eos = task.decode(np.array([task.eos]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=eos)
