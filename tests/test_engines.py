"""The engines for pass@k: Philox, draws, exact enumeration, rollouts, and each against the others.

Statistical tests have fixed seeds. Under the null, with seeds drawn anew, a KS p-value is below 1e-4 with
probability 1e-4, and |z| above 4.5 with probability 7e-6: together below 2e-3 for the whole file.
"""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minifork.rollout as rollouts
from data_gen import star, streams
from data_gen.star import Star
from minifork import agree
from minifork.config import Shape
from minifork.exact import exact
from minifork.model import Rows
from minifork.philox import philox4x32, uniform
from minifork.policy import parse
from minifork.rollout import draw, rollout
from minifork.split import split
from minifork.tree import Tree

TASK = Star(nodes=8, branches=2, length=3)
SINKS = len(star.SINKS)
Z, KS_LEVEL = 4.5, 1e-4
WORD = 0xFFFFFFFF
BELOW_1 = 1 - 2.0**-24


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


# Philox

KNOWN_ANSWERS = [  # philox4x32-10 of the Random123 distribution (kat_vectors): counter, key, output
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_philox_known_answers(counter, key, output):
    counter = [torch.tensor([word, 0]) for word in words(counter)]
    assert [int(word[0]) for word in philox4x32(counter, tuple(words(key)))] == words(output)


def philox_in_python(counter: list[int], key: list[int]) -> list[int]:
    """The same function on Python's unbounded integers."""
    (a, b, c, d), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(a * 0xD2511F53, 1 << 32)
        high1, low1 = divmod(c * 0xCD9E8D57, 1 << 32)
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return [a, b, c, d]


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, WORD), min_size=4, max_size=4), st.integers(0, 2**64 - 1))
def test_philox_on_any_words(counter, seed):
    key = [seed & WORD, seed >> 32]
    expected = philox_in_python(counter, key)
    assert [int(word) for word in philox4x32([torch.tensor(word) for word in counter], tuple(key))] == expected
    rollout_id, step, problem, purpose = counter
    u = uniform(seed, torch.tensor([rollout_id]), step, torch.tensor([problem]), purpose)
    assert u.dtype == torch.float32 and u.item() == (expected[0] >> 8) / 2**24


def test_uniform_is_uniform_and_on_its_grid():
    n = 20_000
    ids = torch.arange(n)
    streams_of_draws = [
        uniform(0, ids, 0, torch.zeros_like(ids), 0),  # over rollouts
        uniform(0, torch.zeros_like(ids), 3, ids, 0),  # over problems
        uniform(5, ids // 100, 2, ids % 100, 1),  # over both
    ]
    for u in streams_of_draws:
        assert 0 <= u.min() and u.max() < 1
        assert torch.equal(u.double() * 2**24, torch.floor(u.double() * 2**24))
        assert agree.ks_uniform(u.double().numpy()) > KS_LEVEL
        serial = np.corrcoef(u[1:].numpy(), u[:-1].numpy())[0, 1]
        assert abs(serial) * math.sqrt(n) < Z
    first, second, third = (u.numpy() for u in streams_of_draws)
    for a, b in itertools.combinations((first, second, third), 2):
        assert abs(np.corrcoef(a, b)[0, 1]) * math.sqrt(n) < Z


# draw


def test_draw_is_the_inverse_cdf():
    """Probabilities 1/8 1/8 1/4 0 1/2: exact boundaries, each belonging to the token above it."""
    logits = torch.tensor([1.0, 1.0, 2.0, 0.0, 4.0]).log() + 3.0
    cases = [(0, 0), (0.124, 0), (0.126, 1), (0.249, 1), (0.251, 2), (0.499, 2), (0.501, 4), (0.99, 4), (BELOW_1, 4)]
    u = torch.tensor([u for u, _ in cases])
    assert draw(logits.expand(len(cases), 5), u).tolist() == [token for _, token in cases]


def test_draw_on_exact_boundaries():
    equal = torch.zeros(4, 4)
    assert draw(equal, torch.tensor([0.0, 0.25, 0.5, 0.75])).tolist() == [0, 1, 2, 3]
    below = torch.tensor([0.25, 0.5, 0.75, 1.0]) - 2.0**-24
    assert draw(equal, below).tolist() == [0, 1, 2, 3]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.one_of(st.just(-math.inf), st.floats(-20, 20, width=32)), min_size=1, max_size=9).filter(
        lambda row: max(row) > -math.inf
    ),
    st.integers(0, 2**24 - 1),
)
def test_draw_never_draws_the_impossible(row, grid):
    u = grid / 2**24
    for at in (0.0, u, BELOW_1):
        token = draw(torch.tensor([row]), torch.tensor([at])).item()
        assert row[token] > -math.inf
        weights = np.exp(np.array(row) - max(row))
        share = np.concatenate([[0], np.cumsum(weights)]) / weights.sum()
        assert share[token] - 1e-6 <= at <= share[token + 1] + 1e-6
    possible = [i for i, logit in enumerate(row) if logit > -math.inf]
    assert draw(torch.tensor([row]), torch.tensor([0.0])).item() == possible[0]


