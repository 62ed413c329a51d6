"""Rollouts against exact on random automata, whose probabilities are spread over (0, 1), and against planted errors.

Statistical tests have fixed seeds. Under the null, with seeds drawn anew, the p-value of a `fit` is below 1e-4 with
probability 3e-4 (one test for each of three outcomes), and |z| above 4.5 with probability 7e-6: together below 4e-3 for
the whole file.
"""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import minifork.decoding.rollout as rollouts
from data_gen import star
from minifork.decoding.automata import Tables
from minifork.decoding.exact import exact
from minifork.decoding.philox import uniform
from minifork.decoding.policy import parse_policy
from minifork.decoding.rollout import rollout
from minifork.decoding.split import split
from minifork.gpt import GPT, Rows
from minifork.settings import Shape
from tests.helpers.engines import (
    DEAD,
    OUTCOMES,
    TASK,
    Z,
    agrees,
    chi_square_z,
    counts,
    fit,
    outcome_probabilities,
    random_case,
    star_case,
)

VOCAB, LONGEST = 8, 5
PROBLEMS, N, MANY = 200, 64, 512  # MANY where a sampler is broken and must be caught


@pytest.fixture(scope="module")
def tree(make_model):
    return random_case(make_model, (Shape(1, 16, 2), VOCAB, 6, LONGEST), PROBLEMS, scale=0.5)[0]


@pytest.fixture(scope="module")
def p(tree):
    p = outcome_probabilities(tree)
    assert p[:, 0].std() > 0.1
    return p


def roll(tree, n: int = N, seed: int = 3) -> np.ndarray:
    return counts(rollout(tree, n, seed))


def test_rollouts_agree_with_exact_on_stars(make_model):
    """The real automata: at least four outcomes that a random model reaches."""
    tree = star_case(make_model, n=150, scale=0.25)[0]
    tally = roll(tree, 40, seed=7)
    assert (tally.sum(axis=0) > 0).sum() >= 4 and agrees(tally, outcome_probabilities(tree))


@pytest.mark.parametrize(
    "decoder", "temperature=1 temperature=0.7,top_p=0.9 top_k=2 min_p=0.3 top_n_sigma=1 greedy".split()
)
def test_rollouts_agree_with_exact(tree, decoder):
    """With as many rollouts as catch a broken sampler. Outcomes without probability never occur."""
    tree = replace(tree, policy=parse_policy(decoder))
    p, tally = outcome_probabilities(tree), roll(tree, MANY)
    assert (tally[p == 0] == 0).all() and agrees(tally, p)


def test_seeds_differ_and_repeat(tree):
    first = roll(tree[:40])
    assert np.array_equal(first, roll(tree[:40]))
    for seed in (4, 3 + 2**32):
        assert (first != roll(tree[:40], seed=seed)).mean() > 0.5


