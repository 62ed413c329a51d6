"""From a run's weights to a model: the device, a new model, the model of a checkpoint once its hash holds."""

from pathlib import Path

import torch
from torch import Tensor

from minifork.gpt import GPT
from minifork.runs import Checkpoint
from minifork.schema import Config
from minifork.storage.weights import hash_of, load_weights


def pick_device(config: Config) -> str:
    """ "cuda" or "cpu"; raises ValueError when CUDA is asked for and missing."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no CUDA device here; use device=auto")
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def new_model(config: Config, seed: int) -> GPT:
    """A freshly initialised model of the config's shape."""
    torch.manual_seed(seed)
    return GPT(config.model, config.data.vocab_size, config.context)


def load(checkpoint: Checkpoint) -> GPT:
    """The model of a checkpoint, in evaluation mode on the CPU; raises ValueError as `weights_of` does."""
    model = new_model(checkpoint.run.config, 0)
    load_state(model, {"model": weights_of(checkpoint)}, checkpoint.path)
    return model.eval()


def weights_of(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The weights of a checkpoint by name.

    Raises ValueError naming the file when it is damaged or holds other weights than its run recorded.
    """
    weights = load_weights(checkpoint.path)["model"]
    if hash_of(weights) != checkpoint.weights:
        raise ValueError(f"{checkpoint.path}: holds other weights than its run recorded; make the run again")
    return weights


def load_state(model: GPT, saved: dict, path: Path) -> None:
    """Load saved["model"] into a model; raises ValueError naming the file when shapes disagree."""
    try:
        model.load_state_dict(saved["model"])
    except (KeyError, RuntimeError) as error:
        detail = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"{path}: does not fit the config's model ({detail})") from None
