"""Numbers in the README and the docs are those of the results in experiments/results/.

`x in TEXT` says that x stands on a page. TEXT remembers what was looked for. The last test names every row of a table
with a measured number that no result gives.
"""

import re
from collections import Counter

import numpy as np
import pytest

import minifork as mf
from experiments.checks import bench
from experiments.claims import FILE, read_claims
from experiments.estimates import KS, estimate_text, interval_text, signed
from experiments.studies.early_stopping import gap_text
from experiments.summary import summary_table
from minifork.storage import files
from tests.helpers.pages import COMMITTED, PAGES, ROOT, TEXT, Pages, short


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000


def front_lines() -> list[str]:
    """The rows of the README's table, by the name of the run."""
    star = {row["name"]: row["pass_at"] for row in COMMITTED["star"]["rows"]}
    rl = {row["run"]: row["pass_at"] for row in COMMITTED["contrast"]["runs"]}
    anchored = {row["run"]: {str(k): row[f"pass@{k}"] for k in KS} for row in COMMITTED["anchoring"]["rows"]}
    rows = {
        "base": star["base"],
        "fine-tuned on forks (FORK_RATE 1)": star["FORK_RATE 1"],
        "the same, anchored": anchored["anchored"],
        "RL on forks (GRPO, forward)": rl["forward, GRPO"],
        "fine-tuned without forks (FORK_RATE 0)": star["FORK_RATE 0"],
    }
    return [f"| {name} | {' | '.join(map(cell, passes.values()))} |" for name, passes in rows.items()]


def test_the_readme_has_the_main_results():
    assert "\n".join(front_lines()) in TEXT


@pytest.mark.parametrize("name", sorted(COMMITTED))
def test_results_say_what_made_them(name):
    result = COMMITTED[name]
    assert result["command"] and result["config_hash"] and result["machine"]


OLDER = {"capitals"}  # from before files had a version and a checksum


@pytest.mark.parametrize("name", sorted(COMMITTED))
def test_results_are_of_this_version_and_as_they_were_written(name):
    result = COMMITTED[name]
    if name in OLDER:
        assert "checksum" not in result
    else:
        assert result["version"] == mf.__version__, f"{name}: made by another version, make it again"
        assert files.is_sealed(result), f"{name}: edited after it was written"


@pytest.mark.parametrize(
    "name", sorted(name for name, result in COMMITTED.items() if {"rows", "train_minutes"} <= {*result})
)
def test_summaries(name):
    result = COMMITTED[name]
    assert summary_table(result["rows"]) in TEXT and result["train_minutes"] > 0
    assert {"study", "sweep"} & result.keys()  # "sweep" is what version 0.1 wrote


def test_claims_on_a_gpu():
    """Their number, and those that do not hold."""
    rows = [row for row in COMMITTED["star-h200-claims"]["claims"] if row["verdict"] != "not run"]
    others = [row for row in rows if row["verdict"] != "holds"]
    assert f"Of the {len(rows)} claims on fine-tuning, {len(rows) - len(others)} hold" in TEXT
    assert all(short(f"{row['effect']:.3f} {interval_text(row['interval'], '')}") in TEXT for row in others)


def verdict_line(row: dict) -> str:
    """A judged claim as a row of docs/claims.md."""
    value = "" if row["effect"] is None else f"{row['effect']:.3f} "
    ends = f"({row['why']})" if row["interval"] is None else interval_text(row["interval"], "")
    numbers = short(f"{value}{ends} | {row['rule']}")
    return f"| {row['id']} | {row['says']} | {numbers} | {row['verdict']} |"


@pytest.mark.parametrize("name", sorted(name for name in COMMITTED if name.startswith("claims-")))
def test_verdicts(name):
    """Verdicts are on the fresh pairs of seeds. A claim without a verdict is named as such."""
    assert COMMITTED[name]["seeds"] == [5, 6, 7, 8, 9] and "confirm" in COMMITTED[name]["command"]
    for row in COMMITTED[name]["claims"]:
        assert (f"`{row['id']}`" if row["verdict"] == "not run" else verdict_line(row)) in TEXT, row["id"]


def test_claims_are_counted_and_those_not_judged_are_named():
    rows = [row for name, result in COMMITTED.items() if name.startswith("claims-") for row in result["claims"]]
    verdicts = Counter(row["verdict"] for row in rows)
    holds, judged = verdicts["holds"], len(rows) - verdicts["not run"]
    assert (
        f"{holds} of {judged} judged claims hold, {verdicts['refuted']} are refuted, {verdicts['undecided']} are"
        in TEXT
    )
    ids = {row["id"] for row in rows}
    assert all(f"`{claim.id}`" in TEXT for claim in read_claims(FILE)[1] if claim.id not in ids)


