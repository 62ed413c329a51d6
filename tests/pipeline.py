"""The command line on a small config, as the tests run it."""

from pathlib import Path

from minifork import config as configs
from minifork.cli import main

SFT = {
    "sft-fork0.5-seed0": ["sft.fork_rate=0.5"],
    "sft-fork1-seed0": [],
    "sft-problem-seed0": ["sft.fork_rate=0.5", "sft.allocation=problem"],
    "fresh-seed0": ["sft.fresh=true", "name=fresh-seed0"],
    "cued-seed0": ["sft.cue_rate=1", "sft.allow_leak=true", "name=cued-seed0"],
}


class Pipeline:
    """The command line on the small config with one runs folder."""

    def __init__(self, root: Path, config_file: str, small: list[str]):
        self.root, self.config_file, self.small = root, config_file, [*small, f"runs={root}"]
        self.folder = root / "star"

    def arguments(self, command: str, *overrides: str) -> list[str]:
        flags = [o for o in overrides if o.startswith("--")]
        keys = [o for o in overrides if not o.startswith("--")]
        return [command, "--config", self.config_file, *flags, *self.small, *keys]

    def __call__(self, command: str, *overrides: str) -> int:
        return main(self.arguments(command, *overrides))

    def config(self, *overrides: str) -> configs.Config:
        return configs.load(self.config_file, [*self.small, *overrides])

    def refused(self, capsys, command: str, *overrides: str) -> str:
        """The one line on stderr of a command that must fail with exit code 1."""
        capsys.readouterr()
        assert self(command, *overrides) == 1
        error = capsys.readouterr().err
        assert error.startswith("minifork: ") and error.endswith("\n") and error.count("\n") == 1, error
        return error
