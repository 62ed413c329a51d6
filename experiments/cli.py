"""The console command and ``python -m experiments``: the core commands, studies, and the use of their results."""

from minifork import cli
from minifork.cli import Command

COMMANDS = cli.COMMANDS | {
    "demo": Command("experiments.studies.demo:demo", "show the effect on a small model, in two minutes", preset="demo"),
    "figures": Command("experiments.figures:figures", "draw figures of the measured runs"),
    "claims": Command("experiments.verdicts:claims", "print which claims hold"),
    "report": Command("experiments.report:report", "write claims, figures and an explorer as one HTML file"),
    "agreement": Command("experiments.checks.engines:agreement", "test all engines against each other"),
    "bench": Command("experiments.checks.bench:bench", "time the engines against common ways to sample"),
    "cluster-bench": Command(
        "experiments.checks.cluster_bench:cluster_bench", "time jobs on a cluster of workers here"
    ),
    "frontier": Command("experiments.studies.frontier:frontier", "compare all mitigations with early stopping"),
    "spread": Command("experiments.studies.stratified:spread", "spread samples over the tokens of one position"),
    "anchoring": Command("experiments.studies.anchoring:anchoring", "show what anchoring and masking do at forks"),
    "contrast": Command("experiments.studies.rl:contrast", "compare RL on forward and on reverse traces"),
    "rl-lab": Command("experiments.studies.rl_lab:rl_lab", "compare RL's updates with the gradients they stand for"),
    "sensitivity": Command("experiments.studies.sensitivity:sensitivity", "map coverage shrinkage over many settings"),
    "thinking": Command("experiments.studies.thinking:thinking", "force every first token: over- and under-thinking"),
    "sigma": Command("experiments.studies.sigma:sigma", "fit what sets sigma at forks"),
    "law": Command("experiments.studies.law:law", "compare the coverage law with every finished run"),
    "competence": Command("experiments.studies.competence:competence", "split coverage between two modes"),
    "flips": Command("experiments.studies.flips:flips", "measure how often another printed order flips the branch"),
    "layers": Command(
        "experiments.studies.layers:layers", "compare traces with no fork to three, one right path or more"
    ),
    "capitals": Command(
        "experiments.studies.capitals:capitals",
        "ask a language model for capitals, and compute its pass@k",
        operands=(("model", "a folder, or a name on the hub of Hugging Face"),),
    ),
    "convert-gguf": Command(
        "minifork.library:convert_gguf",
        "make a GGUF file a folder that capitals can read",
        operands=(("file", "a GGUF file"), ("folder", "a new folder")),
    ),
    "gpu-check": Command("experiments.checks.gpu_check:gpu_check", "check and time everything that needs a GPU"),
    "study": Command("experiments.studies.reproduce:run_study", "run and evaluate the study reproduce.study"),
    "reproduce": Command("experiments.studies.reproduce:reproduce", "run a study, write figures, claims and table"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code as `minifork.cli.main` does."""
    return cli.main(arguments, COMMANDS)
