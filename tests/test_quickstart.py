"""The quickstart and its notebook agree at toy size; the slow test runs the quickstart as written, for its effect."""

import json
import re
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


def rows(printed: str) -> dict[str, list[float]]:
    """pass@1, pass@16 and pass@64 by the name of their row in the quickstart's table."""
    lines = re.findall(r"^(base|SFT, epoch \d+) {2,}(.*)$", printed, re.MULTILINE)
    return {name: [float(p) for p in numbers.split()] for name, numbers in lines}


def test_short():
    assert len(code_lines((EXAMPLES / "quickstart.py").read_text(encoding="utf-8"))) < 25


def test_script_and_notebook_agree(capsys):
    """At toy size every number is the same, in the notebook without rounding."""
    quickstart.main(**TOY)
    printed = rows(capsys.readouterr().out)
    matplotlib.use("agg")
    variables: dict = {}
    first, *others = cells()
    exec(first, variables)
    variables.update(TOY)
    exec("\n".join(others), variables)
    assert list(printed) == list(variables["curves"]) == ["base", "SFT, epoch 1", "SFT, epoch 2"]
    for name, curve in variables["curves"].items():
        assert curve[[0, 4, 6]] == pytest.approx(printed[name], abs=1e-3)


def test_they_are_written_alike():
    """The notebook states the script's sizes, and every line of the script that trains or draws problems."""
    script, notebook = (EXAMPLES / "quickstart.py").read_text(encoding="utf-8"), "\n".join(cells())
    for call in ("mf.Star(", "mf.pretrain(", "mf.sft(", "mf.problems("):
        line = next(line.strip() for line in script.splitlines() if call in line)
        assert line in notebook
    defaults = quickstart.main.__defaults__
    assert f"steps, traces, epochs, n = {', '.join(map(str, defaults))}" in notebook


@pytest.mark.slow
def test_at_full_size(capsys):
    quickstart.main()
    printed = rows(capsys.readouterr().out)
    base, tuned = printed["base"], printed["SFT, epoch 32"]
    assert tuned[0] > base[0] + 0.1 and tuned[2] < base[2] - 0.05


def test_the_notebook_shows_its_outputs():
    notebook = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert "SFT, epoch 32" in printed and any("image/png" in output.get("data", {}) for output in outputs)
