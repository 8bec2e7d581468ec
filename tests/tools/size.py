"""Counts the controller's code lines: those with a token that is neither a comment nor a docstring.

    python tests/tools/size.py [FOLDER]

Prints a line for each package and their sum. Left out: the simulator and generated modules. Fails where a module, a
class or a function of BOUNDED is too long, blank lines, comments and docstrings included."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

CONTROLLER = Path(__file__).parents[2] / "controller" / "headrace"
LEFT_OUT = ("simulator",)
BOUNDED = (
    *("core", "protocol", "config", "serving", "kube", "datalayer", "prefixes", "replicas", "extproc"),
    *("scheduling", "flowcontrol", "epp"),
)
MAX_MODULE_LINES, MAX_CLASS_LINES, MAX_FUNCTION_LINES = 400, 250, 60
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


def too_long(source: str) -> list[str]:
    """What of a module's text is longer than it may be, each with its first line and its lines."""
    found = []
    if (lines := len(source.splitlines())) > MAX_MODULE_LINES:
        found.append(f"1: the module has {lines} lines, at most {MAX_MODULE_LINES} are allowed")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            most = MAX_CLASS_LINES
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            most = MAX_FUNCTION_LINES
        else:
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > most:
            found.append(f"{node.lineno}: {node.name} has {lines} lines, at most {most} are allowed")
    return found


def main() -> None:
    """Prints the count of the first argument's folder, or of the controller. Exits with 1 where a part is too long."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else CONTROLLER
    found = count(folder)
    for package, lines in found.items():
        print(f"{lines:7,} {package}")
    print(f"{sum(found.values()):7,} code lines in the controller without the simulator")
    modules = [path for package in BOUNDED for path in sorted((folder / package).rglob("*.py"))]
    long = [f"{path}:{one}" for path in modules for one in too_long(path.read_text(encoding="utf-8"))]
    if long:
        sys.exit("\n".join(long))


if __name__ == "__main__":
    main()
