"""Decode policies against references in plain Python, one token at a time.

Where a rule compares sums or powers with a threshold, cases within 1e-5 of it are left out: fp32 may fall on
either side there.
"""

import math
import statistics

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from minifork.decoding.policy import STEPS, Policy, parse_policy

NEAR = 1e-5
hypothesis_settings = settings(max_examples=50, deadline=None, derandomize=True, database=None)

coarse = st.integers(-24, 24).map(lambda eighths: eighths / 8)  # which have many ties
fine = st.floats(-20, 20, width=32)


def rows_of(size: int, logit=coarse | fine) -> st.SearchStrategy[list[float]]:
    """Rows of logits; removed tokens are among them, but not all are removed."""
    row = st.lists(st.one_of(logit, logit, logit, st.just(-math.inf)), min_size=size, max_size=size)
    return row.filter(lambda row: max(row) > -math.inf)


vocabulary = st.integers(1, 12)
one_row = vocabulary.flatmap(rows_of)
values = {
    "temperature": st.sampled_from([0.0, 1.0, 0.7, 2.0, 1e-6, 1e-3, 1e6]) | st.floats(0.01, 100),
    "greedy": st.just(1.0),
    "top_k": st.integers(1, 14).map(float),
    "top_p": st.just(1.0) | st.floats(1e-3, 1),
    "min_p": st.sampled_from([0.0, 1.0]) | st.floats(0, 1),
    "top_n_sigma": st.just(0.0) | st.floats(0, 4),
}
steps = st.sampled_from(sorted(values)).flatmap(lambda name: st.tuples(st.just(name), values[name]))


def stay(name: str, value: float, row: list[float]) -> set[int] | None:
    """The ids that a step keeps; None if that is too close to call."""
    top, possible = max(row), {i for i, x in enumerate(row) if x > -math.inf}
    ranked = sorted(range(len(row)), key=lambda i: (-row[i], i))  # higher logit first, equal logits by lower id
    if name == "greedy" or (name, value) == ("temperature", 0):
        return {row.index(top)}
    if name == "top_k":
        return possible & set(ranked[: int(value)])
    if name == "top_p" and value < 1:
        p = torch.softmax(torch.tensor(row, dtype=torch.float64), dim=0).tolist()
        before = {i: math.fsum(p[j] for j in ranked[:rank]) for rank, i in enumerate(ranked)}
        if any(abs(mass - value) <= NEAR for mass in before.values()):
            return None
        return {i for i in possible if before[i] < value}
    if name == "min_p":
        ratios = [math.exp(x - top) for x in row]
        if any(0 < r < 1 and abs(r - value) <= NEAR * r for r in ratios):
            return None
        return {i for i in possible if ratios[i] >= value}
    if name == "top_n_sigma":
        lowest = top - value * statistics.pstdev(row[i] for i in possible)
        if any(row[i] < top and abs(row[i] - lowest) <= 10 * NEAR for i in possible):
            return None
        return {i for i in possible if row[i] == top or row[i] >= lowest}
    assert name in ("temperature", "top_p"), f"add to stay() the tokens that {name} keeps"
    return possible


def reference(name: str, value: float, row: list[float]) -> list[float] | None:
    stays = stay(name, value, row)
    if stays is None:
        return None
    scale = value if name == "temperature" and value > 0 else 1.0
    return [x / scale if i in stays else -math.inf for i, x in enumerate(row)]


def apply(name: str, value: float, row: list[float]) -> list[float]:
    return Policy(((name, value),))(torch.tensor(row)).tolist()


@pytest.mark.parametrize("name", STEPS)
@hypothesis_settings
@given(data=st.data(), row=one_row)
def test_step_is_its_definition(name, data, row):
    """The right tokens stay, in their places, with their own logits."""
    value = data.draw(values[name])
    expected, got = reference(name, value, row), apply(name, value, row)
    assume(expected is not None)
    assert got == (pytest.approx(expected, rel=1e-6, abs=1e-30) if name == "temperature" else expected)


LARGE = {
    "temperature": [0, 0.7],
    "greedy": [1],
    "top_k": [1, 3, 77],
    "top_p": [0.0413, 0.4137, 0.9137],
    "min_p": [0, 0.31, 1],
    "top_n_sigma": [0, 0.31, 1],
}


def test_every_step_is_tried():
    untried = set(STEPS) - (set(values) & set(LARGE))
    assert not untried, f"add values of each of {untried} to values and LARGE, and to stay() the tokens that it keeps"


@pytest.mark.parametrize("name", STEPS)
def test_step_on_a_large_vocabulary_with_ties(name):
    """A sort that is not stable would show here. A batch with two leading axes equals its rows one by one."""
    logits = (2 * torch.randn(4, 500, generator=torch.Generator().manual_seed(0))).round()
    logits[:, ::7] = -math.inf
    for value in LARGE[name]:
        got = Policy(((name, value),))(logits.view(2, 2, 500)).view(4, 500)
        for row, result in zip(logits.tolist(), got.tolist(), strict=True):
            assert result == pytest.approx(reference(name, value, row), rel=1e-6)


