"""An evaluation as text: a table of the runs, a table of the forced modes, and the outcome of the cross-check."""

from typing import Any

from minifork import runs
from minifork.config import tag_text
from minifork.schema import Config

VISIBLE = 1e-5  # bounds of pass@k closer than this are equal up to the model's own arithmetic
FALSE_ALARMS = 1e-3  # chance that a correct evaluation reports any disagreement
KS = ("1", "4", "16", "64", "1024")

Records = list[dict[str, Any]]
Column = tuple[str, int, int, list[float | None]]  # title, width, decimals, a value for every record


def evaluation_text(config: Config, view: dict[str, Any]) -> str:
    """All that is printed of an evaluation's view (see `minifork.evaluate.write_eval_files`)."""
    records, path = view["records"], runs.task_folder(config) / "eval.json"
    lines = [table(records)]
    if config.eval.stratify == "none":
        lines.append(mode_table(records))
    if (widest := max(map(width, records))) > VISIBLE:
        lines.append(f"pass@k is certified within {widest:.2g} only, and shown at its lower end: raise eval.budget")
    if view["guessing_floor"]:
        lines.append(f"graded by the answer alone: a guess is right with probability {view['guessing_floor']:.3g}")
    if stale := sum(not record["current"] for record in records):
        lines.append(f"{stale} of {len(records)} were measured by another version of the code; --again measures anew")
    lines.append(check_lines(view["checks"]))
    lines.append(f"all {len(records)} records: {path}; p of every problem: {path.with_suffix('.npz')}")
    return "\n".join(lines)


def table(records: Records) -> str:
    """The final checkpoint of every run, one line each, with the run's tags at the end."""
    last = _last(records)
    forks = [record["fork"] or {} for record in last]  # none on a task without a fork
    trained = [record["fork_train"] or {} for record in last]
    columns: list[Column] = [("epoch", 6, 0, [record["epoch"] for record in last])]
    for k in KS:
        if k in last[0]["pass_at"]:
            columns.append((f"pass@{k}", 10, 3, [record["pass_at"][k] for record in last]))
    columns += [
        ("rho", 7, 3, [record["rho"] for record in last]),
        ("P(FWD)", 8, 3, [record["mode"]["p_forward"] for record in last]),
        ("fork test", 11, 3, [fork.get("accuracy") for fork in forks]),
        ("train", 7, 3, [fork.get("accuracy") for fork in trained]),
        ("entropy", 9, 3, [fork.get("entropy") for fork in forks]),
    ]
    hit_rates = [record.get("hit_rate") for record in last]
    if any(rate is not None for rate in hit_rates):
        columns.append(("strata at fork", 16, 3, hit_rates))
    return _table("run", 28, last, columns)


def mode_table(records: Records) -> str:
    """The final checkpoint of every run when each mode is forced: pass@1, tokens a trace, and wasted tokens, by which
    accepted traces are longer than the shortest."""
    last = _last(records)
    columns: list[Column] = []
    for mode in last[0]["forced"]:
        forced = [record["forced"][mode] for record in last]
        columns.append((f"{mode} pass@1", 15, 3, [one["pass_at"]["1"] for one in forced]))
        columns.append(("tokens", 8, 2, [one["tokens"] for one in forced]))
        columns.append(("wasted", 7, 2, [one["wasted"] for one in forced]))
    return _table("forced mode", 34, last, columns)


def _table(title: str, narrowest: int, records: Records, columns: list[Column]) -> str:
    """A line of titles and a line a record, which ends with the run's tags and its test set."""
    longest = max(narrowest, *(len(record["run"]) for record in records))
    lines = [f"{text:<{longest}}" for text in (title, *(record["run"] for record in records))]
    for head, width, decimals, values in columns:
        cells = [head, *("-" if value is None else f"{value:.{decimals}f}" for value in values)]
        lines = [f"{line}{cell:>{width}}" for line, cell in zip(lines, cells, strict=True)]
    for row, record in enumerate(records, start=1):
        test_set = "" if record["test_set"] == "plain" else f" ({record['test_set']})"
        lines[row] = f"{lines[row]}  {tag_text(record['tags'])}{test_set}".rstrip()
    return "\n".join(lines)


def _last(records: Records) -> Records:
    """The record of the final checkpoint of every run on every test set."""
    return list({(record["run"], record["test_set"]): record for record in records}.values())


def width(record: dict[str, Any]) -> float:
    """The largest distance over k between a record's certified bounds of pass@k; 0 if it was sampled."""
    low, high = record["pass_at_lo"], record["pass_at_hi"]
    return 0.0 if low is None else max(high[k] - low[k] for k in low)


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
