"""An evaluation in words: one line a run, what each forced mode is worth, what the cross-check said."""

from typing import Any

from minifork import runs
from minifork.config import tag_text
from minifork.schema import Config

VISIBLE = 1e-5  # width of pass@k below which the model's own arithmetic hides it
FALSE_ALARMS = 1e-3  # chance that a correct evaluation reports any disagreement
KS = ("1", "4", "16", "64", "1024")

Records = list[dict[str, Any]]
Column = tuple[str, int, int, list[float | None]]  # title, width, decimals, values


def report(config: Config, view: dict[str, Any]) -> str:
    """All that is printed of an evaluation's view (see `minifork.evaluate.write_view`)."""
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
    """The final checkpoint of every run, one line each; where runs differ from the config stands last."""
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
    hits = [record.get("hit_rate") for record in last]
    if any(hit is not None for hit in hits):
        columns.append(("strata at fork", 16, 3, hits))
    return _table("run", 28, last, columns)


def mode_table(records: Records) -> str:
    """What each mode is worth when it is forced, for the final checkpoint of every run: pass@1, tokens a trace, and
    wasted ones, by which accepted traces are longer than the shortest."""
    last = _last(records)
    columns: list[Column] = []
    for mode in last[0]["forced"]:
        forced = [record["forced"][mode] for record in last]
        columns.append((f"{mode} pass@1", 15, 3, [one["pass_at"]["1"] for one in forced]))
        columns += [(name, size, 2, [one[name] for one in forced]) for name, size in (("tokens", 8), ("wasted", 7))]
    return _table("forced mode", 34, last, columns)


def _table(title: str, narrowest: int, records: Records, columns: list[Column]) -> str:
    """A line of titles and one a record, which ends with what tells its run and test set from the config's."""
    longest = max(narrowest, *(len(record["run"]) for record in records))
    lines = [f"{title:<{longest}}" + "".join(f"{head:>{width}}" for head, width, _, _ in columns)]
    for row, record in enumerate(records):
        line = f"{record['run']:<{longest}}"
        for _, width, decimals, values in columns:
            value = values[row]
            line += f"{'-' if value is None else f'{value:.{decimals}f}':>{width}}"
        test_set = "" if record["test_set"] == "plain" else f" ({record['test_set']})"
        lines.append(f"{line}  {tag_text(record['tags'])}{test_set}".rstrip())
    return "\n".join(lines)


def _last(records: Records) -> Records:
    """The record of the final checkpoint of every run on every test set."""
    return list({(record["run"], record["test_set"]): record for record in records}.values())


def width(record: dict[str, Any]) -> float:
    """How far the certified bounds of a record lie apart at the k where they do most; 0 if it was sampled."""
    low, high = record["pass_at_lo"], record["pass_at_hi"]
    return 0.0 if low is None else max(high[k] - low[k] for k in low)


def check_lines(checks: list[dict[str, Any]]) -> str:
    """What the other engine said of the results."""
    if not checks:
        return "not cross-checked: rollouts in bf16 follow p of their own"
    lines = [
        f"cross-check: {c['run']}: {c['engine']} against {c['by']}, p {c['p_value']:.2g}: DISAGREE"
        for c in checks
        if not c["agrees"]
    ]
    first, smallest = checks[0], min(check["p_value"] for check in checks)
    rate = sum(c["problems"] * c["n"] for c in checks) / sum(c["seconds"] for c in checks)
    pairs = ", ".join(sorted({f"{c['engine']} and {c['by']}" for c in checks}))
    lines.append(
        f"cross-check: {pairs} ({first['n']} a problem, {first['problems']} problems) "
        f"{'disagree' if lines else 'agree'} for {len(checks)} checkpoints (smallest p {smallest:.2g}; "
        f"false alarms <= {FALSE_ALARMS:g} an evaluation); {rate:,.0f} samples/s"
    )
    return "\n".join(lines)
