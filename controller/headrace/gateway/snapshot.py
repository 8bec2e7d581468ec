"""What the controller knows of the cluster at one moment, and the questions asked of it. Pure; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from msgspec import Struct, structs

from headrace.config.pools import parse_pool
from headrace.core import EXTENSION_GROUP, GA_GROUP, H2C, InvalidPool, PickerReference, Pool
from headrace.core.fields import Object as Object
from headrace.core.fields import mapping as mapping
from headrace.core.fields import mappings as mappings
from headrace.gateway.names import PoolKey
from headrace.kube.routes import is_granted, refs_of
from headrace.protocol.objects import PICKER_ANNOTATION, PICKER_ANNOTATION_OURS
from headrace.protocol.translated import RouteKey

POOL_KIND = "InferencePool"
# Of a backendRef, says the Gateway API.
_MAX_WEIGHT = 1_000_000

# Objects of one kind by (namespace, name).
Objects = Mapping[tuple[str, str], Object]
# (namespace, name) of a Gateway.
GatewayKey = tuple[str, str]


@dataclass(frozen=True)
class Backend:
    """One backendRef of a route's rule. `index` is its place in the rule."""

    index: int
    group: str
    kind: str
    namespace: str
    name: str
    weight: int
    filters: tuple[Object, ...] = field(default=(), compare=False)

    @property
    def is_pool(self) -> bool:
        """Whether it names an InferencePool, of either group."""
        return self.kind == POOL_KIND and self.group in (GA_GROUP, EXTENSION_GROUP)

    @property
    def pool_key(self) -> PoolKey:
        """The key of the pool it names."""
        return (self.group, self.namespace, self.name)


class PickerService(Struct, frozen=True):
    """An endpoint picker's Service, resolved. `port_name` leads to the EndpointSlices' port."""

    name: str
    namespace: str
    port: int
    port_name: str
    is_ours: bool
    cleartext: bool


