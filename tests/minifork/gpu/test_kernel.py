"""The fused kernel's source, run by its host twin, against torch.

Nothing here needs a GPU. Tests of the twin need g++.
Statistical tests have fixed seeds and a level of 1e-4 each.
"""

import ctypes
import math
import re
import shutil
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.cli import main
from minifork.decoding.philox import uniform
from minifork.decoding.policy import parse
from minifork.decoding.rollout import SAMPLE, rollout
from minifork.decoding.traces import Tree
from minifork.gpu import backends, kernel
from minifork.gpu.driver import UnavailableError
from minifork.gpu.graphed import graphed
from minifork.gpu.kernel import SOURCE, Build
from minifork.settings import Shape
from minifork.statistics import agreement
from tests.helpers.host_twin import Twin

twin_only = pytest.mark.skipif(not shutil.which("g++"), reason="the host twin needs g++")
SINKS, LIVE = 3, 6
BUILD = Build(128, 2, 2, 20, 15, 6, 64, 1)
# shape, vocabulary, prompt, longest trace, rows a block
CASES = {
    "reference": (Shape(2, 128, 2), 20, 15, 6, 32),
    "narrow": (Shape(1, 64, 4), 7, 3, 2, 64),
    "wide": (Shape(2, 256, 4), 33, 9, 5, 16),
    "many tokens": (Shape(1, 64, 1), 256, 2, 12, 16),
}


def make_case(make_model, case: tuple, problems: int, policy: str = "temperature=1") -> tuple[Tree, torch.Tensor]:
    """A random model, prompts and automata (half of the moves lead to a sink), as a tree; and the prompts' tokens."""
    shape, vocab, prompt, steps, _ = case
    rng = np.random.default_rng(0)
    live, dead = rng.integers(LIVE, size=(problems, LIVE, vocab)), rng.integers(SINKS, size=(problems, LIVE, vocab))
    table = np.where(rng.random((problems, LIVE, vocab)) < 0.6, live, LIVE + dead)
    sinks = np.broadcast_to(np.arange(LIVE, LIVE + SINKS)[:, None], (problems, SINKS, vocab))
    dfa = torch.from_numpy(np.concatenate([table, sinks], axis=1))
    model = make_model(0, shape, vocab, prompt + steps - 1, scale=0.15)
    tokens = torch.from_numpy(rng.integers(vocab, size=(problems, prompt)))
    with torch.no_grad():
        return Tree(model, model.prefill(tokens), dfa, SINKS, steps, parse(policy)), tokens


