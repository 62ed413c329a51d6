"""Samples that are spread over the tokens of one position, on small runs."""

import contextlib
import io
import shutil

import numpy as np
import pytest

from experiments.estimates import KS
from experiments.studies.stratified import POOL, first_token_line, first_token_rows, recovered_shares, stratified_line
from minifork.statistics.passk import problem_pass_at_k
from minifork.storage import files
from tests.helpers.pipeline import Pipeline


@pytest.fixture(scope="module")
def finished(trained, small, tmp_path_factory):
    """A pipeline in which the command ran; its runs were there, without measurements."""
    pipeline = Pipeline(tmp_path_factory.mktemp("spread"), small)
    for name in ("base", "fork0.5", "fork1"):
        run = trained.run(name)
        shutil.copytree(run, pipeline.folder / run.name, ignore=shutil.ignore_patterns("eval"))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert pipeline("spread") == 0
    pipeline.printed = printed.getvalue()
    pipeline.written = files.read_json(pipeline.folder / "spread.json")
    return pipeline


def test_samples_that_miss_nothing_have_nothing_to_recover():
    """Then there is no share, and what is written down holds no NaN."""
    places = {"iid": (np.ones(50), 0.0), "the top first tokens": (np.ones(50), 0.0)}
    (row,) = recovered_shares(1.0, [places, places])
    assert row["recovered"] == [None, None] and row["ci95"] is None
    assert "recovered - - [no interval: too little is missed]" in stratified_line(row)


def test_measures_the_last_step_and_deals_samples(finished):
    stratified = finished.written["stratified"]
    assert [(row["fork_rate"], len(row["recovered"])) for row in stratified] == [(0.5, 1)] * 4 + [(1, 1)] * 4
    assert "d samples spread over" in finished.printed and "1 pair of seeds" in finished.printed
    assert len(finished.view()["records"]) == 2  # the last step of either run


def test_first_tokens_are_scored_as_eval_scores_them(finished, tmp_path):
    """The paper's decoder and the one over the modes alone, by `minifork eval` of the same runs."""
    rows = finished.written["first_tokens"]
    places = [tuple(row[key] for key in ("fork_rate", "first_tokens", "scoring", "k")) for row in rows]
    assert places == [(rate, m, scoring, k) for rate in (0.5, 1) for m in (2, 8) for k in KS[1:]
                      for scoring in ("pooled", "dealt")]  # fmt: skip
    pipeline = Pipeline(tmp_path, finished.small)
    for name in ("base", "fork0.5", "fork1"):
        shutil.copytree(finished.run(name), pipeline.folder / finished.run(name).name)
    for m in (2, 8):
        for scoring, words in {"pooled": [f"eval.pool={POOL}"], "dealt": []}.items():
            assert pipeline("eval", "eval.stratify=first", f"eval.strata={m}", *words) == 0
            last = {record["fork_rate"]: record["pass_at"] for record in pipeline.view()["records"]}
            for row in [row for row in rows if (row["first_tokens"], row["scoring"]) == (m, scoring)]:
                assert row[scoring]["mean"] == pytest.approx(last[row["fork_rate"]][str(row["k"])], abs=1e-6)
                assert row["gain"]["mean"] == pytest.approx(row[scoring]["mean"] - row["iid"]["mean"])


@pytest.mark.parametrize(("rate", "share"), [(0.5, None), (0.05, 0.9999)])
def test_the_share_of_flattening(rate, share):
    """Of two first tokens, the right one of which is sampled with a probability ``rate``: nearly all is flattening, at
    16 samples. Where nothing is gained nothing is shared out."""
    passes = {"iid": rate, "flattened": 0.5}
    passes = {name: np.full((50, 2), problem_pass_at_k(p, KS[1:])) for name, p in passes.items()}
    spread = {"pooled": np.full((50, 2), 1 - 1e-5), "dealt": np.ones((50, 2))}
    row, *_ = rows = first_token_rows(1.0, [{2: passes | spread}] * 2)
    gain, flattened = 1 - 1e-5 - problem_pass_at_k(rate, 16), problem_pass_at_k(0.5, 16) - problem_pass_at_k(rate, 16)
    assert len(rows) == 4 and row["gain"]["mean"] == pytest.approx(gain)
    if share is None:
        assert row["flattening"] is None and "flattening" not in first_token_line(row)
    else:
        assert row["flattening"]["mean"] == pytest.approx(flattened / gain) == pytest.approx(share, abs=1e-4)
        assert "of which flattening 1.000 [" in first_token_line(row)
