"""Plugins are loaded by their path: a checkout is no installed collection."""

from __future__ import annotations

import importlib
import importlib.util
import sys
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


def load_by_name(repository: Path, name: str) -> ModuleType:
    """A module that imports its part in module_utils relatively."""
    package = ModuleType("headrace_plugins")
    package.__path__ = [str(repository / "plugins")]
    sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(f"headrace_plugins.modules.{name}")


@pytest.fixture(scope="session")
def smoke(repository: Path) -> ModuleType:
    return load_by_name(repository, "inference_smoke")


@pytest.fixture(scope="session")
def answers(repository: Path) -> ModuleType:
    return load_by_name(repository, "inference_answers")


@pytest.fixture(scope="session")
def plan(repository: Path) -> ModuleType:
    return load(repository / "plugins/action/gpu_node_pool_plan.py")


@pytest.fixture(scope="session")
def adapters(repository: Path) -> ModuleType:
    return load(repository / "plugins/modules/inference_adapters.py")


@pytest.fixture(scope="session")
def objects(repository: Path) -> ModuleType:
    return load(repository / "plugins/modules/inference_objects.py")


@pytest.fixture(scope="session")
def crds_plan(repository: Path) -> ModuleType:
    return load(repository / "plugins/action/inference_crds_plan.py")