@pytest.mark.parametrize(("rate", "mode"), [(1, "free"), (1, "FWD"), (0.5, "free")])
def test_mitigations(rate, mode):
    """The rows of a FORK_RATE and mode as a Markdown table, by falling pass@16."""
    lines = ["| run or decoder | skill | pass@1 | pass@16 | pass@64 | above early stopping at k = 16 | at k = 64 |"]
    lines += ["|---|---|---|---|---|---|---|"]
    rows = [row for row in COMMITTED["frontier"]["methods"] if (row["fork_rate"], row["mode"]) == (rate, mode)]
    for row in sorted(rows, key=lambda row: -row["pass_at"]["16"]):
        cells = [f"{value:.3f}" for value in (row["skill"], *row["pass_at"].values())]
        cells += [gap_text(row[f"above_{k}"]) for k in KS[1:]]
        lines.append(short(f"| {row['method']} | {' | '.join(cells)} |"))
    assert "\n".join(lines) in TEXT


def test_stratified():
    for row in COMMITTED["spread"]["stratified"]:
        recovered = " / ".join(f"{value:.3f}" for value in row["recovered"])
        line = f"| {row['spread_over']} | {recovered} | {interval_text(row['ci95'], '')} | {row['hit_rate']:.0%} |"
        assert short(line) in TEXT
    for row in COMMITTED["spread"]["first_tokens"]:
        cells = [f"{row['fork_rate']:g}", str(row["first_tokens"]), row["scoring"], str(row["k"])]
        cells += [f"{row[name]['mean']:.3f}" for name in ("iid", row["scoring"])] + [signed(row["gain"])]
        flattening = cell(row["flattening"]) if row["flattening"] else "-"
        assert f"| {short(' | '.join(cells))} | {flattening} |" in TEXT


def cell(estimate: dict) -> str:
    """An estimate as tables give it."""
    return short(estimate_text(estimate))


def flip_line(row: dict) -> str:
    return f"| {row['trained']} | {row['printed']} | " + " | ".join(
        cell(row[name]) for name in ("accuracy", "flips", "within_share")
    ) + " |"  # fmt: skip


def test_flips():
    assert all(flip_line(row) in TEXT for row in COMMITTED["flips"]["rows"])


def thinking_lines(run: dict) -> list[str]:
    names = ("tokens", "tokens beyond the shortest", "pass@1", "pass@1 lost")
    return [f"| {place} | {first} | {' | '.join(cell(row[name]) for name in names)} |"
            for place, by_token in run["problems"].items() for first, row in by_token.items()]  # fmt: skip


def test_thinking():
    """The first run of the study."""
    assert all(line in TEXT for line in thinking_lines(COMMITTED["thinking-search"]["runs"][0]))


def opener_lines(run: dict) -> list[str]:
    hard, easy = run["problems"]["hard"], run["problems"]["easy"]
    rows = {opener: (hard[opener]["P(REV)"], hard[opener]["pass@1"], easy[opener]["pass@1"]) for opener in hard}
    return [f"| {opener} | {' | '.join(map(cell, row))} |" for opener, row in rows.items()]


def test_openers():
    run = COMMITTED["thinking-openers"]["runs"][0]
    assert all(line in TEXT for line in opener_lines(run))
    for pair in run["synonyms"]:
        ends = f"{' and '.join(pair['names'])} differ by {short(signed(pair['difference']))}"
        assert pair["agree"] and ends in TEXT


def competence_lines(runs: list[dict]) -> list[str]:
    """Coverage of data-level and problem-level runs, side by side at every k."""
    data, problem = (run["coverage"] for run in runs)
    return [
        f"| {name} | {' | '.join(cell(part[name][str(k)]) for k in KS for part in (data, problem))} |" for name in data
    ]


def test_competence():
    runs = COMMITTED["competence"]["runs"]
    assert all(line in TEXT for line in competence_lines(runs))
    for run in runs:
        assert short(" ".join(f"{share['mean']:.3f}" for share in run["mode_share"])) in TEXT


