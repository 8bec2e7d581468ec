"""Translation: what Envoy Gateway's input becomes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from headrace.core import EXTENSION_GROUP, GA_GROUP
from headrace.gateway import names
from headrace.gateway.protocol.extension_pb2 import PostTranslateModifyRequest
from headrace.gateway.translate import Translation, translate
from headrace.gateway.xds_names import parse_route_name
from headrace.protocol import http
from headrace.protocol.objects import BODY_MODE_ANNOTATION, OBSERVATION_ANNOTATION
from headrace.xds.envoy.config.cluster.v3 import cluster_pb2
from headrace.xds.envoy.extensions.filters.http.ext_proc.v3 import ext_proc_pb2, processing_mode_pb2
from headrace.xds.envoy.extensions.load_balancing_policies.override_host.v3 import override_host_pb2
from headrace.xds.envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2
from tests.unit.gateway import objects as o

A = f"inferencepool/{GA_GROUP}/default/a"
B = f"inferencepool/{GA_GROUP}/default/b"
RULE = "httproute/default/r/rule/0"
NAME = f"{RULE}/match/0/*"


def run(refs, *, pools=None, clusters=(RULE,), name=NAME, grants=(), services=None, **kinds) -> Translation:
    found = o.snapshot(
        pools if pools is not None else [o.pool("a", picker="epp-a"), o.pool("b", picker="epp-b")],
        http_routes=[o.route("r", refs)],
        services=services if services is not None else [o.service("epp-a"), o.service("epp-b")],
        reference_grants=grants,
        **kinds,
    )
    return translate(o.hook_input([o.xds_route(name, cluster=RULE)], clusters), found)


def overrides(weight, name: str) -> ext_proc_pb2.ExtProcOverrides:
    found = ext_proc_pb2.ExtProcPerRoute()
    assert weight.typed_per_filter_config[name].Unpack(found)
    return found.overrides


def weights(result: Translation):
    return o.routes_in(result.response)[NAME].route.weighted_clusters.clusters


def test_route_names_of_envoy_gateway():
    found = parse_route_name("grpcroute/ns/my-route/rule/12/match/3/example_com")
    assert found == ("grpcroute/ns/my-route/rule/12", ("GRPCRoute", "ns", "my-route"), 12)
    for other in ("httproute/ns/r", "", "tcproute/a/b/rule/0/match/0/*", "httproute/ns/r/rule/x/match/0"):
        assert parse_route_name(other) is None


def test_two_weighted_pools_each_with_its_picker():
    result = run([o.pool_ref("a", 70), o.pool_ref("b", 30)])
    assert o.shares(o.routes_in(result.response)[NAME]) == [(A, 70), (B, 30)]
    first, second = weights(result)
    assert overrides(first, names.PICK_FILTER).grpc_service.envoy_grpc.cluster_name == f"{A}/picker"
    assert overrides(second, names.PICK_FILTER).grpc_service.envoy_grpc.cluster_name == f"{B}/picker"
    assert set(o.clusters_in(result.response)) == {
        RULE,
        A,
        B,
        *(f"{pool}/{end}" for pool in (A, B) for end in ("picker", "epp")),
    }
    assert [("BackendTLSPolicy" in note) for note in result.notes] == [True, True]


def test_same_name_in_both_groups_is_two_pools():
    pools = [o.pool("a", picker="epp-a"), o.old_pool("a", picker="epp-b")]
    result = run([o.pool_ref("a"), o.pool_ref("a", group=EXTENSION_GROUP)], pools=pools)
    assert o.shares(o.routes_in(result.response)[NAME]) == [(A, 1), (f"inferencepool/{EXTENSION_GROUP}/default/a", 1)]


def test_missing_pool_keeps_its_share_and_the_valid_one_serves():
    result = run([o.pool_ref("a", 1), o.pool_ref("nope", 3)])
    found = o.routes_in(result.response)[NAME]
    assert o.shares(found) == [(A, 1), (names.INVALID_CLUSTER, 3)]
    assert found.route.cluster_not_found_response_code == found.route.INTERNAL_SERVER_ERROR
    assert any("nope" in note for note in result.notes)


def test_pool_without_picker_is_answered_500():
    result = run([o.pool_ref("a")], pools=[o.pool("a", picker=None)])
    assert o.shares(o.routes_in(result.response)[NAME]) == [(names.INVALID_CLUSTER, 1)]


def test_zero_weights_send_nothing():
    result = run([o.pool_ref("a", 0), o.pool_ref("b", 5)])
    assert o.shares(o.routes_in(result.response)[NAME]) == [(B, 5)]
    only = run([o.pool_ref("a", 0)])
    assert o.routes_in(only.response)[NAME].route.cluster == names.INVALID_CLUSTER


def test_other_namespace_needs_a_grant():
    ref = o.pool_ref("a", namespace="models")
    pools = [o.pool("a", namespace="models", picker="epp-a")]
    services = [o.service("epp-a", namespace="models")]
    refused = run([ref], pools=pools, services=services)
    assert o.shares(o.routes_in(refused.response)[NAME]) == [(names.INVALID_CLUSTER, 1)]

    def grant(namespace: str, to_name: str | None) -> dict:
        to = {"group": GA_GROUP, "kind": "InferencePool"} | ({"name": to_name} if to_name else {})
        peer = {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "default"}
        return {"metadata": o.metadata("g", namespace), "spec": {"from": [peer], "to": [to]}}

    for usable in (grant("models", None), grant("models", "a")):
        allowed = run([ref], pools=pools, services=services, grants=[usable])
        assert o.shares(o.routes_in(allowed.response)[NAME]) == [(f"inferencepool/{GA_GROUP}/models/a", 1)]
    for useless in (grant("default", None), grant("models", "b")):
        refused = run([ref], pools=pools, services=services, grants=[useless])
        assert o.shares(o.routes_in(refused.response)[NAME]) == [(names.INVALID_CLUSTER, 1)]


def test_pool_beside_a_service():
    refs = [o.pool_ref("a", 1), {"name": "web", "port": 80, "weight": 2}]
    separate = run(refs, clusters=[f"{RULE}/backend/0", f"{RULE}/backend/1"])
    assert o.shares(o.routes_in(separate.response)[NAME]) == [(A, 1), (f"{RULE}/backend/1", 2)]
    together = run(refs, clusters=[RULE])
    assert o.shares(o.routes_in(together.response)[NAME]) == [(A, 1), (RULE, 2)]
    absent = run(refs, clusters=[f"{RULE}/backend/0"])
    assert o.shares(o.routes_in(absent.response)[NAME]) == [(A, 1), (names.INVALID_CLUSTER, 2)]


def test_what_leads_to_no_pool_passes_byte_for_byte():
    found = o.snapshot([o.pool("a")], http_routes=[o.route("r", [{"name": "web", "port": 80}])])
    request = o.hook_input([o.xds_route(NAME, cluster=RULE)], [RULE])
    request.clusters.append(b"\xff not a cluster")
    response = translate(request, found).response
    assert list(response.clusters) == list(request.clusters)
    assert list(response.listeners) == list(request.listeners)
    assert list(response.routes) == list(request.routes)
    assert list(response.secrets) == list(request.secrets)


def test_malformed_objects_block_nobody():
    bad_pool = o.pool("a")
    bad_pool["spec"]["targetPorts"] = "8000"
    bad_route = {"metadata": o.metadata("bad"), "spec": {"rules": [{"backendRefs": 5}]}}
    found = o.snapshot(
        [bad_pool, o.pool("b")],
        http_routes=[o.route("r", [o.pool_ref("a"), o.pool_ref("b")]), bad_route],
        services=[o.service()],
    )
    request = o.hook_input([o.xds_route("httproute/default/bad/rule/0/match/0/*"), o.xds_route(NAME)], [RULE])
    request.routes.append(b"\xff\xff")
    result = translate(request, found)
    assert o.shares(o.routes_in(result.response)[NAME]) == [(names.INVALID_CLUSTER, 1), (B, 1)]
    assert result.response.routes[1] == b"\xff\xff"


def test_unknown_route_object_stays_as_it_came():
    request = o.hook_input([o.xds_route(NAME, cluster=RULE)], [RULE])
    result = translate(request, o.snapshot([o.pool("a")]))
    assert list(result.response.routes) == list(request.routes)
    assert "not known" in result.notes[0]


def test_filters_stand_before_the_router_disabled():
    result = run([o.pool_ref("a")])
    found = o.filters_in(result.response)
    assert found == [names.HEADERS_FILTER, names.PICK_FILTER, names.OBSERVE_FILTER, "envoy.filters.http.router"]
    again = PostTranslateModifyRequest(
        clusters=result.response.clusters, listeners=result.response.listeners, routes=result.response.routes
    )
    twice = translate(again, o.snapshot([o.pool("a")], http_routes=[o.route("r", [o.pool_ref("a")])]))
    assert o.filters_in(twice.response) == found


@pytest.mark.parametrize(
    ("failure_mode", "annotation", "mode"),
    [
        ("FailClose", None, "FULL_DUPLEX_STREAMED"),
        ("FailOpen", None, "BUFFERED"),
        ("FailOpen", "FULL_DUPLEX_STREAMED", "FULL_DUPLEX_STREAMED"),
        ("FailClose", "BUFFERED", "BUFFERED"),
        ("FailOpen", "nonsense", "BUFFERED"),
    ],
)
def test_body_modes_of_our_picker(failure_mode, annotation, mode):
    annotations = {} if annotation is None else {BODY_MODE_ANNOTATION: annotation}
    result = run(
        [o.pool_ref("a")], pools=[o.pool("a", picker="epp-a", failure_mode=failure_mode, annotations=annotations)]
    )
    found = overrides(weights(result)[0], names.PICK_FILTER)
    modes = processing_mode_pb2.ProcessingMode
    assert found.processing_mode.request_body_mode == modes.BodySendMode.Value(mode)
    assert found.processing_mode.response_header_mode == modes.SKIP
    assert found.failure_mode_allow.value is (failure_mode == "FailOpen")
    observed = overrides(weights(result)[0], names.OBSERVE_FILTER)
    assert observed.processing_mode.response_trailer_mode == modes.SEND
    assert observed.failure_mode_allow.value is True
    limit = o.routes_in(result.response)[NAME].request_body_buffer_limit.value
    assert limit == (64 << 20 if mode == "BUFFERED" else 1 << 20)
    assert any("nonsense" in note for note in result.notes) is (annotation == "nonsense")


def test_any_other_picker_gets_one_stream_both_ways():
    result = run([o.pool_ref("a")], services=[o.service("epp-a", ours=False)])
    (weight,) = weights(result)
    assert names.OBSERVE_FILTER not in weight.typed_per_filter_config
    mode = overrides(weight, names.PICK_FILTER).processing_mode
    modes = processing_mode_pb2.ProcessingMode
    assert mode.request_body_mode == mode.response_body_mode == modes.FULL_DUPLEX_STREAMED
    assert mode.request_trailer_mode == mode.response_trailer_mode == mode.response_header_mode == modes.SEND
    assert not o.clusters_in(result.response)[f"{A}/picker"].health_checks


def test_observation_of_bodies_all_and_sampled():
    def bodies(value: str):
        annotations = {OBSERVATION_ANNOTATION: value}
        result = run([o.pool_ref("a", 2)], pools=[o.pool("a", picker="epp-a", annotations=annotations)])
        return [
            (found.weight.value, overrides(found, names.OBSERVE_FILTER).processing_mode.response_body_mode)
            for found in weights(result)
        ]

    streamed = processing_mode_pb2.ProcessingMode.STREAMED
    assert bodies("off") == [(2, 0)]
    assert bodies("all") == [(2, streamed)]
    assert bodies("sampled") == [(30, 0), (2, streamed)]


def test_policies_of_the_rule_stay_on_the_pools_cluster():
    template = cluster_pb2.Cluster(name=RULE)
    template.connect_timeout.seconds = 77
    template.circuit_breakers.thresholds.add().max_requests.value = 5
    template.ring_hash_lb_config.minimum_ring_size.value = 9
    result = run([o.pool_ref("a")], clusters=[template])
    found = o.clusters_in(result.response)[A]
    assert found.connect_timeout.seconds == 77
    assert found.circuit_breakers.thresholds[0].max_requests.value == 1 << 20
    assert found.WhichOneof("lb_config") is None
    assert found.eds_cluster_config.service_name == A


def test_rules_of_different_policies_have_a_cluster_each_over_the_same_endpoints():
    other = "httproute/default/r/rule/1"
    first, second = cluster_pb2.Cluster(name=RULE), cluster_pb2.Cluster(name=other)
    second.connect_timeout.seconds = 77
    found = o.snapshot(
        [o.pool("a")], http_routes=[o.route("r", [o.pool_ref("a")], [o.pool_ref("a")])], services=[o.service()]
    )
    result = translate(o.hook_input([o.xds_route(NAME), o.xds_route(f"{other}/match/0/*")], [first, second]), found)
    made = [
        name for name in o.clusters_in(result.response) if name.startswith(A) and not name.endswith(("/picker", "/epp"))
    ]
    assert len(made) == 2
    assert {o.clusters_in(result.response)[name].eds_cluster_config.service_name for name in made} == {A}
    assert o.shares(o.routes_in(result.response)[f"{other}/match/0/*"]) == [(made[1], 1)]


def test_picked_host_comes_from_metadata_only_and_served_is_reported():
    found = o.clusters_in(run([o.pool_ref("a")]).response)[A]
    config = found.load_balancing_policy.policies[0].typed_extension_config
    policy = override_host_pb2.OverrideHost()
    assert config.typed_config.Unpack(policy)
    (source,) = policy.override_host_sources
    assert not source.header
    assert (source.metadata.key, source.metadata.path[0].key) == ("envoy.lb", http.DESTINATION)
    served = policy.selected_host_key
    assert (served.key, [segment.key for segment in served.path]) == ("envoy.lb", [http.SERVED])


def test_picker_cluster_notices_death_and_takes_its_ca_from_discovery():
    found = o.clusters_in(run([o.pool_ref("a")]).response)[f"{A}/picker"]
    options = http_protocol_options_pb2.HttpProtocolOptions()
    (config,) = found.typed_extension_protocol_options.values()
    assert config.Unpack(options)
    keepalive = options.explicit_http_config.http2_protocol_options.connection_keepalive
    assert keepalive.interval.ToTimedelta() + keepalive.timeout.ToTimedelta() < timedelta(seconds=2)
    # A second without CPU is no death.
    assert keepalive.timeout.ToTimedelta() > timedelta(seconds=1.1)
    assert keepalive.HasField("interval_jitter")
    assert found.common_lb_config.healthy_panic_threshold.value == 0
    assert found.common_lb_config.HasField("healthy_panic_threshold")
    assert found.common_lb_config.HasField("update_merge_window")
    assert found.common_lb_config.update_merge_window.ToMilliseconds() == 0
    assert found.transport_socket.name == "envoy.transport_sockets.tls"
    assert f"{A}/epp/ca".encode() in found.transport_socket.typed_config.value
    cleartext = run([o.pool_ref("a")], services=[o.service("epp-a", appProtocol="kubernetes.io/h2c")])
    assert not o.clusters_in(cleartext.response)[f"{A}/picker"].HasField("transport_socket")


def test_h2c_pools_speak_http2():
    result = run([o.pool_ref("a")], pools=[o.pool("a", picker="epp-a", app_protocol="kubernetes.io/h2c")])
    options = http_protocol_options_pb2.HttpProtocolOptions()
    (config,) = o.clusters_in(result.response)[A].typed_extension_protocol_options.values()
    assert config.Unpack(options)
    assert options.explicit_http_config.HasField("http2_protocol_options")


def test_a_route_without_a_timeout_has_none():
    """Envoy's own, 15 seconds, would cut a long answer."""
    ours = o.routes_in(run([o.pool_ref("a")]).response)[NAME].route
    assert ours.HasField("timeout")
    assert ours.timeout.ToSeconds() == 0
    given = o.xds_route(NAME)
    given.route.timeout.FromSeconds(40)
    found = o.snapshot([o.pool("a")], http_routes=[o.route("r", [o.pool_ref("a")])], services=[o.service()])
    result = translate(o.hook_input([given], [RULE]), found)
    assert o.routes_in(result.response)[NAME].route.timeout.ToSeconds() == 40


