"""What the README and the docs tell people to type: every make target, option and file exists and is accepted."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.cli import COMMANDS
from minifork import config as configs
from minifork.cli import parser
from minifork.schema import TASKS, Config

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
FILES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}
TYPED = re.compile(r"(?:^    |`)(make\b[^`\n]*)", re.MULTILINE)
MAKE = sorted({line.split("#")[0].strip() for text in PAGES.values() for line in TYPED.findall(text)})
on_every_page = pytest.mark.parametrize("name", sorted(PAGES))


def make(*words: str) -> str:
    """What make prints for these arguments."""
    command = ["make", "--no-print-directory", *words, f"PYTHON={sys.executable}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_there_is_something_to_check():
    assert len(MAKE) > 15 and " -m experiments reproduce " in make("-n", "reproduce")


@pytest.mark.parametrize("line", MAKE)
def test_every_make_command_is_accepted(line):
    """Dry: the target exists, and every command of ours it runs parses, its config and overrides included."""
    printed = make("-n", *[word for word in shlex.split(line) if word not in ("&&", "make")])
    for words in re.findall(r"^\S+ -m (?:minifork|experiments) (.*)", printed, re.MULTILINE):
        options = parser(COMMANDS).parse_args(shlex.split(words))
        if COMMANDS[options.command].operands:
            continue
        filters = [word for word in options.overrides if word.startswith("stage=")]  # of `runs`; no key of the config
        assert not filters or options.command == "runs"
        configs.load_config(options.config, [word for word in options.overrides if word not in filters])


@pytest.mark.parametrize("line", [line for line in MAKE if "=" in line])
def test_every_make_variable_is_read(line):
    """Each is among those that `make` lists for one of the targets."""
    words = shlex.split(line)
    helps = [re.search(rf"^{word}:.*##(.*)$", MAKEFILE, re.MULTILINE) for word in words if "=" not in word]
    listed = re.findall(r"\b([A-Z_]+)\b", " ".join(match[1] for match in helps if match))
    assert {word.partition("=")[0] for word in words if "=" in word} <= {*listed, "PYTHON"}


@pytest.mark.parametrize(("word", "near"), [("EPOCH=5", "EPOCHS"), ("FORKRATE=.5", "FORK_RATE"), ("seed=1", "SEED")])
def test_a_variable_that_is_none_is_refused(word, near):
    command = ["make", "--no-print-directory", "-n", "sft", word, f"PYTHON={sys.executable}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode and f"did you mean {near}?" in result.stderr and result.stdout == ""


def test_a_name_is_that_of_the_last_stage():
    """NAME and a name in ARGS alike. All other keys reach every stage."""
    for words in ("NAME=mine", "ARGS=name=mine model.width=64"):
        commands = [shlex.split(line) for line in make("-n", "rl", words).splitlines()]
        names = [[word for word in command if word.startswith("name=")][-1] for command in commands]
        assert names == ["name=", "name=", "name=mine"]
        assert all(("model.width=64" in command) == ("model.width=64" in words) for command in commands)


@on_every_page
def test_configs_and_keys_that_are_named_exist(name):
    """What stands after --config loads; `sft.loss=...` and the like are keys of the config."""
    for source in re.findall(r"--config (\S+)", PAGES[name]):
        assert configs.load_config(source)
    sections = "data|walks|model|pretrain|sft|rl|wise|eval|reproduce"
    named = set(re.findall(rf"\b((?:{sections})\.\w+)=", PAGES[name]))
    assert named <= set().union(*(configs.keys(Config, task=task) for task in TASKS))


@on_every_page
def test_files_that_are_named_exist(name):
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", PAGES[name]) if not link.startswith("http")]
    named = re.findall(r"`((?:experiments|minifork|data_gen|tests|docs|examples)/[\w./-]+\.\w+)`", PAGES[name])
    for path in [*links, *named]:
        assert ((ROOT / name).parent / path).exists() or (ROOT / path).exists(), path


def test_make_lists_its_targets():
    """`make` alone prints every target that has a recipe, with what it does."""
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    assert {line.split()[0] for line in make().splitlines()} == set(phony)
