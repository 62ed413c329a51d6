"""The README and the pages of docs/ as text, and the results in experiments/results/ that their numbers come from."""

import json
from pathlib import Path
from typing import ClassVar

ROOT = Path(__file__).parents[2]
COMMITTED = {
    path.stem: json.loads(path.read_text(encoding="utf-8"))
    for path in (ROOT / "experiments" / "results").glob("*.json")
}
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))}


class Pages(str):
    """The text of all pages. It remembers what was found in it. Lines of a paragraph may break anywhere."""

    sourced: ClassVar[list[str]] = []

    def __contains__(self, text: object) -> bool:
        present = str.__contains__(self, str(text)) or str(text) in " ".join(self.split())
        if present:
            self.sourced.append(str(text))
        return present


TEXT = Pages("\n".join(PAGES.values()))


def short(number: str) -> str:
    """A number as the README writes it, without the zero before the point."""
    return number.replace("0.", ".")
