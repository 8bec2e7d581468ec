"""Which base model a model name belongs to: from ConfigMaps, as the reference's body-based routing reads them. Pure.

Source: Gateway API Inference Extension, body-based routing: label `inference.networking.k8s.io/bbr-managed: "true"`,
key `baseModel` a name, key `adapters` a YAML list of names.

Whoever may write a ConfigMap somewhere must not move other people's requests. So

- a ConfigMap counts for a Gateway only where a route that the Gateway has accepted matches its base model, and only in
  the namespace of that route or of a pool that the route leads to;
- it takes no name that another has. `data` can be edited at any time, so a ConfigMap's age says little of that: base
  models come before adapters, a name that a route of other namespaces matches is no adapter, and who has an adapter now
  keeps it. Age decides only who gets an adapter that nobody has."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import yaml
from msgspec import Struct

from headrace.core.fields import has_condition
from headrace.gateway.snapshot import GatewayKey, Object, Snapshot, mapping, mappings
from headrace.gateway.status import gateway_of
from headrace.kube.reflector import key_of
from headrace.kube.routes import rules_of
from headrace.protocol import http
from headrace.protocol.objects import ACCEPTED

logger = logging.getLogger(__name__)

_MAX_ADAPTERS_BYTES = 1 << 16
_MAX_ADAPTERS = 4096
_MAX_PROBLEMS = 20
# So much of a name is quoted in a problem.
_QUOTED = 60
# What YAML writes for nothing, where a list could be.
_NOTHING = ("", "~", "null", "Null", "NULL")
# libyaml is much faster; PyYAML may be built without it.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Routes are read again at most so often, however fast requests and changes come.
_AGAIN_SECONDS = 0.2

# (namespace, name) of a ConfigMap.
ConfigMapKey = tuple[str, str]
# A ConfigMap, and what is wrong with it.
Problem = tuple[ConfigMapKey, str]
# The adapters that a ConfigMap names, and "", or none and what is wrong with the list.
Adapters = tuple[tuple[str, ...], str]


class Reading(NamedTuple):
    """`models` is model name to base model name, base models included; `problems` what is wrong with the ConfigMaps.

    `held` says which ConfigMap has which adapter: to be passed to the next reading."""

    models: Mapping[str, str]
    problems: tuple[Problem, ...]
    held: Mapping[str, ConfigMapKey]


class ModelRoute(Struct, frozen=True):
    """What one rule of a route says of models.

    `models` are all names that it matches exactly, `bases` those of base models, None where an expression matches them.
    `namespaces` are those of the route and of its pools."""

    gateways: frozenset[GatewayKey]
    namespaces: frozenset[str]
    models: frozenset[str]
    bases: frozenset[str] | None


def model_routes(snapshot: Snapshot) -> list[ModelRoute]:
    """The rules that match models, of routes that Gateways of ours have accepted."""
    found = []
    for key, route in snapshot.routes.items():
        for rule in rules_of(route):
            matches = list(_model_matches(rule))
            if not matches:
                continue
            of_base = [match for match in matches if match[0] == http.BASE_MODEL]
            found.append(
                ModelRoute(
                    gateways=_accepted_by(route, key[1], snapshot),
                    namespaces=frozenset({key[1], *(pool.namespace for pool in snapshot.pools_of(key, [rule]))}),
                    models=frozenset(value for _, value, exact in matches if exact),
                    bases=frozenset(value for _, value, _ in of_base)
                    if all(exact for _, _, exact in of_base)
                    else None,
                )
            )
    return [route for route in found if route.gateways]


def _model_matches(rule: Object) -> Iterator[tuple[str, str, bool]]:
    """Header, value, and whether it is matched exactly."""
    for match in mappings(rule.get("matches")):
        for header in mappings(match.get("headers")):
            name = str(header.get("name") or "").lower()
            if name in http.MODELS:
                yield name, str(header.get("value") or ""), (header.get("type") or "Exact") == "Exact"


def _accepted_by(route: Object, namespace: str, snapshot: Snapshot) -> frozenset[GatewayKey]:
    return frozenset(
        gateway
        for entry in mappings(mapping(route.get("status")).get("parents"))
        if entry.get("controllerName") == snapshot.controller_name
        and has_condition(entry, ACCEPTED)
        and (gateway := gateway_of(entry, namespace)) is not None
        and gateway in snapshot.gateways
    )


def _by_age(config_maps: Mapping[ConfigMapKey, Object]) -> dict[ConfigMapKey, Object]:
    def age(entry: tuple[ConfigMapKey, Object]) -> tuple[str, ConfigMapKey]:
        return str(mapping(entry[1].get("metadata")).get("creationTimestamp") or ""), entry[0]

    return dict(sorted(config_maps.items(), key=age))


def _assign(
    config_maps: Mapping[ConfigMapKey, Object],
    routes: Iterable[ModelRoute],
    held: Mapping[str, ConfigMapKey],
    adapters_of: Callable[[Object], Adapters],
) -> Reading:
    """Who gets which name. ConfigMaps come in the order in which they get names that nobody has. `adapters_of` reads
    a ConfigMap's adapters."""
    index = _Index(routes)
    problems = _Problems()
    bases: dict[ConfigMapKey, str] = {}
    listed: dict[ConfigMapKey, dict[str, None]] = {}
    holders = frozenset(held.values())
    for key, config_map in config_maps.items():
        base = str(mapping(config_map.get("data")).get("baseModel") or "").strip()
        if not base:
            problems.add(key, "baseModel is empty: name the base model")
        elif not index.leads_to(base, key[0]):
            problems.add(key, f"no accepted route matches base model {_quoted(base)} and leads to namespace {key[0]}")
        else:
            bases[key] = base
        # A holder keeps its names while its route is replaced by another.
        if key in bases or key in holders:
            adapters, problem = adapters_of(config_map)
            if problem:
                problems.add(key, f"adapters: {problem}")
            else:
                listed[key] = dict.fromkeys(adapters)
    kept = {model: key for model, key in held.items() if model in listed.get(key, ())}
    found = {model: bases[key] for model, key in kept.items() if key in bases}
    for key, base in bases.items():
        if kept.get(base, key) != key:
            problems.add(key, f"{_quoted(base)} is an adapter of ConfigMap {'/'.join(kept[base])}: use another name")
        else:
            found[base] = base
    now = dict(kept)
    for key, base in bases.items():
        for model in listed.get(key, ()):
            if found.get(model) == base:
                continue
            if model in found:
                problems.add(key, f"{_quoted(model)} is of {_quoted(found[model])} already: name it in one ConfigMap")
            elif kept.get(model, key) != key:
                problems.add(key, f"{_quoted(model)} is of ConfigMap {'/'.join(kept[model])}: use another name")
            elif index.is_elsewhere(model, key[0]):
                problems.add(key, f"{_quoted(model)} is matched by a route of another namespace: use another name")
            else:
                found[model], now[model] = base, key
    return Reading(found, tuple(problems.found), now)


