"""Objects that no schema let through, or that an older one did: they are nobody's problem but their own."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.core import GA_GROUP
from headrace.gateway.base_models import BaseModels
from headrace.gateway.discovery import SnapshotSource
from headrace.gateway.in_effect import InEffect
from headrace.gateway.lacking import lacking
from headrace.gateway.snapshot import Snapshot, parse_pools
from headrace.gateway.status import parents_of_pools, pool_plan
from headrace.gateway.translate import named_rules, translate
from headrace.gateway.trust import config_maps_of
from headrace.kube.reflector import ObjectStore
from headrace.protocol.rpc import EDS_TYPE, SDS_TYPE
from tests.malformed import broken
from tests.unit.gateway import objects as o

A = f"inferencepool/{GA_GROUP}/default/a"
RULE = "httproute/default/r/rule/0"

_WORDS = (
    *(
        "rules",
        "backendRefs",
        "group",
        "kind",
        "name",
        "namespace",
        "weight",
        "filters",
        "type",
        "parentRefs",
        "matches",
    ),
    *("requestHeaderModifier", "set", "add", "remove", "from", "to", "targetRefs", "validation", "hostname", "spec"),
    *("caCertificateRefs", "subjectAltNames", "ports", "port", "appProtocol", "annotations", "conditions", "parents"),
)
_VALUES = (GA_GROUP, "InferencePool", "Service", "a", "bad", "default", "RequestHeaderModifier", "gateway", "", "-1")
_leaf = st.none() | st.booleans() | st.integers(-2, 70000) | st.sampled_from(_VALUES) | st.text(max_size=4)
_json = st.recursive(
    _leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=4),
    max_leaves=12,
)


def made(name: str, spec: Any, **more: Any) -> dict[str, Any]:
    return {"metadata": o.metadata(name), "spec": spec, **more}


@given(route=_json, pool=_json, service=_json, policy=_json, grant=_json, data=_json, status=_json)
def test_a_malformed_object_blocks_no_other(
    route: Any, pool: Any, service: Any, policy: Any, grant: Any, data: Any, status: Any
) -> None:
    bad_pool = {**o.pool("bad"), "spec": pool, "status": status}
    found = o.snapshot(
        [o.pool("a"), bad_pool, o.pool("odd", picker="odd")],
        http_routes=[
            o.route("r", [o.pool_ref("a"), o.pool_ref("odd")]),
            made("bad", route, status=status),
            made("badrefs", {"rules": [{"backendRefs": route}], "parentRefs": pool}),
        ],
        services=[o.service(), made("odd", service, metadata={**o.metadata("odd"), "annotations": data})],
        backend_tls_policies=[
            made("bad", policy),
            made("half", {"targetRefs": [{"kind": "Service", "name": "epp"}], "validation": policy}),
        ],
        reference_grants=[made("bad", grant)],
        gateways=[o.gateway()],
        gateway_classes=[o.gateway_class()],
    )
    names = [
        f"{RULE}/match/0/*",
        "httproute/default/bad/rule/0/match/0/*",
        "httproute/default/badrefs/rule/0/match/0/*",
    ]
    request = o.hook_input([o.xds_route(name) for name in names], [RULE])
    rules = named_rules(request)
    lacking(frozenset().union(*rules.values()), found)
    result = translate(request, found)
    assert o.shares(o.routes_in(result.response)[names[0]])[0] == (A, 1)
    raw = {(GA_GROUP, "default", "bad"): bad_pool}
    in_effect = InEffect(lambda: found, lambda: raw)
    in_effect.start()
    in_effect.translated(rules, found)
    assert in_effect.stale() == {}
    assert in_effect.retranslate(("default", "gateway"), [("HTTPRoute", "default", "bad")], 1)
    in_effect.forget(("default", "gateway"))
    in_effect.stale()
    assert (GA_GROUP, "default", "a") in parents_of_pools(found)
    source = SnapshotSource(lambda: found, "NOBODY")
    for key, known in found.pools.items():
        pool_plan(found, known)
        o.wanted(bad_pool, found, "2026-01-01T00:00:00Z", translated=in_effect.condition, key=key)
        source.resource(EDS_TYPE, "/".join(("inferencepool", *key, "epp")))
        source.resource(SDS_TYPE, "/".join(("inferencepool", *key, "epp/ca")))
    maps = [
        {"metadata": o.metadata("bad"), "data": data},
        {"metadata": o.metadata("half"), "data": {"baseModel": data}},
    ]
    routes = [o.model_route("good", {"base": []}), made("bad", {"rules": [{"matches": route}]}, status=status)]
    routes.append(made("half", {"rules": [{"matches": [{"headers": route}]}]}))
    based = o.snapshot([], http_routes=routes, base_model_config_maps=maps, gateways=[o.gateway()])
    BaseModels(lambda: based)()


POLICY = made(
    "p",
    {
        "targetRefs": [{"group": "", "kind": "Service", "name": "epp", "sectionName": "grpc"}],
        "validation": {
            "hostname": "h",
            "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}],
            "subjectAltNames": [{"type": "Hostname", "hostname": "h"}],
        },
    },
)
GRANT = made(
    "g",
    {"from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "x"}], "to": [{"kind": "x"}]},
)
ANNOTATED = {"headrace.dev/request-body-mode": "BUFFERED", "inference.networking.k8s.io/active-ports": "8000"}
STATUS = {"parents": [{"parentRef": {"name": "gateway"}, "conditions": [{"type": "Accepted", "status": "True"}]}]}
# By the field of the snapshot that they are in.
WHOLE: dict[str, list[dict[str, Any]]] = {
    "pools": [{**o.pool("b", annotations=ANNOTATED), "status": STATUS}, o.old_pool("b")],
    "http_routes": [o.route("b", [o.pool_ref("a", 1), o.pool_ref("b", 2)], status=STATUS)],
    "grpc_routes": [o.route("b", [o.pool_ref("b")])],
    "services": [o.service("other")],
    "endpoint_slices": [o.slice_of("epp", {"10.0.0.9": {"ready": True}, "fd00::9": {"terminating": True}})],
    "pods": [o.pod("b", "10.0.0.8", app="a")],
    "config_maps": [{"metadata": o.metadata("ca"), "data": {"ca.crt": "BEGIN CERTIFICATE"}}],
    "backend_tls_policies": [POLICY],
    "reference_grants": [GRANT],
    "gateways": [o.gateway("b")],
    "gateway_classes": [o.gateway_class("b")],
    "base_models": [{"metadata": o.metadata("m"), "data": {"baseModel": "m", "adapters": "- x\n- y"}}],
}


@given(data=st.data())
def test_any_value_in_any_field_blocks_no_other(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(WHOLE)))
    bad = data.draw(st.sampled_from(WHOLE[kind]).flatmap(broken))
    kinds = {
        "pools": [o.pool("a")],
        "http_routes": [o.route("r", [o.pool_ref("a")]), o.model_route("own", {"base": [o.pool_ref("a")]})],
        "services": [o.service()],
        "endpoint_slices": [{**o.slice_of("epp", {"10.0.0.1": {"ready": True}}), "metadata": _slice_metadata()}],
        "pods": [o.pod("good", "10.0.0.2", app="a")],
        "gateways": [o.gateway()],
        "gateway_classes": [o.gateway_class()],
        "base_models": [{"metadata": o.metadata("good"), "data": {"baseModel": "base"}}],
    }
    stores = {name: ObjectStore() for name in WHOLE}
    for name, store in stores.items():
        # The broken one first: the good one stays where both have the same name.
        store.replace([*([bad] if name == kind else []), *kinds.get(name, [])])
    raw = stores.pop("pools").objects
    pools, bad_pools = parse_pools(raw.values())
    models = stores.pop("base_models").objects
    routes = o.keyed_routes(*(stores.pop(f"{kind}_routes").objects.values() for kind in ("http", "grpc")))
    known = {name: store.objects for name, store in stores.items()}
    found = Snapshot(
        controller_name=o.CONTROLLER,
        routes=routes,
        pools=pools,
        bad_pools=bad_pools,
        base_model_config_maps=models,
        **known,
    )
    name = f"{RULE}/match/0/*"
    request = o.hook_input([o.xds_route(name), o.xds_route("httproute/default/b/rule/0/match/0/*")], [RULE])
    lacking(frozenset().union(*named_rules(request).values()), found)
    result = translate(request, found)
    assert o.shares(o.routes_in(result.response)[name])[0] == (A, 1)
    source = SnapshotSource(lambda: found, "NOBODY")
    for key, pool in found.pools.items():
        pool_plan(found, pool)
        o.wanted(raw.get(key[1:], {}), found, "2026-01-01T00:00:00Z", key=key)
        for suffix, type_url in (("", EDS_TYPE), ("/epp", EDS_TYPE), ("/epp/ca", SDS_TYPE)):
            source.resource(type_url, "/".join(("inferencepool", *key)) + suffix).SerializeToString()
    for policy in found.backend_tls_policies.values():
        list(config_maps_of(policy))
    assert BaseModels(lambda: found)().get("base") == "base"


def _slice_metadata() -> dict[str, Any]:
    return o.metadata("good", labels={"kubernetes.io/service-name": "epp"})