def make_tree(make_model, case: str, problems: int, policy: str = "temperature=1") -> Tree:
    return make_case(make_model, CASES[case], problems, policy)[0]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where compiled twins are kept for all tests."""
    return tmp_path_factory.mktemp("twin")


@pytest.fixture
def twin(folder):
    return Twin(folder)


def run(twin, tree, n, case, bf16=False, seed=3):
    return kernel.run(tree, n, seed, twin, CASES[case][-1], bf16, traces=True)


# the same answers as torch


@twin_only
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "policy", ["temperature=1", "temperature=0.7,top_p=0.9", "top_k=3", "min_p=0.2,temperature=1.5", "greedy"]
)
def test_fp32_follows_the_fp64_model(make_model, twin, case, policy):
    tree, prompts = make_case(make_model, CASES[case], 6, policy)
    assert_follows(make_model, tree, prompts, run(twin, tree, 5, case).traces)


def assert_follows(make_model, tree, prompts, traces):
    """On the kernel's own traces, step by step: log-probabilities are within 5e-4 of fp64, each draw is the token in
    whose stretch of the cumulative distribution u lies, or within 1e-4 of it."""
    model = make_model(0, tree.model.shape, tree.model.vocab_size, tree.model.context, scale=0.15).double()
    for problem, ids in product(*map(range, traces.tokens.shape[:2])):
        trace = traces.tokens[problem, ids]
        trace = trace[trace >= 0]
        with torch.no_grad():
            logits = model(torch.cat([prompts[problem], trace[:-1]])[None])[0, len(prompts[problem]) - 1 :]
        p = torch.softmax(tree.policy(logits).double(), dim=1)
        chosen = p.gather(1, trace[:, None])[:, 0]
        assert (traces.logp[problem, ids, : len(trace)] - chosen.log()).abs().max() < 5e-4
        steps = torch.arange(len(trace))
        u = torch.stack(
            [uniform(3, torch.tensor([ids]), t, torch.tensor([problem]), SAMPLE)[0] for t in steps.tolist()]
        )
        above = p.cumsum(dim=1).gather(1, trace[:, None])[:, 0]
        assert (above - chosen - 1e-4 <= u).all() and (u <= above + 1e-4).all()


@st.composite
def shapes(draw):
    """Anything that the kernel takes, as CASES has it (but for what only makes the test slow)."""
    width = draw(st.sampled_from(kernel.WIDTHS))
    heads = width // draw(st.sampled_from(kernel.HEAD_SIZES))
    shape = Shape(draw(st.integers(1, 3)), width, heads)
    vocab, prompt, steps = draw(st.integers(2, 256)), draw(st.integers(1, 40)), draw(st.integers(1, 12))
    return shape, vocab, prompt, steps, draw(st.sampled_from(kernel.TILES))


@twin_only
@settings(max_examples=8, deadline=None, derandomize=True, database=None)
@given(shapes(), st.integers(1, 4), st.integers(1, 9))
def test_fp32_follows_the_fp64_model_at_any_shape(make_model, folder, case, problems, n):
    tree, prompts = make_case(make_model, case, problems)
    assert kernel.unsupported(tree) is None
    assert_follows(make_model, tree, prompts, kernel.run(tree, n, 3, Twin(folder), case[-1], False, traces=True).traces)


@twin_only
@pytest.mark.parametrize("case", CASES)
def test_fp32_is_the_torch_engine(make_model, twin, case):
    """Ends, lengths, traces: all alike (a draw on a boundary could differ; with these seeds none does)."""
    tree = make_tree(make_model, case, 20)
    fused, plain = run(twin, tree, 50, case), rollout(tree, 50, 3, traces=True)
    assert np.array_equal(fused.ends, plain.ends) and np.array_equal(fused.tokens, plain.tokens)
    assert torch.equal(fused.traces.tokens, plain.traces.tokens) and torch.equal(fused.traces.sink, plain.traces.sink)
    assert (fused.traces.logp - plain.traces.logp).abs().max() < 1e-4
    assert fused.evaluated == plain.evaluated and fused.n == 50 and (fused.unknown == 0).all()


@twin_only
@pytest.mark.parametrize("bf16", [False, True])
def test_scores(make_model, twin, bf16):
    """Teacher-forced log-probabilities: those it sampled with, and torch's up to the precision; -1 ends a trace."""
    tree = make_tree(make_model, "reference", 20, "temperature=0.8")
    traces = run(twin, tree, 20, "reference", bf16).traces
    scored = kernel.score(tree, traces.tokens, twin, 64, bf16)
    np.testing.assert_allclose(scored, traces.logp, atol=1e-6)
    far = (scored - backends.teacher_forced(tree, traces.tokens)).abs()
    assert far.max() < (0.3 if bf16 else 5e-4) and far.mean() < (0.02 if bf16 else 1e-5)
    assert (scored[traces.tokens < 0] == 0).all()
    backends.self_test(twin, tree, 32, bf16)


@twin_only
def test_bf16_samples_as_it_scores(make_model, twin):
    """Counts of every first two tokens follow the probabilities that the same arithmetic scores (one chi-squared)."""
    tree = make_tree(make_model, "narrow", 10)
    vocab, n = tree.model.vocab_size, 3000
    tree = replace(tree, dfa=torch.zeros_like(tree.dfa))  # every trace is two tokens long
    pairs = torch.tensor(list(product(range(vocab), repeat=2))).expand(10, -1, -1)
    p = kernel.score(tree, pairs.contiguous(), twin, 64, True).sum(dim=2).exp().numpy()
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    tokens = kernel.run(tree, n, 1, twin, 64, True, traces=True).traces.tokens.numpy()
    counts = np.stack([np.bincount(t[:, 0] * vocab + t[:, 1], minlength=vocab**2) for t in tokens])
    pits = agreement.randomised_pit(counts.ravel(), n, p.ravel(), np.random.default_rng(0))
    assert agreement.uniform_p(pits) > 1e-4


