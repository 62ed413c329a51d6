"""The figure of the README: in both themes, and with pairs that lack a run."""

from experiments.front import front
from experiments.results import load_results


def test_pairs_that_lack_a_run_are_left_out(trained):
    results = load_results(trained.config())
    assert results.pairs() == [0] and front(results, [0, 7]).keys() == {"front", "front-dark"}
