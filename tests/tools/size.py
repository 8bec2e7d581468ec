"""Counts the controller's code lines: those with a token that is neither a comment nor a docstring.

    python tests/tools/size.py [FOLDER]

Prints a line for each package and their sum. Left out: the simulator and generated modules."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

CONTROLLER = Path(__file__).parents[2] / "controller" / "headrace"
LEFT_OUT = ("simulator",)
_NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
_HAS_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def code_lines(source: str) -> int:
    """The number of lines of a module's text that hold code. Raises SyntaxError."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _HAS_DOCSTRING) and ast.get_docstring(node, clean=False) is not None:
            lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(lines)


def count(folder: Path) -> Counter[str]:
    """The code lines of a package by subpackage; modules of the package itself under "."."""
    found: Counter[str] = Counter()
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).parts
        if parts[0] not in LEFT_OUT and not path.stem.endswith("_pb2"):
            found[parts[0] if len(parts) > 1 else "."] += code_lines(path.read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Prints the count of the folder in the first argument, or of the controller."""
    found = count(Path(sys.argv[1]) if len(sys.argv) > 1 else CONTROLLER)
    for package, lines in found.items():
        print(f"{lines:7,} {package}")
    print(f"{sum(found.values()):7,} code lines in the controller without the simulator")


if __name__ == "__main__":
    main()
