"""`EndpointPickerConfig`: plugins and scheduling profiles, as the reference picker's file has them.

Takes the decoded document; reading the file is the caller's. Groups `inference.networking.x-k8s.io/v1alpha1` and
`llm-d.ai/v1alpha1`. Sections of other layers (`flowControl`, `dataLayer`) are left to those: they find the plugins they
refer to in what is read here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from headrace.core import Request
from headrace.scheduling.catalog import BUILT_IN, FACTORIES, PREFIX_PRODUCERS, Factory, refused
from headrace.scheduling.handlers import HeaderProfileHandler, ProfileHandler, SingleProfileHandler
from headrace.scheduling.parameters import InvalidConfig, Parameters
from headrace.scheduling.pickers import MaxScorePicker
from headrace.scheduling.plugin import Filter, Picker, Scorer
from headrace.scheduling.profile import Profile, WeightedScorer, default_profile
from headrace.scheduling.saturation import SaturationDetector
from headrace.scheduling.scorers import PrefixCacheScorer
from headrace.scheduling.tokens import BYTES_A_TOKEN

API_VERSIONS = ("inference.networking.x-k8s.io/v1alpha1", "llm-d.ai/v1alpha1")
KIND = "EndpointPickerConfig"
SECTIONS = (
    "apiVersion",
    "kind",
    "metadata",
    "plugins",
    "schedulingProfiles",
    "featureGates",
    "saturationDetector",
    "flowControl",
    "dataLayer",
    "data",
    "parser",
    "requestHandler",
)
# The reference picker takes blocks of fewer tokens for this many: smaller ones cost more than they tell.
_FEWEST_BLOCK_TOKENS = 64


@dataclass(frozen=True)
class PrefixSettings:
    """How prompts are cut into blocks: bytes a block, blocks of a prompt at most, blocks kept per endpoint at most.

    With `auto_tune` an endpoint that says how much its KV cache holds is taken at its word."""

    block_bytes: int = 256
    max_blocks: int = 2048
    blocks_per_endpoint: int = 31_250
    auto_tune: bool = True

    @property
    def block_tokens(self) -> int:
        """Tokens a block stands for."""
        return self.block_bytes // BYTES_A_TOKEN

    def capacity(self, cache_tokens: int) -> int:
        """How many blocks an endpoint is thought to hold at most, whose KV cache has so many tokens (0: unknown)."""
        if not self.auto_tune or not cache_tokens:
            return self.blocks_per_endpoint
        return max(1, cache_tokens // self.block_tokens)


@dataclass(frozen=True)
class SchedulingConfig:
    """What an EndpointPickerConfig comes to. `notes` are things the operator should know, for the log.

    `profile` is the only profile, or the first; `profiles` has all of them where there are several. `plugins` are all
    that the file names, by name, those of other layers included."""

    profile: Profile = field(default_factory=default_profile)
    prefix: PrefixSettings = PrefixSettings()
    notes: tuple[str, ...] = ()
    handler: ProfileHandler = field(default_factory=SingleProfileHandler)
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    plugins: Mapping[str, object] = field(default_factory=dict)

    def choose(self, request: Request) -> Profile | None:
        """The profile for a request; None where it asks for one that there is not."""
        return self.handler.choose(request, self.profiles) if self.profiles else self.profile


_NO_OTHERS: Mapping[str, Factory] = MappingProxyType({})


def known_plugin_types(others: Mapping[str, Factory] = _NO_OTHERS) -> tuple[str, ...]:
    """Every plugin type that a file may name. `others` are those of other layers."""
    return tuple(sorted({*FACTORIES, *PREFIX_PRODUCERS, *BUILT_IN, *others}))


def read_config(document: object, others: Mapping[str, Factory] = _NO_OTHERS) -> SchedulingConfig:
    """The settings of a decoded EndpointPickerConfig. Raises InvalidConfig."""
    if not isinstance(document, Mapping):
        raise InvalidConfig("EndpointPickerConfig", document, "give an object with apiVersion, kind and plugins")
    if document.get("apiVersion") not in API_VERSIONS:
        raise InvalidConfig("apiVersion", document.get("apiVersion"), f"use {' or '.join(API_VERSIONS)}")
    if document.get("kind") != KIND:
        raise InvalidConfig("kind", document.get("kind"), f"use {KIND}")
    root = Parameters(document, "")
    notes = [f"{name!s:.100} is not a section of {KIND} and has no effect" for name in document if name not in SECTIONS]
    plugins: dict[str, object] = {}
    prefix = PrefixSettings()
    for entry in root.objects("plugins"):
        plugin_type = entry.text("type", needed=True)
        name = entry.text("name") or plugin_type
        if name in plugins:
            raise InvalidConfig(entry.at("name"), name, "give each plugin a name of its own")
        parameters = entry.object("parameters")
        entry.finish()
        if plugin_type in PREFIX_PRODUCERS or plugin_type == PrefixCacheScorer.type_name:
            prefix = _prefix_settings(parameters, prefix)
        if plugin_type in BUILT_IN:
            plugins[name] = None
            if BUILT_IN[plugin_type]:
                notes.append(f"{name}: {BUILT_IN[plugin_type]}")
            continue
        factory = FACTORIES.get(plugin_type) or others.get(plugin_type)
        if factory is not None:
            plugins[name] = factory(parameters)
        elif plugin_type in PREFIX_PRODUCERS:
            plugins[name] = None
        else:
            fix = f"unknown plugin type; known: {', '.join(known_plugin_types(others))}"
            raise entry.refuse("type", refused(plugin_type) or fix)
        parameters.finish()
    profiles = _profiles(root, plugins)
    handler = _handler(profiles, plugins)
    return SchedulingConfig(
        profile=next(iter(profiles.values())),
        prefix=prefix,
        notes=tuple(notes),
        handler=handler,
        profiles=profiles if len(profiles) > 1 else {},
        plugins=plugins,
    )


# A plugin's name, the plugin, and its weight.
_Step = tuple[str, object, float]


def _profiles(root: Parameters, plugins: Mapping[str, object]) -> dict[str, Profile]:
    entries = root.objects("schedulingProfiles")
    if not entries:
        # As the reference picker: every plugin of the file, weight 1, in one profile. Without plugins, its default.
        every: list[_Step] = [
            (name, plugin, 1.0)
            for name, plugin in plugins.items()
            # A detector is there for admission: as a filter it must be asked for.
            if isinstance(plugin, Scorer | Filter | Picker) and not isinstance(plugin, SaturationDetector)
        ]
        return {"default": _assemble("default", every) if every else default_profile()}
    profiles: dict[str, Profile] = {}
    for entry in entries:
        name = entry.text("name", needed=True)
        if name in profiles:
            raise entry.refuse("name", "give each scheduling profile a name of its own")
        steps: list[_Step] = []
        for step in entry.objects("plugins"):
            reference = step.text("pluginRef", needed=True)
            if reference not in plugins:
                raise step.refuse("pluginRef", f"name one of the plugins: {', '.join(plugins) or 'none'}")
            weight = step.number("weight", 1.0)
            step.finish()
            plugin = plugins[reference]
            if plugin is not None:
                steps.append((reference, plugin, weight))
        entry.finish()
        profiles[name] = _assemble(name, steps)
    return profiles


def _assemble(name: str, steps: list[_Step]) -> Profile:
    filters: list[Filter] = []
    scorers: list[WeightedScorer] = []
    picker: Picker | None = None
    for step_name, plugin, weight in steps:
        if isinstance(plugin, Picker):
            if picker is not None:
                raise InvalidConfig(f"profile {name}", step_name, "name one picker only")
            picker = plugin
        elif isinstance(plugin, Scorer | Filter):
            # One plugin may be both.
            if isinstance(plugin, Filter):
                filters.append(plugin)
            if isinstance(plugin, Scorer):
                scorers.append(WeightedScorer(plugin, weight, step_name))
        else:
            raise InvalidConfig(f"profile {name}", step_name, "name filters, scorers and a picker only")
    return Profile(name, tuple(filters), tuple(scorers), picker or MaxScorePicker())


def _handler(profiles: Mapping[str, Profile], plugins: Mapping[str, object]) -> ProfileHandler:
    found = {
        name: plugin
        for name, plugin in plugins.items()
        if isinstance(plugin, SingleProfileHandler | HeaderProfileHandler)
    }
    if len(found) > 1:
        raise InvalidConfig("plugins", list(found), "name one profile handler only")
    handler = next(iter(found.values()), SingleProfileHandler())
    if len(profiles) > 1 and isinstance(handler, SingleProfileHandler):
        fix = "give one profile, or the plugin header-profile-handler, which chooses by a request header"
        raise InvalidConfig("schedulingProfiles", list(profiles), fix)
    if len(profiles) > 1 and isinstance(handler, HeaderProfileHandler) and handler.default_profile not in profiles:
        fix = f"name one of the scheduling profiles as {next(iter(found))}'s defaultProfile: {', '.join(profiles)}"
        raise InvalidConfig("defaultProfile", handler.default_profile, fix)
    return handler


def _prefix_settings(parameters: Parameters, current: PrefixSettings) -> PrefixSettings:
    """The prefix index's settings, in the reference picker's parameters. A token is taken as four bytes.

    Blocks below 64 tokens are raised to 64, as there. `autoTune` concerns what endpoints hold, not the size of blocks:
    one size must fit all. Of earlier releases: `blockSize` and `hashBlockSize`, in characters."""
    tokens = parameters.integer("blockSizeTokens", current.block_tokens, at_least=1)
    for name in ("blockSize", "hashBlockSize"):
        if parameters.integer(name, 0) and "blockSizeTokens" not in parameters:
            tokens = max(1, parameters.integer(name, 0) // BYTES_A_TOKEN)
    block_bytes = BYTES_A_TOKEN * max(_FEWEST_BLOCK_TOKENS, tokens)
    longest = parameters.integer(
        "maxPrefixTokensToMatch", current.max_blocks * current.block_bytes // BYTES_A_TOKEN, at_least=1
    )
    blocks = parameters.integer("maxPrefixBlocksToMatch", max(1, longest * BYTES_A_TOKEN // block_bytes), at_least=1)
    return PrefixSettings(
        block_bytes=block_bytes,
        max_blocks=blocks,
        blocks_per_endpoint=parameters.integer("lruCapacityPerServer", current.blocks_per_endpoint, at_least=1),
        auto_tune=parameters.boolean("autoTune", current.auto_tune),
    )
