"""Print the part of constraints.txt that the controller needs: requirements.py PYPROJECT CONSTRAINTS PYTHON.

constraints.txt pins what playbooks, tests and linters need too, with a `# via` comment that says who asks for each
package. Followed from the project's own dependencies and those of the extra `tracing`, these comments give the run-time
part, with its hashes. PYTHON is the image's, such as 3.11: a package that only another Python needs is left out, and
no conditions are left for pip, which would ask the Python that it runs on.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.markers import Marker

PIN = re.compile(r"^([A-Za-z0-9._-]+)(\[[^]]*\])?==")


def normal(name: str) -> str:
    """A package name as PyPI compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(constraints: str) -> dict[str, tuple[str, set[str]]]:
    """Each pinned package: its lines without comments, and who asks for it."""
    found: dict[str, tuple[str, set[str]]] = {}
    name = ""
    for line in constraints.splitlines():
        if match := PIN.match(line):
            name = normal(match[1])
            found[name] = (line + "\n", set())
        elif name and line.strip().startswith("#"):
            parent = line.strip().lstrip("# ").removeprefix("via").strip()
            if parent:
                found[name][1].add(normal(parent.split("[")[0].split(" ")[0]))
        elif name and line.strip():
            found[name] = (found[name][0] + line + "\n", found[name][1])
    return found


def of_image(metadata: dict[str, Any]) -> list[str]:
    """The dependencies that the image has: the project's own, and those of what is switched on by a flag."""
    return [*metadata["dependencies"], *metadata["optional-dependencies"]["tracing"]]


def in_image(pin: str, python: str) -> str:
    """A pin without its condition; empty where the condition does not hold on the image's Python."""
    first, *hashes = pin.splitlines(keepends=True)
    name, condition, marker = first.rstrip().rstrip("\\").partition(";")
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    if not condition:
        return pin
    return "".join([f"{name.strip()} \\\n", *hashes]) if Marker(marker.strip()).evaluate(environment) else ""


def runtime(dependencies: list[str], constraints: str, python: str) -> str:
    """The pins that the project's dependencies lead to, on that Python.

    Raises:
        KeyError: a dependency is not pinned.
    """
    pinned = pins(constraints)
    wanted = {normal(re.split(r"[^A-Za-z0-9._-]", dependency)[0]) for dependency in dependencies}
    if missing := wanted - set(pinned):
        raise KeyError(f"not in the constraints: {', '.join(sorted(missing))}; run `make lock`")
    grown = True
    while grown:
        more = {name for name, (_, parents) in pinned.items() if parents & wanted} - wanted
        wanted |= more
        grown = bool(more)
    found = [in_image(pinned[name][0], python) for name in sorted(wanted)]
    return "".join(pin.rstrip().rstrip("\\").rstrip() + "\n" for pin in found if pin)


if __name__ == "__main__":
    metadata = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
    sys.stdout.write(runtime(of_image(metadata), Path(sys.argv[2]).read_text(), sys.argv[3]))
