"""The whole stack on a cluster of the tests' own: brought up once from nothing, by the playbook a user runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .stack import Stack


@pytest.fixture(scope="session")
def stack(repository: Path) -> Iterator[Stack]:
    """The running stack. Its cluster stays up: `make test-cluster` takes it down, whatever the tests did."""
    stack = Stack.from_inventory(repository)
    stack.site()
    yield stack
