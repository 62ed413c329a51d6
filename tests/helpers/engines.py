"""What the tests of the engines share: random models on star problems and random automata, statistics of samples."""

import math
from dataclasses import replace

import numpy as np
import torch

from data_gen import star, streams
from data_gen.star import Star
from minifork.decoding.automata import Tables
from minifork.decoding.exact import exact
from minifork.decoding.policy import parse_policy
from minifork.decoding.traces import Result, TraceTree
from minifork.settings import Shape
from minifork.statistics import agreement

TASK, SHAPE = Star(nodes=8, branches=2, length=3), Shape(2, 32, 2)
OUTCOMES, LIVE, DEAD = len(star.OUTCOMES), 6, 3
Z, KS_LEVEL = 4.5, 1e-4
# Of the kernel: the model's shape, vocabulary, prompt, longest trace, rows a block. They cover heads of 64, 16 and 64;
# padded logits that are narrower and wider than the stream; one and several layers; threads that have part of a head,
# a head, or several.
CASES = {
    "reference": (Shape(2, 128, 2), 20, 15, 6, 32),
    "narrow": (Shape(1, 64, 4), 7, 3, 2, 64),
    "wide": (Shape(1, 256, 4), 33, 9, 3, 16),
    "many tokens": (Shape(1, 64, 2), 256, 2, 4, 16),
}
POLICIES = ["temperature=1", "temperature=0.7,top_p=0.9", "top_k=3", "min_p=0.2,temperature=1.5", "greedy"]


def chi_square_z(chi_square: float, freedom: int) -> float:
    """Wilson and Hilferty: the cube root of a chi-square variable is nearly normal."""
    spread = 2 / (9 * freedom)
    return ((chi_square / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)


def outcome_probabilities(tree: TraceTree) -> np.ndarray:
    """What exact says of each outcome; every row must sum to 1."""
    result = exact(tree)
    assert result.exact and (result.unknown == 0).all() and result.n is None and (result.outcomes >= 0).all()
    np.testing.assert_allclose(result.outcomes.sum(axis=1), 1, atol=1e-9)
    return result.outcomes


def counts(result: Result) -> np.ndarray:
    """The rollouts of each problem in each outcome."""
    tally = np.rint(result.outcomes * result.n).astype(np.int64)
    assert (tally.sum(axis=1) == result.n).all() and (tally >= 0).all()
    return tally


def fit(tally: np.ndarray, p: np.ndarray) -> float:
    """The smallest p-value, over outcomes, that counts int[B, outcomes] follow probabilities [B, outcomes]."""
    n, rng = int(tally[0].sum()), np.random.default_rng(4)
    pits = (agreement.randomised_pit(tally[:, s], n, p[:, s], rng) for s in range(p.shape[1]))
    return min(agreement.uniform_p(pit) for pit in pits)


def agrees(tally: np.ndarray, p: np.ndarray) -> bool:
    """Whether counts int[B, outcomes] fit probabilities, and so do their sums over problems, by the normal bound.

    False alarms have probability 1e-4 an outcome, and 7e-6 an outcome for the bound, which leaves out
    outcomes with less mass.
    """
    n, z = int(tally[0].sum()), (tally - tally[0].sum() * p).sum(axis=0)
    z = np.abs(z) / np.sqrt((n * p * (1 - p)).sum(axis=0) + 1e-9)
    return fit(tally, p) > KS_LEVEL and bool((z[p.mean(axis=0) > 1e-3] < Z).all())


@torch.no_grad()
def star_case(make_model, n: int = 30, scale: float = 0.15, task: Star = TASK, shape: Shape = SHAPE):
    """The tree of a random model on star problems, the problems, and their prompts int64[B, P]."""
    problems = streams.problems(task, 0, "valid", n)
    model = make_model(20, shape, task.vocab_size, task.prompt_len + task.trace_len, scale)
    prompt, dfa = torch.from_numpy(task.prompts(problems)), task.dfa(problems).next.astype(np.int64)
    tree = TraceTree(model, model.prefill(prompt), Tables(torch.from_numpy(dfa), OUTCOMES), task.trace_len)
    return tree, problems, prompt


@torch.no_grad()
def random_case(make_model, case: tuple, problems: int, policy: str = "temperature=1", scale: float = 0.15):
    """The tree of a random model on random automata (.4 of the moves lead to an outcome), and its prompts int64[B, P].

    case: the model's shape, vocabulary, prompt and longest trace.
    """
    shape, vocab, prompt, steps, *_ = case
    rng = np.random.default_rng(0)
    live, dead = rng.integers(LIVE, size=(problems, LIVE, vocab)), rng.integers(DEAD, size=(problems, LIVE, vocab))
    table = np.where(rng.random((problems, LIVE, vocab)) < 0.6, live, LIVE + dead)
    outcomes = np.broadcast_to(np.arange(LIVE, LIVE + DEAD)[:, None], (problems, DEAD, vocab))
    model = make_model(0, shape, vocab, prompt + steps - 1, scale)
    tokens = torch.from_numpy(rng.integers(vocab, size=(problems, prompt)))
    dfa = torch.from_numpy(np.concatenate([table, outcomes], axis=1))
    return TraceTree(model, model.prefill(tokens), Tables(dfa, DEAD), steps, parse_policy(policy)), tokens


def make_tree(make_model, case: str, problems: int, policy: str = "temperature=1") -> TraceTree:
    """The tree of `random_case` for one of CASES, by its name."""
    return random_case(make_model, CASES[case], problems, policy)[0]


def poisoned(tree: TraceTree, problem: int) -> TraceTree:
    """The same tree with a first logit of one problem that is no number."""
    logits = tree.prompts.logits.clone()
    logits[problem, 1] = math.nan
    return replace(tree, prompts=replace(tree.prompts, logits=logits))
