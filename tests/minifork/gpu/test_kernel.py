"""The fused kernel's source, run by its host twin, against torch.

Nothing here needs a GPU. Tests of the twin need g++.
Statistical tests have fixed seeds and a level of 1e-4 each.
"""

import ctypes
import math
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from minifork.decoding.automata import Tables
from minifork.decoding.philox import uniform
from minifork.decoding.policy import parse_policy
from minifork.decoding.rollout import SAMPLE, rollout
from minifork.decoding.traces import TraceTree
from minifork.gpu import backends, kernel
from minifork.gpu.kernel import Build, UnavailableError
from minifork.settings import Shape
from minifork.statistics import agreement
from tests.helpers.engines import CASES, POLICIES, make_tree, poisoned, random_case
from tests.helpers.host_twin import Twin

BUILD = Build(64, 4, 1, 7, 3, 2, 64, 0)
ORDERS = ["forward", "reversed", "shuffled"]


def force(tree: TraceTree, length: int) -> TraceTree:
    """The same tree, forced to random tokens."""
    shape = len(tree), length
    return tree.force(torch.from_numpy(np.random.default_rng(1).integers(tree.model.vocab_size, size=shape)))


def run(twin, tree, n, case, bf16=False, seed=3):
    return kernel.run_kernel(tree, n, seed, twin, CASES[case][-1], bf16, traces=True)


def bits(result) -> list[bytes]:
    traces = [tensor.numpy().tobytes() for tensor in vars(result.traces).values()]
    return [result.outcomes.tobytes(), result.tokens.tobytes(), *traces]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("policy", POLICIES)
def test_fp32_follows_the_fp64_model(make_model, twin, case, policy):
    tree, prompts = random_case(make_model, CASES[case], 4, policy)
    assert_follows(make_model, tree, prompts, run(twin, tree, 5, case).traces)


def assert_follows(make_model, tree, prompts, traces):
    """On the kernel's own traces, step by step: log-probabilities are within 5e-4 of fp64, each draw is the token in
    whose stretch of the cumulative distribution u lies, or within 1e-4 of it."""
    model = make_model(0, tree.model.shape, tree.model.vocab_size, tree.model.context, scale=0.15).double()
    for problem, number in product(*map(range, traces.tokens.shape[:2])):
        trace = traces.tokens[problem, number]
        trace = trace[trace >= 0]
        with torch.no_grad():
            logits = model(torch.cat([prompts[problem], trace[:-1]])[None])[0, len(prompts[problem]) - 1 :]
        p = torch.softmax(tree.policy(logits).double(), dim=1)
        chosen = p.gather(1, trace[:, None])[:, 0]
        assert (traces.logp[problem, number, : len(trace)] - chosen.log()).abs().max() < 5e-4
        key = torch.tensor([number]), torch.tensor([problem])
        u = torch.cat([uniform(3, key[0], step, key[1], SAMPLE) for step in range(len(trace))])
        above = p.cumsum(dim=1).gather(1, trace[:, None])[:, 0]
        assert (above - chosen - 1e-4 <= u).all() and (u <= above + 1e-4).all()


@st.composite
def shapes(draw):
    """Anything that the kernel takes, as CASES has it (but for what only makes the test slow)."""
    width = draw(st.sampled_from(kernel.WIDTHS))
    heads = width // draw(st.sampled_from(kernel.HEAD_SIZES))
    vocab, prompt, steps = draw(st.integers(2, 256)), draw(st.integers(1, 40)), draw(st.integers(1, 8))
    return Shape(draw(st.integers(1, 2)), width, heads), vocab, prompt, steps, draw(st.sampled_from(kernel.TILES))


@settings(max_examples=4, deadline=None, derandomize=True, database=None)
@given(shapes(), st.integers(1, 4), st.integers(1, 9))
def test_fp32_follows_the_fp64_model_at_any_shape(make_model, twin, case, problems, n):
    tree, prompts = random_case(make_model, case, problems)
    kernel.require_supported(tree)
    assert_follows(make_model, tree, prompts, kernel.run_kernel(tree, n, 3, twin, case[-1], False, traces=True).traces)


