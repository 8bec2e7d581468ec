"""Body-based routing: what becomes of listeners and virtual hosts, what bodies are answered with, base models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import any_pb2
from hypothesis import given
from hypothesis import strategies as st

from headrace.config.limits import STEP_BYTES
from headrace.core import GA_GROUP
from headrace.core.bounded_json import MAX_NODES
from headrace.extproc import MalformedMessage
from headrace.extproc.body import model_steps
from headrace.gateway import names
from headrace.gateway.base_models import BaseModels, Problem, read_adapters
from headrace.gateway.model_routing import BODY_LIMIT_BYTES
from headrace.gateway.model_service import ModelStream, model_answer
from headrace.gateway.protocol.extension_pb2 import PostTranslateModifyResponse
from headrace.gateway.snapshot import Snapshot
from headrace.gateway.translate import Translation, translate
from headrace.protocol import http
from headrace.xds.envoy.config.listener.v3 import listener_pb2
from headrace.xds.envoy.config.route.v3 import route_components_pb2, route_pb2
from headrace.xds.envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from tests.unit.extproc.messages import result
from tests.unit.gateway import objects as o

POLICY = "envoy.filters.http.rbac/p"


def route(rule: int, *, model: str = "", prefix: str = "/", policy: bool | None = None):
    found = o.xds_route(f"httproute/default/r/rule/{rule}/match/0/*", prefix=prefix)
    if model:
        found.match.headers.add(name="X-Gateway-Model-Name").string_match.exact = model
    if policy is not None:
        config = route_components_pb2.FilterConfig(disabled=not policy)
        if policy:
            config.config.CopyFrom(any_pb2.Any())
        found.typed_per_filter_config[POLICY].Pack(config)
    return found


def run(*routes, default_on: bool = False) -> Translation:
    found = o.snapshot(
        [o.pool("a")],
        http_routes=[o.route("r", *([o.pool_ref("a")] for _ in routes))],
        services=[o.service()],
    )
    policy = http_connection_manager_pb2.HttpFilter(name=POLICY, disabled=not default_on)
    return translate(o.hook_input(routes, http_filters=[policy]), found)


def manager_of(response: PostTranslateModifyResponse) -> http_connection_manager_pb2.HttpConnectionManager:
    listener = listener_pb2.Listener.FromString(response.listeners[0])
    manager = http_connection_manager_pb2.HttpConnectionManager()
    assert listener.default_filter_chain.filters[0].typed_config.Unpack(manager)
    return manager


def statuses(result: Translation) -> list[int]:
    """Of each route: 0 where it is served, else what it is answered at once."""
    configuration = route_pb2.RouteConfiguration.FromString(result.response.routes[0])
    return [found.direct_response.status for found in configuration.virtual_hosts[0].routes]


def test_only_listeners_that_route_by_model_get_it():
    plain = manager_of(run(route(0)).response)
    assert not plain.early_header_mutation_extensions
    assert plain.http_filters[0].name == POLICY
    assert all(found.disabled for found in plain.http_filters if found.name in names.OWN_FILTERS)
    result = run(route(0, model="a"), route(1))
    manager = manager_of(result.response)
    assert [found.name for found in manager.http_filters] == [
        names.BUFFER_FILTER,
        names.MODEL_FILTER,
        POLICY,
        names.HEADERS_FILTER,
        names.PICK_FILTER,
        names.OBSERVE_FILTER,
        "envoy.filters.http.router",
    ]
    assert not any(found.disabled for found in manager.http_filters if found.name in names.OWN_FILTERS)
    assert len(manager.early_header_mutation_extensions) == 1
    assert statuses(result) == [0, 0]


def test_a_route_by_model_needs_no_pool():
    found = o.snapshot(http_routes=[o.route("r", [{"name": "web", "port": 80}])])
    response = translate(o.hook_input([route(0, model="a")], ["httproute/default/r/rule/0"]), found).response
    assert manager_of(response).http_filters[0].name == names.BUFFER_FILTER


@pytest.mark.parametrize(
    ("routes", "default_on", "wanted"),
    [
        # No policy at all, or the same one everywhere: served; then no-route-at-first needs the policy too.
        ([route(0, model="a"), route(1)], False, [0, 0]),
        ([route(0, model="a", policy=True), route(1, policy=True)], False, [0, 0, 404]),
        ([route(0, model="a", policy=True)], False, [0, 404]),
        # A policy of the route alone, or one that only it lacks.
        ([route(0, model="a", policy=True), route(1)], False, [500, 0]),
        ([route(0, model="a"), route(1, policy=True)], False, [500, 0]),
        # Not where no request can be of both.
        ([route(0, model="a", policy=True, prefix="/v1/"), route(1, prefix="/web/")], False, [0, 0, 404]),
        # Two policies cannot both hold for a request without a route.
        ([route(0, model="a"), route(1, model="b", policy=True)], False, [0, 500]),
        # A filter that is there for all, and switched off by routes.
        ([route(0, model="a"), route(1)], True, [0, 0]),
        ([route(0, model="a"), route(1, policy=False)], True, [500, 0]),
        ([route(0, model="a", policy=False), route(1, policy=False)], True, [0, 0, 404]),
    ],
)
def test_no_route_is_reached_by_model_without_its_policies(routes, default_on, wanted):
    result = run(*routes, default_on=default_on)
    assert statuses(result) == wanted
    refused = [note for note in result.notes if "answered 500" in note]
    assert len(refused) == wanted.count(500)
    assert all(POLICY in note for note in refused)


def headers_of(answer: bytes) -> dict[str, str]:
    response = pb.ProcessingResponse.FromString(answer)
    common = response.request_body.response
    found = {
        entry.header.key: entry.header.raw_value.decode() or entry.header.value
        for entry in common.header_mutation.set_headers
    }
    assert bool(found) is common.clear_route_cache
    return found


def message(**fields) -> bytes:
    return pb.ProcessingRequest(**fields).SerializeToString()


def body(content: bytes) -> bytes:
    return message(request_body=pb.HttpBody(body=content, end_of_stream=True))


def fed(stream: ModelStream, raw: bytes) -> bytes:
    return result(stream.feed(raw))


def test_a_long_body_is_read_with_turns_for_others():
    content = b'{"x":[' + b'{"":0},' * 100_000 + b'0],"model":"m"}'
    stream = ModelStream({})
    steps = stream.feed(body(content))
    turns = sum(1 for _ in iter(lambda: next(steps, "over"), "over"))
    assert turns >= len(content) // STEP_BYTES
    assert stream.model == "m"


def test_a_request_is_answered_and_the_stream_is_done():
    stream = ModelStream({"m": "base"})
    headers = pb.ProcessingRequest()
    headers.request_headers.headers.headers.add(key=":path", raw_value=b"/v1/completions")
    first = pb.ProcessingResponse.FromString(fed(stream, headers.SerializeToString()))
    assert first.WhichOneof("response") == "request_headers"
    assert not stream.done
    answer = fed(stream, body(b'{"model":"m"}'))
    assert headers_of(answer) == {http.MODEL: "m", http.BASE_MODEL: "base"}
    assert stream.done


def test_a_request_without_a_body_is_done_with_its_headers():
    stream = ModelStream({})
    fed(stream, message(request_headers=pb.HttpHeaders(end_of_stream=True)))
    assert stream.done


def test_encoded_bodies_are_not_read():
    stream = ModelStream({})
    headers = pb.ProcessingRequest()
    headers.request_headers.headers.headers.add(key="content-encoding", raw_value=b"gzip")
    fed(stream, headers.SerializeToString())
    assert headers_of(fed(stream, body(b'{"model":"m"}'))) == {}


@pytest.mark.parametrize("raw", [b"", b"\xff", message(response_headers=pb.HttpHeaders())])
def test_what_is_no_request_breaks_the_protocol(raw: bytes):
    with pytest.raises(MalformedMessage):
        fed(ModelStream({}), raw)


def test_names_that_no_header_can_carry_are_none():
    for name in ("", "a\nb", "a\x00", "\x7f"):
        assert headers_of(model_answer(name, "")) == {}
    assert headers_of(model_answer("模型/七", "")) == {http.MODEL: "模型/七"}


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists, max_leaves=3).map(
        lambda value: json.dumps({"model": value}).encode()
    )
)
def test_any_body_is_answered(content: bytes):
    headers_of(fed(ModelStream({}), body(content)))


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b'{"model": "m"}', "m"),
        (b'  {"messages": [{"content": "\\"model\\": \\"x\\""}], "tools": [{"model": "y"}], "model": "m"}', "m"),
        (b'{"model": NaN}', ""),
        (b'{"model": "\\ud800"}', "?"),
        (b'["model"]', ""),
        (b'{"model": "' + b"x" * 1025 + b'"}', ""),
        (b"", ""),
    ],
)
def test_the_model_of_a_body(content: bytes, wanted: str):
    assert result(model_steps(content)) == wanted
    assert result(model_steps(content, content_encoding="gzip")) == ""


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"model":"m","x":"%s"}' % (b"x" * BODY_LIMIT_BYTES), 413),
        (b'{"model":"m","x":[' + b'{"":0},' * MAX_NODES + b"0]}", 400),
        (b'{"model":"m","x":' + b"[" * 1000 + b"]" * 1000 + b"}", 400),
    ],
    ids=["long", "many", "deep"],
)
def test_bodies_beyond_the_bounds_are_refused(content: bytes, status: int):
    stream = ModelStream({})
    answer = pb.ProcessingResponse.FromString(fed(stream, body(content)))
    assert answer.immediate_response.status.code == status
    assert (stream.done, stream.refused, stream.model) == (True, True, "")


def models(
    name: str,
    base: object,
    adapters: object = None,
    *,
    namespace: str = "default",
    created: str = "2026-02-01T00:00:00Z",
) -> dict:
    data = {"baseModel": base} | ({} if adapters is None else {"adapters": adapters})
    return {"metadata": o.metadata(name, namespace, creationTimestamp=created), "data": data}


def routed(*config_maps: dict, routes: Sequence[dict] = (), gateways: Sequence[str] = ("gateway",)) -> Snapshot:
    """Routes for base models `base` and `other` in `default`, and these ConfigMaps."""
    own = o.model_route("own", {"base": [o.pool_ref()], "other": [o.pool_ref()]})
    return o.snapshot(
        [o.pool()],
        http_routes=[own, *routes],
        base_model_config_maps=config_maps,
        gateways=[o.gateway(name) for name in gateways],
        gateway_classes=[o.gateway_class()],
    )


def known(*config_maps: dict, **more: Any) -> tuple[Mapping[str, str], tuple[Problem, ...]]:
    snapshot, problems = routed(*config_maps, **more), list[Problem]()
    return BaseModels(lambda: snapshot, problems.append)(), tuple(problems)


def test_base_models_from_config_maps():
    found, problems = known(models("one", "base", "- a\n- 7\n"), models("two", "other"))
    assert found == {"base": "base", "a": "base", "7": "base", "other": "other"}
    assert problems == ()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (models("bad", ""), "baseModel is empty"),
        (models("bad", "base", "[a"), "not YAML"),
        (models("bad", "base", "a: b"), "not a list of names"),
        (models("bad", "base", "- {a: b}"), "not a list of names"),
        (models("bad", "base", "a"), "not a list of names"),
        (models("bad", "base", "- - a"), "not a list of names"),
        (models("bad", "base", "- |\n  a"), "not a list of names"),
        (models("bad", "base", "- a\n---\n- b"), "not a list of names"),
        (models("bad", "base", "- &x a"), "not a list of names"),
        (models("bad", "base", "&x [a]"), "not a list of names"),
        (models("bad", "base", "- *x"), "not a list of names"),
        (models("bad", "base", "!!set [a]"), "not a list of names"),
        (models("bad", "base", "- !!timestamp x"), "not a list of names"),
        (models("bad", "base", "- !!bool x"), "not a list of names"),
        (models("bad", "base", '- !!int ""'), "not a list of names"),
        (models("bad", "base", "[" * 60_000), "not a list of names"),
        (models("bad", "base", "x" * 65_537), "65536 bytes"),
        (models("bad", "base", "é" * 32_769), "65536 bytes"),
        (models("bad", "base", "- a\n" * 4097), "4096 names"),
        (models("bad", "base", 5), "write a YAML list"),
        ({"metadata": o.metadata("bad")}, "baseModel is empty"),
    ],
)
def test_a_wrong_config_map_blocks_no_other(wrong, words):
    found, problems = known(models("good", "other", "- b"), wrong)
    assert found["b"] == "other"
    assert any(key == ("default", "bad") and words in text for key, text in problems)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        ("# none\n", []),
        ("---\n", []),
        ("~", []),
        ("[]", []),
        ("[a, 'b', \"c\"]", ["a", "b", "c"]),
        ("- 007\n- 1.50\n- true\n- 2026-01-01\n-\n", ["007", "1.50", "true", "2026-01-01"]),
        ("- a\ud800", ["a?"]),
        ("- a\n" * 4096, ["a"] * 4096),
    ],
)
def test_the_list_of_adapters(text: str, wanted: list[str]):
    assert read_adapters(models("one", "base", text)) == (tuple(wanted), "")


@given(st.text(alphabet="-[]{}&*!|>'\":,?%#~\n ax<=.\ud800\ufeff\x00", max_size=60))
def test_any_text_is_a_list_or_a_problem(text: str):
    names, problem = read_adapters(models("one", "base", text))
    assert all(name.strip() == name != "" for name in names)
    assert not (names and problem)


def test_what_is_wrong_is_told_in_a_bounded_number_of_problems():
    first = models("one", "base", "\n".join(f"- {n}{'x' * 2000}" for n in range(25)))
    second = models("two", "other", first["data"]["adapters"])
    _, problems = known(first, second)
    assert [key for key, _ in problems] == [("default", "two")] * 20
    assert all(len(text) < 300 for _, text in problems)


def test_an_adapter_of_two_base_models_is_of_the_first():
    late = "2026-03-01T00:00:00Z"
    found, problems = known(models("a-late", "other", "- a", created=late), models("one", "base", "- a"))
    assert found["a"] == "base"
    assert [key for key, _ in problems] == [("default", "a-late")]


def test_the_mapping_follows_the_config_maps():
    held, now = [routed(models("one", "base", "- a"))], [0.0]
    told: list[Problem] = []
    mapping = BaseModels(lambda: held[0], told.append, clock=lambda: now[0])
    assert mapping()["a"] == mapping(("default", "gateway"))["a"] == "base"
    held[0] = routed(models("one", "base"), models("bad", "nowhere"))
    now[0] += 1.0
    assert "a" not in mapping()
    assert [key for key, _ in told] == [("default", "bad")]
    held[0] = routed(models("one", "base", "- b"), models("bad", "nowhere"))
    now[0] += 1.0
    assert mapping(("default", "gateway"))["b"] == "base"
    assert len(told) == 1
    assert mapping(("default", "none")) == {}


def test_only_a_change_of_what_is_read_is_read():
    """Lists that are gone through: one for each reading of the routes' rules."""
    seen = 0

    class Counted(list[Any]):
        def __iter__(self):
            nonlocal seen
            seen += 1
            return super().__iter__()

    first = routed(models("one", "base", "- a"))
    rules = next(iter(first.routes.values()))["spec"]
    rules["rules"] = Counted(rules["rules"])
    held, now = [first], [0.0]
    mapping = BaseModels(lambda: held[0], clock=lambda: now[0])
    assert mapping()["a"] == "base"
    once = seen
    assert once > 0
    # What the informers build after a Pod's change: other mappings of the same objects.
    held[0] = replace(first, routes=dict(first.routes), pods=o.keyed([o.pod("p", "10.0.0.1")]))
    now[0] += 1.0
    assert mapping(("default", "gateway"))["a"] == "base"
    assert seen == once
    held[0] = replace(held[0], base_model_config_maps=o.keyed([models("one", "base", "- b")]))
    now[0] += 1.0
    assert mapping(("default", "gateway")) == {"base": "base", "b": "base"}
    assert seen > once


