"""Capitals on a tiny model: rows, checks by `generate`, the table, the figure, and what is kept."""

import json

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra hf")
pytest.importorskip("outlines_core", reason="needs the extra hf")

from experiments.cli import main
from experiments.studies import capitals
from minifork.language.patterns import compile_pattern
from tests.helpers.language_models import tiny_lm


def test_the_table_of_countries():
    countries = capitals.countries()
    assert len(countries) == len({country for country, _ in countries}) == 194
    assert dict(countries)["Ukraine"] == ["Kyiv", "Kiev"] and dict(countries)["the Bahamas"] == ["Nassau"]
    assert all(spelling.strip() == spelling != "" for _, spellings in countries for spelling in spellings)


def test_capitals(tmp_path, monkeypatch, capsys):
    """Every way is measured once, written and drawn; a second call repeats nothing."""
    lm = tiny_lm(context=128)
    lm.model.save_pretrained(tmp_path / "tiny")
    lm.tokenizer.save_pretrained(tmp_path / "tiny")
    listed = [("A", ["a", "b"]), ("B", ["é"]), ("C", [" "])]
    settings = {"FOLDER": tmp_path, "MAX_NEW": 4, "CHECKS": {"begun": 3, "free": 3}, "SAMPLES": 40}
    settings |= {"PREFIXES": 4, "countries": lambda: listed}
    for name, value in settings.items():
        monkeypatch.setattr(capitals, name, value)
    assert main(["capitals", str(tmp_path / "tiny")]) == 0
    result = json.loads((tmp_path / "tiny" / "capitals.json").read_text(encoding="utf-8"))
    begun, free = result["ways"][:2]
    assert len(result["ways"]) == 8 and begun["engine"] == "exact" and begun["largest_width"] <= capitals.WIDTH
    assert free["engine"] == "remainder" and free["n"] == capitals.ROLLOUTS and result["table"][1]["se^2 x tokens"] > 0
    assert (np.array(free["p_lo"]) <= free["p"]).all() and (np.array(free["p"]) <= free["p_hi"]).all()
    assert all(check["contradicted"] == 0 for check in result["checks"])
    assert (tmp_path / "tiny" / "capitals.png").exists()
    printed = capsys.readouterr().out
    assert "samples by generate for each of 3 questions" in printed and "pass@1024 >=" in printed
    monkeypatch.setattr(capitals, "measure", lambda *_: pytest.fail("measured again"))
    assert main(["capitals", str(tmp_path / "tiny")]) == 0


def test_the_accepted_answers_of_a_country(monkeypatch):
    """Free answers name the capital anywhere, as a word of its own."""
    lm = tiny_lm(context=256)
    asked = capitals.pose(lm, capitals.FREE)
    pattern = compile_pattern(asked.answers[[country for country, _ in capitals.countries()].index("Peru")])
    texts = {"Lima.": True, "It is Lima, I think": True, "Limassol ": False, "Kolima ": False, "**Lima**": True}
    for text, accepted in texts.items():
        state = 0
        for byte in text.encode():
            state = pattern.next[state, byte]
        assert (state == pattern.live) == accepted, text


def test_a_model_that_does_not_exist_is_refused(tmp_path, capsys):
    assert main(["capitals", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "no causal language model is in this folder" in error and error.count("\n") == 1
