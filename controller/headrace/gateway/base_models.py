"""Which base model a model name belongs to: from ConfigMaps, as the reference's body-based routing reads them. Pure.

Source: Gateway API Inference Extension, body-based routing: label `inference.networking.k8s.io/bbr-managed: "true"`,
key `baseModel` a name, key `adapters` a YAML list of names.

Whoever may write a ConfigMap somewhere must not move other people's requests. So

- a ConfigMap counts for a Gateway only where a route that the Gateway has accepted matches its base model, and only in
  the namespace of that route or of a pool that the route leads to;
- it takes no name that another has: an older ConfigMap, or an older route of other namespaces that matches the name."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from headrace.gateway import names
from headrace.gateway.snapshot import Object, Snapshot, backends_of, mapping, mappings, rules_of
from headrace.gateway.status import GatewayKey, gateway_of
from headrace.kube.reflector import key_of

logger = logging.getLogger(__name__)

_MAX_ADAPTERS_BYTES = 1 << 18
# Routes are read again at most so often, however fast requests and changes come.
_AGAIN_SECONDS = 0.2

# (namespace, name) of a ConfigMap, and what is wrong with it.
Problem = tuple[tuple[str, str], str]


@dataclass(frozen=True)
class ModelRoute:
    """What one rule of a route says of models.

    `models` are all names that it matches exactly, `bases` those of base models, None where an expression matches them.
    `namespaces` are those of the route and of its pools."""

    created: str
    gateways: frozenset[GatewayKey]
    namespaces: frozenset[str]
    models: frozenset[str]
    bases: frozenset[str] | None

    def leads_to(self, base: str, namespace: str) -> bool:
        """Whether a base model is the rule's, as far as that namespace goes."""
        return namespace in self.namespaces and (self.bases is None or base in self.bases)


