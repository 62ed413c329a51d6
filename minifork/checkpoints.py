"""From a config to a model: the device, a new model, a model with weights that were read."""

from pathlib import Path

import torch

from minifork.gpt import GPT
from minifork.schema import Config


def pick_device(config: Config) -> str:
    """ "cuda" or "cpu"; raises ValueError when CUDA is asked for and missing."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no CUDA device here; use device=auto")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def new_model(config: Config, seed: int) -> GPT:
    """A freshly initialised model of the config's shape."""
    with torch.random.fork_rng(devices=[]):  # whatever else draws from torch's generator goes on undisturbed
        torch.manual_seed(seed)
        return GPT(config.model, config.data.vocab_size, config.context)


def load_state(model: GPT, saved: dict, path: Path) -> None:
    """Load saved["model"] into a model; raises ValueError naming the file when shapes disagree."""
    try:
        model.load_state_dict(saved["model"])
    except (KeyError, RuntimeError) as error:
        detail = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{path}: does not fit the config's model ({detail})") from None
