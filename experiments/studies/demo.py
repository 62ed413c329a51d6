"""The effect in two minutes: a small base and one fine-tuning of it, whose pass@k curves cross."""

from experiments import figures
from experiments.drawing import save_figure
from experiments.results import load_results
from experiments.studies.steps import make_runs, print_minutes
from experiments.summary import summary_rows, summary_table
from minifork import runs
from minifork.evaluate import measure_missing
from minifork.schema import Config


def demo(config: Config) -> None:
    """Train a base and fine-tune it, evaluate both, draw the crossing, print the table and what happened.

    Raises ValueError naming a run that failed.
    """
    with print_minutes("demo"):
        make_runs(config, config.reproduce.study)
        measure_missing(config)
        results = load_results(config)
        pairs = results.complete_pairs()
        figure = figures.draw_all(results, pairs)["crossing"]
        save_figure(figure, runs.task_folder(config) / "figures" / "crossing.png")
        print(summary_table(summary_rows(results, pairs)))
        base, tuned = results.base(pairs[0]), results.tuned(pairs[0], results.fork_rates(pairs[0])[-1])[-1]
        print(sentence(config, base["pass_at"], tuned["pass_at"]))


def sentence(config: Config, base: dict[str, float], tuned: dict[str, float]) -> str:
    """A sentence on how pass@k changed, and what to run next."""
    above = [int(k) for k in base if tuned[k] > base[k]]
    below = [int(k) for k in base if tuned[k] < base[k]]
    changes = " and ".join(f"pass@{k} from {base[k]:.3f} to {tuned[k]:.3f}" for k in ("1", "64"))
    crossed = above and below and max(above) < min(below)
    crossing = f"the curves cross between k = {max(above)} and {min(below)}" if crossed else "the curves do not cross"
    size = f"{config.model.layers} layers of width {config.model.width}, {config.sft.traces} traces, one pair of seeds"
    return (
        f"Fine-tuning on forks moved {changes}: {crossing} (a small model: {size}). "
        "Run next: make reproduce, the same at full size with its controls."
    )
