"""Rollouts against exact on random automata, whose probabilities are spread over (0, 1), and against planted errors.

Statistical tests have fixed seeds. Under the null, with seeds drawn anew, a KS p-value is below 1e-4 with
probability 1e-4, and |z| above 4.5 with probability 7e-6: together below 2e-3 for the whole file.
"""

import copy
import math

import numpy as np
import pytest
import torch

import minifork.decoding.rollout as rollouts
from data_gen import star
from minifork.decoding.exact import exact
from minifork.decoding.philox import uniform
from minifork.decoding.policy import parse
from minifork.decoding.rollout import rollout
from minifork.decoding.split import split
from minifork.decoding.traces import Tree
from minifork.gpt import Rows
from minifork.settings import Shape
from minifork.statistics import agreement
from tests.helpers.engines import KS_LEVEL, SINKS, TASK, Z, ends, normal_of_chi_square, sample, star_case

VOCAB, LIVE, RANDOM_SINKS, LONGEST = 8, 6, 3, 5
PROBLEMS, N, MANY = 200, 64, 512  # MANY where a sampler is broken and must be caught


@pytest.fixture(scope="module")
def random_case(make_model):
    """A random model and 200 random automata: six live states, three sinks, half the moves lead to a sink."""
    rng = np.random.default_rng(1)
    states = LIVE + RANDOM_SINKS
    live, dead = rng.integers(LIVE, size=(2, PROBLEMS, LIVE, VOCAB)), rng.integers(3, size=(PROBLEMS, LIVE, VOCAB))
    table = np.where(rng.random((PROBLEMS, LIVE, VOCAB)) < 0.5, live[0], LIVE + dead)
    sinks = np.broadcast_to(np.arange(LIVE, states)[:, None], (PROBLEMS, RANDOM_SINKS, VOCAB))
    dfa = torch.from_numpy(np.concatenate([table, sinks], axis=1))
    model = make_model(2, Shape(1, 16, 2), VOCAB, 6 + LONGEST, scale=0.5)
    with torch.no_grad():
        prompts = model.prefill(torch.from_numpy(rng.integers(VOCAB, size=(PROBLEMS, 6))))
    p = ends(model, prompts, dfa, RANDOM_SINKS, LONGEST)
    assert p[:, 0].std() > 0.1
    return model, prompts, dfa, p


def roll(case, n: int = N, seed: int = 3, model=None) -> np.ndarray:
    counts = sample(model or case[0], case[1], case[2], RANDOM_SINKS, LONGEST, n, seed)
    assert (counts.sum(axis=1) == n).all() and (counts >= 0).all()
    return counts


def ks_of_sinks(counts: np.ndarray, p: np.ndarray) -> list[float]:
    n, rng = int(counts[0].sum()), np.random.default_rng(4)
    return [agreement.ks_uniform(agreement.randomised_pit(counts[:, s], n, p[:, s], rng)) for s in range(p.shape[1])]


def test_rollouts_agree_with_exact(random_case):
    """Six KS tests, three with few and three with many rollouts: false alarms below 6e-4."""
    p = random_case[3]
    for n in (N, MANY):
        counts = roll(random_case, n)
        assert min(ks_of_sinks(counts, p)) > KS_LEVEL
        deviation = (counts - n * p).sum(axis=0) / np.sqrt((n * p * (1 - p)).sum(axis=0))
        assert (np.abs(deviation) < Z).all()


def test_rollouts_agree_with_exact_on_stars(make_model):
    """The real automata under forced variety: five sinks that a random model reaches."""
    model, _, _, prompts, dfa = star_case(make_model, n=150, scale=0.25)
    p = ends(model, prompts, dfa, SINKS, TASK.trace_len)
    counts = sample(model, prompts, dfa, SINKS, TASK.trace_len, 40, seed=7)
    assert (counts.sum(axis=1) == 40).all() and (counts.sum(axis=0) > 0).sum() >= 4
    reached = p.mean(axis=0) > 1e-3
    assert min(ks_of_sinks(counts[:, reached], p[:, reached]) if reached.all() else [1.0]) > KS_LEVEL
    deviation = (counts - 40 * p).sum(axis=0)[reached] / np.sqrt((40 * p * (1 - p)).sum(axis=0)[reached])
    assert (np.abs(deviation) < Z).all()