@pytest.mark.parametrize("name", sorted(name for name in COMMITTED if name.startswith("anchoring")))
def test_anchoring(name):
    """The last epoch of every run. Where problems differ in their number of branches there is no sigma."""
    names = ["skill FWD", "pass@1 FWD", "pass@16 FWD", "pass@64 FWD", "sigma", "train sigma", "pass@1", "pass@64"]
    last = {row["run"]: row for row in COMMITTED[name]["rows"]}
    for run, row in last.items():
        cells = [f"{row[key]['mean']:.{2 if 'sigma' in key else 3}f}" if key in row else "-" for key in names]
        assert f"| {run} | {row['epoch']} | {' | '.join(cells)} |" in TEXT, run


def rows_text(rows: list[dict], columns: list[str]) -> str:
    """The rows of a Markdown table, with intervals."""
    texts = {dict: cell, float: lambda value: short(f"{value:.3f}"), type(None): lambda _: "-"}
    lines = [[texts.get(type(row[name]), str)(row[name]) for name in columns] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


@pytest.mark.parametrize("name", ["law", "law-confirm", "law-sizes", "law-arith"])
def test_law_by_sigma(name):
    for band in (band for band in COMMITTED[name]["bands"] if band["checkpoints"]):
        errors = [f"{error['median']:.3f} / {error['worst']:.3f}" for error in [*band.values()][3:]]
        assert short(f"| {band['sigma']} | {band['checkpoints']} | {band['kurtosis']} | {' | '.join(errors)} |") in TEXT


def test_law():
    assert f"{sum(band['checkpoints'] for band in COMMITTED['law']['bands'])} checkpoints" in TEXT


@pytest.mark.parametrize("name", ["formulas", "epochs", "movers"])
def test_sigma(name):
    rows = COMMITTED["sigma"][name]
    assert rows_text(rows, [*rows[0]]) in TEXT


@pytest.mark.parametrize(("name", "epoch"), [("objectives", "1"), ("kl", "4"), ("runs", None)])
def test_rl_lab(name, epoch):
    """The means over pairs."""
    rows = [row for row in COMMITTED["rl-lab"][name] if row.get("epoch") == epoch]
    means = [{key: value["mean"] if isinstance(value, dict) else value for key, value in row.items()} for row in rows]
    assert rows_text(means, [key for key in rows[0] if key != "epoch"]) in TEXT


@pytest.mark.parametrize("task", ["star", "layers"])
def test_efficiency(task):
    for row in COMMITTED[f"efficiency-{task}"]["engines"]:
        cells = [f"{row[name][k]:.3g}" for k in ("1", "16") for name in ("error", "cost")]
        assert f"| {task} | {row['engine']} | {row['evaluated']:,} | {' | '.join(cells)} |" in TEXT


def test_cluster():
    result = COMMITTED["cluster-bench"]
    for row in result["jobs"]:
        numbers = f"{row['ms_a_job']:.1f} | {row['driver_MiB']:.0f} | {row['workers_fed']:,}"
        assert f"| {row['workers']} | {row['job']} | {row['jobs']} | {numbers} |" in TEXT
    study = result["study"]
    assert f"in {study['cluster_s']:.0f} s, which is {study['ratio']:.3f} of the {study['plain_s']:.0f} s" in TEXT


def test_kernel():
    """The rates on a GPU, in millions of tokens a second, and the ratios."""
    result = COMMITTED["gpu-nvidia-h200"]
    reference = result["bench"]["reference"]
    for name, row in reference["backends"].items():
        rates = {cell["rollouts"]: f"{cell['tokens_per_s'] / 1e6:.1f}" for cell in row}
        assert f"| {name} | {' | '.join(rates.get(batch, '-') for batch in reference['batches'])} |" in TEXT
    best, times, times_small, matrix_share, l2_share = reference["summary"].values()
    assert f"{best / 1e6:.1f} M tokens/s" in TEXT and f"{best / 1e6:.0f} million tokens a second" in TEXT
    assert f"{times:.1f} times that of the better CUDA graph" in TEXT and f"and {times_small:.1f} times with" in TEXT
    assert f"The kernel reaches {matrix_share:.0%} of it" in TEXT and f"The kernel reaches {l2_share:.0%} of it" in TEXT
    assert f"reach {reference['matrix_flops'] / 1e12:.0f} TFLOP/s" in TEXT
    seconds = [short(f"{result['bench'][f'eval_4096_{name}_s']:.2f}") for name in ("bf16", "fp32")]
    assert "take {} s in bf16 and {} s in fp32".format(*seconds) in TEXT
    base, tuned = (result["samples"][f"{name} bf16"] for name in ("base", "tuned"))
    gaps = [short(f"{cell['p99_gap_of_p']:.3f} and {cell['pass_at_k_gap']:.4f}") for cell in (base, tuned)]
    assert "they are {} for the base, {} for the fine-tuned model".format(*gaps) in TEXT
    assert result["tests"]["outcomes"] == {"passed": 40} and result["agreement"]["failed"] == 0


def test_capitals():
    """The table, and the numbers of the text."""
    result = COMMITTED["capitals"]
    columns = ["answer", "T", "pass@1", "pass@4", "pass@16", "pass@1024 >=", "tokens", "unknown", "se^2 x tokens"]
    assert rows_text(result["table"], columns) in TEXT
    at_1, at_06 = ({k: short(f"{value:.3f}") for k, value in row["pass_at"].items()}
                   for row in result["ways"] if row["start"] == "begun")  # fmt: skip
    assert f"{at_1['1']} to {at_06['1']}, and pass@1024 falls from {at_1['1024']} to {at_06['1024']}" in TEXT
    begun, free = result["checks"]
    numbers = [short(f"{value:.3f}") for value in (free["precision"], begun["p_value"], free["p_value"])]
    engine, generate = (begun["seconds"][name] for name in ("engine", "generate"))
    assert f"{free['samples']} rollouts a question it is {numbers[0]} (first {free['questions']} questions)" in TEXT
    assert f"first {begun['questions']} begun questions the p-value is {numbers[1]}" in TEXT
    assert f"first {free['questions']} free questions {numbers[2]}" in TEXT
    assert f"{generate:.1f} s, which is {generate / engine:.0f} times as long as the exact p" in TEXT
    assert begun["contradicted"] == free["contradicted"] == 0


def test_layers():
    of_one = {name: [row for row in COMMITTED["layers"][name] if row["right paths"] == 1] for name in ("runs", "forks")}
    of_run = ["pass@1 FWD", "pass@16 FWD", "law@16", "pass@64 FWD", "law@64", "index@16 FWD"]
    assert rows_text(of_one["runs"], ["run", "forks", *of_run]) in TEXT
    tuned = [row for row in of_one["forks"] if row["run"] != "base"]
    assert rows_text(tuned, ["run", "forks", "fork", "sigma", "kurtosis", "accuracy"]) in TEXT
    assert rows_text(COMMITTED["layers"]["paths"], ["run", *(f"paths@{k}" for k in (4, 16, 64, 256))]) in TEXT


def test_speed(capsys):
    """The lines that the benchmark printed."""
    bench.print_speeds(COMMITTED["bench-cpu"])
    assert all(f"    {line}" in TEXT for line in capsys.readouterr().out.splitlines())


def test_rl():
    """Every cell of the RL table is a number of the result, to its digits."""
    for row in COMMITTED["contrast"]["runs"]:
        ends = [f"{a:.3f} to {b:.3f}" for a, b in zip(row["start"], row["end"], strict=True)]
        assert short(f"| {row['run']} | {' | '.join(ends)} | {signed(row['change']['64'])} |") in TEXT, row["run"]


def test_sensitivity():
    rows = [row for panel in COMMITTED["sensitivity"]["panels"] for row in panel["rows"]]
    shrinkage = np.array([row["S"] for row in rows])  # [settings, epochs]
    low, high, early = (short(f"+{value:.3f}") for value in (shrinkage[:, -1].min(), *shrinkage.max(axis=0)[[-1, 1]]))
    assert f"in all {len(shrinkage)} settings" in TEXT and f"S_16 lies between {low} and {high} after 64 epochs" in TEXT
    growing = (np.diff(shrinkage[:, 2:], axis=1) > 0).all(axis=1).sum()
    assert f"From epoch 4 on, it grows with every doubling of the epochs in {growing} of them" in TEXT
    assert f"After two epochs it is {early} at most" in TEXT


NOT_RESULTS = {"paper.md": "numbers of the paper and its code", "rl.md": "formulas and the literature"}


def test_every_number_of_a_table_has_a_source():
    """Of every row with decimals: what the tests above looked for holds it. They must all have run."""
    sourced = "\n".join(Pages.sourced)
    rows = [(name, row) for name, page in PAGES.items() if name not in NOT_RESULTS for row in page.splitlines()]
    numbers = [(name, row) for name, row in rows if re.match(r"\|.*\.\d\d", row) and row not in sourced]
    assert not numbers
