"""What a configuration that says nothing of admission means. What others mean: tests/unit/epp/test_config_files.py."""

from __future__ import annotations

import pytest

from headrace.config.decode import InvalidConfig
from headrace.flowcontrol.config import FEATURE_GATE, read_flow_control


def test_without_a_word_nobody_waits() -> None:
    config = read_flow_control({}, {})
    assert (config.enabled, config.max_requests, config.max_bytes, config.eviction) == (False, 0, 0, False)
    assert (config.request_ttl, config.no_endpoint_ttl) == (60.0, 60.0)
    assert (config.bands, config.admitters, config.notes) == ({}, (), ())


@pytest.mark.parametrize(("gate", "enabled"), [("", True), ("=true", True), ("=false", False), ("= TRUE ", True)])
def test_the_gate(gate: str, enabled: bool) -> None:
    assert read_flow_control({"featureGates": [FEATURE_GATE + gate]}, {}).enabled == enabled


@pytest.mark.parametrize("gate", ["=", "=1", "=yes"])
def test_a_gate_that_is_neither_open_nor_shut_is_refused(gate: str) -> None:
    with pytest.raises(InvalidConfig, match="featureGates"):
        read_flow_control({"featureGates": [FEATURE_GATE + gate]}, {})


def test_two_bands_of_one_priority_are_refused() -> None:
    with pytest.raises(InvalidConfig, match=r"priorityBands\[1\]"):
        read_flow_control({"flowControl": {"priorityBands": [{"priority": 3}, {"priority": 3}]}}, {})
