"""What the README and the docs tell people to type: every make target, option and file exists and is accepted."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from minifork import config as configs
from minifork.cli import COMMANDS, REMOVE, parser
from minifork.schema import Config

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKE = sorted(
    {
        match[1].split("#")[0].strip()
        for page in PAGES
        for match in re.finditer(r"(?:^    |`)(make\b[^`\n]*)", page.read_text(), re.MULTILINE)
    }
)


def commands(line: str) -> list[list[str]]:
    """The `python -m minifork ...` commands that a make command would run."""
    words = [word for word in shlex.split(line) if word not in ("&&", "make")]
    printed = subprocess.run(
        ["make", "-n", *words, f"PYTHON={sys.executable}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert printed.returncode == 0, printed.stderr
    runs = [shlex.split(text) for text in printed.stdout.splitlines() if re.match(r"\S+ -m minifork ", text)]
    return [words[words.index("minifork") + 1 :] for words in runs]


def test_there_is_something_to_check():
    assert len(MAKE) > 15 and any("FORK_RATE" in line for line in MAKE)


@pytest.mark.parametrize("line", MAKE)
def test_every_make_command_is_accepted(line):
    """Dry: the target exists, and every minifork command it runs parses, its config and overrides included."""
    for words in commands(line):
        options, filters = parser().parse_args(words), []
        if COMMANDS[options.command].flags == REMOVE:
            filters = [word for word in options.overrides if not word.startswith(("preset=", "runs="))]
        config = configs.load(options.config, [word for word in options.overrides if word not in filters])
        configs.parsed(filters, configs.keys(Config, task=config.task) | {"stage": str}, line)


@pytest.mark.parametrize("line", [line for line in MAKE if "=" in line])
def test_every_make_variable_is_read(line):
    """Each is among those that `make` lists for one of the targets."""
    words = shlex.split(line)
    helps = {word: re.search(rf"^{word}:.*##(.*)$", MAKEFILE, re.MULTILINE) for word in words if "=" not in word}
    read = re.findall(r"\b([A-Z_]+)\b", " ".join(match[1] for match in helps.values() if match))
    assert {word.partition("=")[0] for word in words if "=" in word} <= {*read, "PYTHON"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configs_that_are_named_load(page):
    for source in re.findall(r"--config (\S+)", page.read_text()):
        assert configs.load(source)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    named = re.findall(r"`((?:experiments|minifork|data_gen|tests|docs|examples)/[\w./-]+\.\w+)`", text)
    for name in [*links, *named]:
        assert (page.parent / name).exists() or (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_that_are_named_exist(page):
    """`sft.loss=...` and the like are keys of the config."""
    keys = configs.keys(Config) | configs.keys(Config, task="arith")
    for key in re.findall(r"\b((?:data|walks|model|pretrain|sft|rl|wise|eval|reproduce)\.\w+)=", page.read_text()):
        assert key in keys, key


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_is_a_template(page):
    """No word in capitals stands alone at the end of a paragraph, waiting for its numbers."""
    assert not re.findall(r"(?:^|[.:] )[A-Z]{2,}\n(?:\n|$)", page.read_text(), re.MULTILINE)


def test_make_lists_its_targets():
    """`make` alone prints every target that has a recipe, with what it does."""
    command = ["make", "--no-print-directory"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    assert {line.split()[0] for line in printed.splitlines()} == set(phony)
