"""Every scheduling plugin type that a configuration may name, and its parameters where they are not the plugin's own.

Names, parameters and defaults: Gateway API Inference Extension v1.5.0 and llm-d-router."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from headrace.config.decode import (
    InvalidConfig,
    OverZero,
    Parameters,
    Refused,
    T,
    decode,
)
from headrace.config.plugins import PluginType, accepted, built_in, plugin, refused
from headrace.protocol import http
from headrace.protocol.objects import ROLE_LABEL
from headrace.scheduling import affinity, filters, handlers, health, labels, latency, pickers, saturation, scorers
from headrace.scheduling.prefix import PrefixParameters


class _Source(Parameters, frozen=True):
    header: str = ""
    attribute: Any = None
    producer: Any = None

    def __post_init__(self) -> None:
        if self.attribute is not None:
            raise Refused("attribute", "only request headers can be read: give header")
        if not self.header.strip():
            raise Refused("header", "give a text")


class _IdentifiedSession(Parameters, frozen=True):
    sources: tuple[_Source, ...] = ()
    eviction_ttl_seconds: OverZero = 300.0
    # Bindings are dropped as they expire.
    eviction_sweep_seconds: Any = None


class _Session(Parameters, frozen=True):
    strategy: Literal["encoded_endpoint_header", "session_id"] = "encoded_endpoint_header"
    # Only the strategy's own is looked at.
    encoded_endpoint_header_config: Any = None
    session_id_config: Any = None
    # There is one profile for a request, and so one pick.
    profile_name: Any = None

    def __post_init__(self) -> None:
        try:
            self.kept()
        except InvalidConfig as error:
            raise Refused(error.field, error.fix, error.value) from None

    def kept(self) -> affinity.SessionStrategy:
        """The strategy that they ask for. Raises InvalidConfig."""
        if self.strategy == "encoded_endpoint_header":
            token = _part(self.encoded_endpoint_header_config, affinity.TokenSession, "encodedEndpointHeaderConfig")
            return affinity.TokenSession(token.header.strip().lower() or http.SESSION_TOKEN)
        session = _part(self.session_id_config, _IdentifiedSession, "sessionIdConfig")
        headers = tuple(source.header.strip().lower() for source in session.sources)
        return affinity.IdentifiedSession(headers or (http.SESSION_ID,), session.eviction_ttl_seconds)


def _part(given: object, wanted: type[T], at: str) -> T:
    return decode({} if given is None else given, wanted, at)


def _role(values: tuple[str, ...], no_label: bool) -> Callable[[Any], labels.ByLabelFilter]:
    return lambda _: labels.ByLabelFilter(ROLE_LABEL, frozenset(values), no_label)


def _header_label(asked: affinity.HeaderLabelAffinityScorer) -> affinity.HeaderLabelAffinityScorer:
    return affinity.HeaderLabelAffinityScorer(asked.header.strip().lower(), asked.label)


def _header_profile(asked: handlers.HeaderProfileHandler) -> handlers.HeaderProfileHandler:
    return handlers.HeaderProfileHandler(asked.header.strip().lower() or "epp-profile", asked.default_profile.strip())


# Upstream plugins can be told which other plugin to take their data from: there is one of each here.
_PRODUCERS = (
    "prefixMatchInfoProducerName",
    "inFlightLoadProducerName",
    "latencyPredictionInfoProducerName",
    "prefixPluginType",
    "prefixPluginName",
)
_BY_PATH = "request bodies are read by their path, whichever parsers are named"

PLUGINS = (
    plugin(scorers.QueueScorer, had=("queue",)),
    plugin(scorers.RunningRequestsScorer),
    plugin(scorers.KvCacheUtilizationScorer),
    plugin(scorers.LoraAffinityScorer),
    plugin(scorers.LoadAwareScorer),
    # Of earlier releases: requests end when their response does.
    plugin(scorers.ActiveRequestScorer, ignored=(*_PRODUCERS, "requestTimeout")),
    plugin(scorers.PrefixCacheScorer, ignored=_PRODUCERS),
    plugin(scorers.TokenLoadScorer, ignored=_PRODUCERS),
    plugin(scorers.NoHitLruScorer, ignored=_PRODUCERS),
    plugin(
        latency.LatencyScorer,
        ignored=(*_PRODUCERS, "compositeKVWeight", "compositeQueueWeight", "compositePrefixWeight"),
    ),
    PluginType(
        affinity.SessionAffinityScorer.type_name, _Session, lambda asked: affinity.SessionAffinityScorer(asked.kept())
    ),
    PluginType(
        affinity.SessionAffinityFilter.type_name, _Session, lambda asked: affinity.SessionAffinityFilter(asked.kept())
    ),
    plugin(affinity.HeaderLabelAffinityScorer, _header_label),
    plugin(labels.ContextLengthAware),
    plugin(scorers.EndpointAttributeScorer, ignored=("producer",)),
    plugin(filters.EndpointAttributeFilter, ignored=("producer",)),
    plugin(filters.AdapterAffinityFilter),
    plugin(health.HealthFilter),
    plugin(filters.PrefixCacheAffinityFilter, ignored=_PRODUCERS),
    plugin(latency.SloHeadroomTierFilter, ignored=_PRODUCERS),
    plugin(labels.ByLabelFilter),
    plugin(labels.LabelSelectorFilter, had=("by-label-selector",)),
    *(PluginType(name, make=_role(*role)) for name, role in labels.ROLES.items()),
    plugin(saturation.UtilizationFilter, ignored=_PRODUCERS),
    plugin(saturation.UtilizationDetector),
    plugin(saturation.ConcurrencyDetector, ignored=_PRODUCERS),
    plugin(filters.HeaderBasedTestingFilter),
    plugin(pickers.MaxScorePicker),
    plugin(pickers.RandomPicker),
    plugin(pickers.WeightedRandomPicker),
    plugin(handlers.SingleProfileHandler),
    plugin(handlers.HeaderProfileHandler, _header_profile),
    accepted("approx-prefix-cache-producer", PrefixParameters, had=("prefix-cache-plugin",)),
    built_in("inflight-load-producer"),
    built_in("predicted-latency-producer", "it learns from the servers' own metrics, and calls no sidecar"),
    built_in("session-id-producer"),
    built_in("openai-parser"),
    built_in("anthropic-parser"),
    built_in("vllmhttp-parser"),
    built_in("sglanghttp-parser"),
    built_in("passthrough-parser", _BY_PATH),
    built_in("vllmgrpc-parser", _BY_PATH),
    built_in("vertexai-parser", _BY_PATH),
    built_in("models-data-source"),
    built_in("models-data-extractor"),
    built_in("endpoint-notification-source"),
    built_in("k8s-notification-source"),
    built_in("destination-endpoint-served-verifier"),
    built_in("metrics-data-source", "where and how often metrics are read is set by the picker's flags"),
    built_in("tokenizer", "token counts are estimated from the prompt's length"),
    built_in("request-attribute-reporter", "it reports nothing here"),
    *refused(
        "prefill and decode are not picked separately: use single-profile-handler with one scheduling profile",
        *("disagg-profile-handler", "pd-profile-handler", "disagg-headers-handler", "prefill-header-handler"),
        *("always-disagg-pd-decider", "prefix-based-pd-decider", "always-disagg-multimodal-decider"),
    ),
    *refused(
        "list every rank's port in the InferencePool's targetPorts, and use single-profile-handler: each port is an"
        " endpoint of its own",
        "data-parallel-profile-handler",
    ),
    *refused("use latency-scorer", "predicted-latency-scorer"),
    *refused(
        "what it goes by is not known here: leave it out",
        *("mm-embeddings-cache-producer", "mm-embeddings-cache-scorer", "dcgm-data-source", "dcgm-extractor"),
        *("topology-extractor", "topology-affinity-scorer", "topology-affinity-filter"),
    ),
    *refused(
        "use precise-prefix-cache-producer, and prefix-cache-scorer to score by it", "precise-prefix-cache-scorer"
    ),
    *refused(
        "use approx-prefix-cache-producer: picks in flight are in its index already", "burst-prefix-cache-producer"
    ),
    *refused("give the endpoints with --endpoints", "file-discovery"),
    *refused("a picker serves the endpoints of its own cluster: leave it out", "multicluster-*"),
)
