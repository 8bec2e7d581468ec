"""The HTTP filters of a listener that serves pools, and what switches them on for one pool. Pure.

Three filters stand before the router, all disabled: one drops the headers that steer the gateway, one picks, one
observes. A weighted cluster of a pool switches on its own set of them: each pool has its own picker, failure mode and
processing mode, whatever else its rule refers to.

Where the picker is ours, the pick has the request phase only, so that the end of a picker cuts no answer that is
already running; an observation, which can neither delay nor break a response, tells of starts and ends. Any other
picker gets the endpoint picker protocol's own mode: one stream, both directions."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, TypeAlias

from google.protobuf import any_pb2
from msgspec import Struct

from headrace.core import FailureMode, Pool
from headrace.gateway import names
from headrace.gateway.clusters import pack, seconds
from headrace.gateway.snapshot import PickerService
from headrace.protocol import http, rpc
from headrace.protocol.objects import BODY_MODE_ANNOTATION, OBSERVATION_ANNOTATION
from headrace.xds.envoy.config.core.v3 import grpc_service_pb2
from headrace.xds.envoy.extensions.filters.http.ext_proc.v3 import ext_proc_pb2, processing_mode_pb2
from headrace.xds.envoy.extensions.filters.http.header_mutation.v3 import header_mutation_pb2
from headrace.xds.envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from headrace.xds.envoy.type.v3 import http_status_pb2

_Mode: TypeAlias = processing_mode_pb2.ProcessingMode
_Stream = _Mode.FULL_DUPLEX_STREAMED
# Of one direction, for `processing_mode`.
NOT_SENT = (_Mode.SKIP, _Mode.NONE, _Mode.SKIP)

# Bounds a buffered pick, which then takes the failure mode: above the picker's own deadline of 2 s.
MESSAGE_TIMEOUT_SECONDS = 3.0
# A buffered body may be this long; Envoy Gateway's listeners allow 32 KiB.
BUFFER_LIMIT_BYTES = 64 << 20
# A streamed body of this length can still be sent to the next endpoint of a list; a longer one goes to one only.
RETRY_LIMIT_BYTES = 1 << 20
# An observation's stream ends this long after the response did.
_OBSERVE_CLOSE_SECONDS = 0.05
# One in so many responses is observed in full where the pool asks for a sample.
SAMPLE_OF = 16


class BodyMode(StrEnum):
    """How a request's body gets to the picker."""

    STREAMED = "FULL_DUPLEX_STREAMED"
    BUFFERED = "BUFFERED"


class Observation(StrEnum):
    """Whose response bodies the picker sees. Starts and ends it always sees."""

    OFF = "off"
    SAMPLED = "sampled"
    ALL = "all"


class PickPlan(Struct, frozen=True):
    """How one pool's requests are picked for and observed. `notes` says what was asked for and cannot be had."""

    pool: Pool
    service: PickerService
    body_mode: BodyMode
    observation: Observation
    notes: tuple[str, ...] = ()

    @property
    def fails_open(self) -> bool:
        """Whether requests go on without a pick when the picker fails."""
        return self.pool.failure_mode is FailureMode.OPEN

    @property
    def is_sampled(self) -> bool:
        """Whether a part of the responses is observed in full."""
        return self.service.is_ours and self.observation is Observation.SAMPLED

    @property
    def authority(self) -> str:
        """The picker as its streams name it."""
        return f"{self.service.name}.{self.service.namespace}.svc"


def plan_pick(pool: Pool, service: PickerService) -> PickPlan:
    """The plan that the pool's failure mode and annotations ask for; a wrong annotation is noted and ignored.

    Mode `auto`: only a buffered pick can fail open reliably, as Envoy cannot take back what it has streamed. Streaming
    has no size limit and no copy, and is what the protocol asks for."""
    notes: list[str] = []
    automatic = BodyMode.BUFFERED if pool.failure_mode is FailureMode.OPEN and service.is_ours else BodyMode.STREAMED
    wanted = pool.annotations.get(BODY_MODE_ANNOTATION, "auto")
    if wanted not in ("auto", *BodyMode):
        notes.append(f"{BODY_MODE_ANNOTATION}: {wanted!r}: use auto, {', '.join(BodyMode)}")
    body_mode = BodyMode(wanted) if wanted in tuple(BodyMode) else automatic
    wanted = pool.annotations.get(OBSERVATION_ANNOTATION, Observation.OFF)
    if wanted not in tuple(Observation):
        notes.append(f"{OBSERVATION_ANNOTATION}: {wanted!r}: use {', '.join(Observation)}")
    observation = Observation(wanted) if wanted in tuple(Observation) else Observation.OFF
    return PickPlan(pool, service, body_mode, observation, tuple(notes))


def cluster_filters(plan: PickPlan, *, observe_bodies: bool) -> dict[str, any_pb2.Any]:
    """The per-filter configuration of a weighted cluster: what switches the listener's filters on for a pool."""
    found = {
        names.HEADERS_FILTER: pack(header_mutation_pb2.HeaderMutationPerRoute(mutations=_removed_headers())),
        names.PICK_FILTER: _overrides(plan, _pick_mode(plan), plan.fails_open),
    }
    if plan.service.is_ours:
        # Where the observer fails, nothing else does.
        found[names.OBSERVE_FILTER] = _overrides(plan, _observe_mode(bodies=observe_bodies), True)
    return found


