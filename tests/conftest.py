"""What every level of tests shares: the checkout's paths and the hypothesis profiles."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

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


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parents[1]
