"""How the branch that a model chooses at the fork depends on the order in which a problem is printed.

Arrays hold every problem in R random orders, R at least 2: float64[R, n], or branch probabilities float64[R, n, d] with
the right branch first. What is returned has a value for every problem. Its mean over problems is the estimate, as
`minifork.statistics.intervals` needs it.
"""

import numpy as np

from minifork.statistics import intervals

VARIANCES = ("within", "between", "within_share")  # the names in `flip_values` of what is no probability


def flip_values(branch: np.ndarray) -> dict[str, np.ndarray]:
    """What the printed order changes at the fork, float64[n] by name, from branch probabilities float64[R, n, d].

    accuracy         the most probable branch is right
    flips            the most probable branches in two orders differ
    sampled_flips    branches sampled in two orders differ
    sampled_differ   two branches sampled in one order differ
    within, between  variance components of the branch logit log p(right) - log p(any other)
    within_share     the share of within in their sum
    """
    chosen = np.eye(branch.shape[-1])[branch.argmax(axis=-1)]
    logit = np.log(branch[..., 0]) - np.log(branch[..., 1:].sum(axis=-1))
    parts = np.stack(variance_components(logit))
    return {
        "accuracy": chosen[..., 0].mean(axis=0),
        "flips": flip_probability(chosen),
        "sampled_flips": flip_probability(branch),
        "sampled_differ": 1 - (branch**2).sum(axis=-1).mean(axis=0),
        "within": parts[0],
        "between": parts[1],
        "within_share": intervals.pseudo_values(lambda means: means[:, 0] / means.sum(axis=1), parts),
    }


def flip_probability(branch: np.ndarray) -> np.ndarray:
    """The probability that branches chosen independently in two random orders differ, float64[n].

    branch: float64[R, n, d], the probabilities with which each is chosen. The mean over pairs of different orders.
    """
    orders = len(branch)
    equal = (branch.sum(axis=0) ** 2 - (branch**2).sum(axis=0)).sum(axis=-1)
    return 1 - equal / (orders * (orders - 1))


def variance_components(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The variances within problems (over orders) and between problems, float64[n] each, from values float64[R, n].

    values[order, problem] = mean + problem + rest: one-way random effects by the method of moments. Both estimates are
    unbiased, so that between problems may be negative.
    """
    orders, problems = values.shape
    within, means = values.var(axis=0, ddof=1), values.mean(axis=0)
    return within, (means - means.mean()) ** 2 * problems / (problems - 1) - within / orders
