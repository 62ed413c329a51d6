"""The report: one file that loads no other, and its explorer driven in a real browser."""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch

from data_gen import streams
from experiments import explorer
from experiments.explorer import KS, LIVE, unfold
from experiments.report import claims_table, write_index
from experiments.results import load_results
from minifork import measure, runs
from minifork.decoding.exact import exact
from minifork.decoding.policy import Policy
from minifork.measuring.problems import problem_set
from minifork.statistics import law as laws
from minifork.statistics import passk
from tests.helpers.browser import CHROMIUM, Browser

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def explored(page: Path) -> str:
    """The data of a page's explorer, as it is written there."""
    return re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(encoding="utf-8"))[1]


@pytest.fixture(scope="module")
def report_file(trained):
    assert trained("report") == 0
    return trained.folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(report_file, browser):
    browser.open(report_file)
    return browser


def test_is_one_small_file_that_asks_for_nothing(report_file):
    text = report_file.read_text(encoding="utf-8")
    assert len(text) < 5e6 and not re.search(r"{{\w+}}", text)
    links = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)|url\(([^)]*)\)|@import", text)
    assert all((a or b).startswith("#") for a, b in links)
    ids = re.findall(r'\bid="([^"$]+)"', text)
    assert len(set(ids)) == len(ids) and {a[1:] for a, _ in links if a} | {b[1:] for _, b in links if b} <= set(ids)
    assert text.count("<svg role=") == 4 and "<text" in text  # the text of figures stays text


def test_an_index_links_every_report(report_file, tmp_path):
    (tmp_path / "star").mkdir()
    (tmp_path / "small" / "a &#b").mkdir(parents=True)
    for folder in ("star", "small/a &#b"):
        (tmp_path / folder / "report.html").touch()
    write_index(tmp_path)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    links = [unquote(link) for link in re.findall(r'href="([^"]+)"', text)]
    assert links == ["small/a &#b/report.html", "star/report.html"] and "small/a &amp;#b" in text
    assert 'href="star/report.html"' in (report_file.parents[1] / "index.html").read_text(encoding="utf-8")


def test_trees_of_the_explorer_are_the_models(trained):
    """Every prefix's probability is the product of the model's own next-token probabilities; ends add up to p."""
    config = trained.config()
    model = runs.require_run(config, "sft").model(4)
    problems = problem_set(config.data, streams.test_problems(config.data, 6), "cpu")
    tree = measure.trace_tree(model, problems, Policy())
    for i, nodes in enumerate(unfold(tree, min_share=0.0)):
        accepted = sum(share for *_, share, outcome in nodes if outcome == 0) / 1000
        assert accepted == pytest.approx(exact(tree).p_lo[i], abs=0.001 * len(nodes))
    for i, nodes in enumerate(unfold(tree, min_share=0.05)):
        assert nodes and all(share >= 50 for _, _, share, _ in nodes)
        for parent, token, share, _ in nodes:
            path = []
            while parent != -1:
                path, parent = [nodes[parent][1], *path], nodes[parent][0]
            sequence = torch.cat([problems.prompts[i], torch.tensor([*path, token])])
            with torch.no_grad():
                logp = model(sequence[None, :-1])[0].log_softmax(dim=-1)
            start = problems.prompts.shape[1] - 1
            summed = sum(float(logp[start + j, t]) for j, t in enumerate([*path, token]))
            assert share / 1000 == pytest.approx(np.exp(summed), abs=0.001)
        assert {nodes[p][3] for p, *_ in nodes if p != -1} <= {LIVE}


@needs_browser
def test_slider_and_picker(page, trained):
    """Moving them shows the numbers of that snapshot and problem."""

    def choose(name: str, value: int, event: str) -> None:
        page.js(f"(($) => {{$.value = {value}; $.dispatchEvent(new Event('{event}'))}})({name})")

    results = load_results(trained.config())
    names = page.js("[...document.querySelectorAll('#run option')].map((option) => option.textContent)")
    rates = [f"FORK_RATE {rate}" for rate in ("0.5", "1")]  # the cued run is about another test set
    assert names == [*rates, "both modes for every problem", "FORK_RATE 1, fresh traces every epoch"]
    choose("run", 1, "change")
    assert page.js("epoch.textContent") == "the base model"
    for snapshot, record in enumerate([results.base(0), *results.tuned(0, 1)]):
        for problem in (0, 5):
            choose("problem", problem, "change")
            choose("slider", snapshot, "input")
            share, p = f"{100 * results.array(record, 'fork')[problem, 0]:.1f} %", results.problem_p(record)[problem]
            assert page.js("document.querySelector('#graph .branch').textContent") == f"right {share}"
            summary = page.js("summary.textContent")
            assert f"probability {p:.3f}; at least one of 16 with {1 - (1 - p) ** 16:.3f}" in summary
            assert f"the right branch has {share}." in summary
            assert page.js("document.querySelectorAll('#tree text').length") >= 1
    assert page.js("epoch.textContent") == "epoch 4"
    assert page.js("view2.hidden") and page.js("run2.value") == "3"
    page.js("compare.click()")
    assert not page.js("view2.hidden") and page.js("getComputedStyle(views).gridTemplateColumns.split(' ').length") == 2
    choose("slider2", 1, "input")  # the first run stays as it is
    assert (page.js("epoch.textContent"), page.js("epoch2.textContent")) == ("epoch 4", "epoch 1")
    assert not page.errors and all(url.startswith("file://") for url in page.requests)


