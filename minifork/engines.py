"""One way to ask any engine for pass@k."""

from minifork.backends import sample
from minifork.exact import exact
from minifork.schema import ENGINES
from minifork.split import split
from minifork.tree import EXACT, Result, Tree


def solve(engine: str, tree: Tree, budget: int, n: int, seed: int, bf16: bool = False) -> Result:
    """Where the traces of every problem end.

    engine: "exact" computes (within a budget of prefixes decoded), "split" and "rollout" sample n rollouts a
    problem (on a GPU in bf16 if asked to), "auto" computes if the budget allows and else splits. Raises
    ValueError for another engine and whatever the engines raise.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}: choose {', '.join(ENGINES)}")
    if engine in ("auto", "exact"):
        result = exact(tree, max_prefixes=budget, width=EXACT)
        if engine == "exact" or result.exact:
            return result
    return sample(tree, n, seed, bf16=bf16) if engine == "rollout" else split(tree, n, seed)
