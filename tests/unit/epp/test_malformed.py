"""Objects of any shape: what the picker makes of them is endpoints, policies, or a complaint."""

from __future__ import annotations

import json
import logging
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.policies import parse_model_rewrite, parse_objective
from headrace.config.pools import parse_pool
from headrace.core import EXTENSION_GROUP, GA_GROUP, InvalidPool, Pool, Request
from headrace.core.objective import PoolReference
from headrace.datalayer.pods import PodEndpoints
from headrace.datalayer.store import EndpointStore
from headrace.epp.policies import Policies
from headrace.epp.policy_watch import _Kind
from headrace.kube.reflector import ObjectStore
from headrace.protocol.objects import ACTIVE_PORTS_ANNOTATIONS
from tests import malformed
from tests.malformed import DIGITS, broken

from ..config.test_policies import objective, rewrite, rule

POOL = Pool(group=GA_GROUP, namespace="n", name="p", selector={"app": "m"}, target_ports=(8000, 8001))


def pod(name: str, address: str, **annotations: str) -> dict[str, Any]:
    return malformed.pod(name, address, **{ACTIVE_PORTS_ANNOTATIONS[0]: "8000,8001", **annotations})


@given(st.lists(broken(pod("bad", "10.0.0.1")), max_size=3))
def test_a_malformed_pod_costs_nobody_else_anything(bad: list[Any]) -> None:
    store = ObjectStore()
    store.replace([pod("good", "10.0.0.2"), *bad])
    endpoints = PodEndpoints().of(store.objects, POOL)
    assert {"10.0.0.2:8000", "10.0.0.2:8001"} <= {found.key for found in endpoints}
    EndpointStore().replace(endpoints)


@pytest.mark.parametrize("text", [DIGITS, f"8000,{DIGITS}", "eight", "-8000", "8000;8001", "\u0668"])
def test_an_annotation_that_names_no_ports_is_logged_once(text: str, caplog: pytest.LogCaptureFixture) -> None:
    found = pod("a", f"10.0.1.{len(text) % 250}", **{ACTIVE_PORTS_ANNOTATIONS[0]: text})
    found["metadata"]["name"] = f"pod-{abs(hash(text))}"
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            ports = [e.port for e in PodEndpoints().of({("n", "a"): found}, POOL)]
    assert ports == ([8000] if text.startswith("8000,") else [])
    (record,) = caplog.records
    assert ACTIVE_PORTS_ANNOTATIONS[0] in record.getMessage()
    assert len(record.getMessage()) < 400


GA = {
    "apiVersion": f"{GA_GROUP}/v1",
    "kind": "InferencePool",
    "metadata": {"name": "p", "namespace": "n", "generation": 1, "annotations": {"a": "b"}},
    "spec": {
        "selector": {"matchLabels": {"app": "m"}},
        "targetPorts": [{"number": 8000}],
        "appProtocol": "http",
        "endpointPickerRef": {"name": "e", "kind": "Service", "port": {"number": 9002}, "failureMode": "FailOpen"},
    },
}
OLD = {
    "apiVersion": f"{EXTENSION_GROUP}/v1alpha2",
    "metadata": {"name": "p", "namespace": "n"},
    "spec": {
        "selector": {"app": "m"},
        "targetPortNumber": 8000,
        "extensionRef": {"name": "e", "portNumber": 9002, "failureMode": "FailClose"},
    },
}


@given((broken(GA) | broken(OLD)).filter(lambda found: isinstance(found, dict)))
def test_any_pool_is_read_or_named_as_wrong(found: dict[str, Any]) -> None:
    try:
        pool = parse_pool(found)
    except InvalidPool as error:
        assert error.field
        return
    PodEndpoints().of({("n", "a"): pod("a", "10.0.0.1")}, pool)
    assert pool.label_selector


KINDS = {
    "InferenceObjective": (parse_objective, objective(priority=3)),
    "InferenceModelRewrite": (parse_model_rewrite, rewrite(rule("m", to=[("t", 1)]))),
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_malformed_policy_costs_no_other_anything(kind: str, data: st.DataObject) -> None:
    parse, good = KINDS[kind]
    name = good["spec"]["poolRef"].get("group", GA_GROUP)
    bad = data.draw(st.lists(broken(good), max_size=3))
    policies = Policies(Random(1), lambda *what: None)
    taken: list[Any] = []

    def changed(usable: list[Any]) -> None:
        taken[:] = usable
        (policies.set_objectives if kind == "InferenceObjective" else policies.set_rewrites)(usable)

    store = ObjectStore()
    other = json.loads(json.dumps(good))
    other["metadata"]["name"] = "other"
    store.replace([*bad, other])
    _Kind(kind, parse, PoolReference("pool", name), changed).take(store.objects.values())
    assert any(found.name == "other" for found in taken)
    policies.apply(Request("id", model="m", objective="other"))