def test_draw_has_the_right_frequencies():
    logits = torch.tensor([0.3, -1.0, -math.inf, 2.0, 0.0, 1.1, -3.0])
    n = 100_000
    ids = torch.arange(n)
    tokens = draw(logits.expand(n, 7), uniform(11, ids, 0, torch.zeros_like(ids), 0))
    counts = np.bincount(tokens.numpy(), minlength=7)
    expected = n * torch.softmax(logits.double(), dim=0).numpy()
    assert counts[2] == 0
    possible = expected > 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert abs(normal_of_chi_square(chi_square, int(possible.sum()) - 1)) < Z


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


# exact, on star problems


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


@torch.no_grad()
def teacher_forced(model, prompt: torch.Tensor, problems, forward: bool) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the FWD or REV trace, free and given its mode, by the training path."""
    trace = torch.from_numpy(TASK.traces(problems, 1 - np.full(len(problems), forward)))
    logits = model(torch.cat([prompt, trace], dim=1)[:, :-1]).double()
    each = torch.log_softmax(logits[:, -trace.shape[1] :], dim=2).gather(2, trace[..., None])[..., 0]
    return each.sum(dim=1).exp().numpy(), each[:, 1:].sum(dim=1).exp().numpy()


@pytest.mark.parametrize("scale", [0.02, 0.15, 0.3])
def test_exact_is_brute_force(make_model, scale):
    model, problems, prompt, prompts, dfa = star_case(make_model, scale=scale)
    n = len(problems)
    free = ends(model, prompts, dfa, SINKS, TASK.trace_len)
    assert free.shape == (n, SINKS) and (free >= 0).all()
    np.testing.assert_allclose(free.sum(axis=1), 1, atol=1e-9)
    fwd, fwd_given = teacher_forced(model, prompt, problems, True)
    rev, rev_given = teacher_forced(model, prompt, problems, False)
    np.testing.assert_allclose(free[:, 0], fwd + rev, rtol=1e-4)
    for mode, given_mode in (("FWD", fwd_given), ("REV", rev_given)):
        values = ends(model, prompts, dfa, SINKS, TASK.trace_len, forced(n, mode))
        np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-9)
        np.testing.assert_allclose(values[:, 0], given_mode, rtol=1e-4)


def test_exact_is_the_mixture_of_its_first_tokens(make_model):
    """free = sum over first tokens of P(token) times the sinks under that forced token, for every sink."""
    model, problems, _, prompts, dfa = star_case(make_model)
    n = len(problems)
    free = ends(model, prompts, dfa, SINKS, TASK.trace_len)
    first = torch.softmax(prompts.logits.double(), dim=1).numpy()
    mixture = np.zeros_like(free)
    for token in range(TASK.vocab_size):
        given_token = ends(model, prompts, dfa, SINKS, TASK.trace_len, torch.full((n, 1), token))
        mixture += first[:, token, None] * given_token
    np.testing.assert_allclose(free, mixture, atol=1e-7)


def test_exact_forces_several_tokens(make_model):
    """Forced to the fork, the rest of the right branch is what remains; forced past an error, so is the error."""
    model, problems, prompt, prompts, dfa = star_case(make_model)
    n = len(problems)
    trace = torch.from_numpy(TASK.traces(problems, 1 - np.ones(n, dtype=bool)))
    with torch.no_grad():
        logits = model(torch.cat([prompt, trace], dim=1)[:, :-1]).double()[:, -trace.shape[1] :]
    each = torch.softmax(logits, dim=2).gather(2, trace[..., None])[..., 0].numpy()
    for length in range(1, TASK.trace_len):
        values = ends(model, prompts, dfa, SINKS, TASK.trace_len, trace[:, :length])
        np.testing.assert_allclose(values[:, 0], each[:, length:].prod(axis=1), rtol=1e-4)
    wrong = torch.from_numpy(np.stack([trace[:, 0], trace[:, 1], TASK.children(problems)[:, 1]], axis=1))
    values = ends(model, prompts, dfa, SINKS, TASK.trace_len, wrong)
    np.testing.assert_allclose(values[:, star.SINKS.index("wrong_branch")], 1, atol=1e-9)


def test_exact_sinks_are_brute_force(make_model):
    """Every sink, on two problems of the smallest task, against all token sequences up to the limit."""
    task = Star(nodes=3, branches=2, length=2)
    problems = task.sample(np.random.default_rng(3), 2)
    model = make_model(5, Shape(1, 16, 2), task.vocab_size, task.prompt_len + task.trace_len)
    prompt = torch.from_numpy(task.prompts(problems))
    dfa = task.dfa(problems)
    expected = np.zeros((2, SINKS))
    for i in range(2):
        live = {(): 1.0}
        for _ in range(task.trace_len):
            longer = {}
            for prefix, mass in live.items():
                with torch.no_grad():
                    logits = model(torch.cat([prompt[i], torch.tensor(prefix, dtype=torch.int64)])[None])[0, -1]
                for token, p in enumerate(torch.softmax(logits.double(), dim=0).tolist()):
                    state = dfa.run(i, [*prefix, token])
                    if state >= dfa.first_sink:
                        expected[i, state - dfa.first_sink] += mass * p
                    else:
                        longer[(*prefix, token)] = mass * p
            live = longer
        assert not live
    with torch.no_grad():
        prompts = model.prefill(prompt)
    values = ends(model, prompts, torch.from_numpy(dfa.next.astype(np.int64)), SINKS, task.trace_len)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert (expected > 0).all(axis=0)[: SINKS - 1].all()


def test_exact_does_not_depend_on_batch_order_or_threads(make_model, threads):
    model, problems, prompt, prompts, dfa = star_case(make_model)
    n = len(problems)
    threads(1)
    together = ends(model, prompts, dfa, SINKS, TASK.trace_len)
    order = np.random.default_rng(0).permutation(n)
    with torch.no_grad():
        shuffled = ends(model, model.prefill(prompt[order]), dfa[order], SINKS, TASK.trace_len)
        alone = [ends(model, model.prefill(prompt[i : i + 1]), dfa[i : i + 1], SINKS, TASK.trace_len) for i in range(5)]
    some = ends(model, prompts[3:14], dfa[3:14], SINKS, TASK.trace_len)
    threads(2)
    two_threads = ends(model, prompts, dfa, SINKS, TASK.trace_len)
    np.testing.assert_allclose(shuffled, together[order], atol=1e-6)
    np.testing.assert_allclose(np.concatenate(alone), together[:5], atol=1e-6)
    np.testing.assert_allclose(some, together[3:14], atol=1e-6)
    np.testing.assert_allclose(two_threads, together, atol=1e-6)


@pytest.mark.parametrize("n", [1, 7, 64])
def test_rollouts_do_not_depend_on_threads(make_model, threads, n):
    """Their tokens; log-probabilities to rounding, as matrix products are cut up otherwise."""
    model = make_model(0, Shape(2, 64, 2), 12, 14)
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(12, (5, 8), generator=generator)
    dfa = torch.randint(6, (5, 6, 12), generator=generator)
    dfa[:, 4:] = torch.arange(4, 6)[:, None]
    found = []
    for count in (1, 2, 3):
        threads(count)
        with torch.no_grad():
            found.append(
                rollout(
                    Tree(model, model.prefill(prompts), dfa, 2, 6, parse("temperature=1")), n, 1, traces=True
                ).traces
            )
    for one in found[1:]:
        assert torch.equal(one.tokens, found[0].tokens) and torch.allclose(one.logp, found[0].logp, atol=1e-5)


def test_exact_length_limit(make_model):
    """What still lives at the limit goes to the last sink, and only that."""
    model, _, _, prompts, dfa = star_case(make_model)
    full = ends(model, prompts, dfa, SINKS, TASK.trace_len)
    modes = torch.softmax(prompts.logits.double(), dim=1)[:, [TASK.fwd, TASK.rev]].sum(dim=1).numpy()
    one = ends(model, prompts, dfa, SINKS, 1)
    np.testing.assert_allclose(one[:, -1], modes, atol=1e-9)
    np.testing.assert_allclose(one[:, 1], 1 - modes, atol=1e-9)
    short = ends(model, prompts, dfa, SINKS, TASK.trace_len - 1)
    np.testing.assert_allclose(short.sum(axis=1), 1, atol=1e-9)
    assert (short[:, 0] == 0).all() and (full[:, 0] > 0).all()
    early, late = star.SINKS.index("early_stop"), star.SINKS.index("too_long")
    for sink in set(range(1, SINKS)) - {early, late}:
        assert (short[:, sink] <= full[:, sink] + 1e-9).all()
    longer = ends(model, prompts, dfa, SINKS, TASK.trace_len + 1)  # nothing lives that long
    np.testing.assert_array_equal(longer, full)


def poisoned(prompts, problem: int):
    logits = prompts.logits.clone()
    logits[problem, 2] = math.nan
    return type(prompts)(logits, prompts.k, prompts.v)


def test_nan_logits_are_refused(make_model):
    model, _, _, prompts, dfa = star_case(make_model)
    with pytest.raises(ValueError, match="problem 17"):
        ends(model, poisoned(prompts, 17), dfa, SINKS, TASK.trace_len)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.position.weight[TASK.prompt_len + 1] = math.nan
    with pytest.raises(ValueError, match="problem 0"):
        ends(broken, prompts, dfa, SINKS, TASK.trace_len)


def test_nan_logits_are_refused_by_rollouts(make_model):
    """A sampler that draws something from not-a-number logits reports a healthy 0 instead of a broken model."""
    model, _, _, prompts, dfa = star_case(make_model)
    with pytest.raises(ValueError, match="problem 17"):
        sample(model, poisoned(prompts, 17), dfa, SINKS, TASK.trace_len, 4, seed=0)


# rollouts against exact, on random automata, whose probabilities are spread over (0, 1)

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
    return [agree.ks_uniform(agree.randomised_pit(counts[:, s], n, p[:, s], rng)) for s in range(p.shape[1])]


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
    known, n = exact(tree), 2000
    mean = known.tokens.sum(axis=1)
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