# ---- a tenant and its neighbour

NEIGHBOURS = ["aaa-neighbour", "zzz-neighbour"]


def tenant(*more: dict, routes: Sequence[dict] = ()) -> Mapping[str, str]:
    """What holds where `default` has base model `llama` with an adapter and model `qwen`, and a neighbour this."""
    llama = o.model_route("llama", {"llama": [o.pool_ref()]})
    qwen = o.model_route("qwen", {"qwen": [o.pool_ref()]}, header="X-Gateway-Model-Name")
    own = models("own", "llama", "- a1")
    found, _ = known(own, *more, routes=[llama, qwen, *routes])
    return found


MINE = tenant()


AGES = ["2025-01-01T00:00:00Z", "2026-02-01T00:00:00Z", "2026-03-01T00:00:00Z"]


def read_in_turn(*snapshots: Snapshot) -> list[Mapping[str, str]]:
    """What a Gateway's requests get after each change."""
    held, now = [snapshots[0]], [0.0]
    mapping = BaseModels(lambda: held[0], clock=lambda: now[0])
    found = []
    for held[0] in snapshots:
        now[0] += 1.0
        found.append(mapping(("default", "gateway")))
    return found


def beside_a_neighbour(
    adapters: str, *, namespace: str, created: str, own: str = "- a1", routes: Sequence[dict] = (), base: str = "evil"
) -> Snapshot:
    """As `tenant`, with a neighbour's accepted route and ConfigMap of that age."""
    mine = [o.model_route("llama", {"llama": [o.pool_ref()]})]
    mine.append(o.model_route("qwen", {"qwen": [o.pool_ref()]}, header="X-Gateway-Model-Name"))
    evil = o.model_route(base, {base: [o.pool_ref()]}, namespace=namespace, created=created)
    maps = [models("own", "llama", own), models("evil", base, adapters, namespace=namespace, created=created)]
    return routed(*maps, routes=[*mine, evil, *routes])


