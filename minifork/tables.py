"""An evaluation as text: a table of the runs, a table of the forced modes, and the outcome of the cross-check."""

from typing import Any

from minifork import runs
from minifork.config import tag_text
from minifork.schema import Config

VISIBLE = 1e-5  # bounds of pass@k closer than this are equal up to the model's own arithmetic
FALSE_ALARMS = 1e-3  # chance that a correct evaluation reports any disagreement
KS = ("1", "4", "16", "64", "1024")

Rows = list[dict[str, Any]]
Column = tuple[str, int, int, list[float | None]]  # title, width, decimals, one value for each row


def evaluation_text(config: Config, content: dict[str, Any]) -> str:
    """The text that an evaluation prints; content: the content of eval.json (see `minifork.evaluation.files`)."""
    rows, path = content["records"], runs.task_folder(config) / "eval.json"
    lines = [table(rows)]
    if config.eval.stratify == "none":
        lines.append(mode_table(rows))
    if (widest := max(map(width, rows))) > VISIBLE:
        lines.append(f"pass@k is certified within {widest:.2g} only, and shown at its lower end: raise eval.budget")
    if content["guessing_floor"]:
        lines.append(f"graded by the answer alone: a guess is right with probability {content['guessing_floor']:.3g}")
    if stale := sum(not row["current"] for row in rows):
        lines.append(f"{stale} of {len(rows)} were measured by another version of the code; --again measures anew")
    lines.append(check_lines(content["checks"]))
    lines.append(f"all {len(rows)} records: {path}; p of every problem: {path.with_suffix('.npz')}")
    return "\n".join(lines)


def table(rows: Rows) -> str:
    """The final checkpoint of every run, one line each, with the run's tags at the end."""
    last = _last(rows)
    forks = [row["fork"] or {} for row in last]  # None on a task without a fork
    trained = [row["fork_train"] or {} for row in last]
    columns: list[Column] = [("epoch", 6, 0, [row["epoch"] for row in last])]
    for k in KS:
        if k in last[0]["pass_at"]:
            columns.append((f"pass@{k}", 10, 3, [row["pass_at"][k] for row in last]))
    columns += [
        ("rho", 7, 3, [row["rho"] for row in last]),
        ("P(FWD)", 8, 3, [row["mode"]["p_forward"] for row in last]),
        ("fork test", 11, 3, [fork.get("accuracy") for fork in forks]),
        ("train", 7, 3, [fork.get("accuracy") for fork in trained]),
        ("entropy", 9, 3, [fork.get("entropy") for fork in forks]),
    ]
    hit_rates = [row.get("hit_rate") for row in last]
    if any(rate is not None for rate in hit_rates):
        columns.append(("strata at fork", 16, 3, hit_rates))
    return _table("run", 28, last, columns)


def mode_table(rows: Rows) -> str:
    """The final checkpoint of every run when each mode is forced: pass@1, tokens a trace, and wasted tokens.

    Wasted tokens are those by which accepted traces are longer than the shortest.
    """
    last = _last(rows)
    columns: list[Column] = []
    for mode in last[0]["forced"]:
        mode_rows = [row["forced"][mode] for row in last]
        columns.append((f"{mode} pass@1", 15, 3, [row["pass_at"]["1"] for row in mode_rows]))
        columns.append(("tokens", 8, 2, [row["tokens"] for row in mode_rows]))
        columns.append(("wasted", 7, 2, [row["wasted"] for row in mode_rows]))
    return _table("forced mode", 34, last, columns)


def _table(title: str, narrowest: int, rows: Rows, columns: list[Column]) -> str:
    """A line of titles and a line a row, which ends with the run's tags and its test set."""
    longest = max(narrowest, *(len(row["run"]) for row in rows))
    lines = [f"{text:<{longest}}" for text in (title, *(row["run"] for row in rows))]
    for head, width, decimals, values in columns:
        cells = [head, *("-" if value is None else f"{value:.{decimals}f}" for value in values)]
        lines = [f"{line}{cell:>{width}}" for line, cell in zip(lines, cells, strict=True)]
    for index, row in enumerate(rows, start=1):
        test_set = "" if row["test_set"] == "plain" else f" ({row['test_set']})"
        lines[index] = f"{lines[index]}  {tag_text(row['tags'])}{test_set}".rstrip()
    return "\n".join(lines)


def _last(rows: Rows) -> Rows:
    """The row of the final checkpoint of every run on every test set."""
    return list({(row["run"], row["test_set"]): row for row in rows}.values())


def width(row: dict[str, Any]) -> float:
    """The largest distance over k between a row's certified bounds of pass@k; 0 if pass@k was estimated."""
    low, high = row["pass_at_lo"], row["pass_at_hi"]
    return 0.0 if row["n"] is not None else max(high[k] - low[k] for k in low)


def check_lines(checks: list[dict[str, Any]]) -> str:
    """The disagreements between two engines, one a line, and a line about all checks."""
    if not checks:
        return "not cross-checked: rollouts in bf16 follow p of their own"
    lines = [
        f"cross-check: {check['run']}: {check['engine']} against {check['by']}, p {check['p_value']:.2g}: DISAGREE"
        for check in checks
        if not check["agrees"]
    ]
    rate = sum(check["problems"] * check["n"] for check in checks) / sum(check["seconds"] for check in checks)
    pairs = ", ".join(sorted({f"{check['engine']} and {check['by']}" for check in checks}))
    lines.append(
        f"cross-check: {pairs} ({checks[0]['n']} a problem, {checks[0]['problems']} problems) "
        f"{'disagree' if lines else 'agree'} for {len(checks)} checkpoints "
        f"(smallest p {min(check['p_value'] for check in checks):.2g}; "
        f"false alarms <= {FALSE_ALARMS:g} an evaluation); {rate:,.0f} samples/s"
    )
    return "\n".join(lines)
