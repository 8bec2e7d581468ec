"""The cluster's settings: what is refused, and what follows from good ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from local_cluster.settings import parse

GOOD: dict[str, Any] = {
    "name": "headrace",
    "state_dir": "/tmp/none",
    "node_network": "172.30.0.0/24",
    "pod_network": "10.244.0.0/16",
    "service_network": "10.96.0.0/16",
    "load_balancer_network": "172.30.100.0/24",
    "publish_address": "127.0.0.1:8080",
    "workers": 2,
    "node_labels": {},
}


def test_addresses_follow_from_the_networks() -> None:
    settings, problems = parse(GOOD)
    assert settings is not None and not problems
    assert settings.host_link == "headrace-host"
    assert settings.api_server == "https://172.30.0.10:6443"
    assert (settings.kubernetes_address, settings.dns_address) == ("10.96.0.1", "10.96.0.10")
    assert [(node.name, node.address, node.pod_network) for node in settings.nodes] == [
        ("n1", "172.30.0.11", "10.244.1.0/24"),
        ("n2", "172.30.0.12", "10.244.2.0/24"),
    ]
    assert settings.nodes[1].directory == Path("/tmp/none/nodes/n2")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("name", "Headrace"),
        ("name", "elevenchars"),
        ("name", "ends-"),
        ("name", "../etc"),
        ("state_dir", "relative/folder"),
        ("node_network", "172.30.0.0"),
        ("node_network", "172.30.0.1/24"),
        ("node_network", "172.30.0.0/29"),
        ("pod_network", "10.244.0.0/24"),
        ("pod_network", "10.96.0.0/12"),
        ("service_network", "nonsense"),
        ("load_balancer_network", "fd00::/64"),
        ("publish_address", "127.0.0.1:0"),
        ("publish_address", "127.0.0.1:65536"),
        ("publish_address", "127.0.0.1"),
        ("publish_address", "localhost:8080"),
        ("workers", 0),
        ("workers", "2"),
        ("workers", 51),
        ("node_labels", {"n3": {"a": "b"}}),
    ],
)
def test_wrong_settings_are_refused_by_name_with_a_fix(variable: str, value: object) -> None:
    settings, problems = parse({**GOOD, variable: value})
    assert settings is None
    assert any(problem.what == f"local_cluster_{variable}" and problem.fix for problem in problems), problems
    assert all(str(problem).endswith(".") and "Fix: " in str(problem) for problem in problems)


def test_an_empty_publish_address_publishes_nothing() -> None:
    settings, problems = parse({**GOOD, "publish_address": ""})
    assert settings is not None and not problems


def test_a_pod_network_bounds_the_number_of_nodes() -> None:
    assert parse({**GOOD, "pod_network": "10.244.0.0/22", "workers": 3})[0] is not None
    assert parse({**GOOD, "pod_network": "10.244.0.0/22", "workers": 4})[0] is None
