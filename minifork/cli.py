"""The command line: ``minifork COMMAND --config FILE key=value ...``.

Each command is a function in the module that does the work, imported only when it is asked for, so that
``--help`` and finished stages answer at once.
"""

import argparse
import importlib
import re
import sys

from minifork import config as configs

# command: (module:function, takes --resume, what it does)
COMMANDS = {
    "pretrain": ("minifork.stages:pretrain", True, "train the base model on random graph walks"),
    "sft": ("minifork.stages:sft", True, "fine-tune the base model on traces (sft.fork_rate=0.5 ...)"),
    "rl": ("minifork.stages:rl", True, "go on by rewards from a fine-tuned run (rl.advantage=grpo ...)"),
    "wise": ("minifork.wise:wise", False, "interpolate the weights of a fine-tuned run and its base"),
    "eval": (
        "minifork.evaluate:evaluate",
        False,
        "exact pass@k of every run, cross-checked by another engine",
    ),
    "audit": ("minifork.stages:audit_command", False, "look for surface features that give the branch away"),
    "figures": ("experiments.figures:figures", False, "draw the figures from eval.json"),
    "claims": ("experiments.claims:claims", False, "say which claims held, from eval.json"),
    "report": ("experiments.report:report", False, "write claims, figures and an explorer as one HTML file"),
    "agreement": ("experiments.agreement:agreement", False, "test exact, split and rollout against each other"),
    "bench": ("experiments.bench:bench", False, "time the engines against common ways to sample"),
    "frontier": ("experiments.frontier:frontier", False, "compare all mitigations with early stopping"),
    "contrast": ("experiments.contrast:contrast", False, "compare RL on forward and on reverse traces"),
    "sensitivity": ("experiments.sensitivity:sensitivity", False, "map shrinkage over the regime's settings"),
    "gpu-check": ("experiments.gpu_check:gpu_check", False, "check and time everything that needs a GPU"),
    "reproduce": ("experiments.reproduce:reproduce", False, "run every stage; finished ones are skipped"),
}

RAW = argparse.RawDescriptionHelpFormatter
EPILOG = """\
options come first, overrides last:
  minifork sft --config experiments/configs/star.yaml --resume sft.fork_rate=0.5 seed=1
preset=name applies changes that the config file keeps under that name. Results go to <runs>/<task>/, where every run
has a folder with its config.yaml, and eval.json, figures/, claims.json and report.html are about all of them."""


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    what = "Why do fine-tuned reasoning models lose coverage?"
    top = argparse.ArgumentParser(prog="minifork", description=what, epilog=EPILOG, formatter_class=RAW)
    top.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, resumable, what) in COMMANDS.items():
        command = commands.add_parser(name, help=what, description=what, epilog=EPILOG, formatter_class=RAW)
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        command.add_argument("--config", required=True, help="YAML file, such as experiments/configs/star.yaml")
        command.add_argument("overrides", nargs="*", metavar="key=value", help="a key of the config file; preset=name")
        if resumable:
            command.add_argument("--resume", action="store_true", help="continue an unfinished run")
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (refused or failed), 130 (interrupted)."""
    options = parser().parse_args(arguments)
    module, function = COMMANDS[options.command][0].split(":")
    try:
        config = configs.load(options.config, options.overrides)
        flags = {"resume": options.resume} if hasattr(options, "resume") else {}
        code = getattr(importlib.import_module(module), function)(config, **flags)
        return int(code or 0)
    except (ValueError, OSError) as error:
        if options.debug:
            raise
        named = isinstance(error, OSError) and error.filename and error.strerror
        print(f"minifork: {error.filename}: {error.strerror}" if named else f"minifork: {error}", file=sys.stderr)
        return 1
    except (MemoryError, OverflowError, RuntimeError) as error:
        of_memory = re.search(
            "out of memory|not enough memory|can't allocate memory|size calculation overflow", str(error)
        )  # as torch says it
        too_large = not isinstance(error, RuntimeError) or of_memory
        not_compiled = type(error).__module__.startswith(("torch._inductor", "torch._dynamo"))
        if options.debug or not (too_large or not_compiled):
            raise
        if not_compiled:
            reason = str(error).strip().splitlines()[0]
            print(f"minifork: compile=true: torch could not compile the training step ({reason})", file=sys.stderr)
            return 1
        reason = " ".join(str(error).split()) or "out of memory"
        print(f"minifork: too large for this machine ({reason}); give smaller numbers", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        way_on = "; the same command goes on from the last checkpoint (--resume)" if hasattr(options, "resume") else ""
        print(f"minifork: interrupted{way_on}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
