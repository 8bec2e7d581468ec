"""Tests of the cluster's whole life: they take it up and down themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..e2e.stack import Stack


@pytest.fixture(scope="session")
def stack(repository: Path) -> Stack:
    """The tests' stack, not brought up: each test does what it is about."""
    return Stack.from_inventory(repository)
