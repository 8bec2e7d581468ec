"""Write the distribution's metadata beside the package, so that it knows its version: metadata.py PYPROJECT FOLDER."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

if __name__ == "__main__":
    project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
    folder = Path(sys.argv[2], f"{project['name']}-{project['version']}.dist-info")
    folder.mkdir()
    lines = ["Metadata-Version: 2.4", f"Name: {project['name']}", f"Version: {project['version']}"]
    (folder / "METADATA").write_text("\n".join([*lines, f"Summary: {project['description']}", ""]))