@dataclass(frozen=True)
class Snapshot:
    """Objects as the API server gave them, keyed by (namespace, name), routes by their kind too; pools parsed.

    `bad_pools` holds what cannot be used, and why. Gateways are ours whose class names `controller_name`.
    `verify_by_default`: an endpoint picker without a BackendTLSPolicy is not trusted."""

    controller_name: str = ""
    verify_by_default: bool = True
    routes: Mapping[RouteKey, Object] = field(default_factory=dict)
    gateways: Objects = field(default_factory=dict)
    gateway_classes: Objects = field(default_factory=dict)
    reference_grants: Objects = field(default_factory=dict)
    backend_tls_policies: Objects = field(default_factory=dict)
    services: Objects = field(default_factory=dict)
    endpoint_slices: Objects = field(default_factory=dict)
    pods: Objects = field(default_factory=dict)
    config_maps: Objects = field(default_factory=dict)
    base_model_config_maps: Objects = field(default_factory=dict)
    pools: Mapping[PoolKey, Pool] = field(default_factory=dict)
    bad_pools: Mapping[PoolKey, InvalidPool] = field(default_factory=dict)

    def pools_of(self, route: RouteKey, rules: Iterable[Object]) -> Iterator[Backend]:
        """The backends of some rules of a route that are pools it may refer to."""
        for rule in rules:
            for backend in backends_of(rule, route[1]):
                if backend.is_pool and self.permits(route, backend):
                    yield backend

    def permits(self, route: RouteKey, backend: Backend) -> bool:
        """Whether a route may refer to this backend."""
        grants = self.reference_grants.values()
        return is_granted(grants, route, backend.group, backend.kind, backend.namespace, backend.name)

    def picker_service(self, pool: Pool) -> tuple[PickerService, str]:
        """The Service of a pool's endpoint picker, and ""; where it leads nowhere, one that nothing stands behind, and
        why it does and what to do."""
        picker = pool.picker or PickerReference("", 0)
        nobody = PickerService(picker.name, pool.namespace, picker.port or 0, "", is_ours=False, cleartext=False)
        if pool.picker is None:
            return nobody, "the pool names no endpoint picker: set endpointPickerRef"
        if picker.kind != "Service" or picker.group:
            kind = f"{picker.group}/{picker.kind}" if picker.group else picker.kind
            return nobody, f"endpoint picker of kind {kind} is not supported: name a Service"
        where = f"Service {pool.namespace}/{picker.name}"
        service = self.services.get((pool.namespace, picker.name))
        if service is None:
            return nobody, f"there is no {where}: create it, or name another"
        spec = mapping(service.get("spec"))
        if spec.get("type") == "ExternalName":
            return nobody, f"{where} is an ExternalName Service, which an endpoint picker must not be"
        port = next((port for port in mappings(spec.get("ports")) if port.get("port") == picker.port), None)
        if port is None:
            return nobody, f"{where} has no port {picker.port}: add it, or name another port"
        annotations = mapping(mapping(service.get("metadata")).get("annotations"))
        found = structs.replace(
            nobody,
            port_name=str(port.get("name") or ""),
            is_ours=annotations.get(PICKER_ANNOTATION) == PICKER_ANNOTATION_OURS,
            cleartext=port.get("appProtocol") == H2C,
        )
        return found, ""

    def pods_of(self, pool: Pool) -> Iterable[Object]:
        """The Pods that may belong to a pool: every one that does is among them."""
        found = [self._pods_by_label.get((pool.namespace, *pair), ()) for pair in pool.selector.items()]
        return min(found, key=len, default=())

    @cached_property
    def _pods_by_label(self) -> dict[tuple[str, str, str], list[Object]]:
        # Each pool would look at each Pod else, after each change of a Pod.
        found: dict[tuple[str, str, str], list[Object]] = {}
        for (namespace, _), pod in self.pods.items():
            for label, value in mapping(mapping(pod.get("metadata")).get("labels")).items():
                found.setdefault((namespace, label, str(value)), []).append(pod)
        return found

    def policies_of(self, namespace: str, service: str) -> Iterable[tuple[Object, str]]:
        """The BackendTLSPolicies that name a Service, each with the name of the port that it is for ("": all)."""
        return self._policies_by_service.get((namespace, service), ())

    @cached_property
    def _policies_by_service(self) -> dict[tuple[str, str], list[tuple[Object, str]]]:
        found: dict[tuple[str, str], list[tuple[Object, str]]] = {}
        for (namespace, _), policy in self.backend_tls_policies.items():
            for target in mappings(mapping(policy.get("spec")).get("targetRefs")):
                if not target.get("group") and target.get("kind") == "Service":
                    key = (namespace, str(target.get("name") or ""))
                    found.setdefault(key, []).append((policy, str(target.get("sectionName") or "")))
        return found

    @cached_property
    def our_gateways(self) -> frozenset[GatewayKey]:
        """The Gateways whose class belongs to our controller."""
        classes = {
            name
            for (_, name), found in self.gateway_classes.items()
            if mapping(found.get("spec")).get("controllerName") == self.controller_name
        }
        return frozenset(
            key
            for key, found in self.gateways.items()
            if str(mapping(found.get("spec")).get("gatewayClassName")) in classes
        )


def backends_of(rule: Object, route_namespace: str) -> tuple[Backend, ...]:
    """The backendRefs of a route's rule, with the API's defaults filled in."""
    found = []
    for index, reference in enumerate(refs_of(rule)):
        weight = reference.get("weight", 1)
        found.append(
            Backend(
                index=index,
                group=str(reference.get("group") or ""),
                kind=str(reference.get("kind") or "Service"),
                namespace=str(reference.get("namespace") or route_namespace),
                name=str(reference.get("name") or ""),
                weight=weight if isinstance(weight, int) and 0 <= weight <= _MAX_WEIGHT else 1,
                filters=_filters_of(reference),
            )
        )
    return tuple(found)


def _filters_of(reference: Object) -> tuple[Object, ...]:
    """Every filter, unreadable ones as empty: none may get lost, as a request would pass without it."""
    found = reference.get("filters") or ()
    return tuple(mapping(entry) for entry in found) if isinstance(found, list | tuple) else ({},)


def parse_pools(objects: Iterable[Object]) -> tuple[dict[PoolKey, Pool], dict[PoolKey, InvalidPool]]:
    """The pools among objects, and those that cannot be used."""
    pools: dict[PoolKey, Pool] = {}
    bad: dict[PoolKey, InvalidPool] = {}
    for found in objects:
        metadata = mapping(found.get("metadata"))
        group = str(found.get("apiVersion") or "").partition("/")[0]
        key = (group, str(metadata.get("namespace") or "default"), str(metadata.get("name") or ""))
        try:
            pools[key] = parse_pool(found)
        except InvalidPool as error:
            bad[key] = error
    return pools, bad