def test_curves_of_the_explorer(report_file, trained):
    """Given FWD, averaged over which branch is right; the law's where r is in its scope."""
    results, data = load_results(trained.config()), json.loads(explored(report_file))
    run = next(run for run in data["runs"] if run["name"] == "FORK_RATE 1")
    for snapshot, record in zip(run["snapshots"], [results.base(0), *results.tuned(0, 1)], strict=True):
        branch, r = results.array(record, "fork"), results.array(record, "r")
        mirrored = [passk.pass_at_k(r * branch[:, i], snapshot["curve"]["ks"]) for i in (0, 1)]
        assert snapshot["curve"]["exact"] == pytest.approx(np.mean(mirrored, axis=0), abs=1e-4)
        assert (snapshot["curve"]["law"] is None) == (r.mean() < laws.MIN_R)


def test_the_law_of_the_explorer(trained, monkeypatch):
    monkeypatch.setattr(laws, "MIN_R", 0.0)
    results = load_results(trained.config())
    record = results.tuned(0, 1)[-1]
    curve, branch = explorer._curve(results, record), results.array(record, "fork")
    sigma = np.std(np.log(branch[:, 0]) - np.log(branch[:, 1]))
    points = laws.path_points([curve["sigma"]])
    assert curve["sigma"] == pytest.approx(sigma, rel=1e-3)
    assert curve["law"] == pytest.approx(laws.law_pass_at_k(results.array(record, "r").mean(), points, KS), abs=1e-4)


@needs_browser
def test_keyboard_and_screen_reader(page):
    """Everything is reached by Tab; arrows move the slider, Enter presses the buttons; the graph is read out."""
    for name in ("previous", "problem", "next", "compare", "run", "slider"):
        page.press("Tab", 9)
        assert page.js("document.activeElement.id") == name
    page.press("ArrowRight", 39)
    assert page.js("epoch.textContent") == "epoch 1"
    for name, problem in (("next", "1"), ("previous", "0"), ("previous", "23")):
        page.js(f"document.getElementById('{name}').focus()")
        page.press("Enter", 13, text="\r")
        assert page.js("problem.value") == problem
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    images = [node["name"]["value"] for node in nodes if node["role"]["value"] == "image"]
    assert [name for name in images if re.fullmatch(r"from \S+, right branch \S+, \S+: .*; wrong branch .*", name)]


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(400, False), (1100, True)])
def test_nothing_overflows_in_light_and_dark(report_file, browser, width, dark):
    browser.open(report_file, width, dark)
    assert browser.js("document.documentElement.scrollWidth") <= width
    background = browser.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == dark


def test_refuses_weights_that_are_not_those_of_the_run(copy, capsys):
    pipeline = copy("base", "fork1", measured=True)
    shutil.copy(pipeline.run("fork1") / runs.snapshot(1), pipeline.run("fork1") / runs.snapshot(2))
    assert "e2.pt: holds other weights than its run recorded" in pipeline.refused(capsys, "report")


def test_shows_the_settings_that_were_asked_for(copy):
    """Graphs without a fork and another decoder; the verdicts, which are about the plain ones, are marked."""
    pipeline, settings = copy("base", "fork1", measured=True), ["eval.forked=false", "eval.policy=top_p=0.8"]
    assert pipeline("claims") == pipeline("eval", *settings) == 0
    for overrides, branches in (([], 2), (settings, 1)):
        assert pipeline("report", *overrides) == 0
        path = pipeline.folder / "report.html"
        text, data = path.read_text(encoding="utf-8"), json.loads(explored(path))
        assert {len(problem["branches"]) for problem in data["problems"]} == {branches}
        assert ("OUT OF DATE" in text) == ("top_p=0.8" in text) == bool(overrides)


def test_words_of_claims_are_escaped(report_file):
    row = {"verdict": "not run", "says": "<b>&", "by": "us", "effect": None, "rule": "> 0", "why": "a run is missing"}
    table = claims_table(Path("runs"), {"seeds": [0], "wanted": 5, "study": "x", "claims": [row]}, False)
    assert "OUT OF DATE" in table and "&gt; 0" in table
    assert "<b>&" not in table and "&lt;b&gt;&amp;" in table
    data = explored(report_file)
    assert len(json.loads(data)["problems"]) == 24 and "<" not in data