def listener_filters(*, idle: bool = False) -> list[http_connection_manager_pb2.HttpFilter]:
    """The filters, all disabled, in the order requests pass them. They name a picker that no request reaches.

    `idle`: not disabled, but with nothing to do until a route's own configuration says so: for listeners where a
    request may get another route than the one that its filters are made for."""
    nothing = _Mode(request_header_mode=_Mode.SKIP, response_header_mode=_Mode.SKIP)
    nowhere = grpc_service_pb2.GrpcService(
        envoy_grpc=grpc_service_pb2.GrpcService.EnvoyGrpc(cluster_name=names.INVALID_CLUSTER)
    )

    def processor(name: str, mode: _Mode) -> ext_proc_pb2.ExternalProcessor:
        return ext_proc_pb2.ExternalProcessor(
            grpc_service=nowhere,
            processing_mode=nothing if idle else mode,
            metadata_options=_metadata(),
            stat_prefix=name,
            # The picker must not choose another route: another pool's picker would be asked for nothing.
            route_cache_action=ext_proc_pb2.ExternalProcessor.RETAIN,
        )

    pick = processor("headrace_pick", _Mode(request_header_mode=_Mode.SEND))
    pick.message_timeout.CopyFrom(seconds(MESSAGE_TIMEOUT_SECONDS))
    pick.status_on_error.code = http_status_pb2.ServiceUnavailable
    observe = processor("headrace_observe", _observe_mode(bodies=False))
    observe.observability_mode = observe.failure_mode_allow = True
    observe.deferred_close_timeout.CopyFrom(seconds(_OBSERVE_CLOSE_SECONDS))
    mutation = header_mutation_pb2.HeaderMutation(mutations=_removed_headers())
    configs = ((names.HEADERS_FILTER, mutation), (names.PICK_FILTER, pick), (names.OBSERVE_FILTER, observe))
    return [
        http_connection_manager_pb2.HttpFilter(name=name, disabled=not idle, typed_config=pack(config))
        for name, config in configs
    ]


def _removed_headers() -> header_mutation_pb2.Mutations:
    mutations = header_mutation_pb2.Mutations()
    for name in http.UNTRUSTED:
        mutations.request_mutations.add().remove = name
    return mutations


def _overrides(plan: PickPlan, mode: _Mode, fails_open: bool) -> any_pb2.Any:
    service = grpc_service_pb2.GrpcService()
    if plan.service.is_ours:
        # The pick's stream may end once it is answered: responses are observed by a stream of their own.
        service.initial_metadata.add(key=rpc.OBSERVED, value="true")
    cluster = names.picker_cluster_name(names.pool_key(plan.pool))
    service.envoy_grpc.cluster_name = cluster
    service.envoy_grpc.authority = plan.authority
    overrides = ext_proc_pb2.ExtProcOverrides(processing_mode=mode, grpc_service=service, metadata_options=_metadata())
    overrides.failure_mode_allow.value = fails_open
    return pack(ext_proc_pb2.ExtProcPerRoute(overrides=overrides))


def _pick_mode(plan: PickPlan) -> _Mode:
    # Envoy takes FULL_DUPLEX_STREAMED only together with trailers.
    streamed = (_Mode.SEND, _Stream, _Mode.SEND)
    request = streamed if plan.body_mode is BodyMode.STREAMED else (_Mode.SEND, _Mode.BUFFERED, _Mode.SKIP)
    return processing_mode(request, NOT_SENT if plan.service.is_ours else streamed)


def _observe_mode(*, bodies: bool) -> _Mode:
    body = _Mode.STREAMED if bodies else _Mode.NONE
    # Trailers keep the stream open until the response has ended.
    return processing_mode((_Mode.SEND, _Mode.NONE, _Mode.SKIP), (_Mode.SEND, body, _Mode.SEND))


def processing_mode(request: tuple[Any, Any, Any], response: tuple[Any, Any, Any]) -> _Mode:
    """What a filter is sent of requests and of responses: their headers, body and trailers."""
    (headers, body, trailers), (response_headers, response_body, response_trailers) = request, response
    return _Mode(
        request_header_mode=headers,
        request_body_mode=body,
        request_trailer_mode=trailers,
        response_header_mode=response_headers,
        response_body_mode=response_body,
        response_trailer_mode=response_trailers,
    )


def _metadata() -> ext_proc_pb2.MetadataOptions:
    namespaces = ext_proc_pb2.MetadataOptions.MetadataNamespaces
    return ext_proc_pb2.MetadataOptions(
        forwarding_namespaces=namespaces(untyped=[rpc.LOAD_BALANCER_NAMESPACE, rpc.SUBSET_NAMESPACE]),
        receiving_namespaces=namespaces(untyped=[rpc.LOAD_BALANCER_NAMESPACE]),
    )
