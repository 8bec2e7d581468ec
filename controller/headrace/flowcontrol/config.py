"""The sections of an EndpointPickerConfig that admission goes by: `featureGates`, `saturationDetector`, `flowControl`.

Source: Gateway API Inference Extension v1.5.0 and llm-d-router, EndpointPickerConfig. Where both differ in a default,
the later, bounded one holds: 60 s to wait, 5,000 requests a band."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from headrace.flowcontrol.admitters import Admitter, LatencySloAdmitter
from headrace.flowcontrol.fairness import Fairness, GlobalStrict
from headrace.flowcontrol.limits import StaticLimit, UsageLimit
from headrace.flowcontrol.ordering import FirstComeFirstServed, Ordering
from headrace.flowcontrol.plugins import FACTORIES
from headrace.scheduling import Parameters, SaturationDetector
from headrace.scheduling.saturation import UtilizationDetector

FEATURE_GATE = "flowControl"
# What other gates turn on is on in any case.
_KNOWN_GATES = (FEATURE_GATE, "dataLayer", "prepareDataPlugins")


@dataclass(frozen=True)
class BandConfig:
    """One priority's bounds, in requests and bytes waiting, and its policies."""

    max_requests: int = 5_000
    max_bytes: int = 1_000_000_000
    fairness: Fairness = field(default_factory=GlobalStrict)
    ordering: Ordering = field(default_factory=FirstComeFirstServed)


