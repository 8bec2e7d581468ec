"""One world for all tests of the package: bringing it up takes half a minute."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from .pools import Pools, running_pools
from .world import World, running_world


@pytest.fixture(scope="package")
def world(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The real Envoy Gateway, the controller under test, an API server and an Envoy."""
    with running_world(repository, tmp_path_factory.mktemp("world")) as running:
        yield running


@pytest.fixture
async def pools(world: World) -> AsyncIterator[Pools]:
    """Pool `a` of v1alpha2, FailClose; pool `b` of v1, FailOpen; each with a picker of ours."""
    async with running_pools(world) as running:
        yield running