@pytest.mark.parametrize("namespace", NEIGHBOURS)
@pytest.mark.parametrize("created", AGES)
def test_a_neighbours_config_map_takes_no_name(namespace: str, created: str):
    taking = "- llama\n- qwen\n"
    evil = models("evil", "evil", taking, namespace=namespace, created=created)
    # Without a route of its own it counts for nothing.
    assert tenant(evil) == MINE
    for accepted, taken in (("False", {}), ("True", {"evil": "evil"})):
        route = o.model_route("evil", {"evil": [o.pool_ref()]}, namespace=namespace, accepted=accepted)
        assert tenant(evil, routes=[route]) == {**MINE, **taken}


@pytest.mark.parametrize("namespace", NEIGHBOURS)
@pytest.mark.parametrize("created", AGES)
def test_an_edited_config_map_takes_no_name(namespace: str, created: str):
    first, edited = (
        beside_a_neighbour(adapters, namespace=namespace, created=created)
        for adapters in ("- e1", "- llama\n- a1\n- qwen\n- e2\n")
    )
    before, after = read_in_turn(first, edited)
    assert before == {**MINE, "evil": "evil", "e1": "evil"}
    assert after == {**MINE, "evil": "evil", "e2": "evil"}


@pytest.mark.parametrize("created", AGES)
def test_a_base_model_takes_no_adapter_that_another_has(created: str):
    at = {"namespace": NEIGHBOURS[0], "created": created}
    found = read_in_turn(beside_a_neighbour("", **at), beside_a_neighbour("", base="a1", **at))
    assert [models["a1"] for models in found] == ["llama", "llama"]


