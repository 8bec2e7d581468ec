"""Which Pods are endpoints, and on which ports."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from headrace.core import GA_GROUP, Pool
from headrace.datalayer.pods import PodEndpoints, endpoints_of

POOL = Pool(group=GA_GROUP, namespace="ns", name="p", selector={"app": "m"}, target_ports=(8000, 8001))
POD: dict[str, Any] = {
    "metadata": {"name": "a", "namespace": "ns", "uid": "u", "labels": {"app": "m", "x": "y"}},
    "spec": {"nodeName": "n1"},
    "status": {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
}


def pod(**changes: Any) -> dict[str, Any]:
    changed = copy.deepcopy(POD)
    for path, value in changes.items():
        section, _, name = path.partition("__")
        changed[section][name] = value
    return changed


def test_a_ready_pod_has_an_endpoint_for_each_port() -> None:
    first, second = endpoints_of([POD], POOL)
    assert (first.key, first.rank, second.key, second.rank) == ("10.0.0.1:8000", 0, "10.0.0.1:8001", 1)
    assert (first.pod_name, first.namespace, first.uid, first.node_name) == ("a", "ns", "u", "n1")
    assert first.labels == {"app": "m", "x": "y"}


@pytest.mark.parametrize(
    "unusable",
    [
        pod(metadata__deletionTimestamp="2026-01-01T00:00:00Z"),
        pod(metadata__labels={"app": "other"}),
        pod(metadata__labels=None),
        pod(metadata__namespace="elsewhere"),
        pod(status__podIP=None),
        pod(status__podIP=""),
        pod(status__conditions=[]),
        pod(status__conditions=None),
        pod(status__conditions=[{"type": "Ready", "status": "False"}]),
        pod(status__conditions=[{"type": "ContainersReady", "status": "True"}]),
        {},
        {"metadata": None, "status": None},
    ],
)
def test_pods_that_are_none(unusable: dict[str, Any]) -> None:
    assert endpoints_of([unusable], POOL) == ()


@pytest.mark.parametrize(
    ("text", "ports"),
    [("8001", [8001]), ("8000, 8001", [8000, 8001]), ("9000", []), ("", []), ("x,8000", [8000])],
)
def test_the_active_ports_annotation(text: str, ports: list[int]) -> None:
    found = endpoints_of([pod(metadata__annotations={"inference.networking.k8s.io/active-ports": text})], POOL)
    assert [endpoint.port for endpoint in found] == ports


def test_ipv6_and_order() -> None:
    found = endpoints_of([pod(metadata__name="b"), pod(status__podIP="fd00::1")], POOL)
    assert [endpoint.key for endpoint in found] == [
        "[fd00::1]:8000",
        "[fd00::1]:8001",
        "10.0.0.1:8000",
        "10.0.0.1:8001",
    ]


def test_what_pods_came_to_is_kept_until_they_change() -> None:
    reader = PodEndpoints()
    pods = {("ns", name): pod(metadata__name=name) for name in "bca"}
    first = reader.of(pods, POOL)
    assert first == endpoints_of(pods.values(), POOL)
    assert [endpoint.pod_name for endpoint in first] == ["a", "a", "b", "b", "c", "c"]
    pods["ns", "b"] = pod(metadata__name="b", status__podIP="10.0.0.2")
    del pods["ns", "c"]
    pods["ns", "d"] = pod(metadata__name="d")
    second = reader.of(pods, POOL)
    assert second == endpoints_of(pods.values(), POOL)
    assert second[0] is first[0]
    assert second[2].address == "10.0.0.2"
    other = dataclasses.replace(POOL, target_ports=(9000,))
    assert reader.of(pods, other) == endpoints_of(pods.values(), other)
    assert reader.of({}, other) == ()
