"""How precise the sampling engines are for what they decode: (standard error of pass@k)^2 x decoded prefixes.

The standard errors are not estimated but computed at the exact p. Rollouts are not run: they decode every token of a
trace but its last, and their product hardly depends on n. split and remainder decode no prefix twice, so their products
fall as n grows.
"""

import math
from typing import Any

from minifork import measure
from minifork.decoding.exact import exact
from minifork.decoding.policy import parse_policy
from minifork.decoding.remainder import remainder
from minifork.decoding.split import split
from minifork.decoding.traces import accepted_share
from minifork.measuring.problems import ProblemSet
from minifork.measuring.quantities import sampling_error
from minifork.runs import Checkpoint

POLICY, SEARCHED = "temperature=2", 1 / 4  # remainder decodes this share of all live prefixes before it samples
KS = (1, 16)


def efficiency(checkpoint: Checkpoint, problems: ProblemSet, n: int) -> list[dict[str, Any]]:
    """A row for remainder, split and rollout with n rollouts a problem under POLICY; prints them.

    evaluated: decoded prefixes; error: the standard error of pass@k, by k; cost: error^2 x evaluated, by k.
    """
    tree = measure.trace_tree(checkpoint.model().to(problems.prompts.device), problems, parse_policy(POLICY))
    rows: list[dict[str, Any]] = []
    p, splits = exact(tree), split(tree, n, 0)
    rest = remainder(tree, p.evaluated * SEARCHED, n, 0)
    decoded = {"remainder": rest.evaluated, "split": splits.evaluated, "rollout": n * (p.tokens.sum() - len(tree))}
    for engine, evaluated in decoded.items():
        result = rest if engine == "remainder" else splits
        q = p.p if result.explored is None else accepted_share(p.p, result.p_lo, result.p_hi)
        errors = {k: 0.0 if result.exact else sampling_error(result, q, k) for k in KS}
        costs = {k: error**2 * evaluated for k, error in errors.items()}
        rows.append({"engine": engine, "evaluated": int(evaluated), "error": errors, "cost": costs})
        ratios = {k: cost / (rows[0]["cost"][k] or math.nan) for k, cost in costs.items()}
        text = "".join(f"  k={k}: {errors[k]:.3g} {costs[k]:.3g} ({ratios[k]:.3g})" for k in KS)
        print(f"{engine:<10}{evaluated:>12,.0f} decoded; standard error, cost (over that of remainder):{text}")
    return rows
