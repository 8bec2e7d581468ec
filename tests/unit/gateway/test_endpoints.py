"""Endpoints and trust from a snapshot, and the names that lead to them."""

from __future__ import annotations

import pytest

from headrace.core import EXTENSION_GROUP, GA_GROUP
from headrace.gateway import names
from headrace.gateway.discovery import SnapshotSource
from headrace.gateway.endpoints import assignment, picker_addresses, pool_addresses
from headrace.gateway.trust import pool_trust
from headrace.protocol.rpc import EDS_TYPE, SDS_TYPE
from tests.unit.gateway import objects as o

KEY = (GA_GROUP, "default", "pool")
READY, NOT_READY = {"ready": True}, {"ready": False}


def test_resource_names_lead_back_to_the_pool():
    for key in (KEY, (EXTENSION_GROUP, "ns", "a.b-c")):
        assert names.split_resource_name(names.pool_cluster_name(key)) == (key, "")
        assert names.split_resource_name(names.picker_endpoints_name(key)) == (key, "/epp")
        assert names.split_resource_name(names.trust_secret_name(key)) == (key, "/epp/ca")
    for other in (
        "",
        "xds_cluster",
        "inferencepool/",
        "inferencepool/g/ns",
        "inferencepool/g/ns/p/x",
        "inferencepool///",
    ):
        assert names.split_resource_name(other) is None


def test_ready_pods_times_target_ports():
    leaving = o.pod("leaving", "10.0.0.4")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    found = o.snapshot(
        [o.pool(ports=(8000, 8001))],
        pods=[
            o.pod("a", "10.0.0.1"),
            o.pod("b", "10.0.0.2", ready=False),
            o.pod("c", "10.0.0.3", app="other"),
            leaving,
            o.pod("six", "fd00::1"),
            o.pod("elsewhere", "10.0.0.9", namespace="other"),
        ],
    )
    assert pool_addresses(found, found.pools[KEY]) == (
        ("10.0.0.1", 8000),
        ("10.0.0.1", 8001),
        ("fd00::1", 8000),
        ("fd00::1", 8001),
    )


def test_a_pod_belongs_by_all_labels_of_the_selector():
    wanted = o.pool()
    wanted["spec"]["selector"]["matchLabels"] = {"app": "pool", "tier": "gold"}
    both, one = o.pod("both", "10.0.0.1"), o.pod("one", "10.0.0.2")
    both["metadata"]["labels"]["tier"] = "gold"
    bare = o.pod("bare", "10.0.0.3")
    del bare["metadata"]["labels"]
    found = o.snapshot([wanted], pods=[both, one, bare])
    assert pool_addresses(found, found.pools[KEY]) == (("10.0.0.1", 8000),)


def test_picker_endpoints_by_the_services_port_name():
    terminating = {"ready": True, "terminating": True}
    states = {"10.0.0.1": READY, "10.0.0.2": NOT_READY, "10.0.0.3": {}, "10.0.0.4": terminating}
    other = o.slice_of("other", {"10.9.9.9": READY})
    found = o.snapshot(
        [o.pool()], services=[o.service()], endpoint_slices=[o.slice_of("epp", states, port=19002), other]
    )
    ready = (("10.0.0.1", 19002), ("10.0.0.3", 19002))
    # Envoy checks the health of ours, and knows when one that ends serves no more.
    assert picker_addresses(found, found.pools[KEY]) == (*ready, ("10.0.0.4", 19002))
    theirs = o.snapshot(
        [o.pool()], services=[o.service(ours=False)], endpoint_slices=[o.slice_of("epp", states, port=19002)]
    )
    assert picker_addresses(theirs, found.pools[KEY]) == ready
    assert picker_addresses(o.snapshot([o.pool()]), found.pools[KEY]) == ()


def test_addresses_as_eds_says_them():
    found = assignment("x", [("10.0.0.1", 80), ("fd00::1", 81)])
    (locality,) = found.endpoints
    assert locality.load_balancing_weight.value == 1
    sockets = [host.endpoint.address.socket_address for host in locality.lb_endpoints]
    assert [(socket.address, socket.port_value) for socket in sockets] == [("10.0.0.1", 80), ("fd00::1", 81)]


