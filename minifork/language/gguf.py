"""Makes a GGUF file, which holds a quantised model, a folder of safetensors with its config and tokenizer."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert_gguf(file: str, folder: str) -> None:
    """Write the model of a GGUF file into a folder that is not there yet, in fp32.

    Raises ValueError for a file that does not exist, for a folder that does, and without the packages that read it.
    """
    source, target = Path(file), Path(folder)
    if missing := [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]:
        raise ValueError(f"a GGUF file needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if not source.is_file():
        raise ValueError(f"{source} is no file: give the path of a GGUF file")
    if target.exists():
        raise ValueError(f"{target} is there already: remove it, or give another folder")
    model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    model.hf_quantizer = None  # save_pretrained refuses what it takes for a quantised model
    del model.config.quantization_config
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(unfinished)
    unfinished.rename(target)
    print(f"{source.name}: {model.num_parameters():,} parameters, written to {target}")
