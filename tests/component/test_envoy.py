"""The launcher itself: a wrong configuration is an error with Envoy's own words, a right one is up when it says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from .envoy import start_envoy


async def test_a_wrong_configuration_is_an_error_with_the_log(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no_such_field"):
        async with start_envoy({"no_such_field": 1}, tmp_path):
            pass


async def test_it_runs_and_stops(tmp_path: Path) -> None:
    async with start_envoy({"static_resources": {}}, tmp_path) as envoy:
        assert (await envoy.admin_json("/server_info"))["state"] == "LIVE"
        with pytest.raises(LookupError):
            await envoy.listener_port("absent")
        process = envoy.process
    assert process.returncode is not None
