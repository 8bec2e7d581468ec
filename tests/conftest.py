"""What every level of tests shares: the checkout's paths and the hypothesis profiles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadFileScheduling

# CI judges a change, so it tries the same examples each time; new ones are looked for here and in `make test-full`.
# How long an example takes is the machine's business, and no verdict.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
hypothesis.settings.register_profile("long", hypothesis.settings.get_profile("default"), max_examples=5_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


class Scheduling(LoadFileScheduling):
    """A file's tests run in one worker, with the file's fixtures; those of a package that shares a world, too."""

    def _split_scope(self, nodeid: str) -> str:
        world = "tests/component/gateway/"
        return world if nodeid.startswith(world) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """How tests are shared out among pytest-xdist's workers (`-n`)."""
    return Scheduling(config, log)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]
