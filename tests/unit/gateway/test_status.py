"""The status of pools: parents, conditions, and what is never touched."""

from __future__ import annotations

import copy

import pytest

from headrace.core import EXTENSION_GROUP, GA_GROUP
from headrace.gateway.status import (
    PICKER_NOT_TRUSTED,
    conditions_of,
    filter_problems,
    untrusted_message,
)
from headrace.protocol.objects import FILTERS_ACCEPTED
from tests.unit.gateway import objects as o

NOW = "2026-11-24T04:00:00Z"
LATER = "2026-11-24T05:00:00Z"
V1 = (GA_GROUP, "default", "pool")
V1ALPHA2 = (EXTENSION_GROUP, "default", "pool")


def world(pool, routes=None, **kinds):
    base = {
        "http_routes": [o.route("r", [o.pool_ref(group=pool["apiVersion"].partition("/")[0])])]
        if routes is None
        else routes,
        "gateways": [o.gateway()],
        "gateway_classes": [o.gateway_class()],
        "services": [o.service(appProtocol="kubernetes.io/h2c")],
    }
    return o.snapshot([pool], **{**base, **kinds})


def status_of(pool, found, now: str = NOW, written: frozenset = frozenset()):
    return o.wanted(pool, found, now, written)


def conditions(entry):
    return {found["type"]: (found["status"], found["reason"]) for found in entry["conditions"]}


def with_status(pool, status):
    return {**copy.deepcopy(pool), "status": copy.deepcopy(status)}


ACCEPTED = {"Accepted": ("True", "Accepted"), "ResolvedRefs": ("True", "ResolvedRefs")}


def test_a_served_v1_pool():
    pool = o.pool()
    (entry,) = status_of(pool, world(pool))["parents"]
    assert conditions(entry) == ACCEPTED
    assert entry["controllerName"] == o.CONTROLLER
    assert entry["parentRef"] == {
        "group": "gateway.networking.k8s.io",
        "kind": "Gateway",
        "namespace": "default",
        "name": "gateway",
    }
    assert {found["observedGeneration"] for found in entry["conditions"]} == {3}


def test_a_served_v1alpha2_pool_loses_the_placeholder_and_names_no_controller():
    placeholder = {"parentRef": {"kind": "Status", "name": "default"}, "conditions": []}
    pool = with_status(o.old_pool(), {"parent": [placeholder]})
    (entry,) = status_of(pool, world(pool))["parent"]
    assert conditions(entry) == ACCEPTED
    assert "controllerName" not in entry
    unserved = with_status(o.old_pool(), {"parent": [placeholder]})
    assert status_of(unserved, world(unserved, routes=[])) is None


@pytest.mark.parametrize("make", [o.pool, o.old_pool])
def test_nothing_is_written_when_nothing_changed(make):
    pool = make()
    written = with_status(pool, status_of(pool, world(pool)))
    assert status_of(written, world(written), LATER) is None


def test_times_change_with_the_status_only():
    pool = o.pool()
    written = with_status(pool, status_of(pool, world(pool)))
    (entry,) = status_of(written, world(written, services=[]), LATER)["parents"]
    times = {found["type"]: found["lastTransitionTime"] for found in entry["conditions"]}
    assert times == {"Accepted": NOW, "ResolvedRefs": LATER}
    assert conditions(entry)["ResolvedRefs"] == ("False", "InvalidExtensionRef")
    written["metadata"]["generation"] = 9
    (entry,) = status_of(written, world(written), LATER)["parents"]
    assert [(found["observedGeneration"], found["lastTransitionTime"]) for found in entry["conditions"]] == [
        (9, NOW)
    ] * 2


@pytest.mark.parametrize("make", [o.pool, o.old_pool])
def test_entries_of_others_stay_and_ours_go_with_the_routes(make):
    pool = make()
    field = "parents" if make is o.pool else "parent"
    foreign = {
        "parentRef": {
            "group": "gateway.networking.k8s.io",
            "kind": "Gateway",
            "name": "theirs",
            "namespace": "default",
        },
        "conditions": [{"type": "Accepted", "status": "True", "reason": "Accepted"}],
    }
    if make is o.pool:
        foreign["controllerName"] = "example.com/other"
    gateways = [o.gateway(), o.gateway("theirs", class_name="other")]
    classes = [o.gateway_class(), o.gateway_class("other", "example.com/other")]
    found = with_status(pool, {field: [foreign]})
    both = status_of(found, world(found, gateways=gateways, gateway_classes=classes))
    assert [entry["parentRef"]["name"] for entry in both[field]] == ["theirs", "gateway"]
    assert both[field][0] == foreign
    written = with_status(pool, both)
    gone = status_of(written, world(written, routes=[], gateways=gateways, gateway_classes=classes))
    assert gone == {field: [foreign]}


def test_an_entry_whose_gateway_is_gone_is_ours_if_we_wrote_it():
    pool = o.old_pool()
    written = with_status(pool, status_of(pool, world(pool)))
    bare = world(written, gateways=[])
    assert status_of(written, bare) is None
    assert status_of(written, bare, written=frozenset({("default", "gateway")})) == {"parent": []}


