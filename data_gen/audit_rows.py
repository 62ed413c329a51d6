"""The rows of an audit (`data_gen.audit`), and how they are printed."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One row of the audit: what it measures, the value, the value by chance, and the p value of the difference.

    If no problem shows a fork the check does not apply: value and chance are nan and p is 1.
    """

    name: str
    measures: str
    value: float = math.nan
    chance: float = math.nan
    p: float = 1.0
    flagged: bool = False


def table(checks: list[Check]) -> str:
    """The checks as an aligned table, one line each (see the docstring of `data_gen.audit`)."""
    lines = [f"{'check':<19}  {'measures':<34} {'value':>7} {'chance':>7} {'p':>7}"]
    for c in checks:
        verdict = "LEAK" if c.flagged else "ok"
        lines.append(f"{c.name:<19}  {c.measures:<34} {c.value:7.4g} {c.chance:7.3g} {c.p:7.2g}  {verdict}")
    return "\n".join(lines)
