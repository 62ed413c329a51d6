"""A run as a GPT-2 of Hugging Face: the same logits, and `generate` is accepted as often as exact says."""

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers", reason="needs the extra hf")

import minifork as mf
from minifork import runs
from minifork.cli import main
from minifork.statistics import agreement

PROBLEMS, SAMPLES = 200, 64
LEVEL = 1e-4  # the probability of a false alarm


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A fine-tuned run, and what transformers loads of it."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    assert main(["export", str(trained.run("fork0.5")), "--to", "hf", str(folder)]) == 0
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return runs.read_run(trained.run("fork0.5")), model, transformers.AutoTokenizer.from_pretrained(folder)


def test_logits_are_the_same(exported):
    run, model, tokenizer = exported
    tokens = torch.from_numpy(
        np.random.default_rng(0).integers(run.config.data.vocab_size, size=(8, run.config.context))
    )
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, run.model()(tokens), atol=1e-4, rtol=0)
    assert all(not parameter.any() for name, parameter in model.named_parameters() if name.endswith("bias"))
    text = run.config.data.decode(tokens[0].numpy())
    assert tokenizer(text)["input_ids"] == tokens[0].tolist() and tokenizer.decode(tokens[0]) == text


def test_generate_is_accepted_as_often_as_exact_says(exported):
    run, model, tokenizer = exported
    problems = mf.problems(run.config.data, "test", PROBLEMS)
    dfa, counts = problems.dfa, []
    transformers.set_seed(0)
    for i, prompt in enumerate(problems.prompts):
        text = tokenizer(run.config.data.decode(prompt.numpy()), return_tensors="pt")
        made = model.generate(
            **text, do_sample=True, top_k=0, num_return_sequences=SAMPLES, max_new_tokens=run.config.data.trace_len
        )
        state = torch.zeros(SAMPLES, dtype=torch.int64)
        for token in made[:, len(prompt) :].T:
            state = dfa[i, state, token]
        counts.append(int((state == dfa.shape[1] - len(problems.outcome_names)).sum()))
    p = mf.exact(run.model(), problems).p
    pits = agreement.randomised_pit(np.array(counts), SAMPLES, p, np.random.default_rng(0))
    assert agreement.uniform_p(pits) > LEVEL and sum(counts) > 0


def test_what_is_refused(trained, tmp_path, capsys):
    assert main(["export", str(tmp_path), "--to", "hf", str(tmp_path / "model")]) == 1
    assert "run.json" in capsys.readouterr().err and not (tmp_path / "model").exists()
    assert main(["export", str(trained.run("base")), "--to", "onnx", str(tmp_path / "model")]) == 1
    assert capsys.readouterr().err == "minifork: --to is 'onnx': choose hf\n"
    with pytest.raises(ValueError, match="no such weights"):
        mf.to_hf(runs.read_run(trained.run("fork0.5")), tmp_path / "model", epoch=3)
