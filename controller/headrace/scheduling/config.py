"""`EndpointPickerConfig`: plugins and scheduling profiles, as the reference picker's file has them.

Takes the decoded document; reading the file is the caller's. Groups `inference.networking.x-k8s.io/v1alpha1` and
`llm-d.ai/v1alpha1`. Sections of other layers (`flowControl`, `dataLayer`) are left to those: they find the plugins they
refer to in what is read here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from msgspec import Struct

from headrace.config.decode import InvalidConfig, Number, Parameters, Text, decode
from headrace.config.plugins import PluginType, find, joined
from headrace.core import Request
from headrace.core.invalid import shown
from headrace.scheduling.handlers import HeaderProfileHandler, ProfileHandler, SingleProfileHandler
from headrace.scheduling.health import HealthFilter
from headrace.scheduling.pickers import MaxScorePicker
from headrace.scheduling.plugin import Filter, Picker, Scorer
from headrace.scheduling.plugins import PLUGINS
from headrace.scheduling.prefix import PrefixParameters, PrefixSettings
from headrace.scheduling.profile import Profile, WeightedScorer, default_profile
from headrace.scheduling.saturation import SaturationDetector

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


# YAML's aliases can make much of little: lists and parameters are passed on as they are, and each entry is decoded once
# those before it are good.
class _Plugin(Parameters, frozen=True):
    type: Text
    name: str = ""
    parameters: Any = None


class _Step(Parameters, frozen=True):
    plugin_ref: Text
    weight: Number = 1.0


class _Profile(Parameters, frozen=True):
    name: Text
    plugins: tuple[Any, ...] = ()


class _Sections(Struct, frozen=True, rename="camel"):
    """What is read here; the other sections are other readers'."""

    plugins: tuple[Any, ...] = ()
    scheduling_profiles: tuple[Any, ...] = ()


@dataclass(frozen=True)
class SchedulingConfig:
    """What an EndpointPickerConfig comes to. `notes` are things the operator should know, for the log.

    `profile` is the only profile, or the first; `profiles` has all of them where there are several. `plugins` are all
    that the file names, by name, those of other layers included."""

    profile: Profile = field(default_factory=default_profile)
    prefix: PrefixSettings = field(default_factory=PrefixSettings)
    notes: tuple[str, ...] = ()
    handler: ProfileHandler = field(default_factory=SingleProfileHandler)
    profiles: Mapping[str, Profile] = field(default_factory=dict)
    plugins: Mapping[str, object] = field(default_factory=dict)

    def with_health(self) -> SchedulingConfig:
        """The same, with the health filter first in the profiles that do not name one."""
        profiles = {name: _with_health(profile) for name, profile in self.profiles.items()}
        return replace(self, profile=_with_health(self.profile), profiles=profiles)

    def choose(self, request: Request) -> Profile | None:
        """The profile for a request; None where it asks for one that there is not."""
        return self.handler.choose(request, self.profiles) if self.profiles else self.profile


def _with_health(profile: Profile) -> Profile:
    if any(isinstance(step, HealthFilter) for step in profile.filters):
        return profile
    return replace(profile, filters=(HealthFilter(), *profile.filters))


TYPES = joined(PLUGINS)


def read_config(document: object, types: Mapping[str, PluginType] = TYPES) -> SchedulingConfig:
    """The settings of a decoded EndpointPickerConfig whose plugins are of these types. Raises InvalidConfig."""
    if not isinstance(document, Mapping):
        raise InvalidConfig("EndpointPickerConfig", document, "give an object with apiVersion, kind and plugins")
    if document.get("apiVersion") not in API_VERSIONS:
        raise InvalidConfig("apiVersion", document.get("apiVersion"), f"use {' or '.join(API_VERSIONS)}")
    if document.get("kind") != KIND:
        raise InvalidConfig("kind", document.get("kind"), f"use {KIND}")
    # Without nulls, which would have all of it be copied.
    read = {name: given for name in ("plugins", "schedulingProfiles") if (given := document.get(name)) is not None}
    sections = decode(read, _Sections, "")
    notes = [f"{shown(name)} is not a section of {KIND} and has no effect" for name in document if name not in SECTIONS]
    plugins: dict[str, object] = {}
    prefix = PrefixSettings()
    for number, given in enumerate(sections.plugins):
        at = f"plugins[{number}]"
        entry = decode(given, _Plugin, at)
        name = entry.name or entry.type
        if name in plugins:
            raise InvalidConfig(f"{at}.name", name, "give each plugin a name of its own")
        plugin_type = find(types, entry.type, f"{at}.type")
        parameters = plugin_type.read({} if entry.parameters is None else entry.parameters, f"{at}.parameters")
        if isinstance(parameters, PrefixParameters):
            prefix = parameters.applied(prefix)
        plugins[name] = plugin_type.make(parameters)
        if plugin_type.note:
            notes.append(f"{name}: {plugin_type.note}")
    profiles = _profiles(sections.scheduling_profiles, plugins)
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
_Weighted = tuple[str, object, float]


def _profiles(entries: Sequence[object], plugins: Mapping[str, object]) -> dict[str, Profile]:
    if not entries:
        # As the reference picker: every plugin of the file, weight 1, in one profile. Without plugins, its default.
        every: list[_Weighted] = [
            (name, plugin, 1.0)
            for name, plugin in plugins.items()
            # A detector is there for admission: as a filter it must be asked for.
            if isinstance(plugin, Scorer | Filter | Picker) and not isinstance(plugin, SaturationDetector)
        ]
        return {"default": _assemble("default", every) if every else default_profile()}
    profiles: dict[str, Profile] = {}
    for number, given in enumerate(entries):
        at = f"schedulingProfiles[{number}]"
        entry = decode(given, _Profile, at)
        if entry.name in profiles:
            raise InvalidConfig(f"{at}.name", entry.name, "give each scheduling profile a name of its own")
        steps = [decode(step, _Step, f"{at}.plugins[{place}]") for place, step in enumerate(entry.plugins)]
        for place, step in enumerate(steps):
            if step.plugin_ref not in plugins:
                fix = f"name one of the plugins: {', '.join(plugins) or 'none'}"
                raise InvalidConfig(f"{at}.plugins[{place}].pluginRef", step.plugin_ref, fix)
        named = [(step.plugin_ref, plugins[step.plugin_ref], step.weight) for step in steps]
        profiles[entry.name] = _assemble(entry.name, [step for step in named if step[1] is not None])
    return profiles


def _assemble(name: str, steps: list[_Weighted]) -> Profile:
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
