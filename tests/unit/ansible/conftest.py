"""Plugins are loaded by their path: a checkout is no installed collection."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def preflight(repository: Path) -> ModuleType:
    return load(repository / "plugins/action/inference_preflight.py")


@pytest.fixture(scope="session")
def smoke(repository: Path) -> ModuleType:
    return load(repository / "plugins/modules/inference_smoke.py")


@pytest.fixture(scope="session")
def plan(repository: Path) -> ModuleType:
    return load(repository / "plugins/action/gpu_node_pool_plan.py")


@pytest.fixture(scope="session")
def adapters(repository: Path) -> ModuleType:
    return load(repository / "plugins/modules/inference_adapters.py")
