"""How precise an engine is for what it decodes: (standard error of pass@k)^2 x decoded prefixes.

The standard errors are the engines' own, computed at the exact p. Rollouts are not run: they decode all tokens of a
trace but its last. Their product does not depend on n at k = 1. split decodes no prefix twice, so that its product, and
that of the remainder, fall as n grows.
"""

from typing import Any

from minifork.decoding.exact import exact
from minifork.decoding.remainder import remainder
from minifork.decoding.split import split
from minifork.decoding.traces import TraceTree, accepted_share
from minifork.measuring.quantities import sampling_error

KS = (1, 16)


def efficiency(tree: TraceTree, n: int, searched: float) -> list[dict[str, Any]]:
    """A row for remainder, split and rollout: standard errors of pass@k by k, decoded prefixes, and their products.

    n: rollouts a problem; searched: the share of all live prefixes that remainder decodes before it samples.
    """
    p = exact(tree)
    rest, splits = remainder(tree, p.evaluated * searched, n, 0), split(tree, n, 0)
    decoded = n * float(p.tokens.sum() - len(tree))
    rows = []
    for engine, result, evaluated in (
        ("remainder", rest, rest.evaluated), ("split", splits, splits.evaluated), ("rollout", splits, decoded),
    ):  # fmt: skip
        q = p.p if result.explored is None else accepted_share(p.p, result.p_lo, result.p_hi)
        errors = {k: sampling_error(result, q, k) for k in KS}
        costs = {k: error**2 * evaluated for k, error in errors.items()}
        rows.append({"engine": engine, "evaluated": evaluated, "errors": errors, "costs": costs})
    return rows