def test_seeds_differ_and_repeat(random_case):
    case = random_case[0], random_case[1][:40], random_case[2][:40]
    first = roll(case)
    assert np.array_equal(first, roll(case))
    assert (first != roll(case, seed=4)).mean() > 0.5
    assert (first != roll(case, seed=3 + 2**32)).mean() > 0.5


def test_a_broadcast_first_token_is_caught(random_case, monkeypatch):
    """The famous bug: one first token a problem, copied to all of its rollouts."""

    def broadcast(seed, rollout_id, step, problem, purpose):
        return uniform(seed, rollout_id if step else torch.zeros_like(rollout_id), step, problem, purpose)

    monkeypatch.setattr(rollouts, "uniform", broadcast)
    assert min(ks_of_sinks(roll(random_case, MANY), random_case[3])) < 1e-6


def test_one_draw_for_all_steps_is_caught(random_case, monkeypatch):
    monkeypatch.setattr(
        rollouts, "uniform", lambda seed, row, step, problem, purpose: uniform(seed, row, 0, problem, 0)
    )
    assert min(ks_of_sinks(roll(random_case, MANY), random_case[3])) < 1e-6


def test_one_draw_for_all_problems_is_caught(random_case, monkeypatch):
    """Margins are right and only the dependence is wrong, which shows in sums over problems and not in PIT."""
    monkeypatch.setattr(
        rollouts,
        "uniform",
        lambda seed, row, step, problem, purpose: uniform(seed, row, step, torch.zeros_like(row), 0),
    )
    case = random_case[0], random_case[1][:1], random_case[2][:1], random_case[3][:1]
    same = sample(case[0], repeat(case[1], 50), case[2].expand(50, -1, -1), RANDOM_SINKS, LONGEST, N, 3)
    assert (same == same[0]).all()
    monkeypatch.undo()
    apart = sample(case[0], repeat(case[1], 50), case[2].expand(50, -1, -1), RANDOM_SINKS, LONGEST, N, 3)
    assert not (apart == apart[0]).all()


def repeat(prompts, n: int):
    return type(prompts)(prompts.logits.repeat(n, 1), prompts.k.repeat(1, n, 1, 1, 1), prompts.v.repeat(1, n, 1, 1, 1))


def test_off_by_one_positions_are_caught(random_case):
    """A decoder that puts every suffix token one position too far."""
    model = copy.deepcopy(random_case[0])
    with torch.no_grad():
        model.position.weight[6:-1] = random_case[0].position.weight[7:]
    assert min(ks_of_sinks(roll(random_case, MANY, model=model), random_case[3])) < 1e-6


def test_first_tokens_are_independent(make_model):
    """With a sink for each first token the counts are multinomial in every problem: chi-square over 60 problems."""
    model, _, _, prompts, _ = star_case(make_model, n=60)
    vocab, n = TASK.vocab_size, 400
    one_step = torch.arange(vocab).add(1).expand(60, 1 + vocab, vocab).clone()
    one_step[:, 1:] = torch.arange(1, vocab + 1)[:, None]
    counts = sample(model, prompts, one_step, vocab, 1, n, seed=1)
    expected = n * torch.softmax(prompts.logits.double(), dim=1).numpy()
    common = expected > 5
    merged = np.where(common, 0, expected).sum(axis=1), np.where(common, 0, counts).sum(axis=1)
    chi_square = ((counts - expected) ** 2 / expected)[common].sum()
    rare = merged[0] > 5
    chi_square += ((merged[1] - merged[0]) ** 2 / np.maximum(merged[0], 1e-9))[rare].sum()
    freedom = int(common.sum() + rare.sum() - 60)
    assert normal_of_chi_square(chi_square, freedom) < Z