def test_a_gateway_that_nobody_asked_for_is_read_too():
    at = {"namespace": NEIGHBOURS[0], "created": AGES[0]}
    held, now = [beside_a_neighbour("", **at)], [0.0]
    mapping = BaseModels(lambda: held[0], clock=lambda: now[0])
    assert mapping()["a1"] == "llama"
    held[0] = beside_a_neighbour("- a1", **at)
    now[0] += 1.0
    assert mapping(("default", "gateway"))["a1"] == "llama"


def test_an_adapter_that_is_dropped_is_free():
    at = {"namespace": NEIGHBOURS[0], "created": "2026-03-01T00:00:00Z"}
    found = read_in_turn(
        beside_a_neighbour("- a1", **at),
        beside_a_neighbour("- a1", own="- a2", **at),
        beside_a_neighbour("- a1", own="- a1", **at),
    )
    assert [models["a1"] for models in found] == ["llama", "evil", "evil"]


def test_an_adapter_is_kept_while_its_route_is_replaced():
    at = {"namespace": NEIGHBOURS[0], "created": AGES[0]}
    whole, taking = beside_a_neighbour("- e", **at), beside_a_neighbour("- a1", **at)
    without = {key: route for key, route in taking.routes.items() if key[1:] != ("default", "llama")}
    found = read_in_turn(whole, replace(taking, routes=without), taking)
    assert [models.get("a1") for models in found] == ["llama", None, "llama"]


