"""The version of this distribution."""

from __future__ import annotations

import importlib.metadata


def version() -> str:
    """The installed distribution's; "unknown" where Headrace runs from a tree that is not installed."""
    try:
        return importlib.metadata.version("headrace")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
