"""What the tests of the engines share: random models on star problems, what exact and rollouts say of each sink."""

import math

import numpy as np
import torch

from data_gen import star, streams
from data_gen.star import Star
from minifork.decoding.exact import exact
from minifork.decoding.rollout import rollout
from minifork.decoding.traces import Tree
from minifork.settings import Shape

TASK = Star(nodes=8, branches=2, length=3)
SINKS = len(star.SINKS)
Z, KS_LEVEL = 4.5, 1e-4


def normal_of_chi_square(chi_square: float, freedom: int) -> float:
    """Wilson and Hilferty: the cube root of a chi-square variable is nearly normal."""
    spread = 2 / (9 * freedom)
    return ((chi_square / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def ends(model, prompts, dfa, sinks, max_new, forced=None) -> np.ndarray:
    """What exact says of each sink; every row must sum to 1."""
    result = exact(Tree(model, prompts, dfa, sinks, max_new, forced=forced))
    assert result.exact and (result.unknown == 0).all() and result.n is None
    np.testing.assert_allclose(result.ends.sum(axis=1), 1, atol=1e-9)
    return result.ends


def sample(model, prompts, dfa, sinks, max_new, n, seed, first=0) -> np.ndarray:
    """The counts of n rollouts a problem in each sink; the problems are numbered from ``first``."""
    result = rollout(Tree(model, prompts, dfa, sinks, max_new, ids=first + torch.arange(len(prompts))), n, seed)
    return np.rint(result.ends * n).astype(np.int64)


def star_case(make_model, n: int = 30, seed: int = 0, scale: float = 0.15):
    """A random model, encoded problems, their automata and what they were made from."""
    problems = streams.problems(TASK, seed, "valid", n)
    model = make_model(seed + 20, Shape(2, 32, 2), TASK.vocab_size, TASK.prompt_len + TASK.trace_len, scale)
    prompt = torch.from_numpy(TASK.prompts(problems))
    with torch.no_grad():
        prompts = model.prefill(prompt)
    return model, problems, prompt, prompts, automata(problems)


def automata(problems) -> torch.Tensor:
    return torch.from_numpy(TASK.dfa(problems).next.astype(np.int64))


def forced(n: int, mode: str) -> torch.Tensor:
    return torch.full((n, 1), TASK.mode_token(mode))
