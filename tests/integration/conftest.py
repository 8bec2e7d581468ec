"""One real API server for the whole session, with the CRDs of this repository in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .apiserver import ApiServer, running


@pytest.fixture(scope="session")
def api(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A running API server that serves InferencePools of both groups."""
    with running(repository / "build/bin", tmp_path_factory.mktemp("apiserver")) as server:
        done = server.kubectl("apply", "--server-side", "-R", "-f", str(repository / "crds"))
        assert done.returncode == 0, done.stderr
        done = server.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
        assert done.returncode == 0, done.stderr
        yield server