@pytest.mark.parametrize("rows", [1, 7, 32, 100, 10**6])
def test_rollouts_do_not_depend_on_rows_in_flight(random_case, monkeypatch, rows):
    """Up to draws that rounding carries over a boundary: less than one expected in 1,000 runs of this test."""
    model, prompts, dfa = random_case[0], random_case[1][:12], random_case[2][:12]
    expected = sample(model, prompts, dfa, RANDOM_SINKS, LONGEST, 32, 5)
    monkeypatch.setattr(rollouts, "ROWS", rows)
    counts = sample(model, prompts, dfa, RANDOM_SINKS, LONGEST, 32, 5)
    assert np.abs(counts - expected).sum() <= 2


def test_rollouts_do_not_depend_on_chunks_of_problems(random_case):
    model, prompts, dfa = random_case[:3]
    expected = sample(model, prompts[:30], dfa[:30], RANDOM_SINKS, LONGEST, 20, 5)
    parts = [
        sample(model, prompts[a:b], dfa[a:b], RANDOM_SINKS, LONGEST, 20, 5, first=a)
        for a, b in [(0, 1), (1, 11), (11, 30)]
    ]
    assert np.abs(np.concatenate(parts) - expected).sum() <= 2
    elsewhere = sample(model, prompts[:30], dfa[:30], RANDOM_SINKS, LONGEST, 20, 5, first=30)
    assert np.abs(elsewhere - expected).sum() > 20


def test_more_rollouts_go_on_from_fewer(random_case):
    """The first n of m > n rollouts are the n rollouts: each is a function of its own number."""
    fewer, more = roll(random_case, 16), roll(random_case, 40)
    assert (more - fewer >= -1).all() and (more - fewer).min(axis=1).sum() >= -2


def test_rollout_length_limit(make_model):
    """At a limit of one token the modes go to the last sink."""
    model, _, _, prompts, dfa = star_case(make_model, n=20)
    counts = sample(model, prompts, dfa, SINKS, 1, 50, seed=0)
    assert counts[:, [0, *range(2, SINKS - 1)]].sum() == 0
    p = ends(model, prompts, dfa, SINKS, 1)[:, -1]
    z = (counts[:, -1].sum() - 50 * p.sum()) / math.sqrt(50 * (p * (1 - p)).sum())
    assert counts[:, -1].sum() > 0 and abs(z) < Z


@pytest.mark.parametrize("n", [0, -3])
def test_no_rollouts_are_refused(random_case, n):
    with pytest.raises(ValueError, match=f"n is {n}"):
        sample(random_case[0], random_case[1], random_case[2], RANDOM_SINKS, LONGEST, n, 0)


# what rollouts can tell besides counts


def test_lengths_agree(random_case):
    """Mean lengths by sink: exact within five standard errors of split's and rollout's; lengths add up."""
    model, prompts, dfa, _ = random_case
    tree = Tree(model, prompts, dfa, RANDOM_SINKS, LONGEST)
    computed, n = exact(tree), 2000
    mean = computed.tokens.sum(axis=1)
    for sampled in (split(tree, n, 3), rollout(tree, n, 3)):
        error = LONGEST / 2 / math.sqrt(n)  # the standard error of a length is at most this
        assert np.abs(sampled.tokens.sum(axis=1) - mean).max() < 5 * error
        assert abs((sampled.tokens.sum(axis=1) - mean).mean()) < 5 * error / math.sqrt(len(tree))
        assert (sampled.tokens >= sampled.ends - 1e-9).all()
        assert (sampled.tokens <= LONGEST * sampled.ends + 1e-9).all()
    assert (mean > 1).all() and (mean <= LONGEST + 1e-9).all()


