"""Patterns over tokens: accepted is what brute force accepts, non-ASCII included; large vocabularies; refusals."""

import codecs
import re
import time
import tracemalloc
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("outlines_core", reason="needs the extra hf")

from minifork.language.automata import OUTCOMES, TokenAutomata, token_automata
from minifork.language.patterns import NON_LETTER, any_of, compile_pattern
from minifork.language.vocabulary import vocabulary

TEXTS = [b"a", b"b", b"ab", b" ", "é".encode(), b"\xc3", b"\xa9", b"ba", b"", b""]  # the last ends a text
EOS = len(TEXTS) - 1
VOCABULARY = vocabulary(TEXTS, [EOS])
PATTERNS = ["a|ab", "ab*", "(?:é|b)a?", "(?s:.)*b", "a{1,2}", "[^a]{0,2}b", " ?(?:a|é)"]
FOLLOWS = [None, "", "[^a]", "b|é"]


def verdict(tokens: tuple[int, ...], answer: str, follow: str | None) -> str:
    """The outcome of a trace by Python's re, "live" if it has none yet; answers may be rejected later than possible."""
    text, ended = b"", False
    for token in tokens:
        if token == EOS:
            ended = True
            break
        if not TEXTS[token]:
            return "rejected"
        text += TEXTS[token]
        if matches(text, False, answer, follow):
            return "accepted"
    if ended:
        return "accepted" if matches(text, True, answer, follow) else "ended_early"
    return "live"


def matches(text: bytes, ended: bool, answer: str, follow: str | None) -> bool:
    """If a text begins with a match of the answer, after which it goes on as it may."""
    characters = valid_prefix(text)
    for end in range(len(characters) + 1):
        if re.fullmatch(answer, characters[:end]):
            if follow is not None and re.match(follow, characters[end:]):
                return True
            if ended and characters.encode() == text and end == len(characters):
                return True
    return False


def valid_prefix(text: bytes) -> str:
    """The characters before the first byte that is not UTF-8."""
    characters, decoder = "", codecs.getincrementaldecoder("utf-8")()
    for byte in text:
        try:
            characters += decoder.decode(bytes([byte]))
        except UnicodeDecodeError:
            break
    return characters


def run(automata: TokenAutomata, tokens: tuple[int, ...]) -> str:
    """The outcome of a trace, "live" if it has none yet."""
    state, problem = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    for token in tokens:
        if state < automata.first_outcome:
            state = automata.step(problem, state, torch.tensor([token]))
    return "live" if state < automata.first_outcome else OUTCOMES[int(state) - automata.first_outcome]


@pytest.mark.parametrize("follow", FOLLOWS)
@pytest.mark.parametrize("answer", PATTERNS)
def test_accepted_tokenisations_are_those_of_brute_force(answer, follow):
    """All token strings up to length 3. What is rejected has no accepted continuation."""
    automata = token_automata([compile_pattern(answer, follow)], VOCABULARY)
    strings = [string for length in range(4) for string in product(range(len(TEXTS)), repeat=length)]
    expected = {string: verdict(string, answer, follow) for string in strings}
    assert set(expected.values()) >= {"accepted", "live", "rejected"}
    accepted = [string for string, outcome in expected.items() if outcome == "accepted"]
    for string, outcome in expected.items():
        if (ours := run(automata, string)) == "rejected":
            assert outcome in ("rejected", "live", "ended_early")
            assert not any(other[: len(string)] == string for other in accepted)
        else:
            assert ours == outcome, string


@given(st.lists(st.integers(0, len(TEXTS) - 1), max_size=6), st.sampled_from(PATTERNS), st.sampled_from(FOLLOWS))
def test_longer_texts_are_accepted_by_the_same_rule(tokens, answer, follow):
    automata = token_automata([compile_pattern(answer, follow)], VOCABULARY)
    assert (run(automata, tuple(tokens)) == "accepted") == (verdict(tuple(tokens), answer, follow) == "accepted")


def test_successors_are_the_steps_and_keep_the_weight():
    """Every listed next token leads where a step leads, and the rest is rejected."""
    automata = token_automata([compile_pattern(answer, "[^a]") for answer in PATTERNS], VOCABULARY)
    problem = torch.arange(len(PATTERNS))
    weight = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(len(TEXTS)), len(PATTERNS)))
    weight[:, 0] = 0
    row, token, state, of_each = automata.successors(problem, torch.zeros_like(problem), weight)
    listed = token >= 0
    stepped = automata.step(row[listed], torch.zeros_like(row[listed]), token[listed])
    assert torch.equal(stepped, state[listed]) and (state[~listed] == automata.first_outcome + 1).all()
    sums = torch.zeros(len(PATTERNS), dtype=torch.float64).index_add_(0, row, of_each)
    torch.testing.assert_close(sums, weight.sum(dim=1))
    torch.testing.assert_close(of_each[listed], weight[row[listed], token[listed]])
    assert (of_each > 0).all() and len(automata[torch.tensor([2, 0])]) == 2
    assert torch.equal(
        automata[2:3].step(problem[:1], problem[:1], token[:1]), automata.step(problem[2:3], problem[:1], token[:1])
    )


def test_outcomes_stay():
    automata = token_automata([compile_pattern("a")], VOCABULARY)
    outcomes = automata.first_outcome + torch.arange(4)
    assert torch.equal(automata.step(torch.zeros_like(outcomes), outcomes, torch.zeros_like(outcomes)), outcomes)


WIDE = 49_152
ALTERNATIVES = any_of(f"City {i} of {i * i}" for i in range(190))


@pytest.mark.parametrize(
    "answer", [r"(The answer is |)?(1[0-9]|[0-9])\.", ALTERNATIVES, ".*Paris.*", r"[^.]{0,20}Paris[^.]{0,20}\."]
)
def test_a_large_vocabulary(answer):
    """The automaton and the tokens after its first 64 states take at most 2 s and 300 MB."""
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b" .,abcdefghiPars0123", dtype=np.uint8)
    texts = [bytes([byte]) for byte in range(256)]
    texts += [rng.choice(letters, size=length).tobytes() for length in rng.integers(2, 12, size=WIDE - 256)]
    wide = vocabulary(texts, [])

    def look_up() -> None:
        automata = token_automata([compile_pattern(answer)], wide)
        for state in range(min(64, automata.first_outcome)):
            automata.allowed(0, state)

    started = time.process_time()
    look_up()
    assert time.process_time() - started < 2
    tracemalloc.start()
    look_up()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 300e6


@pytest.mark.parametrize(
    ("answer", "follow", "message"),
    [
        ("(", NON_LETTER, r"pattern '\(' is no expression"),
        ("a(?=b)", NON_LETTER, "is no expression"),
        (r"[^\s\S]", NON_LETTER, "accepts no text"),
        ("(?s:.*)", NON_LETTER, "accepts every text"),
        ("a?", "", "accepts every text"),
    ],
)
def test_useless_patterns_are_refused(answer, follow, message):
    with pytest.raises(ValueError, match=message):
        compile_pattern(answer, follow)


def test_texts_are_matched_literally():
    automata = token_automata(
        [compile_pattern(any_of(["a.b", "é"]), None)], vocabulary([b"a.b", b"axb", "é".encode(), b""], [3])
    )
    assert [run(automata, (token, 3)) for token in range(3)] == ["accepted", "rejected", "accepted"]
    with pytest.raises(ValueError, match="there is no accepted text"):
        any_of([])
