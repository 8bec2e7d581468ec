"""The committed modules of Envoy's messages are those that the generator makes of the pinned Go module."""

from __future__ import annotations

import subprocess
from pathlib import Path


def generated(root: Path) -> dict[str, bytes]:
    """The content of each generated file by its path below `root`."""
    return {str(found.relative_to(root)): found.read_bytes() for found in root.rglob("*_pb2.py*")}


def test_the_committed_modules_are_what_the_generator_makes(repository: Path, tmp_path: Path) -> None:
    # The environment is there: these tests run in it.
    command = ["make", "--assume-old=.venv/.installed", "protos", f"PROTOS_TO={tmp_path}"]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    made = generated(tmp_path / "headrace/xds")
    committed = generated(repository / "controller/headrace/xds")
    assert made.keys() == committed.keys()
    assert [path for path in made if made[path] != committed[path]] == []
