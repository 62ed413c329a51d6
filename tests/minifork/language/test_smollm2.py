"""A real language model, where `.venv/hf` has made its folder: its vocabulary, and the bounds of its answers."""

import time

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra hf")
pytest.importorskip("outlines_core", reason="needs the extra hf")

import minifork as mf
from experiments.studies import capitals
from minifork.language.automata import token_automata
from minifork.language.patterns import compile_pattern
from tests.test_house import ROOT

FOLDER = ROOT / ".venv" / "models" / "SmolLM2-135M-Instruct"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDER.exists(), reason="needs make .venv/hf")]
PATTERNS = [
    r"(The answer is |)?(1[0-9]|[0-9])\.",
    mf.any_of(spelling for _, spellings in capitals.countries() for spelling in spellings),
    ".*Paris.*",
    r"[^.]{0,20}Paris[^.]{0,20}\.",
]


@pytest.fixture(scope="module")
def lm():
    return mf.language_model(str(FOLDER))


def test_its_vocabulary(lm):
    """49,152 tokens, 313 of them no UTF-8 by themselves; an automaton with its first 64 states takes at most 2 s."""
    texts = [row[:length].tobytes() for row, length in zip(lm.vocabulary.bytes, lm.vocabulary.length, strict=True)]
    assert len(texts) == 49_152 and sum(not is_utf8(text) for text in texts) == 313
    for pattern in PATTERNS:
        started = time.process_time()
        automata = token_automata([compile_pattern(pattern)], lm.vocabulary)
        for state in range(min(64, automata.first_outcome)):
            automata.allowed(0, state)
        assert time.process_time() - started < 2


def is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_begun_answers(lm):
    """Bounds within 1e-6, which hold the probability of the plain tokenisation, and more than that."""
    questions = capitals.pose(lm, capitals.SENTENCE)[58:61]  # France, Gabon, the Gambia
    result = mf.exact(lm, questions, width=capitals.WIDTH)
    assert (result.unknown <= capitals.WIDTH).all() and (result.p > 0.1).any()
    paris = mf.ask(lm, ["What is the capital of France?"], [" Paris"], "The capital of France is", follow="")
    token = lm.tokenizer(" Paris")["input_ids"]
    logits = lm.prefill(paris.prompts).logits[0].double()
    p = np.exp((logits - logits.logsumexp(0))[token[0]].item())
    assert len(token) == 1 and p <= mf.exact(lm, paris, width=1e-9).p_hi[0] < p + 0.05
