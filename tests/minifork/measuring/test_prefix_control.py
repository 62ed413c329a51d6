"""What a model does after a forced first token, and traces that are cut: against the model's own forward pass."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch

from data_gen import streams
from data_gen.openers import Openers, partings
from data_gen.star import Star
from data_gen.task import PAD
from minifork import config as configs
from minifork import measure
from minifork.decoding.exact import exact
from minifork.decoding.policy import Policy
from minifork.measuring.prefix_control import mode_probability, responses, tokens_until_eos
from minifork.measuring.problems import problem_set
from minifork.settings import Shape

TASK = Openers(8, 2, 3, modes="FWD,REV,SEARCH", openers="FWD .8 .2, REV .5 .5, SEARCH .2 .8")


def case(make_model, task: Star, n: int = 12):
    model = make_model(3, Shape(2, 32, 2), task.vocab_size, task.prompt_len + task.trace_len, scale=0.2)
    batch = streams.test_problems(task, n)
    return model, batch, problem_set(task, batch, "cpu")


@torch.no_grad()
def next_p(model, prompts: torch.Tensor, tokens: np.ndarray) -> np.ndarray:
    """The probabilities float64[n, V] of the next token after prompts and tokens int64[n, T]."""
    logits = model(torch.cat([prompts, torch.as_tensor(tokens)], dim=1))
    return torch.softmax(logits[:, -1].double(), dim=1).numpy()


def test_probability_of_a_mode(make_model):
    """REV against FWD after the opener, SEARCH against FWD after a wrong branch."""
    model, batch, problems = case(make_model, TASK)
    tree, labels = measure.trace_tree(model, problems, Policy()), batch.labels
    rows = np.arange(len(labels))
    for token in TASK.first_tokens.values():
        first = np.full((len(labels), 1), token)
        p = next_p(model, problems.prompts, first)
        start, goal = p[rows, labels[:, 0]], p[rows, labels[:, 2]]
        places = partings(TASK, batch)
        np.testing.assert_allclose(mode_probability(tree, token, places["REV"]), goal / (start + goal), rtol=1e-4)
        p = next_p(model, problems.prompts, np.column_stack([first, labels[:, [0, 3, 4]]]))
        back, end = p[:, TASK.back], p[:, TASK.eos]
        np.testing.assert_allclose(mode_probability(tree, token, places["SEARCH"]), back / (back + end), rtol=1e-4)
    by_token = responses(tree, problems, places, rollouts=4)
    assert list(by_token) == ["A", "B"]
    assert list(by_token["A"]) == ["tokens", "tokens beyond the shortest", "P(REV)", "P(SEARCH)"]
    assert (by_token["B"]["tokens"] - by_token["B"]["tokens beyond the shortest"] == 5).all()


def test_tokens_until_eos(make_model):
    """The mean length, cut at 4 tokens, from the probabilities of EOS after every prefix (|z| < 4.5: 7e-6)."""
    model, _, problems = case(make_model, TASK, n=2)
    rollouts, first = 20_000, TASK.first_tokens["B"]
    tree = replace(measure.trace_tree(model, problems, Policy()), max_new=4).force(torch.full((2, 1), first))
    forced = np.full((2, 1), first)
    p = next_p(model, problems.prompts, forced)
    lasts = [0.0, 0.0]
    for i in range(2):  # length 2: EOS at once; 3: EOS after one more; else 4
        others = [token for token in range(TASK.vocab_size) if token != TASK.eos]
        prompts = problems.prompts[[i]].expand(len(others), -1)
        after = next_p(model, prompts, np.column_stack([np.full(len(others), first), others]))[:, TASK.eos]
        two, three = p[i, TASK.eos], float(p[i, others] @ after)
        lasts[i] = 2 * two + 3 * three + 4 * (1 - two - three)
    assert np.abs(tokens_until_eos(tree, TASK.eos, rollouts) - lasts).max() < 4.5 * 1 / np.sqrt(rollouts)


def test_a_cut_leaves_the_traces_that_fit(make_model):
    """SEARCH that may have T tokens: the right branch first fits in 5, both branches need 8."""
    task = Star(8, 2, 3, modes="FWD,REV,SEARCH")
    model, batch, problems = case(make_model, task)
    chances = {5: np.zeros(12), 8: np.zeros(12)}
    for i, order in product(range(12), ([0, 1], [1, 0])):
        one = batch[np.array([i])]
        trace = task.search("SEARCH").traces(one.labels, one.forked, np.array([order]))
        trace = [task.mode_token("SEARCH"), *trace[trace != PAD]]
        steps = [next_p(model, problems.prompts[[i]], np.array([trace[:t]]))[0, trace[t]] for t in range(1, len(trace))]
        for limit, p in chances.items():
            p[i] += np.prod(steps) * (len(trace) <= limit)
    for limit, p in chances.items():
        tree = measure.force_mode(measure.trace_tree(model, problems, Policy(), limit), task, "SEARCH")
        result = exact(tree)
        np.testing.assert_allclose(result.p_lo, p, rtol=1e-3)
        np.testing.assert_allclose(result.outcomes.sum(axis=1), 1, atol=1e-6)
    with pytest.raises(ValueError, match="eval.max_tokens is 4: right traces have 5 tokens or more"):
        measure.trace_tree(model, problems, Policy(), 4)


def test_cuts_that_make_no_sense(copy, capsys):
    with pytest.raises(ValueError, match=r"eval.max_tokens is 7: the longest right trace has 6 tokens; 0 means no cut"):
        configs.load_config("star", ["eval.max_tokens=7"])
    with pytest.raises(ValueError, match=r"eval.max_tokens is -1: it must be at least 0"):
        configs.load_config("star", ["eval.max_tokens=-1"])
    pipeline = copy("base", measured=True)
    assert "eval.max_tokens is 3: right traces have 5 tokens" in pipeline.refused(capsys, "eval", "eval.max_tokens=3")
    assert pipeline("eval") == 0 and ", 0 of them not measured yet" in capsys.readouterr().out