BROKEN = {  # the famous bug is the first: one first token a problem, copied to all of its rollouts
    "one first token": lambda seed, number, step, problem, _: uniform(seed, number * (step > 0), step, problem, 0),
    "one draw for all steps": lambda seed, number, step, problem, _: uniform(seed, number, 0, problem, 0),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_draws_that_depend_are_caught(tree, p, monkeypatch, broken):
    monkeypatch.setattr(rollouts, "uniform", BROKEN[broken])
    assert fit(roll(tree, MANY), p) < 1e-6


def test_problems_have_draws_of_their_own(tree):
    """Margins would be right without, so this shows in sums over problems and not in PIT."""
    copies = replace(tree[torch.zeros(50, dtype=torch.int64)], ids=torch.arange(50))
    assert len(np.unique(roll(copies), axis=0)) > 10
    assert len(np.unique(roll(replace(copies, ids=torch.zeros(50, dtype=torch.int64))), axis=0)) == 1


def test_off_by_one_positions_are_caught(tree, p):
    """A decoder that puts every suffix token one position too far."""
    model = copy.deepcopy(tree.model)
    with torch.no_grad():
        model.position.weight[6:-1] = tree.model.position.weight[7:]
    assert fit(roll(replace(tree, model=model), MANY), p) < 1e-6


def test_first_tokens_are_independent(make_model):
    """With an outcome for each first token the counts are multinomial in every problem: chi-square over 60 problems."""
    tree = star_case(make_model, n=60)[0]
    vocab, n = TASK.vocab_size, 400
    one_step = torch.arange(vocab).add(1).expand(60, 1 + vocab, vocab).clone()
    one_step[:, 1:] = torch.arange(1, vocab + 1)[:, None]
    tally = roll(replace(tree, automata=Tables(one_step, vocab), max_new=1), n, seed=1)
    expected = n * torch.softmax(tree.prompts.logits.double(), dim=1).numpy()
    common = expected > 5
    rest = np.where(common, 0, expected).sum(axis=1), np.where(common, 0, tally).sum(axis=1)
    rare = rest[0] > 5
    chi_square = ((tally - expected) ** 2 / expected)[common].sum()
    chi_square += ((rest[1] - rest[0]) ** 2 / np.maximum(rest[0], 1e-9))[rare].sum()
    assert chi_square_z(chi_square, int(common.sum() + rare.sum() - 60)) < Z


@pytest.mark.parametrize("rows", [1, 7, 100, 10**6])
def test_rollouts_do_not_depend_on_rows_in_flight(tree, monkeypatch, rows):
    """Up to draws that rounding carries over a boundary: less than one expected in 1,000 runs of this test."""
    expected = roll(tree[:5], 24)
    monkeypatch.setattr(GPT, "rows_at_once", lambda *_: rows)
    assert np.abs(roll(tree[:5], 24) - expected).sum() <= 2


def test_rollouts_do_not_depend_on_chunks_of_problems(tree):
    expected = roll(tree[:30], 20)
    parts = [roll(tree[a:b], 20) for a, b in [(0, 1), (1, 11), (11, 30)]]
    assert np.abs(np.concatenate(parts) - expected).sum() <= 2


def test_more_rollouts_go_on_from_fewer(tree):
    """The first n of m > n rollouts are the n rollouts: each is a function of its own number."""
    longer = roll(tree, 40) - roll(tree, 16)
    assert (longer >= -1).all() and longer.min(axis=1).sum() >= -2


def test_rollout_length_limit(make_model):
    """At a limit of one token the modes go to the last outcome."""
    tree = replace(star_case(make_model, n=20)[0], max_new=1)
    tally = roll(tree, 50, seed=0)
    assert tally[:, [0, *range(2, OUTCOMES - 1)]].sum() == 0 < tally[:, -1].sum()
    assert agrees(tally, outcome_probabilities(tree))


def test_no_rollouts_are_refused(tree):
    with pytest.raises(ValueError, match="n is 0"):
        rollout(tree, 0, 0)


def test_lengths_agree(tree):
    """Mean lengths by outcome: exact within five standard errors of split's and rollout's; lengths add up."""
    mean, n = exact(tree).tokens.sum(axis=1), 1000
    assert (mean >= 1).all() and (mean <= LONGEST + 1e-9).all()
    error = LONGEST / 2 / math.sqrt(n)  # the standard error of a length is at most this
    for sampled in (split(tree, n, 3), rollout(tree, n, 3)):
        gap = sampled.tokens.sum(axis=1) - mean
        assert np.abs(gap).max() < 5 * error and abs(gap.mean()) < 5 * error / math.sqrt(len(tree))
        assert (sampled.tokens >= sampled.outcomes - 1e-9).all()
        assert (sampled.tokens <= LONGEST * sampled.outcomes + 1e-9).all()


@torch.no_grad()
def follow(tree, problem: int, prefix: list[int]) -> tuple[int, list[float]]:
    """The outcomes of tokens, and the log-probability of each under the policy, one row at a time."""
    rows = Rows(tree.prompts[problem : problem + 1], torch.tensor([0]), LONGEST)
    state, logits, logp = 0, tree.prompts.logits[problem : problem + 1], []
    for token in prefix:
        assert state < tree.first_outcome
        state = int(tree.dfa[problem, state, token])
        logp.append(float(torch.log_softmax(tree.policy(logits), dim=1)[0, token]))
        logits = tree.model.decode(torch.tensor([token]), rows) if len(logp) < LONGEST else logits
    return state, logp


@pytest.mark.parametrize("decoder", ["temperature=1", "temperature=0.5,top_k=3"])
def test_traces(tree, decoder):
    """Tokens lead to the outcome, -1 follows, log-probabilities are those of the policy."""
    tree = replace(tree[:10], policy=parse_policy(decoder))
    result, plain = rollout(tree, 12, 1, traces=True), rollout(tree, 12, 1)
    assert plain.traces is None and np.array_equal(plain.outcomes, result.outcomes)
    tokens, logp, outcome = result.traces.tokens, result.traces.logp, result.traces.outcome
    for problem in range(10):
        ended, lengths = outcome[problem].numpy(), (tokens[problem] >= 0).sum(dim=1).numpy()
        assert np.array_equal(np.bincount(ended, minlength=DEAD), counts(result)[problem])
        np.testing.assert_allclose(result.tokens[problem] * 12, np.bincount(ended, lengths, minlength=DEAD))
        for trace, end, each in zip(tokens[problem].tolist(), ended, logp[problem], strict=True):
            prefix = [token for token in trace if token >= 0]
            state, expected = follow(tree, problem, prefix)
            assert trace[len(prefix) :] == [-1] * (LONGEST - len(prefix)) and (each[len(prefix) :] == 0).all()
            assert end == (state - tree.first_outcome if state >= tree.first_outcome else DEAD - 1)
            assert state >= tree.first_outcome or len(prefix) == LONGEST
            np.testing.assert_allclose(each[: len(prefix)], expected, atol=1e-4)


def test_traces_begin_with_the_forced_tokens(make_model):
    tree, problems, _ = star_case(make_model, n=6)
    fork, malformed = torch.from_numpy(TASK.fork_prefix(problems)), star.OUTCOMES.index("malformed")
    traces = rollout(tree.force(fork), 9, 0, traces=True).traces
    assert (traces.tokens[:, :, :2] == fork[:, None]).all() and (traces.logp[:, :, :2] == 0).all()
    result = rollout(tree.force(torch.full((6, 3), TASK.sep)), 9, 0, traces=True)
    tokens = result.traces.tokens
    assert (result.outcomes[:, malformed] == 1).all() and (result.traces.outcome == malformed).all()
    assert (tokens[:, :, 0] == TASK.sep).all() and (tokens[:, :, 1:] == -1).all()