def test_top_p_keeps_the_token_that_reaches_it():
    """The first one stays even for values that fp32 lacks."""
    reached = {1: [1e-300, 1e-46, 1e-45, 1e-38, 1e-9, 0.24], 2: [0.26, 0.49], 3: [0.51], 4: [0.76, 1]}
    for value, count in ((value, count) for count, values in reached.items() for value in values):
        assert apply("top_p", value, [0.0] * 4) == [0.0] * count + [-math.inf] * (4 - count), value


def test_identities():
    """They keep even a tail too thin for fp32."""
    row = [0.0, *[-40.0] * 10, -200.0]
    for text in ("temperature=1", "top_p=1", "min_p=0", "top_k=12", "top_k=1e300", "top_n_sigma=1e300"):
        assert parse_policy(text)(torch.tensor(row)).tolist() == row, text


@pytest.mark.parametrize("text", ["temperature=1e-20", "temperature=1e20", "temperature=1e-20,top_p=0.9,min_p=0.1"])
def test_extreme_temperatures_leave_a_distribution(text):
    p = torch.softmax(parse_policy(text)(torch.tensor([12.0, 1000.0, -1000.0, -math.inf, 3.0])).double(), dim=-1)
    assert p.tolist() == pytest.approx([0, 1, 0, 0, 0] if "e-20" in text else [1 / 4, 1 / 4, 1 / 4, 0, 1 / 4])


@hypothesis_settings
@given(st.lists(steps, max_size=4), vocabulary.flatmap(lambda size: rows_of(size, coarse)))
@example([("top_p", 0.45), ("temperature", 2.0)], [math.log(5), math.log(3), math.log(2)])
@example([("top_k", 2.0), ("top_p", 0.6)], [math.log(5), math.log(3), math.log(2)])
def test_steps_apply_in_the_order_written(chain, row):
    """Each to what the one before it left, renormalised."""
    expected = row
    for name, value in chain:
        expected = reference(name, value, expected)
        assume(expected is not None)
    assert Policy(tuple(chain))(torch.tensor(row)).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-30)


def test_arithmetic_is_fp32_and_the_input_stays():
    logits = torch.tensor([1.0, 2.5, 2.5, -0.5])
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        typed, before = logits.to(dtype), logits.to(dtype).clone()
        for text in ("temperature=1", "temperature=0.7,top_p=0.7", "top_k=2", "min_p=0.5", "top_n_sigma=1", "greedy"):
            got = parse_policy(text)(typed)
            assert got.dtype == torch.float32 and torch.equal(got, parse_policy(text)(logits))
            assert torch.equal(typed, before)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" temperature=0.7 , top_p=0.95 ", (("temperature", 0.7), ("top_p", 0.95))),
        ("greedy=1", (("greedy", 1.0),)),
        ("temperature=1.0,temperature=1", ()),
    ],
)
def test_parse(text, expected):
    assert parse_policy(text) == Policy(expected)


def test_text_is_kept():
    texts = "temperature=0.7,top_p=0.95 greedy temperature=1 temperature=0 top_k=1234567 top_p=0.99999999 min_p=1e-10"
    assert [str(parse_policy(text)) for text in texts.split()] == texts.split()


@hypothesis_settings
@given(st.lists(steps, max_size=4))
def test_a_policy_survives_its_text(chain):
    """To the last digit: results name their policy by this text."""
    chain = tuple(step for step in chain if step != ("temperature", 1.0))
    assert parse_policy(str(Policy(chain))) == Policy(chain)


BAD = {
    "is": "temperature=-0.1 temperature=1e-21 temperature=1e21 top_p=0 top_p=1.5 top_k=0 top_k=2.5 min_p=1.5 greedy=2",
    "does not exist: choose from temperature, greedy, top_k": "beam=3 Top_k=3 top_k=3,beam=3 =3",
    "write a policy as name=value": "top_p top_k=3,top_p top_p= top_p=a top_p=0.9=0.8 greedy= greedy,",
}


@pytest.mark.parametrize(("says", "text"), [(says, text) for says in BAD for text in BAD[says].split()])
def test_bad_text_is_refused_by_name(says, text):
    """The step that is wrong is the last one."""
    name = text.split(",")[-1].partition("=")[0]
    with pytest.raises(ValueError, match=f"^policy '?{name}.*{says}"):
        parse_policy(text)


@pytest.mark.parametrize("name", STEPS)
def test_values_that_no_step_takes(name):
    for value in (-1.0, math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"^policy {name} is"):
            Policy((("top_k", 3.0), (name, value)))
