"""Tests of the cluster's whole life: they take it up and down themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..e2e.stack import Stack
from .replacing import VARIABLES


@pytest.fixture(scope="session")
def stack(repository: Path) -> Stack:
    """The tests' stack, not brought up: each test does what it is about."""
    return Stack.from_inventory(repository)


@pytest.fixture(scope="module")
def two_pools(stack: Stack) -> Iterator[Stack]:
    """The stack with two pools; the route leads to the old one. One that was kept is taken as it is."""
    if "HEADRACE_KEEP_CLUSTER" not in os.environ or not stack.kubeconfig.exists():
        stack.site(*VARIABLES)
    yield stack
    if "HEADRACE_KEEP_CLUSTER" not in os.environ:
        stack.playbook("playbooks/local_cluster_down.yml")
