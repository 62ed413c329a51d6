"""Language models under the engines: the same logits with and without the cache, engines that agree, refusals."""

import json

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the extra hf")
pytest.importorskip("outlines_core", reason="needs the extra hf")

from tokenizers import decoders

import minifork as mf
from minifork.decoding.policy import parse_policy
from minifork.decoding.stratified import stratify
from minifork.gpt import Rows
from minifork.language import questions as asking
from minifork.language.causal_lm import CausalLM
from minifork.language.vocabulary import read_vocabulary
from minifork.statistics import agreement
from tests.helpers.language_models import EOS, byte_tokenizer, tiny_lm

KINDS = ["gpt2", "llama"]
LEVEL = 1e-4  # the probability of a false alarm of each test of agreement
QUESTIONS = ["a", "ab é", "b b", "é a b a", "ba", "aaab", " ", "é"]


def questions(lm, answer="[ -~]", n=8, max_new=4):
    return mf.ask(lm, [f"{QUESTIONS[i % 8]}{i}" for i in range(n)], [answer] * n, max_new=max_new)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_with_the_cache_gives_the_logits_of_the_whole_sequence(kind):
    """For prompts of different lengths, and rows that are taken from others."""
    lm = tiny_lm(kind)
    texts = [lm.tokenizer(text)["input_ids"] for text in QUESTIONS]
    prompts, suffix = lm.prefill(texts), torch.randint(lm.vocab_size, (3, len(texts)))
    rows = Rows(prompts, torch.arange(len(texts)), 3)
    for step in range(3):
        logits = lm.decode(suffix[step], rows)
        whole = [
            lm.model(torch.tensor([[*text, *suffix[: step + 1, i].tolist()]])).logits[0, -1]
            for i, text in enumerate(texts)
        ]
        torch.testing.assert_close(logits, torch.stack(whole), atol=1e-4, rtol=1e-4)
        rows = rows.take(torch.arange(len(texts)))
    alone = torch.stack([lm.model(torch.tensor([text])).logits[0, -1] for text in texts])
    torch.testing.assert_close(prompts.logits, alone, atol=1e-4, rtol=1e-4)


def fits(result, exact) -> bool:
    rng = np.random.default_rng(0)
    return agreement.uniform_p(agreement.randomised_pit(result.accepted, result.n, exact.p, rng)) > LEVEL


@pytest.mark.parametrize("kind", KINDS)
def test_engines_agree(kind):
    """Split, rollouts, and the remainder within its bounds, on more questions than are asked at once."""
    lm = tiny_lm(kind)
    asked = questions(lm, n=40, max_new=2)
    exact = mf.exact(lm, asked, "temperature=0.7")
    assert exact.exact and 0.05 < exact.p.mean() < 0.95
    assert fits(mf.split(lm, asked, 300, 1, "temperature=0.7"), exact)
    assert fits(mf.rollout(lm, asked, 100, 2, "temperature=0.7"), exact)
    rest = mf.remainder(lm, asked, 200, 300, 3, "temperature=0.7")
    assert (rest.p_lo <= exact.p + 1e-9).all() and (exact.p <= rest.p_hi + 1e-9).all() and rest.unknown.max() > 0.1
    assert abs((rest.p - exact.p).mean()) < 4 * np.sqrt((rest.unknown**2 / 4 / 300).sum()) / 40


def test_generate_is_accepted_as_often_as_exact_says():
    lm = tiny_lm("gpt2")
    asked, n = questions(lm, n=60, max_new=2), 50
    exact, counts = mf.exact(lm, asked), []
    automata = asking.trace_tree(lm, asked, parse_policy("temperature=1")).automata
    transformers.set_seed(0)
    for i, prompt in enumerate(asked.prompts):
        made = lm.model.generate(
            torch.tensor([prompt]), do_sample=True, top_k=0, max_new_tokens=2, num_return_sequences=n
        )
        problem, state = torch.full((n,), i), torch.zeros(n, dtype=torch.int64)
        for token in made[:, len(prompt) :].T:
            state = automata.step(problem, state, token)
        counts.append(int((state == automata.first_outcome).sum()))
    pits = agreement.randomised_pit(np.array(counts), n, exact.p, np.random.default_rng(0))
    assert agreement.uniform_p(pits) > LEVEL


