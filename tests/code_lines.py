"""Lines of code without blanks, comments and docstrings: ``python -m tests.code_lines [FOLDER ...]``.

A line counts if a token of code stands on it. FOLDER is any number of packages; by default the three that ship, and
the tests.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

SKIPPED = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(source: str) -> set[int]:
    """The numbers of the lines of a Python source that hold code."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SKIPPED:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def main(folders: list[str]) -> None:
    """Print the count of every folder, and of the packages together."""
    counts = {
        folder: sum(len(code_lines(path.read_text(encoding="utf-8"))) for path in Path(folder).rglob("*.py"))
        for folder in folders or ["data_gen", "minifork", "experiments", "tests"]
    }
    for folder, count in counts.items():
        print(f"{folder:<14}{count:>7,}")
    print(f"{'packages':<14}{sum(count for folder, count in counts.items() if folder != 'tests'):>7,}")


if __name__ == "__main__":
    main(sys.argv[1:])