@pytest.mark.parametrize(
    ("case", "problems", "n", "forced"),  # tiles that are full, filled again, and not full
    [
        *((case, 12, 20, 0) for case in CASES),
        *(("narrow", *size, 0) for size in [(1, 1), (1, 17), (3, 32), (2, 33), (1, 129)]),
        ("reference", 8, 12, 2),
    ],
)
def test_fp32_is_the_torch_engine(make_model, twin, case, problems, n, forced):
    """Ends, lengths, traces: all alike (a draw on a boundary could differ; with these seeds none does)."""
    tree = force(make_tree(make_model, case, problems), forced)
    fused, plain = run(twin, tree, n, case), rollout(tree, n, 3, traces=True)
    assert np.array_equal(fused.outcomes, plain.outcomes) and np.array_equal(fused.tokens, plain.tokens)
    for name in ("tokens", "outcome"):
        assert torch.equal(getattr(fused.traces, name), getattr(plain.traces, name))
    assert (fused.traces.logp - plain.traces.logp).abs().max() < 1e-4 and (fused.traces.logp[:, :, :forced] == 0).all()
    assert (forced or fused.evaluated == plain.evaluated) and fused.n == n and (fused.unknown == 0).all()


@pytest.mark.parametrize("forced", [0, 2])
@pytest.mark.parametrize(("bf16", "atol", "mean"), [(False, 5e-4, 1e-5), (True, 0.3, 0.02)])
def test_scores(make_model, twin, bf16, atol, mean, forced):
    """Teacher-forced log-probabilities: those it sampled with, and torch's up to the precision; -1 ends a trace.

    A trace without tokens scores 0, and the scores of other traces do not depend on it.
    """
    tree = force(make_tree(make_model, "reference", 5, "temperature=0.8"), forced)
    traces = run(twin, tree, 12, "reference", bf16).traces
    scored = kernel.score(tree, traces.tokens, twin, 32, bf16)
    np.testing.assert_allclose(scored, traces.logp, atol=1e-6)
    error = (scored - backends.teacher_forced(tree, traces.tokens)).abs()
    assert error.max() < atol and error.mean() < mean
    assert (scored[traces.tokens < 0] == 0).all() and (scored[:, :, :forced] == 0).all()
    traces.tokens[:, ::3], scored[:, ::3] = -1, 0
    assert torch.equal(kernel.score(tree, traces.tokens, twin, 32, bf16), scored)
    assert (backends.teacher_forced(tree, traces.tokens)[:, ::3] == 0).all()


def test_bf16_samples_as_it_scores(make_model, twin):
    """Counts of every first two tokens follow the probabilities that the same arithmetic scores (one chi-squared)."""
    tree = make_tree(make_model, "narrow", 6)
    vocab, n = tree.model.vocab_size, 1500
    tree = replace(
        tree, automata=Tables(torch.zeros_like(tree.dfa), tree.outcome_count)
    )  # every trace is two tokens long
    pairs = torch.tensor(list(product(range(vocab), repeat=2))).expand(6, -1, -1)
    p = kernel.score(tree, pairs.contiguous(), twin, 64, True).sum(dim=2).exp().numpy()
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    tokens = kernel.run_kernel(tree, n, 1, twin, 64, True, traces=True).traces.tokens.numpy()
    counts = np.stack([np.bincount(t[:, 0] * vocab + t[:, 1], minlength=vocab**2) for t in tokens])
    pits = agreement.randomised_pit(counts.ravel(), n, p.ravel(), np.random.default_rng(0))
    assert agreement.uniform_p(pits) > 1e-4


def test_logits_that_are_not_finite(make_model, twin):
    tree = make_tree(make_model, "narrow", 9)
    with pytest.raises(ValueError, match="problem 7: the model's logits are not finite"):
        run(twin, poisoned(tree, 7), 4, "narrow")
    with torch.no_grad():
        tree.model.token.weight.fill_(math.inf)
    with pytest.raises(ValueError, match="problem [0-8]: the model's logits are not finite"):
        run(twin, tree, 4, "narrow")


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_bits_do_not_depend_on_the_order_of_threads(make_model, twin, case, bf16):
    tree = make_tree(make_model, case, 3, "temperature=1.2,top_p=0.95")
    forward = bits(run(twin, tree, 27, case, bf16))
    assert all(bits(run(replace(twin, order=order), tree, 27, case, bf16)) == forward for order in ORDERS[1:])


