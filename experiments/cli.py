"""The console command and ``python -m experiments``: the core commands, studies and what is made of their results."""

from minifork import cli
from minifork.cli import Command

COMMANDS = cli.COMMANDS | {
    "demo": Command("experiments.studies.demo:demo", "the effect on a small model, in two minutes", preset="demo"),
    "figures": Command("experiments.figures:figures", "draw the figures of what was measured"),
    "claims": Command("experiments.claims:claims", "say which claims hold"),
    "report": Command("experiments.report:report", "write claims, figures and an explorer as one HTML file"),
    "agreement": Command("experiments.checks.engines:agreement", "test exact, split and rollout against each other"),
    "bench": Command("experiments.checks.bench:bench", "time the engines against common ways to sample"),
    "frontier": Command("experiments.studies.frontier:frontier", "compare all mitigations with early stopping"),
    "contrast": Command("experiments.studies.rl:contrast", "compare RL on forward and on reverse traces"),
    "sensitivity": Command("experiments.studies.sensitivity:sensitivity", "map shrinkage over the regime's settings"),
    "gpu-check": Command("experiments.checks.gpu_check:gpu_check", "check and time everything that needs a GPU"),
    "study": Command("experiments.studies.reproduce:run_study", "run and evaluate what reproduce.study lists"),
    "reproduce": Command("experiments.studies.reproduce:reproduce", "a study with its figures, claims and table"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code as `minifork.cli.main` does."""
    return cli.main(arguments, COMMANDS)
