"""The report: one file that asks for nothing, and its explorer driven in a real browser."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from data_gen import streams
from experiments.explorer import LIVE, unfold
from experiments.results import load
from minifork import measure, runs, stages
from minifork.exact import exact
from minifork.policy import Policy
from tests.browser import CHROMIUM, Page

CUT = {"verdict": "fails", "says": "", "by": "us", "effect": 1.0, "ci95": [], "rule": ""}
browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


@pytest.fixture(scope="module")
def made(trained):
    assert trained("report") == 0
    return trained.folder / "report.html"


@pytest.fixture
def page(made, tmp_path):
    with Page(made, tmp_path) as opened:
        yield opened


def test_is_one_small_file_that_asks_for_nothing(made):
    text = made.read_text()
    assert len(text) < 5e6 and not re.search(r"{{\w+}}", text)
    links = re.findall(r"(?:src|href)\s*=\s*[\"']([^\"']*)|url\(([^)]*)\)|@import", text)
    assert all((a or b).startswith("#") for a, b in links)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(set(ids)) == len(ids) and {a[1:] for a, _ in links if a} | {b[1:] for _, b in links if b} <= set(ids)
    assert text.count("<svg role=") == 4 and "<text" in text  # figures are drawn, their words are words


def test_trees_of_the_explorer_are_the_models(trained):
    """Every prefix's probability is the product of the model's own next-token probabilities; ends add up to p."""
    config = trained.config()
    model = stages.load_run(trained.folder / "sft-fork1-seed0" / "epochs" / "e4.pt", config)
    problems = measure.problem_set(config.data, streams.test_problems(config.data, 6), "cpu")
    tree = measure.tree_of(model, config.data, problems, Policy())
    for i, nodes in enumerate(unfold(tree, least=0.0)):
        accepted = sum(share for *_, share, sink in nodes if sink == 0) / 1000
        assert accepted == pytest.approx(exact(tree).p_lo[i], abs=0.001 * len(nodes))
    for i, nodes in enumerate(unfold(tree, least=0.05)):
        assert nodes and all(share >= 50 for _, _, share, _ in nodes)
        for parent, token, share, _ in nodes:
            path = []
            while parent != -1:
                path, parent = [nodes[parent][1], *path], nodes[parent][0]
            sequence = torch.cat([problems.prompts[i], torch.tensor([*path, token])])
            with torch.no_grad():
                logp = model(sequence[None, :-1])[0].log_softmax(dim=-1)
            start = problems.prompts.shape[1] - 1
            own = sum(float(logp[start + j, t]) for j, t in enumerate([*path, token]))
            assert share / 1000 == pytest.approx(np.exp(own), abs=0.001)
        assert {nodes[p][3] for p, *_ in nodes if p != -1} <= {LIVE}


@pytest.mark.parametrize("change", [{"claims": [{}]}, {"pairs": "1"}, {"claims": 3}, {"claims": [CUT]}])
def test_damaged_verdicts_are_named(copy, capsys, change):
    pipeline = copy("base-seed0", "sft-fork1-seed0", "eval.json", "eval.npz", "claims.json")
    path = pipeline.folder / "claims.json"
    runs.write_json(path, runs.read_json(path) | change)
    assert "claims.json: damaged or edited" in pipeline.refused(capsys, "report")


@browser
def test_slider_and_picker(page, trained):
    """Moving them shows what eval.json says of that snapshot and problem."""
    results = load(trained.config())
    records = [results.base(0), *results.tuned(0, fork_rate=1.0)]
    assert page.js("document.querySelector('#run option').textContent") == "one mode a problem, FORK_RATE 1"
    assert page.js("document.getElementById('epoch').textContent") == "the base model"
    for snapshot, record in enumerate(records):
        for problem in (0, 5):
            page.js(f"document.getElementById('problem').value = {problem}")
            page.js("document.getElementById('problem').dispatchEvent(new Event('change'))")
            page.js(f"document.getElementById('slider').value = {snapshot}")
            page.js("document.getElementById('slider').dispatchEvent(new Event('input'))")
            right = page.js("document.querySelector('#graph .branch').textContent")
            share = f"{100 * results.array(record, 'fork')[problem, 0]:.1f} %"
            assert right == f"right {share}"
            said = page.js("document.getElementById('summary').textContent")
            p = results.p(record)[problem]
            assert f"probability {p:.3f}; at least one of 16 with {1 - (1 - p) ** 16:.3f}" in said
            assert f"the right branch has {share}." in said
            assert page.js("document.querySelectorAll('#tree text').length") >= 1
    assert page.js("document.getElementById('epoch').textContent") == "epoch 4"
    assert not page.errors and all(url.startswith("file://") for url in page.requests)


@browser
def test_graph_and_tree_are_told_to_screen_readers(page):
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    told = [(node["role"]["value"], node["name"]["value"]) for node in nodes if "name" in node]
    right = page.js("document.querySelector('#graph .branch').textContent").removeprefix("right ")
    (graph,) = [name for role, name in told if role == "image" and name.startswith("from ")]
    assert re.fullmatch(rf"from \S+, right branch \S+, \S+: {re.escape(right)}; wrong branch .*", graph)
    rows = page.js("[...document.querySelectorAll('#tree text')].map((row) => row.firstChild.textContent.trim())")
    assert rows and set(rows) <= {name.strip() for role, name in told if role == "StaticText"}


@browser
def test_keyboard(page):
    """Everything is reached by Tab; arrows move the slider, Enter presses the buttons."""
    reached = []
    for _ in range(5):
        page.press("Tab", 9)
        reached.append(page.js("document.activeElement.id"))
    assert reached == ["run", "previous", "problem", "next", "slider"]
    names = [page.js(f"document.getElementById('{name}').labels[0]?.textContent") for name in ("problem", "slider")]
    assert names == ["problem", "snapshot"]
    page.press("ArrowRight", 39)
    assert page.js("document.getElementById('epoch').textContent") == "epoch 1"
    page.js("document.getElementById('next').focus()")
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    assert page.js("document.getElementById('problem').value") == "1"
    page.js("document.getElementById('previous').click()")
    page.js("document.getElementById('previous').click()")
    assert page.js("document.getElementById('problem').value") == "23"


@browser
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_overflows_in_light_and_dark(made, tmp_path, dark):
    for width in (400, 1100):
        with Page(made, tmp_path / f"w{width}", width=width, dark=dark) as page:
            assert page.js("document.documentElement.scrollWidth") <= width
            background = page.js("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == dark
            page.screenshot(tmp_path / f"{width}.png")


def test_needs_results(copy, capsys):
    pipeline = copy("base-seed0")
    assert "eval.json" in pipeline.refused(capsys, "report")
    assert pipeline("eval") == 0
    assert "no pair of base and fine-tuned run" in pipeline.refused(capsys, "report")


def test_refuses_what_was_not_evaluated(copy, capsys):
    """Other settings, or weights that changed since."""
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("eval") == 0
    assert "made with other settings" in pipeline.refused(capsys, "report", "eval.policy=top_p=0.9")
    weights = pipeline.folder / "sft-fork1-seed0" / "epochs" / "e2.pt"
    saved = runs.load_weights(weights)
    saved["model"]["head.weight"] *= 1.5
    runs.save_weights(weights, saved)
    assert "e2.pt: changed since it was evaluated" in pipeline.refused(capsys, "report")


def test_graphs_without_a_fork(copy):
    pipeline = copy("base-seed0", "sft-fork1-seed0")
    assert pipeline("eval", "eval.forked=false") == pipeline("report", "eval.forked=false") == 0
    text = (pipeline.folder / "report.html").read_text()
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text)[1])
    assert {len(problem["branches"]) for problem in data["problems"]} == {1}


def test_words_of_claims_are_escaped(trained, made):
    from experiments.report import claims_table

    row = {"verdict": "not run", "says": "<b>&", "by": "us", "effect": None, "rule": "> 0", "why": "a run is missing"}
    table = claims_table(Path("runs"), {"pairs": 1, "wanted": 5, "sweep": "x", "claims": [row]}, False)
    assert "OUT OF DATE" in table and "&gt; 0" in table
    assert "<b>&" not in table and "&lt;b&gt;&amp;" in table
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', made.read_text())[1]
    assert len(json.loads(data)["problems"]) == 24 and "<" not in data