def test_age_decides_adapters_that_nobody_has():
    for created, wanted in zip(AGES, ("evil", "evil", "llama"), strict=True):
        found = beside_a_neighbour("- a1", namespace=NEIGHBOURS[0], created=created)
        assert read_in_turn(found)[0]["a1"] == wanted


@pytest.mark.parametrize("namespace", NEIGHBOURS)
def test_a_neighbours_config_map_adds_nothing_to_a_base_model_of_mine(namespace: str):
    assert tenant(models("evil", "llama", "- a2", namespace=namespace, created="2025-01-01T00:00:00Z")) == MINE


@pytest.mark.parametrize("header", ["X-Gateway-Base-Model-Name", "x-gateway-model-name"])
@pytest.mark.parametrize("namespace", NEIGHBOURS)
def test_a_neighbours_route_takes_no_name_of_my_config_map(namespace: str, header: str):
    later = "2026-02-15T00:00:00Z"
    squat = o.model_route("squat", {"a1": [o.pool_ref()]}, header=header, namespace=namespace, created=later)
    at = {"namespace": namespace, "created": later}
    found = read_in_turn(beside_a_neighbour("", **at), beside_a_neighbour("", routes=[squat], **at))
    assert [models["a1"] for models in found] == ["llama", "llama"]
    # Where nobody has the name yet, the route has it.
    assert "a1" not in tenant(routes=[squat])