class _Index:
    """What routes say of names, so that no name walks all routes."""

    def __init__(self, routes: Iterable[ModelRoute]) -> None:
        self._led_to: set[tuple[str, str]] = set()
        self._any_base_in: set[str] = set()
        # Of each name that is matched exactly, the namespaces that every such route has to do with.
        self._shared: dict[str, frozenset[str]] = {}
        for route in routes:
            if route.bases is None:
                self._any_base_in |= route.namespaces
            self._led_to.update((base, namespace) for base in route.bases or () for namespace in route.namespaces)
            for model in route.models:
                self._shared[model] = self._shared.get(model, route.namespaces) & route.namespaces

    def leads_to(self, base: str, namespace: str) -> bool:
        """Whether a route matches the base model and has to do with the namespace."""
        return namespace in self._any_base_in or (base, namespace) in self._led_to

    def is_elsewhere(self, model: str, namespace: str) -> bool:
        """Whether a route matches the name that has nothing to do with the namespace."""
        return model in self._shared and namespace not in self._shared[model]


class _Problems:
    """What is wrong, but no more than a reader can use of one ConfigMap."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self._count: Counter[ConfigMapKey] = Counter()

    def add(self, key: ConfigMapKey, text: str) -> None:
        self._count[key] += 1
        if self._count[key] <= _MAX_PROBLEMS:
            self.found.append((key, text))


def _quoted(name: str) -> str:
    return repr(name[:_QUOTED])


@dataclass(eq=False)
class BaseModels:
    """The mapping as of now, by Gateway. Problems are logged once for each change, and told to `on_problem`."""

    snapshot: Callable[[], Snapshot]
    on_problem: Callable[[Problem], None] = lambda _: None
    _: KW_ONLY
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._seen: Snapshot | None = None
        self._read_at = 0.0
        self._found: dict[GatewayKey | None, Reading] = {}
        self._adapters: dict[ConfigMapKey, tuple[Object, Adapters]] = {}
        self._problems: frozenset[Problem] = frozenset()

    def __call__(self, gateway: GatewayKey | None = None) -> Mapping[str, str]:
        """Model name to base model name for a Gateway; None: for all of ours."""
        newest = self.snapshot()
        if self._seen is not newest and (self._seen is None or self.clock() >= self._read_at + _AGAIN_SECONDS):
            before, self._seen, self._read_at = self._seen, newest, self.clock()
            if before is None or _read_of(before) != _read_of(newest):
                self._read(newest)
        reading = self._found.get(gateway)
        return {} if reading is None else reading.models

    def _read(self, snapshot: Snapshot) -> None:
        """Read for every Gateway, asked for or not: who holds a name must be known before another one wants it."""
        config_maps = _by_age(snapshot.base_model_config_maps)
        self._adapters = {key: read for key, read in self._adapters.items() if key in config_maps}
        routes = model_routes(snapshot)
        before, nothing = self._found, Reading({}, (), {})
        by_gateway: dict[GatewayKey | None, list[ModelRoute]] = {None: routes}
        by_gateway |= {gateway: [] for gateway in before if gateway in snapshot.gateways}
        for route in routes:
            for gateway in route.gateways:
                by_gateway.setdefault(gateway, []).append(route)
        self._found = {
            gateway: _assign(config_maps, found, before.get(gateway, nothing).held, self._adapters_of)
            for gateway, found in by_gateway.items()
        }
        problems = self._found[None].problems
        for problem in sorted(set(problems) - self._problems):
            logger.warning("ConfigMap %s/%s: %s", *problem[0], problem[1])
            self.on_problem(problem)
        self._problems = frozenset(problems)

    def _adapters_of(self, config_map: Object) -> Adapters:
        # To read YAML takes long, and most changes are of something else.
        key = key_of(config_map)
        known = self._adapters.get(key)
        if known is None or known[0] is not config_map:
            known = self._adapters[key] = (config_map, read_adapters(config_map))
        return known[1]


def read_adapters(config_map: Object) -> Adapters:
    """The names of a ConfigMap's adapters."""
    try:
        return tuple(_adapters(mapping(config_map.get("data")).get("adapters"))), ""
    except ValueError as error:
        return (), str(error)