@dataclass(frozen=True)
class FlowControlConfig:
    """What admission goes by. Without `enabled` nobody waits: requests below priority 0 are shed while the pool is
    full, and all others go on.

    `max_requests` and `max_bytes` bound what waits in all bands together (0: they do not). Times are seconds a request
    may wait while there are endpoints, and while there are none (0: for ever). `eviction`: a request may take the place
    of one that waits below priority 0."""

    enabled: bool = False
    detector: SaturationDetector = field(default_factory=UtilizationDetector)
    max_requests: int = 0
    max_bytes: int = 0
    request_ttl: float = 60.0
    no_endpoint_ttl: float = 60.0
    bands: Mapping[int, BandConfig] = field(default_factory=dict)
    default_band: BandConfig = field(default_factory=BandConfig)
    default_negative_band: BandConfig = field(default_factory=BandConfig)
    usage_limit: UsageLimit = field(default_factory=StaticLimit)
    eviction: bool = False
    admitters: tuple[Admitter, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fairness_policies(self) -> frozenset[Fairness]:
        """Every fairness policy in use."""
        bands = (self.default_band, self.default_negative_band, *self.bands.values())
        return frozenset(band.fairness for band in bands)


def read_flow_control(document: Mapping[str, object], plugins: Mapping[str, object]) -> FlowControlConfig:
    """The settings of a decoded EndpointPickerConfig whose plugins are `plugins`, by name. Raises InvalidConfig."""
    root = Parameters(document, "")
    enabled, notes = _feature_gate(root)
    section = root.object("flowControl")
    detector = _detector(root, section, plugins)
    admitters = tuple(plugin for plugin in plugins.values() if isinstance(plugin, Admitter))
    if any(isinstance(admitter, LatencySloAdmitter) for admitter in admitters):
        notes.append(f"{LatencySloAdmitter.type_name} sheds nothing: nothing predicts latencies")
    ttl = section.duration("defaultRequestTTL", 60.0)
    default_band = _band(section.object("defaultPriorityBand"), BandConfig(), plugins)
    negative = section.object("defaultNegativePriorityBand")
    bands: dict[int, BandConfig] = {}
    for entry in section.objects("priorityBands"):
        priority = entry.integer("priority", 0, at_least=-(1 << 31))
        if priority in bands:
            raise entry.refuse("priority", "give each priority one band")
        bands[priority] = _band(entry, BandConfig(), plugins)
    reference = section.text("usageLimitPolicyPluginRef")
    limit = _policy(section, "usageLimitPolicyPluginRef", plugins, _is_limit) if reference else StaticLimit()
    config = FlowControlConfig(
        enabled=enabled,
        detector=detector,
        max_requests=section.quantity("maxRequests", 0),
        max_bytes=section.quantity("maxBytes", 0),
        request_ttl=ttl,
        no_endpoint_ttl=section.duration("noEndpointRequestTTL", ttl),
        bands=bands,
        default_band=default_band,
        default_negative_band=_band(negative, default_band, plugins),
        usage_limit=limit,
        eviction=section.boolean("enableEviction", False),
        admitters=admitters,
    )
    section.finish()
    if config.eviction:
        notes.append("enableEviction makes room in the queue; answers that have begun are never cut")
    if not enabled and "flowControl" in root and len(section.names()) > ("saturationDetector" in section):
        notes.append(f"flowControl has no effect without {FEATURE_GATE} in featureGates")
    return replace(config, notes=tuple(notes))


def _feature_gate(root: Parameters) -> tuple[bool, list[str]]:
    enabled, notes = False, []
    for gate in root.texts("featureGates"):
        name, equals, value = gate.partition("=")
        if equals and value.strip().lower() not in ("true", "false"):
            raise root.refuse("featureGates", "give names, or name=true and name=false")
        if name == FEATURE_GATE:
            enabled = value.strip().lower() != "false"
        elif name not in _KNOWN_GATES:
            notes.append(f"feature gate {name:.100} is not known and has no effect")
    return enabled, notes


def _detector(root: Parameters, section: Parameters, plugins: Mapping[str, object]) -> SaturationDetector:
    old, new = root.object("saturationDetector"), section.object("saturationDetector")
    for at in (new, old):
        if "pluginRef" in at:
            found = _policy(at, "pluginRef", plugins, _is_detector)
            at.finish()
            return found
    new.finish()
    if not old.names():
        usual = plugins.get(UtilizationDetector.type_name)
        return usual if isinstance(usual, SaturationDetector) else UtilizationDetector()
    # Before there were plugins for it, the thresholds stood here.
    old.duration("metricsStalenessThreshold", 0.2)
    detector = UtilizationDetector(
        queue_depth_threshold=old.integer("queueDepthThreshold", 5, at_least=1),
        kv_cache_threshold=old.positive("kvCacheUtilThreshold", 0.8, at_most=1.0),
    )
    old.ignore("pluginRef")
    old.finish()
    return detector


def _band(entry: Parameters, usual: BandConfig, plugins: Mapping[str, object]) -> BandConfig:
    """A band's settings. A bound of 0 means the usual one, as in the reference picker."""
    band = BandConfig(
        max_requests=entry.quantity("maxRequests", 0) or usual.max_requests,
        max_bytes=entry.quantity("maxBytes", 0) or usual.max_bytes,
        fairness=_policy(entry, "fairnessPolicyRef", plugins, _is_fairness)
        if entry.text("fairnessPolicyRef")
        else usual.fairness,
        ordering=_policy(entry, "orderingPolicyRef", plugins, _is_ordering)
        if entry.text("orderingPolicyRef")
        else usual.ordering,
    )
    entry.ignore("priority")
    entry.finish()
    return band


_T = TypeVar("_T")


def _policy(at: Parameters, name: str, plugins: Mapping[str, object], of_kind: Callable[[object], _T | None]) -> _T:
    """The plugin that a field names. A type that has no need of parameters need not be among the plugins."""
    reference = at.text(name, needed=True)
    found = plugins.get(reference)
    if reference not in plugins and reference in FACTORIES:
        found = FACTORIES[reference](Parameters({}, reference))
    if reference not in plugins and reference == UtilizationDetector.type_name:
        found = UtilizationDetector()
    policy = of_kind(found)
    if policy is None:
        fitting = [known for known, plugin in plugins.items() if of_kind(plugin) is not None]
        raise at.refuse(name, f"name a plugin of the right kind; there are: {', '.join(fitting) or 'none'}")
    return policy


def _is_detector(plugin: object) -> SaturationDetector | None:
    return plugin if isinstance(plugin, SaturationDetector) else None


def _is_fairness(plugin: object) -> Fairness | None:
    return plugin if isinstance(plugin, Fairness) else None


def _is_ordering(plugin: object) -> Ordering | None:
    return plugin if isinstance(plugin, Ordering) else None


def _is_limit(plugin: object) -> UsageLimit | None:
    return plugin if isinstance(plugin, UsageLimit) else None
