"""Skill and r of a model, against the probability of every token of the right trace; the gap needs them to be exact."""

import numpy as np
import pytest
import torch

from data_gen.sizes import Sizes
from data_gen.star import Star
from minifork import config as configs
from minifork.decoding.policy import parse_policy
from minifork.measure import measure
from minifork.measuring.problems import problem_set
from minifork.measuring.quantities import branch_logit, fork_statistics, kurtosis_values, sigma_values
from minifork.settings import Shape
from tests.helpers.stars import TINY

N = 12
TASKS = {"star": TINY, "sizes": Sizes(8, "2x3,4x2"), "three": Star(nodes=9, branches=3, length=3)}


def guided(model, problems, trace):
    """The model trained on the right FWD traces for a moment, so that their probabilities matter."""
    model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    text = torch.cat([problems.prompts, trace.clamp(min=0)[:, :-1]], dim=1)
    for _ in range(25):
        logits = model(text, torch.ones_like(text, dtype=torch.bool))[:, -trace.shape[1] :]
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), trace.flatten(), ignore_index=-1).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def expected(model, problems, trace, decoder: str) -> dict[str, np.ndarray]:
    """p given FWD, r and the difference skill - p, from one pass of the model over prompt and right FWD trace."""
    (fork, branches), rows = problems.at_fork(), []
    for i in range(len(trace)):
        tokens = trace[i][trace[i] >= 0]
        text = torch.cat([problems.prompts[i], tokens[:-1]])[None]
        logits = model(text, torch.ones_like(text, dtype=torch.bool))[0, len(problems.prompts[i]) - 1 :]
        p = torch.softmax(parse_policy(decoder)(logits).double(), dim=1)
        of_trace, at = p[torch.arange(len(tokens)), tokens].tolist(), fork.shape[1]
        children = branches[i][branches[i] >= 0]
        r = np.prod(of_trace[1:at]) * float(p[at, children].sum()) * np.prod(of_trace[at + 1 :])
        rows.append((np.prod(of_trace[1:]), r, of_trace[0] * (r / len(children) - np.prod(of_trace[1:]))))
    names, columns = ("FWD", "r", "change"), np.array(rows).reshape(N, problems.integers, 3).mean(axis=1).T
    return dict(zip(names, columns, strict=True))


@pytest.mark.parametrize(
    ("name", "decoder", "prefix"),
    [
        ("star", "temperature=1", 0),
        ("star", "temperature=2,top_k=5", 0),
        ("star", "temperature=1", 3),
        ("three", "temperature=0.7,top_p=0.9", 0),
        ("sizes", "temperature=1", 0),
    ],
)
def test_skill_has_an_even_guess_in_place_of_the_luck_of_the_branch(make_model, name, decoder, prefix):
    task = TASKS[name]
    drawn = task.sample(np.random.default_rng(3), N)
    problems = problem_set(task, drawn, "cpu", prefix=prefix)
    trace = torch.from_numpy(task.traces(drawn, np.zeros(N, dtype=np.int64)))
    trace = trace.repeat_interleave(problems.integers, dim=0)
    model = make_model(0, Shape(2, 32, 1), task.vocab_size, task.prompt_len + task.trace_len + 1, scale=0.1)
    model = guided(model, problems, trace)
    settings = configs.load_config("star", [f"eval.policy={decoder}"]).eval
    measured = measure(model, problems, settings, None, checked=False)
    right = expected(model, problems, trace, decoder)
    for array in ("FWD", "r"):
        np.testing.assert_allclose(measured.arrays[array], right[array], rtol=1e-4)
    change = measured.arrays["skill"] - measured.arrays["free"]
    np.testing.assert_allclose(change, right["change"], rtol=1e-4, atol=1e-9)
    assert (right["r"] > 0).all() and np.abs(change).max() > 1e-5
    assert measured.record["skill"] == measured.arrays["skill"].mean()
    assert measured.record["r"] == measured.arrays["r"].mean()


def test_engines_that_sample_have_the_same_r(copy):
    """And a skill that is right on average: p of 64 problems, each from 256 samples, is within .05."""
    pipeline = copy("base", "fork1", measured=True)
    assert pipeline("eval") == 0
    computed = {(row["run"], row["epoch"]): row for row in pipeline.view()["records"]}
    assert pipeline("eval", "eval.engine=split", "eval.rollouts=256") == 0
    for row in pipeline.view()["records"]:
        exact = computed[row["run"], row["epoch"]]
        assert row["r"] == pytest.approx(exact["r"], abs=1e-6)
        assert row["skill"] == pytest.approx(exact["skill"], abs=0.05)


def test_where_no_branch_is_guessed_skill_is_p(copy):
    pipeline = copy("fork1", "base")
    assert pipeline("eval", "eval.forked=false") == 0
    arrays = pipeline.arrays()
    skills = [name for name in arrays if name.endswith("/skill")]
    assert skills and not any(name.endswith("/r") for name in arrays)
    assert all((arrays[name] == arrays[name.replace("/skill", "/free")]).all() for name in skills)


def test_sigma_is_the_deviation_of_the_branch_logit():
    rng = np.random.default_rng(0)
    z, r = rng.normal(0.3, 4, 500), rng.uniform(0.9, 1, 500)
    branch = np.stack([1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))], axis=1)
    np.testing.assert_allclose(branch_logit(branch)[:, 0], z, atol=1e-9)
    statistics = fork_statistics(branch, r)
    assert statistics["sigma"] == pytest.approx(z.std())
    assert statistics["kurtosis"] == pytest.approx(np.mean((z - z.mean()) ** 4) / z.var() ** 2)
    assert statistics["r"] == r.mean() and statistics["corr_r"] == pytest.approx(np.corrcoef(r, z)[0, 1])
    assert sigma_values(branch).mean() == pytest.approx(z.std(), abs=1e-9)
    assert kurtosis_values(branch).mean() == pytest.approx(statistics["kurtosis"], rel=2e-3)
    assert fork_statistics(branch, None)["r"] is fork_statistics(branch, None)["corr_r"] is None


def test_sigma_of_several_branches():
    """sigma is the deviation of the difference of two logits, for any number of branches (error .3 %, limit 1.5 %)."""
    odds = np.exp(np.random.default_rng(0).normal(0, 3 / np.sqrt(2), (30_000, 3)))
    branch = odds / odds.sum(axis=1, keepdims=True)
    statistics = fork_statistics(branch, None)
    assert statistics["sigma"] == pytest.approx(3, rel=0.015) and statistics["kurtosis"] == pytest.approx(3, abs=0.15)
    assert sigma_values(branch[:500]).mean() == pytest.approx(fork_statistics(branch[:500], None)["sigma"], rel=1e-3)
    one_branch = np.array([[1.0, 0.0], [0.4, 0.6]])  # of the first problem
    assert fork_statistics(one_branch, None)["sigma"] is None
    with pytest.raises(ValueError, match="sigma needs forks with equally many branches"):
        sigma_values(one_branch)