def test_a_config_map_beside_the_pool_of_another_namespaces_route_counts():
    grant = {
        "metadata": o.metadata("g", "far"),
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "default"}],
            "to": [{"group": GA_GROUP, "kind": "InferencePool"}],
        },
    }
    route = o.model_route("far", {"mistral": [o.pool_ref(namespace="far")]})
    beside = models("far", "mistral", "- m1", namespace="far")
    found = replace(routed(beside, routes=[route]), reference_grants=o.keyed([grant]))
    assert BaseModels(lambda: found)()["m1"] == "mistral"
    # A route that may not lead there says nothing of that namespace.
    assert "m1" not in known(beside, routes=[route])[0]


def test_base_models_of_another_gateway_are_none_of_this_one():
    second = o.model_route("second", {"mistral": [o.pool_ref()]}, gateway="second")
    found = routed(models("m", "mistral", "- m1"), routes=[second], gateways=["gateway", "second"])
    assert "m1" not in BaseModels(lambda: found)(("default", "gateway"))
    assert BaseModels(lambda: found)(("default", "second"))["m1"] == "mistral"


def test_a_route_that_matches_base_models_by_an_expression_leads_to_each():
    pattern = o.model_route("all", {"mistral.*": [o.pool_ref()]}, match="RegularExpression")
    assert known(models("m", "mistral-7b", "- m1"), routes=[pattern])[0]["m1"] == "mistral-7b"
    assert "m1" not in known(models("m", "mistral-7b", "- m1", namespace="far"), routes=[pattern])[0]
