"""One real API server for the whole session, with the CRDs of this repository in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from .apiserver import ApiServer, running_with_crds
from .replacement import Stage, staged

_numbers = itertools.count(20)


@pytest.fixture(scope="session")
def api(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    """A running API server that serves InferencePools of both groups."""
    with running_with_crds(repository, tmp_path_factory.mktemp("apiserver")) as server:
        yield server


@pytest.fixture(scope="session")
def gateway_api(api: ApiServer, repository: Path) -> ApiServer:
    """The API server, serving HTTPRoutes."""
    crds = str(repository / "build/bin/crds/gateway-api")
    done = api.kubectl("apply", "--server-side", "--force-conflicts", "-R", "-f", crds)
    assert done.returncode == 0, done.stderr
    api.wait_established()
    return api


@pytest.fixture
def stage(gateway_api: ApiServer, tmp_path: Path) -> Iterator[Stage]:
    """A stage of the test's own."""
    number = next(_numbers)
    with staged(gateway_api, f"stage{number}", number, tmp_path) as found:
        yield found