def test_a_retry_policy_of_the_route_stays():
    given = o.xds_route(NAME)
    given.route.retry_policy.num_retries.value = 7
    found = o.snapshot([o.pool("a")], http_routes=[o.route("r", [o.pool_ref("a")])], services=[o.service()])
    result = translate(o.hook_input([given], [RULE]), found)
    assert o.routes_in(result.response)[NAME].route.retry_policy.num_retries.value == 7
    ours = o.routes_in(run([o.pool_ref("a")]).response)[NAME].route.retry_policy
    assert (ours.num_retries.value, list(ours.retriable_status_codes)) == (1, [500, 503])
    # What a server has begun to work on is not sent to another.
    assert set(ours.retry_on.split(",")) == {
        "connect-failure",
        "refused-stream",
        "reset-before-request",
        "retriable-status-codes",
    }


def test_retries_have_a_budget_and_the_gateways_own_choice_passes_by_what_fails():
    made = o.clusters_in(run([o.pool_ref("a")]).response)[A]
    (thresholds,) = made.circuit_breakers.thresholds
    assert not thresholds.HasField("max_retries")
    budget = thresholds.retry_budget
    assert (budget.budget_percent.value, budget.min_retry_concurrency.value) == (20.0, 3)
    outliers = made.outlier_detection
    assert outliers.max_ejection_percent.value == 50
    assert outliers.base_ejection_time.ToSeconds() == outliers.max_ejection_time.ToSeconds() == 2
    # A policy of the rule's own stays.
    template = cluster_pb2.Cluster(name=RULE)
    template.outlier_detection.consecutive_5xx.value = 9
    found = o.snapshot([o.pool("a")], http_routes=[o.route("r", [o.pool_ref("a")])], services=[o.service()])
    kept = o.clusters_in(translate(o.hook_input([o.xds_route(NAME)], [template]), found).response)[A]
    assert kept.outlier_detection == template.outlier_detection


