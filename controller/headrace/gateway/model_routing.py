"""Body-based routing in a listener: the model named in a body can choose the route. Pure; edits xDS resources.

A listener gets it where one of its routes matches `X-Gateway-Model-Name` or `X-Gateway-Base-Model-Name`. There

- what clients send under these names is removed before any route is looked for;
- JSON requests are held back until their body is there, in full (other requests pass untouched);
- a question to the controller sets the headers from the body and clears the route cache: the first filters to run, so
  that every later one sees the new route;
- the filters of pools are not switched on by the route. Envoy makes a request's filters by the route that it finds
  first, and that may be another one, or none. They are there for each request, and idle until a route tells them what
  to do, which they read when the request gets to them.

Filters of Envoy Gateway's policies are switched on by the first route all the same. So a route that is reached by model
must have just those that the routes it may be reached from have: else it would be reached without its authentication.
Such a route is answered 500."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TypeAlias

from google.protobuf import any_pb2
from google.protobuf.message import DecodeError, Message

from headrace.core.bounded_json import MAX_BYTES
from headrace.gateway import names
from headrace.gateway.clusters import number, pack, retry_elsewhere, seconds
from headrace.gateway.filters import NOT_SENT, listener_filters, processing_mode
from headrace.protocol import http, rpc
from headrace.xds.envoy.config.common.mutation_rules.v3 import mutation_rules_pb2
from headrace.xds.envoy.config.core.v3 import base_pb2, extension_pb2, grpc_service_pb2
from headrace.xds.envoy.config.route.v3 import route_components_pb2
from headrace.xds.envoy.extensions.common.matching.v3 import extension_matcher_pb2
from headrace.xds.envoy.extensions.filters.common.matcher.action.v3 import skip_action_pb2
from headrace.xds.envoy.extensions.filters.http.buffer.v3 import buffer_pb2
from headrace.xds.envoy.extensions.filters.http.ext_proc.v3 import ext_proc_pb2, processing_mode_pb2
from headrace.xds.envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from headrace.xds.envoy.extensions.http.early_header_mutation.header_mutation.v3 import header_mutation_pb2 as early_pb2
from headrace.xds.envoy.type.matcher.v3 import http_inputs_pb2
from headrace.xds.envoy.type.v3 import http_status_pb2
from headrace.xds.xds.core.v3 import extension_pb2 as xds_extension_pb2
from headrace.xds.xds.type.matcher.v3 import matcher_pb2, string_pb2

_Manager: TypeAlias = http_connection_manager_pb2.HttpConnectionManager
_Predicate: TypeAlias = matcher_pb2.Matcher.MatcherList.Predicate
_Mode: TypeAlias = processing_mode_pb2.ProcessingMode
_Route: TypeAlias = route_components_pb2.Route
# A longer JSON body is answered 413, by Envoy. It holds each until it is read, and the controller while it reads it.
BODY_LIMIT_BYTES = MAX_BYTES
_EARLY = "envoy.http.early_header_mutation.header_mutation"
# The controller answers in milliseconds, or it is gone: then the request is refused, as no other pool may have it.
_MODEL_TIMEOUT_SECONDS = 2.0
_RETRY_ON = "unavailable,cancelled,connect-failure,refused-stream,reset"
_RETRIES = 3
_FALLBACK_ROUTE = "headrace/no-route"


def matches_model(route: _Route) -> bool:
    """Whether a route is chosen by the model of the body."""
    return any(header.name.lower() in http.MODELS for header in route.match.headers)


def enabled_by(route: _Route | None, defaults: dict[str, bool]) -> frozenset[str]:
    """The filters that Envoy makes for a request which this route is found for first; None: no route.

    `defaults` says of each of the listener's filters whether it is made where a route says nothing."""
    enabled = dict(defaults)
    if route is not None:
        configs = [route.typed_per_filter_config]
        configs += [weight.typed_per_filter_config for weight in route.route.weighted_clusters.clusters]
        for per_filter in configs:
            for name, config in per_filter.items():
                if name in enabled:
                    enabled[name] = not _is_off(config)
    return frozenset(name for name, on in enabled.items() if on)


def _is_off(config: any_pb2.Any) -> bool:
    found = route_components_pb2.FilterConfig()
    try:
        return bool(config.Unpack(found) and found.disabled)
    except DecodeError:
        return False


def filter_defaults(managers: Iterable[_Manager]) -> dict[str, bool]:
    """Of the filters of these listeners, but for our own, whether they are made where no route says otherwise."""
    return {
        found.name: not found.disabled
        for manager in managers
        for found in manager.http_filters
        if found.name not in names.OWN_FILTERS
    }


def secure_host(host: route_components_pb2.VirtualHost, defaults: dict[str, bool]) -> list[str]:
    """See to it that no route of a virtual host is reached by model without the filters of its policies.

    A request with no route at first gets those filters by a route of ours that matches whatever the others do not, and
    answers 404. A route whose filters are not those of the routes it may be reached from is answered 500; returned is
    what to say of it."""
    by_model = [route for route in host.routes if matches_model(route)]
    if not by_model:
        return []
    others = [route for route in host.routes if not matches_model(route)]
    notes = []
    wanted: dict[frozenset[str], _Route] = {}
    for route in by_model:
        own = enabled_by(route, defaults)
        differing = [found for found in others if _may_overlap(route, found) and enabled_by(found, defaults) != own]
        # Two sets of filters cannot both be those of a request that no route matches at first.
        first = next(iter(wanted), own)
        if differing or own != first:
            filters = own ^ (enabled_by(differing[0], defaults) if differing else first)
            _refuse(route)
            notes.append(
                f"route {route.name} is answered 500: it matches a model, and a policy of its own would not hold for"
                f" requests whose body leads there ({', '.join(sorted(filters))}): attach the policy to the Gateway,"
                " or to every route of the host"
            )
        else:
            wanted.setdefault(own, route)
    for own, route in wanted.items():
        if own != enabled_by(None, defaults):
            _add_fallback(host, route, defaults)
    return notes