@twin_only
def test_forced_tokens(make_model, twin):
    tree = make_tree(make_model, "reference", 20)
    tree = tree.force(torch.from_numpy(np.random.default_rng(1).integers(20, size=(20, 2))))
    fused, plain = run(twin, tree, 30, "reference"), rollout(tree, 30, 3, traces=True)
    assert np.array_equal(fused.ends, plain.ends) and np.array_equal(fused.tokens, plain.tokens)
    assert torch.equal(fused.traces.tokens, plain.traces.tokens)
    assert (fused.traces.logp[:, :, :2] == 0).all()
    scored = kernel.score(tree, plain.traces.tokens, twin)
    assert (scored[:, :, :2] == 0).all()


@twin_only
def test_some_problems_draw_as_in_the_whole(make_model, twin):
    """Draws are keyed by the global problem number."""
    tree = make_tree(make_model, "reference", 20)
    whole, part = run(twin, tree, 30, "reference"), run(twin, tree[5:9], 30, "reference")
    assert np.array_equal(whole.ends[5:9], part.ends)


@twin_only
def test_logits_that_are_not_finite(make_model, twin):
    tree = make_tree(make_model, "narrow", 9)
    with pytest.raises(ValueError, match="problem 7: the model's logits are not finite"):
        prompts = replace(tree.prompts, logits=tree.prompts.logits.index_fill(0, torch.tensor([7]), math.nan))
        run(twin, replace(tree, prompts=prompts), 4, "narrow")
    with torch.no_grad():
        tree.model.token.weight.fill_(math.inf)
    with pytest.raises(ValueError, match="problem [0-8]: the model's logits are not finite"):
        run(twin, tree, 4, "narrow")


# the same bits in any order, on any tiling


def outcome(twin, tree, case, bf16=False, n=40) -> list | str:
    try:
        result = run(twin, tree, n, case, bf16)
    except ValueError as error:
        return str(error)
    return [
        result.ends.tobytes(),
        result.tokens.tobytes(),
        *(t.numpy().tobytes() for t in vars(result.traces).values()),
    ]


@twin_only
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_bits_do_not_depend_on_the_order_of_threads(make_model, folder, case, bf16):
    tree = make_tree(make_model, case, 7, "temperature=1.2,top_p=0.95")
    forward = outcome(Twin(folder), tree, case, bf16)
    assert not isinstance(forward, str)
    for order in ("reversed", "shuffled"):
        assert outcome(Twin(folder, order), tree, case, bf16) == forward


@twin_only
@pytest.mark.parametrize("bf16", [False, True])
def test_bits_do_not_depend_on_the_tiling(make_model, folder, bf16):
    tree = make_tree(make_model, "narrow", 5)
    first = outcome(Twin(folder, tiles=1), tree, "narrow", bf16, n=13)
    for tiles in (2, 3, 65, 100):  # more blocks than rollouts, too
        assert outcome(Twin(folder, tiles=tiles), tree, "narrow", bf16, n=13) == first
    for rows in (16, 32):
        other = kernel.run(tree, 13, 3, Twin(folder), rows, bf16, traces=True)
        assert [other.ends.tobytes(), other.tokens.tobytes()] == first[:2]


@twin_only
@pytest.mark.parametrize(("problems", "n"), [(1, 1), (1, 17), (3, 32), (2, 33), (1, 64), (1, 129)])
def test_edges_of_tiles(make_model, twin, problems, n):
    tree = make_tree(make_model, "reference", problems)
    fused, plain = run(twin, tree, n, "reference"), rollout(tree, n, 3)
    assert np.array_equal(fused.ends, plain.ends) and np.array_equal(fused.tokens, plain.tokens)