@pytest.mark.parametrize("bf16", [False, True])
def test_bits_do_not_depend_on_the_tiling(make_model, twin, bf16):
    tree = make_tree(make_model, "narrow", 5)
    first = bits(run(replace(twin, tiles=1), tree, 13, "narrow", bf16))
    for tiles in (3, 66):  # more blocks than rollouts, too
        assert bits(run(replace(twin, tiles=tiles), tree, 13, "narrow", bf16)) == first
    for rows in (16, 32):
        assert bits(kernel.run_kernel(tree, 13, 3, twin, rows, bf16, traces=True)) == first


RACES = [  # two neighbouring phases, and both in one
    (r"PHASE\(norm_sums\(tile, tid\)\)\s+PHASE\(norm", "PHASE(norm_sums(tile, tid); norm"),
    (
        r"PRODUCT\(queries_keys_values\(tile, args, w, layer, WORKER\)\)\s+PHASE\(attend",
        "PHASE(queries_keys_values(tile, args, w, layer, tid); attend",
    ),
]


@pytest.mark.parametrize("race", RACES)
def test_a_planted_race_is_caught(make_model, twin, race):
    """Where a phase runs on without a barrier into the next, not all orders of threads give the right bits."""
    tree, planted = make_tree(make_model, "narrow", 3, "temperature=0.5"), re.sub(*race, twin.source)
    assert planted != twin.source

    def outcome(twin) -> list[bytes] | str:
        try:
            return bits(run(twin, tree, 40, "narrow"))
        except ValueError as error:  # NaN
            return str(error)

    clean = outcome(twin)
    assert any(outcome(replace(twin, order=order, source=planted)) != clean for order in ORDERS[:2])


UNWRITTEN = [
    ("c < WIDTH; c += PER_ROW) tile.x", "c < WIDTH - 1; c += PER_ROW) tile.x"),  # a column of the stream
    ("(tile.length[row] - 1) * WIDTH + c, l, r)", "tile.length[row] / 2 * WIDTH + c, l, r)"),  # part of the suffix
]


@pytest.mark.parametrize(("bf16", "planted"), [*enumerate(UNWRITTEN)])
def test_a_planted_read_of_unwritten_memory_is_caught(make_model, twin, bf16, planted):
    """Memory is full of NaN until it is written, and NaN stays NaN in both precisions."""
    assert planted[0] in twin.source
    broken = replace(twin, source=twin.source.replace(*planted))
    with pytest.raises(ValueError, match="not finite"):
        run(broken, make_tree(make_model, "reference", 20), 5, "reference", bool(bf16))


def swapped_fragments(matrix):
    order = "(tile column) (block mma register quad pair) -> tile block (column quad) register mma pair"
    return rearrange(matrix.bfloat16(), order, column=8, mma=2, register=2, quad=4, pair=2)


def test_a_planted_layout_error_is_caught(make_model, twin, monkeypatch):
    """Fragments packed in another order than lanes hold them, or read so."""
    tree = make_tree(make_model, "reference", 2)
    backends.self_test(twin, tree, 32, False)
    backends.self_test(twin, tree, 32, True)
    planted = twin.source.replace("(at + 8 * STRIDE + 8)", "(at + 8)", 1)
    with pytest.raises((UnavailableError, ValueError)):
        backends.self_test(replace(twin, source=planted), tree, 32, True)
    monkeypatch.setattr(kernel, "fragments", swapped_fragments)
    with pytest.raises((UnavailableError, ValueError)):
        backends.self_test(twin, tree, 32, True)


def test_memory_that_runs_out(make_model, twin):
    """The problems are halved until they fit, which is said; each draws as in the whole, by its own number."""

    class Small(Twin):
        def blocks(self, build, work):
            if work > 3 * 30:
                raise torch.OutOfMemoryError
            return super().blocks(build, work)

    tree = make_tree(make_model, "narrow", 10)
    with pytest.warns(UserWarning, match="out of memory with 10 problems at once: trying 5"):
        halved = run(Small(twin.folder), tree, 30, "narrow")
    whole = run(twin, tree, 30, "narrow")
    assert bits(halved) == bits(whole) and halved.evaluated == whole.evaluated
    with pytest.raises(torch.OutOfMemoryError):
        run(Small(twin.folder), tree[:1], 100, "narrow")