def _read_of(found: Snapshot) -> tuple[object, ...]:
    """All that is read here. Objects that did not change are the same ones in two snapshots."""
    return found.base_model_config_maps, found.routes, found.reference_grants, found.gateways.keys()


def _adapters(text: object) -> Iterator[str]:
    if text is None:
        return
    if not isinstance(text, str):
        raise ValueError("write a YAML list of names")
    # Half a pair of surrogates is no text that YAML could read; bodies are read in the same way.
    raw = text.encode(errors="replace") if len(text) <= _MAX_ADAPTERS_BYTES else b""
    if len(text) > _MAX_ADAPTERS_BYTES or len(raw) > _MAX_ADAPTERS_BYTES:
        raise ValueError(f"longer than {_MAX_ADAPTERS_BYTES} bytes: write a YAML list in several ConfigMaps")
    try:
        for count, name in enumerate(_scalars(raw)):
            if count >= _MAX_ADAPTERS:
                raise ValueError(f"more than {_MAX_ADAPTERS} names: write the others in another ConfigMap")
            if name.strip():
                yield name.strip()
    except yaml.YAMLError:
        raise ValueError("this is not YAML: write a list of names, each line '- name'") from None


def _scalars(raw: bytes) -> Iterator[str]:
    """The entries of a document that is one list of plain or quoted scalars. Raises ValueError, YAMLError.

    Events are read, and no values are made: tags run no code, and aliases and nesting take no memory."""
    documents, in_list = 0, False
    for event in yaml.parse(raw, Loader=_LOADER):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ValueError("this is more than one document, not a list of names: remove the line '---'")
        elif isinstance(event, yaml.NodeEvent):
            if event.anchor is not None or getattr(event, "tag", None) is not None:
                raise ValueError("an anchor, alias or tag is not a list of names: quote names that begin with & * !")
            if isinstance(event, yaml.SequenceStartEvent) and not in_list:
                in_list = True
            elif isinstance(event, yaml.ScalarEvent) and event.style not in ("|", ">") and in_list:
                yield event.value
            elif not (isinstance(event, yaml.ScalarEvent) and not event.style and event.value in _NOTHING):
                raise ValueError("this is not a list of names: write each line as '- name'")
