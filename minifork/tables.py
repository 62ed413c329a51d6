"""An evaluation in words: one line a run, what each forced mode is worth, what the cross-check said."""

from minifork import runs
from minifork.config import tag_text
from minifork.schema import Config

VISIBLE = 1e-5  # width of pass@k below which the model's own arithmetic hides it
FALSE_ALARMS = 1e-3  # chance that a correct evaluation reports any disagreement
KS = ("1", "4", "16", "64", "1024")


def report(config: Config, view: dict) -> str:
    """All that is printed of an evaluation's view (see `minifork.evaluate.write_view`)."""
    records, path = view["records"], runs.task_folder(config) / "eval.json"
    lines = [table(records)]
    if config.eval.stratify == "none":
        lines.append(mode_table(records))
    if (widest := max(map(width, records))) > VISIBLE:
        lines.append(f"pass@k is certified within {widest:.2g} only, and shown at its lower end: raise eval.budget")
    if view["guessing_floor"]:
        lines.append(f"graded by the answer alone: a guess is right with probability {view['guessing_floor']:.3g}")
    stale = sum(not record["current"] for record in records)
    if stale:
        lines.append(f"{stale} of {len(records)} were measured by another version of the code; --again measures anew")
    lines.append(check_lines(view["checks"]))
    lines.append(f"all {len(records)} records: {path}; p of every problem: {path.with_suffix('.npz')}")
    return "\n".join(lines)


def table(records: list[dict]) -> str:
    """The final checkpoint of every run, one line each; where runs differ from the config stands last."""
    last = _last(records)
    ks = [k for k in KS if all(k in record["pass_at"] for record in records)]
    hits = any(record.get("hit_rate") is not None for record in records)
    longest = max(28, *(len(record["run"]) for record in last))
    head = f"{'run':<{longest}}{'epoch':>6}" + "".join(f"{'pass@' + k:>10}" for k in ks)
    head += f"{'rho':>7}{'P(FWD)':>8}{'fork test':>11}{'train':>7}{'entropy':>9}"
    lines = [head + (f"{'strata at fork':>16}" if hits else "")]
    for record in last:
        fork, train = record["fork"] or {}, record["fork_train"] or {}  # none on a task without a fork
        cells = [(record["pass_at"][k], 10) for k in ks]
        cells += [(record["rho"], 7), (record["mode"]["p_forward"], 8), (fork.get("accuracy"), 11)]
        cells += [(train.get("accuracy"), 7), (fork.get("entropy"), 9)]
        cells += [(record["hit_rate"], 16)] if hits else []
        texts = "".join(f"{'-' if value is None else f'{value:.3f}':>{width}}" for value, width in cells)
        lines.append(f"{record['run']:<{longest}}{record['epoch'] or '-':>6}{texts}{_differences(record)}")
    return "\n".join(lines)


def mode_table(records: list[dict]) -> str:
    """What each mode is worth when it is forced, for the final checkpoint of every run: pass@1, tokens a trace, and
    wasted ones, by which accepted traces are longer than the shortest."""
    last = _last(records)
    longest = max(34, *(len(record["run"]) for record in last))
    modes = "".join(f"{mode:>8} pass@1  tokens wasted" for mode in last[0]["forced"])
    lines = [f"{'forced mode':<{longest}}{modes}"]
    for record in last:
        cells = []
        for forced in record["forced"].values():
            waste = "-" if forced["wasted"] is None else f"{forced['wasted']:.2f}"
            tokens = "-" if forced["tokens"] is None else f"{forced['tokens']:.2f}"
            cells.append(f"{forced['pass_at']['1']:>15.3f}{tokens:>8}{waste:>7}")
        lines.append(f"{record['run']:<{longest}}{''.join(cells)}{_differences(record)}")
    return "\n".join(lines)


def _differences(record: dict) -> str:
    """What tells a record's run and test set from the config's."""
    test_set = "" if record["test_set"] == "plain" else f" ({record['test_set']})"
    return f"  {tag_text(record['tags'])}{test_set}".rstrip()


def _last(records: list[dict]) -> list[dict]:
    """The record of the final checkpoint of every run on every test set."""
    return list({(record["run"], record["test_set"]): record for record in records}.values())


def width(record: dict) -> float:
    """How far the certified bounds of a record lie apart at the k where they do most; 0 if it was sampled."""
    low, high = record["pass_at_lo"], record["pass_at_hi"]
    return 0.0 if low is None else max(high[k] - low[k] for k in low)


def check_lines(checks: list[dict]) -> str:
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
    pairs = sorted({f"{c['engine']} and {c['by']}" for c in checks})
    verdict = "disagree" if lines else "agree"
    lines.append(
        f"cross-check: {', '.join(pairs)} ({first['n']} a problem, {first['problems']} problems) {verdict} for "
        f"{len(checks)} checkpoints (smallest p {smallest:.2g}; false alarms <= {FALSE_ALARMS:g} an evaluation); "
        f"{rate:,.0f} samples/s"
    )
    return "\n".join(lines)