@pytest.mark.parametrize("decoder", ["temperature=1", "temperature=0.5,top_k=3"])
def test_traces(random_case, decoder):
    """Tokens lead to the sink, -1 follows, log-probabilities are those of the policy on the training path."""
    model, prompts, dfa, _ = random_case
    tree = Tree(model, prompts[:20], dfa[:20], RANDOM_SINKS, LONGEST, parse(decoder))
    result = rollout(tree, 30, 1, traces=True)
    plain = rollout(tree, 30, 1)
    assert plain.traces is None and np.array_equal(plain.ends, result.ends)
    tokens, logp, sink = result.traces.tokens, result.traces.logp, result.traces.sink
    for problem in range(20):
        counted = np.bincount(sink[problem].numpy(), minlength=RANDOM_SINKS)
        assert np.array_equal(counted, np.rint(result.ends[problem] * 30).astype(int))
        lengths = (tokens[problem] >= 0).sum(dim=1).numpy()
        total = np.bincount(sink[problem].numpy(), weights=lengths, minlength=RANDOM_SINKS)
        np.testing.assert_allclose(result.tokens[problem] * 30, total)
        for trace, end, each in zip(tokens[problem].tolist(), sink[problem].tolist(), logp[problem], strict=True):
            state, drawn = 0, [token for token in trace if token >= 0]
            for token in drawn:
                assert state < tree.first_sink
                state = int(dfa[problem, state, token])
            assert trace[len(drawn) :] == [-1] * (LONGEST - len(drawn)) and (each[len(drawn) :] == 0).all()
            expected = state - tree.first_sink if state >= tree.first_sink else RANDOM_SINKS - 1
            assert end == expected and (state >= tree.first_sink or len(drawn) == LONGEST)
            rows = Rows(prompts[problem : problem + 1], torch.tensor([0]), LONGEST)
            logits = prompts.logits[problem : problem + 1]
            for step, token in enumerate(drawn):
                want = torch.log_softmax(tree.policy(logits), dim=1)[0, token]
                assert abs(float(want - each[step])) < 1e-4
                with torch.no_grad():
                    logits = model.decode(torch.tensor([token]), rows) if step < LONGEST - 1 else logits


def test_traces_begin_with_the_forced_tokens(make_model):
    model, problems, _, prompts, dfa = star_case(make_model, n=6)
    fork = torch.from_numpy(TASK.fork_prefix(problems))
    tree = Tree(model, prompts, dfa, SINKS, TASK.trace_len, forced=fork)
    traces = rollout(tree, 9, 0, traces=True).traces
    assert (traces.tokens[:, :, :2] == fork[:, None]).all() and (traces.logp[:, :, :2] == 0).all()
    wrong = torch.full((6, 3), TASK.sep)
    result = rollout(tree.force(wrong), 9, 0, traces=True)
    assert (result.ends[:, star.SINKS.index("malformed")] == 1).all()
    assert (result.traces.tokens[:, :, 0] == TASK.sep).all() and (result.traces.tokens[:, :, 1:] == -1).all()
    assert (result.traces.sink == star.SINKS.index("malformed")).all()


@pytest.mark.parametrize("decoder", ["temperature=0.7,top_p=0.9", "top_k=2", "min_p=0.3", "top_n_sigma=1", "greedy"])
def test_rollouts_follow_every_policy(random_case, decoder):
    """Each KS test has level 1e-4; what exact gives no mass is never drawn."""
    model, prompts, dfa, _ = random_case
    tree = Tree(model, prompts, dfa, RANDOM_SINKS, LONGEST, parse(decoder))
    p, counts = exact(tree).ends, np.rint(rollout(tree, N, 2).ends * N).astype(int)
    assert (counts[p == 0] == 0).all()
    assert min(ks_of_sinks(counts, p)) > KS_LEVEL