def test_reasons():
    def of(pool, **kinds):
        field = "parents" if pool["apiVersion"].startswith(f"{GA_GROUP}/") else "parent"
        return conditions(status_of(pool, world(pool, **kinds))[field][0])

    assert of(o.pool(picker=None)) == {
        "Accepted": ("False", "EndpointPickerRefMissing"),
        "ResolvedRefs": ("False", "InvalidExtensionRef"),
    }
    refused = o.route("r", [o.pool_ref()])
    refused["status"] = {
        "parents": [
            {
                "parentRef": {"name": "gateway"},
                "controllerName": o.CONTROLLER,
                "conditions": [{"type": "Accepted", "status": "False", "reason": "NotAllowedByListeners"}],
            }
        ]
    }
    assert of(o.pool(), routes=[refused])["Accepted"] == ("False", "HTTPRouteNotAccepted")
    assert of(o.pool(), routes=[refused, o.route("s", [o.pool_ref()])])["Accepted"] == ("True", "Accepted")
    bad = o.pool()
    bad["spec"]["targetPorts"] = []
    assert of(bad) == {"Accepted": ("False", "NotSupportedByParent")}
    bad_old = o.old_pool()
    bad_old["spec"]["targetPortNumber"] = 0
    assert of(bad_old) == {"Accepted": ("False", "NotSupportedByGateway")}


def test_only_our_gateways_and_permitted_routes_are_parents():
    pool = o.pool()
    other_class = world(pool, gateway_classes=[o.gateway_class(controller="example.com/other")])
    assert status_of(pool, other_class) is None
    far = o.route("r", [o.pool_ref(namespace="default")], namespace="apps")
    far["spec"]["parentRefs"] = [{"name": "gateway", "namespace": "default"}]
    assert status_of(pool, world(pool, routes=[far])) is None
    grant = {
        "metadata": o.metadata("g"),
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "apps"}],
            "to": [{"group": GA_GROUP, "kind": "InferencePool"}],
        },
    }
    (entry,) = status_of(pool, world(pool, routes=[far], reference_grants=[grant]))["parents"]
    assert entry["parentRef"]["name"] == "gateway"
    # The gateway of a parentRef without a namespace is in the route's.
    del far["spec"]["parentRefs"][0]["namespace"]
    assert status_of(pool, world(pool, routes=[far], reference_grants=[grant])) is None


def test_the_status_says_how_the_picker_is_asked():
    def message(**kinds) -> str:
        found = o.snapshot([o.pool()], **kinds)
        conditions = conditions_of(found, (GA_GROUP, "default", "pool"), route_accepted=True)
        return next(condition.message for condition in conditions if condition.type == "ResolvedRefs")

    assert "request bodies FULL_DUPLEX_STREAMED, responses in a stream of its own" in message(services=[o.service()])
    cleartext = message(services=[o.service(ours=False, appProtocol="kubernetes.io/h2c")])
    assert cleartext.endswith("cleartext, request bodies FULL_DUPLEX_STREAMED, responses in one stream both ways")


def policy(config_map: str = "ca") -> dict:
    reference = {"group": "", "kind": "ConfigMap", "name": config_map}
    return {
        "metadata": o.metadata("p"),
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "epp"}],
            "validation": {"hostname": "epp.test", "caCertificateRefs": [reference]},
        },
    }


CA = {"metadata": o.metadata("ca"), "data": {"ca.crt": "-----BEGIN CERTIFICATE-----"}}


@pytest.mark.parametrize(
    ("kinds", "verify", "untrusted", "resolved"),
    [
        ({}, True, "", False),
        ({}, False, "", True),
        ({"backend_tls_policies": [policy()]}, True, "", False),
        ({"backend_tls_policies": [policy()], "config_maps": [CA]}, True, "", True),
        ({"backend_tls_policies": [policy()], "config_maps": [CA]}, True, "self-signed certificate", False),
        ({"backend_tls_policies": [policy()], "config_maps": [CA]}, False, "self-signed certificate", False),
        ({"services": [o.service(appProtocol="kubernetes.io/h2c")]}, True, "", True),
    ],
    ids=["no policy", "unverified", "no CA", "trusted", "another CA", "another CA, unverified else", "cleartext"],
)
@pytest.mark.parametrize("make", [o.pool, o.old_pool])
def test_a_picker_that_is_not_trusted_is_not_resolved(make, kinds, verify, untrusted, resolved):
    pool = make()
    found = world(pool, **{"services": [o.service()], "verify_by_default": verify, **kinds})
    status = o.wanted(pool, found, NOW, untrusted=untrusted)
    wanted = ("True", "ResolvedRefs") if resolved else ("False", PICKER_NOT_TRUSTED)
    (entry,) = status.get("parents") or status["parent"]
    assert conditions(entry) == {"Accepted": ("True", "Accepted"), "ResolvedRefs": wanted}
    assert (untrusted_message(status) == "") is resolved


def test_a_filter_that_cannot_be_had_is_said_of_its_pool_and_gateway():
    rewrite, fine = {"type": "URLRewrite"}, {"type": "RequestHeaderModifier"}
    pool = o.pool()
    refs = [o.pool_ref(filters=[rewrite]), o.pool_ref("other", filters=[fine]), {"name": "web", "filters": [rewrite]}]
    found = world(pool, [o.route("r", refs)])
    problems = filter_problems(found)
    assert set(problems) == {V1}
    assert set(problems[V1]) == {("default", "gateway")}
    status = o.wanted(pool, found, NOW, filter_problems=problems[V1]["default", "gateway"])
    assert conditions(status["parents"][0]) == {**ACCEPTED, FILTERS_ACCEPTED: ("False", "UnsupportedValue")}
    # Mended, and gone with it.
    mended = world(pool, [o.route("r", [o.pool_ref(filters=[fine]), o.pool_ref(filters=[rewrite], weight=0)])])
    assert filter_problems(mended) == {}
    status = o.wanted(with_status(pool, status), mended, NOW)
    assert conditions(status["parents"][0]) == ACCEPTED
