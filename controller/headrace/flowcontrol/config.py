"""The sections of an EndpointPickerConfig that admission goes by: `featureGates`, `saturationDetector`, `flowControl`.

Source: Gateway API Inference Extension v1.5.0 and llm-d-router, EndpointPickerConfig. Where both differ in a default,
the later, bounded one holds: 60 s to wait, 5,000 requests a band."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta, Struct, field

from headrace.config.decode import Duration, InvalidConfig, Parameters, Quantity, decode
from headrace.config.plugins import joined, plugin
from headrace.core.fields import mapping
from headrace.flowcontrol.admitters import Admitter
from headrace.flowcontrol.fairness import Fairness, GlobalStrict
from headrace.flowcontrol.limits import StaticLimit, UsageLimit
from headrace.flowcontrol.ordering import FirstComeFirstServed, Ordering
from headrace.flowcontrol.plugins import PLUGINS
from headrace.scheduling import SaturationDetector
from headrace.scheduling.saturation import UtilizationDetector

FEATURE_GATE = "flowControl"
# What other gates turn on is on in any case.
_SECTIONS = ("featureGates", "saturationDetector", "flowControl")
_OWN_TYPES = joined(PLUGINS, [plugin(UtilizationDetector)])
_KNOWN_GATES = (FEATURE_GATE, "dataLayer", "prepareDataPlugins")


@dataclass(frozen=True)
class BandConfig:
    """One priority's bounds, in requests and bytes waiting, and its policies."""

    max_requests: int = 5_000
    max_bytes: int = 1_000_000_000
    fairness: Fairness = dataclasses.field(default_factory=GlobalStrict)
    ordering: Ordering = dataclasses.field(default_factory=FirstComeFirstServed)