RACES = {  # two neighbouring phases, and both in one
    "norm before its sums": (r"PHASE\(norm_sums\(tile, tid\)\)\s+PHASE\(norm", "PHASE(norm_sums(tile, tid); norm"),
    "attention before its queries": (
        r"PRODUCT\(queries_keys_values\(tile, w, layer, WORKER\)\)\s+PHASE\(attend",
        "PHASE(queries_keys_values(tile, w, layer, tid); attend",
    ),
    "draws before the policy": (
        r"PHASE\(policy_apply\(tile, step, value, tid\)\)\s+}\s+PHASE\(choose\(tile, args, tid\)\)",
        "PHASE(policy_apply(tile, step, value, tid); choose(tile, args, tid)) }",
    ),
}


@twin_only
@pytest.mark.parametrize("race", RACES)
def test_a_planted_race_is_caught(make_model, folder, race):
    """Where a phase runs on without a barrier into the next, not all orders of threads give the right bits."""
    tree, source = make_tree(make_model, "reference", 3, "temperature=0.5"), SOURCE.read_text()
    planted = re.sub(*RACES[race], source)
    assert planted != source
    clean = outcome(Twin(folder), tree, "reference")
    results = [outcome(Twin(folder, order, source=planted), tree, "reference") for order in ("forward", "reversed")]
    assert any(one != clean for one in results)


def swapped_fragments(matrix):
    order = "(tile column) (block mma register quad pair) -> tile block (column quad) register mma pair"
    return rearrange(matrix.bfloat16(), order, column=8, mma=2, register=2, quad=4, pair=2)


@twin_only
def test_a_planted_layout_error_is_caught(make_model, folder, monkeypatch):
    """Fragments packed in another order than lanes hold them, or read so."""
    tree = make_tree(make_model, "reference", 20)
    backends.self_test(Twin(folder), tree, 32, True)
    planted = SOURCE.read_text().replace("(at + 8 * STRIDE + 8)", "(at + 8)", 1)
    with pytest.raises((UnavailableError, ValueError)):
        backends.self_test(Twin(folder, source=planted), tree, 32, True)
    monkeypatch.setattr(kernel, "fragments", swapped_fragments)
    with pytest.raises((UnavailableError, ValueError)):
        backends.self_test(Twin(folder), tree, 32, True)


@twin_only
def test_memory_that_runs_out(make_model, folder):
    """The problems are halved until they fit, which is said; the answer is the same."""

    class Small(Twin):
        def blocks(self, build, work):
            if work > 3 * 30:
                raise torch.OutOfMemoryError
            return super().blocks(build, work)

    tree = make_tree(make_model, "narrow", 10)
    with pytest.warns(UserWarning, match="out of memory with 10 problems at once: ran 3 at a time"):
        halved = run(Small(folder), tree, 30, "narrow")
    whole = run(Twin(folder), tree, 30, "narrow")
    assert np.array_equal(halved.ends, whole.ends) and torch.equal(halved.traces.tokens, whole.traces.tokens)
    assert halved.evaluated == whole.evaluated
    with pytest.raises(torch.OutOfMemoryError):
        run(Small(folder), tree[:1], 100, "narrow")


# what it cannot do


@pytest.mark.parametrize(
    ("shape", "vocab", "policy", "reason"),
    [
        (Shape(1, 96, 2), 20, "temperature=1", "width of 96"),
        (Shape(1, 128, 1), 20, "temperature=1", "heads of 128"),
        (Shape(9, 64, 2), 20, "temperature=1", "9 layers"),
        (Shape(1, 64, 2), 300, "temperature=1", "300 tokens"),
        (Shape(1, 64, 2), 20, "top_n_sigma=1", "policy top_n_sigma=1"),
        (Shape(1, 64, 2), 20, "temperature=0,top_p=1,greedy", None),
    ],
)
def test_what_it_refuses(make_model, shape, vocab, policy, reason):
    model = make_model(0, shape, vocab, 8)
    with torch.no_grad():
        prompts = model.prefill(torch.zeros(2, 5, dtype=torch.int64))
    tree = Tree(model, prompts, torch.zeros(2, 4, vocab, dtype=torch.int64), 2, 3, parse(policy))
    refused = kernel.unsupported(tree)
    assert refused is None if reason is None else reason in refused