def test_rows_that_fit_the_memory_do_not_change_the_result():
    large, small = tiny_lm(), tiny_lm(memory=1)
    assert small.rows_at_once(9) == 1 < large.rows_at_once(9)
    results = [mf.exact(lm, questions(lm, max_new=2)) for lm in (large, small)]
    np.testing.assert_allclose(results[0].outcomes, results[1].outcomes, atol=1e-5)
    assert len(questions(large, n=3)[1:]) == 2


def test_stratified_decoding():
    """The strata of all first tokens, weighted by their probabilities, make up p."""
    lm = tiny_lm()
    tree = asking.trace_tree(lm, questions(lm, max_new=2), parse_policy("temperature=1"))
    strata = stratify(tree, tree.forced, torch.zeros(len(tree), dtype=torch.int64), lm.vocab_size)
    first = torch.softmax(tree.prompts.logits.double(), dim=1).numpy()
    p = (np.take_along_axis(first, strata.tokens, axis=1) * strata.p_lo).sum(axis=1)
    np.testing.assert_allclose(p, mf.exact(lm, questions(lm, max_new=2)).p, atol=1e-6)


def test_the_bytes_of_tokens():
    tokenizer = byte_tokenizer()
    words = read_vocabulary(tokenizer, len(tokenizer) + 3, [tokenizer.eos_token_id])
    text = "ab é a b 日\n"
    tokens = tokenizer(text)["input_ids"]
    assert b"".join(words.bytes[token, : words.length[token]].tobytes() for token in tokens) == text.encode()
    assert len(tokens) < len(text.encode()) and words.ends.nonzero()[0].tolist() == [tokenizer.eos_token_id]
    assert (words.length[-3:] == 0).all()  # a model may have more tokens than its tokenizer


def test_what_is_refused():
    lm = tiny_lm()
    with pytest.raises(ValueError, match="question 'aaa.* has 70 tokens: the model's context has room for 1 to 61"):
        mf.ask(lm, ["a" * 70], ["a"], max_new=4)
    with pytest.raises(ValueError, match="there are no questions"):
        mf.ask(lm, [], [])
    with pytest.raises(ValueError, match="there are 1 questions, 2 answers and 1 beginnings"):
        mf.ask(lm, ["a"], ["a", "b"])
    with pytest.raises(ValueError, match="mode is 'FWD', but a language model has none"):
        mf.exact(lm, questions(lm), mode="FWD")
    with pytest.raises(ValueError, match="problems are of a task, but the model is a language model"):
        mf.exact(lm, mf.problems(mf.Star(nodes=8, branches=2, length=3), "test", 3))
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="its tokens do not map to bytes"):
        read_vocabulary(tokenizer, 300, [])
    with torch.no_grad():
        lm.model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="problem 0: the model's logits are not finite"):
        mf.exact(lm, questions(lm))


def test_models_without_keys_and_values_are_refused():
    tokenizer = byte_tokenizer()
    config = transformers.MambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    config.max_position_embeddings = 64
    with pytest.raises(ValueError, match="MambaForCausalLM has no cache"):
        CausalLM(transformers.MambaForCausalLM(config), tokenizer)
    lm = tiny_lm()
    lm.model.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="LlamaForCausalLM has no cache"):
        CausalLM(lm.model, tokenizer)


def test_folders_that_hold_no_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no causal language model is in this folder"):
        mf.language_model(str(tmp_path))
    config = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "mine.py").write_text("raise SystemExit('remote code was run')", encoding="utf-8")
    with pytest.raises(ValueError, match="runs code of its own"):
        mf.language_model(str(tmp_path))


def test_a_saved_model_is_loaded_with_its_chat_format(tmp_path):
    lm = tiny_lm()
    lm.tokenizer.chat_template = "{% for m in messages %}<{{ m['content'] }}>{% endfor %}"
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    loaded = mf.language_model(str(tmp_path))
    asked = mf.ask(loaded, ["a"], ["b"], opening=" b")
    assert loaded.tokenizer.decode(asked.prompts[0]) == "<a> b" and loaded.tokenizer.eos_token == EOS
    np.testing.assert_array_equal(mf.exact(loaded, asked).p, mf.exact(lm, mf.ask(lm, ["a"], ["b"], opening=" b")).p)
