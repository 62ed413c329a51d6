"""The core commands: ``python -m minifork COMMAND --config star key=value ...``; `experiments.cli` adds its own.

Each command is a function in the module that does the work. The module is imported only when its command runs, so
``--help`` and finished stages answer at once.
"""

import argparse
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from minifork.interrupts import as_ctrl_c, end_with_parent
from minifork.storage.locks import HeldError
from minifork.terminal import tolerant_output


@dataclass(frozen=True)
class Command:
    """A command.

    function: "module:function", called with the config and the flags; help: a line for --help; flags: its own flags
    with their help; stage: the stage that it completes, if any, which its function gets too; preset: the preset that it
    starts from, if any; takes_filters: its key=value words select runs instead of changing the config; operands: the
    words that it takes instead of a config, with their help. Its function gets them as texts.
    """

    function: str
    help: str
    flags: tuple[tuple[str, str], ...] = ()
    stage: str = ""
    preset: str = ""
    takes_filters: bool = False
    operands: tuple[tuple[str, str], ...] = ()


EXIT_HELD = 75  # the exit code while another process makes the same run; sysexits.h calls it a temporary failure
MEASURE = ("measure", "then measure the run, as eval does")
RESUME = (("resume", "continue an unfinished run"), MEASURE)
AGAIN = (("again", "repeat what another version of the code measured"),)
REMOVE = (("remove", "delete the runs that are listed"),)
TRAIN = "minifork.training.stages:train"
COMMANDS = {
    "pretrain": Command(TRAIN, "train the base model on random walks", RESUME, "base"),
    "sft": Command(TRAIN, "fine-tune it on traces (sft.fork_rate=0.5 ...)", RESUME, "sft"),
    "rl": Command(TRAIN, "train it further by rewards (rl.advantage=grpo ...)", RESUME, "rl"),
    "wise": Command("minifork.training.wise_ft:wise", "interpolate a fine-tuned run and its base", (MEASURE,)),
    "eval": Command("minifork.evaluate:evaluate", "exact pass@k of every run, cross-checked by another engine", AGAIN),
    "audit": Command("minifork.training.stages:audit_command", "look for what gives the right branch away"),
    "config": Command("minifork.listing:print_config", "print every key with its value, and what differs"),
    "runs": Command(
        "minifork.listing:list_runs",
        "list runs with these values (fork_rate=1 stage=sft ...)",
        REMOVE,
        takes_filters=True,
    ),
    "export": Command(
        "minifork.library:export_command",
        "write a run's model for another library",
        operands=(("run", "the folder of a run"), ("--to", "hf: a GPT-2 of Hugging Face"), ("folder", "a new folder")),
    ),
}

TITLE = "Why do fine-tuned reasoning models lose coverage?"
RAW = argparse.RawDescriptionHelpFormatter
EPILOG = """\
options come first, overrides last:
  minifork sft --config star --resume sft.fork_rate=0.5 seed=1
`minifork config` explains every key. preset=name applies the changes that a config file keeps under that name. Results
go to <runs>/<task>/. Every run has its own folder there; eval.json, figures/ and report.html cover all."""


def parser(commands: Mapping[str, Command] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of a command line with these commands."""
    top = argparse.ArgumentParser(prog="minifork", description=TITLE, epilog=EPILOG, formatter_class=RAW)
    subparsers = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands.items():
        sub = subparsers.add_parser(name, help=command.help, description=command.help, formatter_class=RAW)
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        for operand, text in command.operands:
            sub.add_argument(operand, help=text).required = True
        if command.operands:
            continue
        sub.epilog = EPILOG
        sub.add_argument("--config", default="star", help="a config that ships (default: star), or a YAML file")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="a key of the config; preset=name")
        for flag, text in command.flags:
            sub.add_argument(f"--{flag}", action="store_true", help=text)
    return top


def parse_arguments(commands: Mapping[str, Command], arguments: list[str] | None) -> argparse.Namespace:
    """The options of a command line, in which flags may stand between overrides."""
    top = parser(commands)
    options, rest = top.parse_known_args(arguments)
    takes_overrides = not commands[options.command].operands
    if unknown := [word for word in rest if word.startswith("-") or not takes_overrides]:
        top.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.overrides = [*vars(options).get("overrides", []), *rest]
    return options


def main(arguments: list[str] | None = None, commands: Mapping[str, Command] = COMMANDS) -> int:
    """Run a command; returns the exit code: 0, 1 (refused or failed), EXIT_HELD, 130 (interrupted).

    SIGTERM and SIGHUP interrupt as Ctrl-C does. A command goes on when nobody reads its output any more. What it
    refuses is one line on standard error.
    """
    with tolerant_output(), as_ctrl_c():
        end_with_parent()
        options = parse_arguments(commands, arguments)
        command = commands[options.command]
        try:
            return _run(command, options)
        except (ValueError, OSError) as error:
            if options.debug:
                raise
            print(f"minifork: {error}", file=sys.stderr)
            return EXIT_HELD if isinstance(error, HeldError) else 1
        except KeyboardInterrupt:
            hint = "; --resume continues from the last checkpoint" if "resume" in dict(command.flags) else ""
            print(f"minifork: interrupted{hint}", file=sys.stderr)
            return 130


def _run(command: Command, options: argparse.Namespace) -> int:
    """The exit code of a command."""
    if command.operands:
        names = [name.lstrip("-") for name, _ in command.operands]
        return pkgutil.resolve_name(command.function)(**{name: getattr(options, name) for name in names}) or 0
    # Imported here, as they import numpy, which takes longer than --help.
    from minifork import config as configs
    from minifork import runs

    flags = {flag: getattr(options, flag) for flag, _ in command.flags}
    overrides = options.overrides
    if command.takes_filters:
        # Of a command with filters, only these two words change the config: they say where the runs are.
        overrides = [word for word in overrides if word.startswith(("runs=", "preset="))]
        flags["filters"] = [word for word in options.overrides if word not in overrides]
    if command.stage:
        flags["stage"] = command.stage
    if command.preset:
        overrides = [f"preset={command.preset}", *overrides]
    config, measured = configs.load_config(options.config, overrides), flags.pop("measure", False)
    if command.stage and (run := runs.finished(config, command.stage)):
        print(f"{run.folder} is complete: nothing to do")
        code = 0
    else:
        code = pkgutil.resolve_name(command.function)(config, **flags)
    if measured:
        stages = {name: stage for stage, name in runs.COMMAND_OF_STAGE.items()}
        pkgutil.resolve_name("minifork.evaluate:measure_run")(config, stages[options.command])
    return code if isinstance(code, int) else 0