@pytest.mark.parametrize(
    ("shape", "vocab", "policy", "reason"),
    [
        (Shape(1, 96, 2), 20, "temperature=1", "width 96"),
        (Shape(1, 128, 1), 20, "temperature=1", "heads of 128"),
        (Shape(9, 64, 2), 20, "temperature=1", "9 layers"),
        (Shape(1, 64, 2), 300, "temperature=1", "300 tokens"),
        (Shape(1, 64, 2), 20, "top_n_sigma=1", "policy top_n_sigma=1"),
        (Shape(1, 64, 2), 20, ",".join(["top_k=3"] * 5), "policy top_k=3,"),
    ],
)
def test_what_it_refuses(make_model, shape, vocab, policy, reason):
    tree, _ = random_case(make_model, (shape, vocab, 5, 3), 2, policy)
    with pytest.raises(UnavailableError, match=reason):
        kernel.require_supported(tree)


def test_steps_that_keep_all_or_one_token():
    assert (
        kernel.policy_steps(parse_policy("temperature=0,top_p=1,greedy")) == [(kernel.KERNEL_STEPS["top_k"], 1.0)] * 2
    )


def test_a_cpu_uses_torch(make_model):
    tree = make_tree(make_model, "narrow", 5)
    assert np.array_equal(backends.sample(tree, 20, 1).outcomes, rollout(tree, 20, 1).outcomes)


def probed(twin: Twin, function: str, build: Build, *arrays: np.ndarray) -> None:
    """Call a function that is added to the twin's source, named ``probe``, with pointers to arrays."""
    library = ctypes.CDLL(str(replace(twin, source=twin.source + function).compiled(build)))
    library.probe(*(array.ctypes.data_as(ctypes.c_void_p) for array in arrays), len(arrays[-1]))


def test_exponential(twin):
    """Within 2 ulp of e^x down to -87, 0 below, NaN for NaN."""
    probe = """
    extern "C" void probe(const float* x, float* out, int n) {
        for (int i = 0; i < n; ++i) out[i] = exponential(x[i]);
    }"""
    x = np.concatenate([np.linspace(-87, 0, 300_001), np.linspace(0, 88, 10_001), -np.logspace(-30, 1, 1001)])
    x = np.concatenate([x, [-87.5, -1e30, -np.inf, np.nan]]).astype(np.float32)
    out = np.empty_like(x)
    probed(twin, probe, BUILD, x, out)
    exact = np.exp(x[:-4].astype(np.float64))
    assert (np.abs(out[:-4] - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()
    assert (out[-4:-1] == 0).all() and np.isnan(out[-1])


def test_rounding_to_bf16(twin):
    """To nearest even, as torch rounds; any NaN becomes 0x7FFF, as cvt.rn.bf16x2.f32 makes it."""
    probe = """
    extern "C" void probe(const float* x, unsigned* out, int n) {
        for (int i = 0; i < n; ++i) out[i] = pair(x[2 * i], x[2 * i + 1]);
    }"""
    ties, infinite = [0x3F808000, 0x3F818000], [0x7F800000, 0xFF800000, 0x7F7FFFFF]
    random = np.random.default_rng(0).integers(2**32, size=200_000, dtype=np.uint32)
    x = np.concatenate([random, ties, infinite, [0x7F800001, 0x7FC00000, 2**32 - 1]]).astype(np.uint32).view(np.float32)
    out = np.empty(len(x) // 2, dtype=np.uint32)
    probed(twin, probe, replace(BUILD, bf16=1), x, out)
    expected = torch.from_numpy(x).bfloat16().view(torch.int16).numpy().view(np.uint16)
    assert np.isnan(x).sum() > 500
    assert np.array_equal(out.view(np.uint16), np.where(np.isnan(x), 0x7FFF, expected))


def test_args_are_laid_out_as_the_source_has_them(twin):
    """sizeof and a few offsets, by the C++ compiler."""
    probe = """
    #include <cstddef>
    extern "C" void probe(long* out) {
        out[0] = sizeof(Args), out[1] = offsetof(Args, problems), out[2] = offsetof(Args, step),
        out[3] = offsetof(Args, seed_hi);
    }"""
    out, fields = np.empty(4, dtype=np.int64), kernel.Args
    probed(twin, probe, BUILD, out)
    assert out.tolist() == [ctypes.sizeof(fields), *(f.offset for f in (fields.problems, fields.step, fields.seed_hi))]