def test_a_cpu_uses_torch(make_model):
    tree = make_tree(make_model, "narrow", 5)
    assert np.array_equal(backends.sample(tree, 20, 1).ends, rollout(tree, 20, 1).ends)


def test_gpu_check_without_a_gpu(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["gpu-check", f"runs={tmp_path}"]) == 0
    assert "no CUDA device" in capsys.readouterr().out and not list(tmp_path.iterdir())


# the other backend


@pytest.mark.parametrize("rows", [7, 64, 10_000])
@pytest.mark.parametrize("forced", [0, 2])
def test_graphed_is_the_torch_engine(make_model, rows, forced):
    """(On a CPU its operations run, but no graph is recorded.)"""
    tree = make_tree(make_model, "reference", 11, "temperature=0.9,top_k=7")
    tree = tree.force(torch.ones(11, forced, dtype=torch.int64)) if forced else tree
    one, other = graphed(tree, 30, 5, rows), rollout(tree, 30, 5)
    assert np.array_equal(one.ends, other.ends) and np.array_equal(one.tokens, other.tokens)


def test_graphed_with_torchs_own_draws(make_model):
    tree = make_tree(make_model, "narrow", 60)
    torch.manual_seed(0)
    one, other = graphed(tree, 200, None), rollout(tree, 200, 5)
    pits = agreement.two_sample_pit(one.accepted, 200, other.accepted, 200, np.random.default_rng(0))
    assert agreement.uniform_p(pits) > 1e-4 and not np.array_equal(one.ends, other.ends)


def test_graphed_logits_that_are_not_finite(make_model):
    tree = make_tree(make_model, "narrow", 5)
    with torch.no_grad():
        tree.model.token.weight.fill_(math.nan)
    with pytest.raises(ValueError, match="not finite"):
        graphed(tree, 4, 0)


@twin_only
def test_exponential(folder):
    """Within 2 ulp of e^x down to -87, 0 below, NaN for NaN."""
    probe = """
    extern "C" void exponentials(const float* x, float* out, int n) {
        for (int i = 0; i < n; ++i) out[i] = exponential(x[i]);
    }"""
    library = ctypes.CDLL(str(Twin(folder, source=SOURCE.read_text() + probe).compiled(BUILD)))
    x = np.concatenate([np.linspace(-87, 0, 300_001), np.linspace(0, 88, 10_001), -np.logspace(-30, 1, 1001)])
    x = np.concatenate([x, [-87.5, -1e30, -np.inf, np.nan]]).astype(np.float32)
    out = np.empty_like(x)
    library.exponentials(x.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), len(x))
    exact = np.exp(x[:-4].astype(np.float64))
    assert (np.abs(out[:-4] - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()
    assert (out[-4:-1] == 0).all() and np.isnan(out[-1])


@twin_only
def test_args_are_laid_out_as_the_source_has_them(folder, tmp_path):
    """sizeof and a few offsets, by the C++ compiler."""
    probe = (
        SOURCE.read_text()
        + """
    #include <cstddef>
    extern "C" void layout(long* out) {
        out[0] = sizeof(Args), out[1] = offsetof(Args, problems), out[2] = offsetof(Args, step),
        out[3] = offsetof(Args, seed_hi);
    }"""
    )
    library = ctypes.CDLL(str(Twin(folder, source=probe).compiled(BUILD)))
    out = (ctypes.c_long * 4)()
    library.layout(out)
    fields = kernel.Args
    assert list(out) == [ctypes.sizeof(fields), fields.problems.offset, fields.step.offset, fields.seed_hi.offset]
