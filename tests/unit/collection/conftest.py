"""The collection as its users get it: built, and installed from the tarball into an empty folder, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def tarball(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ansible-galaxy collection build`."""
    folder = tmp_path_factory.mktemp("built")
    command = [str(BIN / "ansible-galaxy"), "collection", "build", str(repository), "--output-path", str(folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("headrace-inference-*.tar.gz"))


@pytest.fixture(scope="session")
def members(tarball: Path) -> set[str]:
    """The files in it."""
    with tarfile.open(tarball) as opened:
        return {member.name for member in opened.getmembers() if member.isfile()}


@pytest.fixture(scope="session")
def installed(tarball: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs one of Ansible's programs in an empty folder, where nothing but the installed collection is known."""
    home = tmp_path_factory.mktemp("home")
    empty = tmp_path_factory.mktemp("empty")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {
        "ANSIBLE_COLLECTIONS_PATH": str(home),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_HOME": str(home / ".ansible"),
    }

    def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / program), *arguments]
        return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=600)

    done = run("ansible-galaxy", "collection", "install", "--offline", "-p", str(home), str(tarball))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "was installed successfully" in done.stdout
    return run