@dataclass(frozen=True)
class FlowControlConfig:
    """What admission goes by. Without `enabled` nobody waits: requests below priority 0 are shed while the pool is
    full, and all others go on.

    `max_requests` and `max_bytes` bound what waits in all bands together (0: they do not). Times are seconds a request
    may wait while there are endpoints, and while there are none (0: for ever). `eviction`: a request may take the place
    of one that waits below priority 0."""

    enabled: bool = False
    detector: SaturationDetector = dataclasses.field(default_factory=UtilizationDetector)
    max_requests: int = 0
    max_bytes: int = 0
    request_ttl: float = 60.0
    no_endpoint_ttl: float = 60.0
    bands: Mapping[int, BandConfig] = dataclasses.field(default_factory=dict)
    default_band: BandConfig = dataclasses.field(default_factory=BandConfig)
    default_negative_band: BandConfig = dataclasses.field(default_factory=BandConfig)
    usage_limit: UsageLimit = dataclasses.field(default_factory=StaticLimit)
    eviction: bool = False
    admitters: tuple[Admitter, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def fairness_policies(self) -> frozenset[Fairness]:
        """Every fairness policy in use."""
        bands = (self.default_band, self.default_negative_band, *self.bands.values())
        return frozenset(band.fairness for band in bands)


class _Reference(Parameters, frozen=True):
    plugin_ref: str = ""


class _OldDetector(UtilizationDetector, frozen=True):
    """Before there were plugins for it, the thresholds stood in the section."""

    plugin_ref: str = ""


class _DefaultBand(Parameters, frozen=True):
    # A default band has no priority of its own.
    priority: Any = None
    max_requests: Quantity = Quantity()
    max_bytes: Quantity = Quantity()
    fairness_policy_ref: str = ""
    ordering_policy_ref: str = ""


class _Band(_DefaultBand, frozen=True):
    priority: Annotated[int, Meta(ge=-(1 << 31))] = 0


class _FlowControl(Parameters, frozen=True):
    saturation_detector: _Reference | None = None
    max_requests: Quantity = Quantity()
    max_bytes: Quantity = Quantity()
    default_request_ttl: Duration = field(default=Duration(60.0), name="defaultRequestTTL")
    no_endpoint_request_ttl: Duration | None = field(default=None, name="noEndpointRequestTTL")
    default_priority_band: _DefaultBand = _DefaultBand()
    default_negative_priority_band: _DefaultBand = _DefaultBand()
    priority_bands: tuple[_Band, ...] = ()
    usage_limit_policy_plugin_ref: str = ""
    enable_eviction: bool = False


class _Sections(Struct, frozen=True, rename="camel"):
    feature_gates: tuple[str, ...] = ()
    # Not looked at where flowControl names a detector.
    saturation_detector: Any = None
    flow_control: _FlowControl | None = None


def read_flow_control(document: Mapping[str, object], plugins: Mapping[str, object]) -> FlowControlConfig:
    """The settings of a decoded EndpointPickerConfig whose plugins are `plugins`, by name. Raises InvalidConfig."""
    # An empty section is as good as none.
    sections = decode(
        {name: given for name in _SECTIONS if (given := document.get(name)) not in (None, {})}, _Sections, ""
    )
    enabled, notes = _feature_gate(sections.feature_gates)
    section, at = sections.flow_control or _FlowControl(), "flowControl"
    admitters = tuple(plugin for plugin in plugins.values() if isinstance(plugin, Admitter))
    default_band = _band(section.default_priority_band, BandConfig(), plugins, f"{at}.defaultPriorityBand")
    bands: dict[int, BandConfig] = {}
    for number, entry in enumerate(section.priority_bands):
        where = f"{at}.priorityBands[{number}]"
        if entry.priority in bands:
            raise InvalidConfig(f"{where}.priority", entry.priority, "give each priority one band")
        bands[entry.priority] = _band(entry, BandConfig(), plugins, where)
    limit = section.usage_limit_policy_plugin_ref
    ttl, without_endpoint = float(section.default_request_ttl), section.no_endpoint_request_ttl
    if section.enable_eviction:
        notes.append("enableEviction makes room in the queue; answers that have begun are never cut")
    if not enabled and set(mapping(document.get("flowControl"))) - {"saturationDetector"}:
        notes.append(f"flowControl has no effect without {FEATURE_GATE} in featureGates")
    return FlowControlConfig(
        enabled=enabled,
        detector=_detector(sections, plugins),
        max_requests=int(section.max_requests),
        max_bytes=int(section.max_bytes),
        request_ttl=ttl,
        no_endpoint_ttl=ttl if without_endpoint is None else float(without_endpoint),
        bands=bands,
        default_band=default_band,
        default_negative_band=_band(
            section.default_negative_priority_band, default_band, plugins, f"{at}.defaultNegativePriorityBand"
        ),
        usage_limit=_policy(limit, UsageLimit, plugins, f"{at}.usageLimitPolicyPluginRef") if limit else StaticLimit(),
        eviction=section.enable_eviction,
        admitters=admitters,
        notes=tuple(notes),
    )


def _feature_gate(gates: Iterable[str]) -> tuple[bool, list[str]]:
    enabled, notes = False, []
    for gate in gates:
        name, equals, value = gate.partition("=")
        if equals and value.strip().lower() not in ("true", "false"):
            raise InvalidConfig("featureGates", gate, "give names, or name=true and name=false")
        if name == FEATURE_GATE:
            enabled = value.strip().lower() != "false"
        elif name not in _KNOWN_GATES:
            notes.append(f"feature gate {name:.100} is not known and has no effect")
    return enabled, notes


def _detector(sections: _Sections, plugins: Mapping[str, object]) -> SaturationDetector:
    new = sections.flow_control.saturation_detector if sections.flow_control else None
    name, at = new.plugin_ref if new is not None else "", "flowControl.saturationDetector"
    if not name and sections.saturation_detector is None:
        usual = plugins.get(UtilizationDetector.type_name)
        return usual if isinstance(usual, SaturationDetector) else UtilizationDetector()
    if not name:
        old = decode(sections.saturation_detector, _OldDetector, "saturationDetector")
        name, at = old.plugin_ref, "saturationDetector"
        if not name:
            return UtilizationDetector(old.queue_depth_threshold, old.kv_cache_threshold, old.headroom)
    found: SaturationDetector = _policy(name, SaturationDetector, plugins, f"{at}.pluginRef")
    return found


def _band(entry: _DefaultBand, usual: BandConfig, plugins: Mapping[str, object], at: str) -> BandConfig:
    """A band's settings. A bound of 0 means the usual one, as in the reference picker."""
    fairness, ordering = entry.fairness_policy_ref, entry.ordering_policy_ref
    return BandConfig(
        max_requests=int(entry.max_requests) or usual.max_requests,
        max_bytes=int(entry.max_bytes) or usual.max_bytes,
        fairness=_policy(fairness, Fairness, plugins, f"{at}.fairnessPolicyRef") if fairness else usual.fairness,
        ordering=_policy(ordering, Ordering, plugins, f"{at}.orderingPolicyRef") if ordering else usual.ordering,
    )


def _policy(name: str, kind: Any, plugins: Mapping[str, object], at: str) -> Any:
    """The plugin of a kind that a field names. A type that needs no parameters need not be among the plugins."""
    found = plugins.get(name)
    if name not in plugins and name in _OWN_TYPES:
        found = _OWN_TYPES[name].make(_OWN_TYPES[name].read({}, name))
    if not isinstance(found, kind):
        fitting = [known for known, plugin in plugins.items() if isinstance(plugin, kind)]
        fix = f"name a plugin of the right kind; there are: {', '.join(fitting) or 'none'}"
        raise InvalidConfig(at, name, fix)
    return found
