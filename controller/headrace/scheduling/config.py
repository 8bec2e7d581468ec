"""`EndpointPickerConfig`: plugins and scheduling profiles, as the reference picker's file has them.

Takes the decoded document; reading the file is the caller's. Groups `inference.networking.x-k8s.io/v1alpha1` and
`llm-d.ai/v1alpha1`. One scheduling profile is used; with several, the first, unless one is called `default`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.scheduling.filters import AdapterAffinityFilter
from headrace.scheduling.parameters import InvalidConfig, Parameters
from headrace.scheduling.pickers import MaxScorePicker, RandomPicker, WeightedRandomPicker
from headrace.scheduling.plugin import Filter, Picker, Plugin, Scorer
from headrace.scheduling.profile import Profile, WeightedScorer, default_profile
from headrace.scheduling.scorers import (
    ActiveRequestScorer,
    KvCacheUtilizationScorer,
    LoadAwareScorer,
    LoraAffinityScorer,
    PrefixCacheScorer,
    QueueScorer,
    RunningRequestsScorer,
)

API_VERSIONS = ("inference.networking.x-k8s.io/v1alpha1", "llm-d.ai/v1alpha1")
KIND = "EndpointPickerConfig"


@dataclass(frozen=True)
class PrefixSettings:
    """How prompts are cut into blocks: bytes a block, blocks of a prompt at most, blocks kept per endpoint at most."""

    block_bytes: int = 256
    max_blocks: int = 2048
    blocks_per_endpoint: int = 31_250


@dataclass(frozen=True)
class SchedulingConfig:
    """What an EndpointPickerConfig comes to. `notes` are things the operator should know, for the log."""

    profile: Profile = field(default_factory=default_profile)
    prefix: PrefixSettings = PrefixSettings()
    notes: tuple[str, ...] = ()


_Factory = Callable[[Parameters], Plugin]

_PLUGINS: dict[str, _Factory] = {
    QueueScorer.type_name: lambda p: QueueScorer(),
    # The name of earlier releases.
    "queue": lambda p: QueueScorer(),
    RunningRequestsScorer.type_name: lambda p: RunningRequestsScorer(),
    KvCacheUtilizationScorer.type_name: lambda p: KvCacheUtilizationScorer(),
    LoraAffinityScorer.type_name: lambda p: LoraAffinityScorer(),
    LoadAwareScorer.type_name: lambda p: LoadAwareScorer(p.integer("threshold", 128, at_least=1)),
    ActiveRequestScorer.type_name: lambda p: _active_request(p),
    PrefixCacheScorer.type_name: lambda p: _prefix_scorer(p),
    AdapterAffinityFilter.type_name: lambda p: AdapterAffinityFilter(p.integer("queueSlack", 8)),
    MaxScorePicker.type_name: lambda p: MaxScorePicker(p.integer("maxNumOfEndpoints", 1, at_least=1)),
    RandomPicker.type_name: lambda p: RandomPicker(p.integer("maxNumOfEndpoints", 1, at_least=1)),
    WeightedRandomPicker.type_name: lambda p: WeightedRandomPicker(p.integer("maxNumOfEndpoints", 1, at_least=1)),
}

# Plugins that are not steps of a profile: what they do is built in.
_PREFIX_PRODUCERS = ("approx-prefix-cache-producer", "prefix-cache-plugin")
_BUILT_IN = ("single-profile-handler",)


def known_plugin_types() -> tuple[str, ...]:
    """Every plugin type that a file may name."""
    return tuple(sorted((*_PLUGINS, *_PREFIX_PRODUCERS, *_BUILT_IN)))


def read_config(document: object) -> SchedulingConfig:
    """The settings of a decoded EndpointPickerConfig. Raises InvalidConfig."""
    if not isinstance(document, Mapping):
        raise InvalidConfig("EndpointPickerConfig", document, "give an object with apiVersion, kind and plugins")
    if document.get("apiVersion") not in API_VERSIONS:
        raise InvalidConfig("apiVersion", document.get("apiVersion"), f"use {' or '.join(API_VERSIONS)}")
    if document.get("kind") != KIND:
        raise InvalidConfig("kind", document.get("kind"), f"use {KIND}")
    notes = tuple(
        f"{name} is not supported yet and has no effect"
        for name in document
        if name not in ("apiVersion", "kind", "metadata", "plugins", "schedulingProfiles")
    )
    plugins: dict[str, Plugin | None] = {}
    prefix = PrefixSettings()
    for number, entry in enumerate(_list(document, "plugins", "")):
        path = f"plugins[{number}]"
        plugin_type = _text(entry, "type", path)
        name = _text(entry, "name", path) if entry.get("name") is not None else plugin_type
        if name in plugins:
            raise InvalidConfig(f"{path}.name", name, "give each plugin a name of its own")
        values = entry.get("parameters") or {}
        if not isinstance(values, Mapping):
            raise InvalidConfig(f"{path}.parameters", values, "give an object")
        parameters = Parameters(values, f"{path}.parameters")
        if plugin_type in _PREFIX_PRODUCERS or plugin_type == PrefixCacheScorer.type_name:
            prefix = _prefix_settings(parameters, prefix)
        if plugin_type in _PLUGINS:
            plugins[name] = _PLUGINS[plugin_type](parameters)
        elif plugin_type in _PREFIX_PRODUCERS or plugin_type in _BUILT_IN:
            plugins[name] = None
        else:
            fix = f"unknown plugin type; known: {', '.join(known_plugin_types())}"
            raise InvalidConfig(f"{path}.type", plugin_type, fix)
        parameters.finish()
    return SchedulingConfig(profile=_profile(document, plugins), prefix=prefix, notes=notes)


def _profile(document: Mapping[str, Any], plugins: Mapping[str, Plugin | None]) -> Profile:
    profiles = _list(document, "schedulingProfiles", "")
    if not profiles:
        # As the reference picker: every plugin of the file, weight 1, in one profile. Without plugins, its default.
        if not any(plugins.values()):
            return default_profile()
        return _assemble("default", [(name, plugin, 1.0) for name, plugin in plugins.items() if plugin is not None])
    chosen = next((n for n, entry in enumerate(profiles) if entry.get("name") == "default"), 0)
    path = f"schedulingProfiles[{chosen}]"
    steps: list[tuple[str, Plugin, float]] = []
    for number, entry in enumerate(_list(profiles[chosen], "plugins", path)):
        at = f"{path}.plugins[{number}]"
        reference = _text(entry, "pluginRef", at)
        if reference not in plugins:
            raise InvalidConfig(
                f"{at}.pluginRef", reference, f"name one of the plugins: {', '.join(plugins) or 'none'}"
            )
        weight = Parameters(entry, at).number("weight", 1.0)
        plugin = plugins[reference]
        if plugin is not None:
            steps.append((reference, plugin, weight))
    return _assemble(_text(profiles[chosen], "name", path), steps)


def _assemble(name: str, steps: list[tuple[str, Plugin, float]]) -> Profile:
    filters: list[Filter] = []
    scorers: list[WeightedScorer] = []
    picker: Picker | None = None
    for step_name, plugin, weight in steps:
        if isinstance(plugin, Scorer):
            scorers.append(WeightedScorer(plugin, weight, step_name))
        elif isinstance(plugin, Filter):
            filters.append(plugin)
        elif picker is not None:
            raise InvalidConfig(f"profile {name}", step_name, "name one picker only")
        else:
            picker = plugin
    return Profile(name, tuple(filters), tuple(scorers), picker or MaxScorePicker())


def _active_request(parameters: Parameters) -> ActiveRequestScorer:
    return ActiveRequestScorer(
        idle_threshold=parameters.integer("idleThreshold", 0),
        max_busy_score=parameters.number("maxBusyScore", 1.0, at_most=1.0),
    )


def _prefix_scorer(parameters: Parameters) -> PrefixCacheScorer:
    block_tokens = max(64, parameters.integer("blockSizeTokens", 16, at_least=1))
    return PrefixCacheScorer(parameters.number("matchLengthWeight", 0.0, at_most=1.0), block_tokens)


def _prefix_settings(parameters: Parameters, current: PrefixSettings) -> PrefixSettings:
    """The prefix index's settings, in the reference picker's parameters. A token is taken as four bytes.

    Blocks below 64 tokens are raised to 64, as there. `autoTune` is read and means the defaults here."""
    parameters.boolean("autoTune", True)
    block_bytes = 4 * max(64, parameters.integer("blockSizeTokens", current.block_bytes // 4, at_least=1))
    tokens = parameters.integer("maxPrefixTokensToMatch", current.max_blocks * current.block_bytes // 4, at_least=1)
    blocks = parameters.integer("maxPrefixBlocksToMatch", max(1, tokens * 4 // block_bytes), at_least=1)
    return PrefixSettings(
        block_bytes=block_bytes,
        max_blocks=blocks,
        blocks_per_endpoint=parameters.integer("lruCapacityPerServer", current.blocks_per_endpoint, at_least=1),
    )


def _list(parent: Mapping[str, Any], name: str, path: str) -> list[Mapping[str, Any]]:
    value = parent.get(name)
    where = f"{path}.{name}" if path else name
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidConfig(where, value, "give a list")
    for number, entry in enumerate(value):
        if not isinstance(entry, Mapping):
            raise InvalidConfig(f"{where}[{number}]", entry, "give an object")
    return value


def _text(parent: Mapping[str, Any], name: str, path: str) -> str:
    value = parent.get(name)
    if not isinstance(value, str) or not value:
        raise InvalidConfig(f"{path}.{name}", value, "give a name")
    return value
