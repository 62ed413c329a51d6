"""Models of a config: the device to use, its name, and a freshly initialised model of the config's shape."""

import torch

from minifork.gpt import GPT
from minifork.schema import Config


def pick_device(config: Config) -> str:
    """ "cuda" or "cpu"; raises ValueError when CUDA is asked for and missing."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise ValueError("device=cuda: torch sees no CUDA device here; use device=auto")
    return "cuda" if available and config.device != "cpu" else "cpu"


def device_name(device: str) -> str:
    """What records call a device: the name of the GPU's model, or "cpu"."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def new_model(config: Config, seed: int) -> GPT:
    """A freshly initialised model of the config's shape."""
    with torch.random.fork_rng(devices=[]):  # torch's global generator stays as it is
        torch.manual_seed(seed)
        return GPT(config.model, config.data.vocab_size, config.context)