def test_missing_picker_service_leaves_the_decision_to_the_failure_mode():
    result = run([o.pool_ref("a")], services=[])
    assert o.shares(o.routes_in(result.response)[NAME]) == [(A, 1)]
    assert any("no Service default/epp-a" in note for note in result.notes)


def test_grpc_routes():
    name = "grpcroute/default/g/rule/0/match/0/*"
    found = o.snapshot([o.pool("a")], grpc_routes=[o.route("g", [o.pool_ref("a")])], services=[o.service()])
    result = translate(o.hook_input([o.xds_route(name)]), found)
    assert o.shares(o.routes_in(result.response)[name]) == [(A, 1)]


def test_filters_of_a_backend_ref_hold_for_its_pool():
    headers = {
        "set": [{"name": "x-pool", "value": "a"}],
        "add": [{"name": "x-more", "value": "1"}],
        "remove": ["x-gone"],
    }
    request = {"type": "RequestHeaderModifier", "requestHeaderModifier": headers}
    response = {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-from", "value": "a"}]}}
    result = run([o.pool_ref("a", filters=[request, response, {"type": "RequestHeaderModifier"}]), o.pool_ref("b")])
    first, second = weights(result)
    assert [
        (option.header.key, option.header.value, option.append_action) for option in first.request_headers_to_add
    ] == [("x-more", "1", 0), ("x-pool", "a", 2)]
    assert list(first.request_headers_to_remove) == ["x-gone"]
    assert first.response_headers_to_add[0].header.key == "x-from"
    assert not second.request_headers_to_add


def modifier(direction: str = "request", **changes: Any) -> dict[str, Any]:
    kind = f"{direction.capitalize()}HeaderModifier"
    return {"type": kind, f"{direction}HeaderModifier": changes}


def named(name: object, value: object = "v") -> list[dict[str, object]]:
    return [{"name": name, "value": value}]


@pytest.mark.parametrize(
    "found",
    [
        {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/v1"}}},
        {"type": "RequestMirror", "requestMirror": {}},
        {"type": "RequestRedirect"},
        {"type": "ExtensionRef"},
        {"type": "CORS"},
        {"type": ["RequestHeaderModifier"]},
        "RequestHeaderModifier",
        {},
        *(
            modifier(direction, **{key: named("Host")})
            for direction in ("request", "response")
            for key in ("set", "add")
        ),
        *(modifier(remove=[name]) for name in ("host", "", ":path", "a/b", "a b", "a\r\nb", 7, "x" * 257)),
        *(modifier(set=named(name)) for name in ("", ":path", "a/b", "a:b", "a b", "a\0", "\u00fc", None)),
        *(
            modifier(add=named("x", value))
            for value in ("", "a\r\nb: c", "a\0", "a  b", " a", "\u00fc", None, 5, "x" * 4097)
        ),
    ],
)
def test_a_filter_that_cannot_be_had_costs_its_own_backend_alone(found: Any):
    result = run([o.pool_ref("a", 3, filters=[found]), o.pool_ref("b", 1)])
    assert o.shares(o.routes_in(result.response)[NAME]) == [(names.INVALID_CLUSTER, 3), (B, 1)]
    assert set(result.refused) == {("HTTPRoute", "default", "r")}
    other = run([o.pool_ref("a", 3, filters=[modifier(add=named("x"))]), o.pool_ref("b", 1)])
    assert other.refused == {}


def test_a_backend_whose_filter_is_refused_is_all_there_is():
    result = run([o.pool_ref("a", filters=[{"type": "URLRewrite"}])])
    found = o.routes_in(result.response)[NAME]
    assert o.shares(found) == [(names.INVALID_CLUSTER, 1)]
    assert found.route.cluster_not_found_response_code == found.route.INTERNAL_SERVER_ERROR


def test_percent_signs_are_passed_on_as_they_are():
    headers = [*named("x-half", "50%"), *named("x-path", "%ENVIRONMENT(PATH)%")]
    (weight,) = weights(run([o.pool_ref("a", filters=[modifier(set=headers)])]))
    assert [option.header.value for option in weight.request_headers_to_add] == ["50%%", "%%ENVIRONMENT(PATH)%%"]


def test_of_two_entries_for_a_header_the_first_counts():
    found = modifier(add=named("X-A", "1"), set=[*named("x-a", "2"), *named("x-b", "3")], remove=["x-c", "X-C"])
    (weight,) = weights(run([o.pool_ref("a", filters=[found, modifier(set=named("X-B", "4"))])]))
    assert [(option.header.key, option.header.value) for option in weight.request_headers_to_add] == [
        ("X-A", "1"),
        ("x-b", "3"),
    ]
    assert list(weight.request_headers_to_remove) == ["x-c"]
