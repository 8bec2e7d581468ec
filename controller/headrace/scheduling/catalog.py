"""Every scheduling plugin type a configuration may name, and how its parameters are read.

Names, parameters and defaults: Gateway API Inference Extension v1.5.0 and llm-d-router."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from headrace.protocol import http
from headrace.protocol.objects import CONTEXT_LENGTH_LABEL, ROLE_LABEL
from headrace.scheduling.affinity import (
    HeaderLabelAffinityScorer,
    IdentifiedSession,
    SessionAffinityFilter,
    SessionAffinityScorer,
    SessionStrategy,
    TokenSession,
)
from headrace.scheduling.filters import (
    AdapterAffinityFilter,
    EndpointAttributeFilter,
    HeaderBasedTestingFilter,
    PrefixCacheAffinityFilter,
    SloHeadroomTierFilter,
)
from headrace.scheduling.handlers import HeaderProfileHandler, SingleProfileHandler
from headrace.scheduling.labels import (
    ROLES,
    ByLabelFilter,
    ContextLengthAware,
    LabelSelectorFilter,
    Requirement,
)
from headrace.scheduling.parameters import Parameters
from headrace.scheduling.pickers import MaxScorePicker, RandomPicker, WeightedRandomPicker
from headrace.scheduling.saturation import ConcurrencyDetector, UtilizationDetector, UtilizationFilter
from headrace.scheduling.scorers import (
    ActiveRequestScorer,
    EndpointAttributeScorer,
    KvCacheUtilizationScorer,
    LoadAwareScorer,
    LoraAffinityScorer,
    NoHitLruScorer,
    PrefixCacheScorer,
    QueueScorer,
    RunningRequestsScorer,
    TokenLoadScorer,
)

Factory = Callable[[Parameters], object]


def _producers(parameters: Parameters) -> None:
    """Upstream plugins can be told which other plugin to take their data from: there is one of each here."""
    parameters.ignore(
        "prefixMatchInfoProducerName",
        "inFlightLoadProducerName",
        "latencyPredictionInfoProducerName",
        "prefixPluginType",
        "prefixPluginName",
    )


def _active_request(parameters: Parameters) -> ActiveRequestScorer:
    _producers(parameters)
    parameters.ignore("requestTimeout")  # of earlier releases: requests end when their response does
    return ActiveRequestScorer(
        idle_threshold=parameters.integer("idleThreshold", 0),
        max_busy_score=parameters.number("maxBusyScore", 1.0, at_most=1.0),
    )


def _prefix_scorer(parameters: Parameters) -> PrefixCacheScorer:
    _producers(parameters)
    return PrefixCacheScorer(
        parameters.number("matchLengthWeight", 0.0, at_most=1.0),
        parameters.integer("matchLengthScaleTokens", 8192, at_least=1),
    )


def _token_load(parameters: Parameters) -> TokenLoadScorer:
    _producers(parameters)
    return TokenLoadScorer(parameters.integer("queueThresholdTokens", 4_194_304, at_least=1))


def _no_hit_lru(parameters: Parameters) -> NoHitLruScorer:
    _producers(parameters)
    return NoHitLruScorer(parameters.integer("lruSize", 1024, at_least=1))


def _session(parameters: Parameters) -> SessionStrategy:
    parameters.ignore("profileName")  # there is one profile for a request, and so one pick
    strategy = parameters.choice("strategy", "encoded_endpoint_header", ("encoded_endpoint_header", "session_id"))
    token, session = parameters.object("encodedEndpointHeaderConfig"), parameters.object("sessionIdConfig")
    if strategy == "encoded_endpoint_header":
        header = token.text("header", http.SESSION_TOKEN).strip().lower()
        token.finish()
        return TokenSession(header or http.SESSION_TOKEN)
    headers = []
    for source in session.objects("sources"):
        if "attribute" in source:
            raise source.refuse("attribute", "only request headers can be read: give header")
        headers.append(source.text("header", needed=True).strip().lower())
        source.ignore("producer")
        source.finish()
    session.ignore("evictionSweepSeconds")  # bindings are dropped as they expire
    ttl = session.positive("evictionTtlSeconds", 300.0)
    session.finish()
    return IdentifiedSession(tuple(headers) or (http.SESSION_ID,), ttl)


def _header_label(parameters: Parameters) -> HeaderLabelAffinityScorer:
    header = parameters.text("headerName", needed=True).strip().lower()
    return HeaderLabelAffinityScorer(header, parameters.text("labelKey", needed=True))


def _by_label(parameters: Parameters) -> ByLabelFilter:
    values = frozenset(parameters.texts("validValues"))
    no_label = parameters.boolean("allowsNoLabel", False)
    if not values and not no_label:
        raise parameters.refuse("validValues", "give at least one value, or allowsNoLabel: true")
    return ByLabelFilter(parameters.text("label", needed=True), values, no_label)


def _role(type_name: str) -> Factory:
    values, no_label = ROLES[type_name]
    return lambda parameters: ByLabelFilter(ROLE_LABEL, frozenset(values), no_label)


def _label_selector(parameters: Parameters) -> LabelSelectorFilter:
    labels = parameters.object("matchLabels")
    terms = [Requirement(key, "In", frozenset((labels.text(key),))) for key in labels.names()]
    for expression in parameters.objects("matchExpressions"):
        key = expression.text("key", needed=True)
        operator = expression.choice("operator", "", Requirement.operators)
        values = frozenset(expression.texts("values"))
        if bool(values) != (operator in ("In", "NotIn")):
            raise expression.refuse("values", "give values with In and NotIn, and only with them")
        expression.finish()
        terms.append(Requirement(key, operator, values))
    return LabelSelectorFilter(tuple(terms))


def _context_length(parameters: Parameters) -> ContextLengthAware:
    label = parameters.text("label", CONTEXT_LENGTH_LABEL, needed=True)
    return ContextLengthAware(label, parameters.boolean("enableFiltering", False))


def _prefix_affinity(parameters: Parameters) -> PrefixCacheAffinityFilter:
    _producers(parameters)
    if parameters.choice("ttftSource", "prefillThroughput", ("prefillThroughput", "latencyPredictor")) != (
        "prefillThroughput"
    ):
        raise parameters.refuse("ttftSource", "there is no latency predictor here: use prefillThroughput")
    penalty = parameters.number("maxTTFTPenaltyMs", 18_000.0)
    throughput = parameters.number("peakPrefillThroughput", 15_928.0)
    if penalty and not throughput:
        raise parameters.refuse("peakPrefillThroughput", "give tokens a second, over 0, or maxTTFTPenaltyMs: 0")
    return PrefixCacheAffinityFilter(
        affinity_threshold=parameters.number("affinityThreshold", 0.8, at_most=1.0),
        exploration_probability=parameters.number("explorationProbability", 0.0, at_most=1.0),
        max_ttft_penalty_ms=penalty,
        peak_prefill_throughput=throughput,
    )


def _slo_tier(parameters: Parameters) -> SloHeadroomTierFilter:
    _producers(parameters)
    return SloHeadroomTierFilter(parameters.number("epsilonExploreNeg", 0.01, at_most=1.0))


def _utilization_detector(parameters: Parameters) -> UtilizationDetector:
    # When metrics are too old is one decision for the whole picker: --metrics-staleness-threshold.
    parameters.duration("metricsStalenessThreshold", 0.2)
    return UtilizationDetector(
        queue_depth_threshold=parameters.integer("queueDepthThreshold", 5, at_least=1),
        kv_cache_threshold=parameters.positive("kvCacheUtilThreshold", 0.8, at_most=1.0),
        headroom=parameters.number("headroom", 0.0),
    )


def _concurrency_detector(parameters: Parameters) -> ConcurrencyDetector:
    _producers(parameters)
    return ConcurrencyDetector(
        mode=parameters.choice("concurrencyMode", "requests", ConcurrencyDetector.modes),
        max_requests=parameters.integer("maxConcurrency", 100, at_least=1),
        max_tokens=parameters.integer("maxTokenConcurrency", 1_000_000, at_least=1),
        headroom=parameters.number("headroom", 0.0),
    )


def _utilization_filter(parameters: Parameters) -> UtilizationFilter:
    _producers(parameters)
    limits = []
    for condition in parameters.objects("conditions"):
        metric = condition.choice("metric", "", UtilizationFilter.metrics)
        if "maxValue" not in condition:
            raise condition.refuse("maxValue", "give the largest value that stays")
        most = 1.0 if metric == "kv-cache-utilization" else float("inf")
        limits.append((metric, condition.number("maxValue", 0.0, at_most=most)))
        condition.finish()
    if not limits:
        raise parameters.refuse("conditions", "give at least one {metric, maxValue}")
    return UtilizationFilter(tuple(limits), parameters.boolean("fallbackOnEmpty", False))


def _attribute_scorer(parameters: Parameters) -> EndpointAttributeScorer:
    parameters.ignore("producer")
    algorithm = parameters.object("algorithm")
    kind = algorithm.choice("type", "", EndpointAttributeScorer.algorithms)
    normalization = algorithm.object("normalization")
    fixed, adaptive = normalization.object("fixedRange"), normalization.object("adaptiveRange")
    bounds = None
    if "fixedRange" in normalization:
        if "adaptiveRange" in normalization:
            raise normalization.refuse("adaptiveRange", "give fixedRange or adaptiveRange, not both")
        least = float("-inf")
        bounds = fixed.number("min", 0.0, at_least=least), fixed.number("max", 0.0, at_least=least)
        if bounds[0] >= bounds[1]:
            raise fixed.refuse("max", "give a max over min")
    for part in (fixed, adaptive, normalization, algorithm):
        part.finish()
    attribute = parameters.text("attributeKey", needed=True)
    return EndpointAttributeScorer(attribute, kind == "linear_lower_is_better", bounds)


def _attribute_filter(parameters: Parameters) -> EndpointAttributeFilter:
    parameters.ignore("producer")
    algorithm = parameters.object("algorithm")
    algorithm.choice("type", "", ("threshold",))
    threshold = algorithm.object("threshold")
    operator = threshold.choice("operator", "", tuple(EndpointAttributeFilter.operators))
    value = threshold.number("value", 0.0, at_least=float("-inf"))
    threshold.finish()
    algorithm.finish()
    return EndpointAttributeFilter(
        parameters.text("attribute", needed=True),
        operator,
        value,
        pass_on_missing=parameters.choice("onMissing", "Pass", ("Pass", "Fail")) == "Pass",
        fallback_on_empty=parameters.boolean("fallbackOnEmpty", False),
    )


def _header_profile(parameters: Parameters) -> HeaderProfileHandler:
    header = parameters.text("headerName", "epp-profile").strip().lower()
    return HeaderProfileHandler(header or "epp-profile", parameters.text("defaultProfile", "decode").strip())


def _most(parameters: Parameters) -> int:
    return parameters.integer("maxNumOfEndpoints", 1, at_least=1)


FACTORIES: Mapping[str, Factory] = {
    QueueScorer.type_name: lambda p: QueueScorer(),
    # The name of earlier releases.
    "queue": lambda p: QueueScorer(),
    RunningRequestsScorer.type_name: lambda p: RunningRequestsScorer(),
    KvCacheUtilizationScorer.type_name: lambda p: KvCacheUtilizationScorer(),
    LoraAffinityScorer.type_name: lambda p: LoraAffinityScorer(),
    LoadAwareScorer.type_name: lambda p: LoadAwareScorer(p.integer("threshold", 128, at_least=1)),
    ActiveRequestScorer.type_name: _active_request,
    PrefixCacheScorer.type_name: _prefix_scorer,
    TokenLoadScorer.type_name: _token_load,
    NoHitLruScorer.type_name: _no_hit_lru,
    SessionAffinityScorer.type_name: lambda p: SessionAffinityScorer(_session(p)),
    SessionAffinityFilter.type_name: lambda p: SessionAffinityFilter(_session(p)),
    HeaderLabelAffinityScorer.type_name: _header_label,
    ContextLengthAware.type_name: _context_length,
    EndpointAttributeScorer.type_name: _attribute_scorer,
    EndpointAttributeFilter.type_name: _attribute_filter,
    AdapterAffinityFilter.type_name: lambda p: AdapterAffinityFilter(p.integer("queueSlack", 8)),
    PrefixCacheAffinityFilter.type_name: _prefix_affinity,
    SloHeadroomTierFilter.type_name: _slo_tier,
    ByLabelFilter.type_name: _by_label,
    LabelSelectorFilter.type_name: _label_selector,
    "by-label-selector": _label_selector,
    **{type_name: _role(type_name) for type_name in ROLES},
    UtilizationFilter.type_name: _utilization_filter,
    UtilizationDetector.type_name: _utilization_detector,
    ConcurrencyDetector.type_name: _concurrency_detector,
    HeaderBasedTestingFilter.type_name: lambda p: HeaderBasedTestingFilter(),
    MaxScorePicker.type_name: lambda p: MaxScorePicker(_most(p)),
    RandomPicker.type_name: lambda p: RandomPicker(_most(p)),
    WeightedRandomPicker.type_name: lambda p: WeightedRandomPicker(_most(p)),
    SingleProfileHandler.type_name: lambda p: SingleProfileHandler(),
    HeaderProfileHandler.type_name: _header_profile,
}

PREFIX_PRODUCERS = ("approx-prefix-cache-producer", "prefix-cache-plugin")

_BY_PATH = "request bodies are read by their path, whichever parsers are named"
_METRICS = "where and how often metrics are read is set by the picker's flags"
_TOKENS = "token counts are estimated from the prompt's length"

# What they do is done in any case; their parameters are not looked at. The text says what is different here.
BUILT_IN: Mapping[str, str] = {
    "inflight-load-producer": "",
    "session-id-producer": "",
    "openai-parser": "",
    "anthropic-parser": "",
    "vllmhttp-parser": "",
    "sglanghttp-parser": "",
    "passthrough-parser": _BY_PATH,
    "vllmgrpc-parser": _BY_PATH,
    "vertexai-parser": _BY_PATH,
    "models-data-source": "",
    "models-data-extractor": "",
    "endpoint-notification-source": "",
    "k8s-notification-source": "",
    "destination-endpoint-served-verifier": "",
    "metrics-data-source": _METRICS,
    "tokenizer": _TOKENS,
    "request-attribute-reporter": "it reports nothing here",
}

_ONE_PICK = "prefill and decode are not picked separately: use single-profile-handler with one scheduling profile"
_PREDICTOR = "it needs a latency predictor, and there is none here: leave it out"
_NO_DATA = "what it goes by is not known here: leave it out"

# Known, and not done here: why, and what to do instead.
REFUSED: Mapping[str, str] = {
    "disagg-profile-handler": _ONE_PICK,
    "pd-profile-handler": _ONE_PICK,
    "disagg-headers-handler": _ONE_PICK,
    "prefill-header-handler": _ONE_PICK,
    "always-disagg-pd-decider": _ONE_PICK,
    "prefix-based-pd-decider": _ONE_PICK,
    "always-disagg-multimodal-decider": _ONE_PICK,
    "data-parallel-profile-handler": "list every rank's port in the InferencePool's targetPorts, and use "
    "single-profile-handler: each port is an endpoint of its own",
    "latency-scorer": _PREDICTOR,
    "predicted-latency-producer": _PREDICTOR,
    "predicted-latency-scorer": _PREDICTOR,
    "mm-embeddings-cache-producer": _NO_DATA,
    "mm-embeddings-cache-scorer": _NO_DATA,
    "dcgm-data-source": _NO_DATA,
    "dcgm-extractor": _NO_DATA,
    "topology-extractor": _NO_DATA,
    "topology-affinity-scorer": _NO_DATA,
    "topology-affinity-filter": _NO_DATA,
    "precise-prefix-cache-scorer": "use precise-prefix-cache-producer, and prefix-cache-scorer to score by it",
    "burst-prefix-cache-producer": "use approx-prefix-cache-producer: picks in flight are in its index already",
    "file-discovery": "give the endpoints with --endpoints",
}


def refused(type_name: str) -> str | None:
    """Why a type that is known is not supported, and what to do; None for any other."""
    if type_name.startswith("multicluster-"):
        return "a picker serves the endpoints of its own cluster: leave it out"
    return REFUSED.get(type_name)