@pytest.mark.parametrize(
    ("pool", "service", "words"),
    [
        (o.pool(picker=None), o.service(), "names no endpoint picker"),
        (o.pool(), o.service("other"), "there is no Service default/epp"),
        (o.pool(), {**o.service(), "spec": {"type": "ExternalName"}}, "ExternalName"),
        (o.pool(), o.service(port=9999), "has no port 9002"),
    ],
)
def test_pickers_that_do_not_resolve(pool, service, words):
    found = o.snapshot([pool], services=[service])
    service, problem = found.picker_service(found.pools[KEY])
    assert words in problem
    assert not service.is_ours


def policy(name: str, *, section: str = "", created: str = "2026-01-01T00:00:00Z", **validation):
    target = {"group": "", "kind": "Service", "name": "epp"} | ({"sectionName": section} if section else {})
    return {
        "metadata": o.metadata(name, creationTimestamp=created),
        "spec": {"targetRefs": [target], "validation": {"hostname": name, **validation}},
    }


def ca_from(name: str):
    return {"caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": name}]}


def config_map(name: str, text: str = "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"):
    return {"metadata": o.metadata(name), "data": {"ca.crt": text}}


def trust(verify: bool = True, **kinds):
    found = o.snapshot([o.pool()], services=[o.service()], verify_by_default=verify, **kinds)
    return pool_trust(found, found.pools[KEY])


def test_trust_comes_from_the_policy():
    found = trust(backend_tls_policies=[policy("p", **ca_from("ca"))], config_maps=[config_map("ca")])
    assert (found.hostname, found.ca.count("BEGIN"), found.problem) == ("p", 1, "")
    assert trust(backend_tls_policies=[policy("p", wellKnownCACertificates="System")]).system
    for config_maps in ([], [config_map("ca", "nonsense")]):
        broken = trust(False, backend_tls_policies=[policy("p", **ca_from("ca"))], config_maps=config_maps)
        assert not broken.ca
        assert not broken.unverified
        assert "ca.crt" in broken.problem


def test_the_policy_of_the_port_comes_first_then_the_oldest():
    old = policy("old", created="2020-01-01T00:00:00Z", **ca_from("ca"))
    port = policy("port", section="grpc", **ca_from("ca"))
    other = policy("other", section="metrics", created="2019-01-01T00:00:00Z", **ca_from("ca"))
    assert trust(backend_tls_policies=[policy("new"), old, other]).hostname == "old"
    assert trust(backend_tls_policies=[old, port, other]).hostname == "port"


def test_without_a_policy_the_default_decides():
    assert trust(True).problem
    assert not trust(True).unverified
    assert trust(False).unverified


def source(found) -> SnapshotSource:
    return SnapshotSource(lambda: found, "NOBODY")


def test_unknown_names_are_answered_empty_and_trust_nobody():
    asked = source(o.snapshot([], verify_by_default=False))
    for name in (names.pool_cluster_name(KEY), names.picker_endpoints_name(KEY), "nonsense"):
        found = asked.resource(EDS_TYPE, name)
        assert found.cluster_name == name
        assert not found.endpoints[0].lb_endpoints
    secret = asked.resource(SDS_TYPE, names.trust_secret_name(KEY))
    assert secret.validation_context.trusted_ca.inline_string == "NOBODY"


def test_secrets_match_the_host_name():
    found = o.snapshot(
        [o.pool()],
        services=[o.service()],
        backend_tls_policies=[policy("epp.test", **ca_from("ca"))],
        config_maps=[config_map("ca")],
    )
    context = source(found).resource(SDS_TYPE, names.trust_secret_name(KEY)).validation_context
    assert "BEGIN CERTIFICATE" in context.trusted_ca.inline_string
    assert [matcher.matcher.exact for matcher in context.match_typed_subject_alt_names] == ["epp.test"]