def model_routes(snapshot: Snapshot, controller_name: str) -> list[ModelRoute]:
    """The rules that match models, of routes that Gateways of ours have accepted."""
    found = []
    for kind, routes in (("HTTPRoute", snapshot.http_routes), ("GRPCRoute", snapshot.grpc_routes)):
        for (namespace, _), route in routes.items():
            for rule in rules_of(route):
                matches = list(_model_matches(rule))
                if not matches:
                    continue
                of_base = [match for match in matches if match[0] == names.BASE_MODEL_HEADER]
                pools = {
                    backend.namespace
                    for backend in backends_of(rule, namespace)
                    if backend.is_pool and snapshot.permits(kind, namespace, backend)
                }
                found.append(
                    ModelRoute(
                        created=_created(route),
                        gateways=_accepted_by(route, namespace, snapshot, controller_name),
                        namespaces=frozenset({namespace, *pools}),
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
            if name in names.MODEL_HEADERS:
                yield name, str(header.get("value") or ""), (header.get("type") or "Exact") == "Exact"


def _accepted_by(route: Object, namespace: str, snapshot: Snapshot, controller_name: str) -> frozenset[GatewayKey]:
    return frozenset(
        gateway
        for entry in mappings(mapping(route.get("status")).get("parents"))
        if entry.get("controllerName") == controller_name
        and any(
            condition.get("type") == "Accepted" and condition.get("status") == "True"
            for condition in mappings(entry.get("conditions"))
        )
        and (gateway := gateway_of(entry, namespace)) is not None
        and gateway in snapshot.gateways
    )


def base_models(
    snapshot: Snapshot,
    controller_name: str,
    gateway: GatewayKey | None = None,
    *,
    adapters_of: Callable[[Object], Sequence[str]] | None = None,
) -> tuple[Mapping[str, str], tuple[Problem, ...]]:
    """Model name to base model name, base models included; and what is wrong with the ConfigMaps.

    For one Gateway, or for all of ours. `adapters_of` reads a ConfigMap's adapters; raises ValueError."""
    routes = [
        route for route in model_routes(snapshot, controller_name) if gateway is None or gateway in route.gateways
    ]
    found: dict[str, str] = {}
    problems: list[Problem] = []
    in_order = sorted(snapshot.base_model_config_maps.items(), key=lambda entry: (_created(entry[1]), entry[0]))
    for key, config_map in in_order:
        base = str(mapping(config_map.get("data")).get("baseModel") or "").strip()
        if not base:
            problems.append((key, "baseModel is empty: name the base model"))
            continue
        if not any(route.leads_to(base, key[0]) for route in routes):
            problems.append((key, f"no accepted route matches base model {base!r} and leads to namespace {key[0]}"))
            continue
        models = [base]
        try:
            models += (adapters_of or read_adapters)(config_map)
        except ValueError as error:
            problems.append((key, f"adapters: {error}"))
        for model in models:
            holder = _holder(model, key[0], _created(config_map), routes)
            if holder is not None:
                problems.append((key, f"{model!r} is a route's of namespace {holder}: it is left to that route"))
                continue
            known = found.setdefault(model, base)
            if known != base:
                problems.append((key, f"{model!r} is of {known!r} already: name it in one ConfigMap"))
    return found, tuple(problems)


def _holder(model: str, namespace: str, created: str, routes: Iterable[ModelRoute]) -> str | None:
    """The namespace of a route that had the name first and has nothing to do with this namespace."""
    for route in routes:
        if model in route.models and namespace not in route.namespaces and route.created <= created:
            return min(route.namespaces)
    return None


def _created(found: Object) -> str:
    return str(mapping(found.get("metadata")).get("creationTimestamp") or "")


class BaseModels:
    """The mapping as of now, by Gateway. Problems are logged once for each change, and told to `on_problem`."""

    def __init__(
        self,
        snapshot: Callable[[], Snapshot],
        controller_name: str,
        on_problem: Callable[[Problem], None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshot = snapshot
        self._controller_name = controller_name
        self._on_problem = on_problem
        self._clock = clock
        self._read: Snapshot | None = None
        self._read_at = 0.0
        self._found: dict[GatewayKey | None, Mapping[str, str]] = {}
        self._adapters: dict[tuple[str, str], tuple[Object, tuple[str, ...], str]] = {}
        self._problems: frozenset[Problem] = frozenset()

    def __call__(self, gateway: GatewayKey | None = None) -> Mapping[str, str]:
        """Model name to base model name for a Gateway; None: for all of ours."""
        newest = self._snapshot()
        if self._read is not newest and (self._read is None or self._clock() >= self._read_at + _AGAIN_SECONDS):
            self._read, self._read_at, self._found = newest, self._clock(), {}
            known = newest.base_model_config_maps
            self._adapters = {key: read for key, read in self._adapters.items() if key in known}
            problems = self._read_for(newest, None)
            for problem in sorted(set(problems) - self._problems):
                logger.warning("ConfigMap %s/%s: %s", *problem[0], problem[1])
                self._on_problem(problem)
            self._problems = frozenset(problems)
        if gateway not in self._found and self._read is not None:
            if gateway not in self._read.gateways:
                return {}
            self._read_for(self._read, gateway)
        return self._found[gateway]

    def _read_for(self, snapshot: Snapshot, gateway: GatewayKey | None) -> tuple[Problem, ...]:
        self._found[gateway], problems = base_models(
            snapshot, self._controller_name, gateway, adapters_of=self._adapters_of
        )
        return problems

    def _adapters_of(self, config_map: Object) -> tuple[str, ...]:
        # To read YAML takes long, and most changes are of something else.
        key = key_of(config_map)
        known = self._adapters.get(key)
        if known is None or known[0] is not config_map:
            try:
                known = (config_map, read_adapters(config_map), "")
            except ValueError as error:
                known = (config_map, (), str(error))
            self._adapters[key] = known
        if known[2]:
            raise ValueError(known[2])
        return known[1]


def read_adapters(config_map: Object) -> tuple[str, ...]:
    """The names of a ConfigMap's adapters. Raises ValueError."""
    return tuple(_adapters(mapping(config_map.get("data")).get("adapters")))


def _adapters(text: object) -> Iterator[str]:
    if text is None:
        return
    if not isinstance(text, str) or len(text) > _MAX_ADAPTERS_BYTES:
        raise ValueError("write a YAML list of names")
    try:
        listed = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError):
        raise ValueError("this is not YAML: write a list of names, each line '- name'") from None
    if listed is None:
        return
    if not isinstance(listed, list) or not all(isinstance(entry, str | int | float) for entry in listed):
        raise ValueError(f"{str(listed)[:60]!r} is not a list of names: write each line as '- name'")
    yield from (str(entry).strip() for entry in listed if str(entry).strip())
