"""The quickstart and its notebook, at toy size; as they are where slow tests run: there they must show the effect."""

import json
import runpy
from pathlib import Path

import matplotlib
import pytest

from examples import quickstart
from tests.code_lines import code_lines

EXAMPLES = Path(quickstart.__file__).parent
TOY = {"steps": 3, "traces": 64, "epochs": 2, "n": 20}


def cells() -> list[str]:
    """The code of the notebook, cell by cell."""
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_notebook(sizes: dict[str, int]) -> dict:
    """The notebook's variables in the end, run with other sizes than it states."""
    variables: dict = {}
    matplotlib.use("agg")
    first, *others = cells()
    exec(first, variables)
    variables.update(sizes)
    exec("\n".join(others), variables)
    return variables


def test_short():
    assert len(code_lines((EXAMPLES / "quickstart.py").read_text(encoding="utf-8"))) < 25


def test_at_toy_size(capsys):
    quickstart.main(**TOY)
    assert capsys.readouterr().out.splitlines()[-1].startswith("SFT, epoch 2")
    variables = run_notebook(TOY)
    assert list(variables["curves"]) == ["base", "SFT, epoch 1", "SFT, epoch 2"]


def test_they_do_the_same():
    """Every line of the script that trains or measures stands in the notebook too."""
    script, notebook = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8"), "\n".join(cells())
    for call in ("mf.Star(", "mf.pretrain(", "mf.sft(", "mf.problems("):
        line = next(line.strip() for line in script.splitlines() if call in line)
        assert line in notebook
    defaults = quickstart.main.__defaults__
    assert f"steps, traces, epochs, n = {', '.join(map(str, defaults))}" in notebook


@pytest.mark.slow
def test_at_full_size(capsys):
    runpy.run_path(str(EXAMPLES / "quickstart.py"), run_name="__main__")
    rows = {line[:16].strip(): line[16:].split() for line in capsys.readouterr().out.splitlines()}
    base, tuned = ([float(p) for p in rows[name]] for name in ("base", "SFT, epoch 32"))
    assert tuned[0] > base[0] + 0.1 and tuned[2] < base[2] - 0.05
    curves = run_notebook({})["curves"]
    assert curves["base"][[0, 4, 6]] == pytest.approx(base, abs=1e-3)