def _refuse(route: _Route) -> None:
    for action in ("route", "redirect", "non_forwarding_action"):
        route.ClearField(action)
    route.direct_response.status = 500


def _add_fallback(host: route_components_pb2.VirtualHost, like: _Route, defaults: Collection[str]) -> None:
    fallback = _Route(name=_FALLBACK_ROUTE)
    fallback.match.prefix = "/"
    fallback.direct_response.status = 404
    for name, config in like.typed_per_filter_config.items():
        if name in defaults:
            fallback.typed_per_filter_config[name].CopyFrom(config)
    host.routes.append(fallback)


def _may_overlap(one: _Route, other: _Route) -> bool:
    """Whether a path can match both. Where that is hard to say: yes."""
    paths = []
    for match in (one.match, other.match):
        kind = match.WhichOneof("path_specifier")
        if kind not in ("path", "prefix", "path_separated_prefix"):
            return True
        text = getattr(match, kind)
        paths.append((text, kind == "path"))
    return _reaches(paths[0], paths[1]) or _reaches(paths[1], paths[0])


def _reaches(one: tuple[str, bool], other: tuple[str, bool]) -> bool:
    """Whether a path is matched that the other one matches too. Each is a text, and whether it is the whole path."""
    text, is_exact = one
    return other[0] == text or (not is_exact and other[0].startswith(text))


def prepare_manager(manager: _Manager) -> None:
    """Put the filters of body-based routing, and those of pools, into a connection manager that has none of them."""
    removed = [mutation_rules_pb2.HeaderMutation(remove=name) for name in http.MODELS]
    early = manager.early_header_mutation_extensions.add(name=_EARLY)
    early.typed_config.CopyFrom(pack(early_pb2.HeaderMutation(mutations=removed)))
    kept = list(manager.http_filters)
    del manager.http_filters[:]
    gateway = "/".join(manager.rds.route_config_name.split("/")[:2])
    manager.http_filters.extend([*_body_filters(gateway), *kept[:-1], *listener_filters(idle=True), kept[-1]])


def _body_filters(gateway: str) -> Sequence[http_connection_manager_pb2.HttpFilter]:
    buffer = buffer_pb2.Buffer(max_request_bytes=number(BODY_LIMIT_BYTES))
    service = grpc_service_pb2.GrpcService(
        envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name=names.DISCOVERY_CLUSTER),
        initial_metadata=[base_pb2.HeaderValue(key=rpc.GATEWAY, value=gateway)],
        # The other replica of the controller may answer.
        retry_policy=base_pb2.RetryPolicy(retry_on=_RETRY_ON, num_retries=number(_RETRIES)),
    )
    retry_elsewhere(service.retry_policy)
    model = ext_proc_pb2.ExternalProcessor(
        grpc_service=service,
        processing_mode=processing_mode((_Mode.SEND, _Mode.BUFFERED, _Mode.SKIP), NOT_SENT),
        message_timeout=seconds(_MODEL_TIMEOUT_SECONDS),
        stat_prefix="headrace_model",
    )
    model.status_on_error.code = http_status_pb2.ServiceUnavailable
    return [
        _for_json(names.BUFFER_FILTER, "envoy.filters.http.buffer", buffer),
        _for_json(names.MODEL_FILTER, "envoy.filters.http.ext_proc", model),
    ]


def _for_json(name: str, inner: str, config: Message) -> http_connection_manager_pb2.HttpFilter:
    """A filter that only requests with a JSON body pass; others skip it."""
    json = string_pb2.StringMatcher(prefix="application/json", ignore_case=True)
    post = _header_predicate(http.METHOD, string_pb2.StringMatcher(exact="POST"))
    wanted = _Predicate.PredicateList(predicate=[post, _header_predicate(http.CONTENT_TYPE, json)])
    both = _Predicate(and_matcher=wanted)
    action = xds_extension_pb2.TypedExtensionConfig(name="skip", typed_config=pack(skip_action_pb2.SkipFilter()))
    skip = matcher_pb2.Matcher.OnMatch(action=action)
    other = matcher_pb2.Matcher.MatcherList.FieldMatcher(predicate=_Predicate(not_matcher=both), on_match=skip)
    delegate = extension_matcher_pb2.ExtensionWithMatcher(
        xds_matcher=matcher_pb2.Matcher(matcher_list=matcher_pb2.Matcher.MatcherList(matchers=[other])),
        extension_config=extension_pb2.TypedExtensionConfig(name=inner, typed_config=pack(config)),
    )
    return http_connection_manager_pb2.HttpFilter(name=name, typed_config=pack(delegate))


def _header_predicate(name: str, matcher: string_pb2.StringMatcher) -> _Predicate:
    header = pack(http_inputs_pb2.HttpRequestHeaderMatchInput(header_name=name))
    source = xds_extension_pb2.TypedExtensionConfig(name=name, typed_config=header)
    return _Predicate(single_predicate=_Predicate.SinglePredicate(input=source, value_match=matcher))
