"""The informers: which kinds are followed, where, and the snapshot that they come to.

Routes, Gateways and pools are followed in the whole cluster; Pods, Services and EndpointSlices only in namespaces that
hold a pool; of ConfigMaps only those that a BackendTLSPolicy takes a CA from, and those that name base models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, NoReturn

from headrace.gateway.snapshot import Object, Snapshot, mapping, parse_pools
from headrace.gateway.trust import config_maps_of
from headrace.kube import objects as kinds
from headrace.kube.client import Resource
from headrace.kube.reflector import Reflector, key_of
from headrace.protocol.objects import BASE_MODEL_SELECTOR, POOL_ANNOTATIONS
from headrace.serving.tasks import Supervisor

_BESIDE_POOLS = (kinds.PODS, kinds.SERVICES, kinds.ENDPOINT_SLICES)
# What a translation is made of, besides what stands beside the pools.
TRANSLATED = (*kinds.ROUTES.values(), kinds.REFERENCE_GRANTS, *kinds.POOLS.values())
_EVERYWHERE = (*TRANSLATED, kinds.GATEWAYS, kinds.GATEWAY_CLASSES, kinds.BACKEND_TLS_POLICIES)

# Resource, namespace, name; of the ConfigMaps in the whole cluster those with the label of base models.
_Key = tuple[Resource, str, str]
_BASE_MODELS: _Key = (kinds.CONFIG_MAPS, "", "")


@dataclass(eq=False)
class Watch:
    """The informers of the process. `on_change` is called after each batch of changes, once the first lists are in;
    `on_malformed`, with the kind's plural, for what the API server says that cannot be used.

    `settled` is set when every kind has been listed or is known to be absent, beside each pool too. `news` counts the
    changes that a translation depends on."""

    client: Any
    on_change: Callable[[], None]
    on_malformed: Callable[[str], None] = lambda kind: None
    _: KW_ONLY
    controller_name: str = ""
    verify_by_default: bool = True

    def __post_init__(self) -> None:
        self._nothing = Snapshot(controller_name=self.controller_name, verify_by_default=self.verify_by_default)
        self._reflectors: dict[_Key, Reflector] = {}
        self._tasks: dict[_Key, asyncio.Task[NoReturn]] = {}
        self._snapshot: Snapshot | None = None
        self._marks: dict[Resource, dict[tuple[str, str], object]] = {}
        self._reshape = asyncio.Event()
        self._fresh_news = asyncio.Event()
        self.news = 0
        self.settled = asyncio.Event()

    @property
    def snapshot(self) -> Snapshot:
        """The newest state."""
        if self._snapshot is None:
            self._snapshot = self.snapshot_with({})
        return self._snapshot

    async def wait_news(self, seen: int) -> None:
        """Until `news` is no longer `seen`."""
        while self.news == seen:
            self._fresh_news.clear()
            await self._fresh_news.wait()

    def behind(self) -> frozenset[Resource]:
        """The kinds that are translated and whose watch is not open: what they say may be old."""
        found = ((resource, self._reflectors[(resource, "", "")]) for resource in TRANSLATED)
        return frozenset(
            kind
            for kind, reflector in found
            if reflector.synced and not (reflector.live or reflector.absent or reflector.forbidden)
        )

    def forbidden(self) -> list[str]:
        """The kinds that we may not read: a rule is missing in the ClusterRole."""
        return sorted({str(key[0]) for key, found in self._reflectors.items() if found.forbidden})

    async def run(self) -> None:
        """Follow until cancelled. An informer that ends by itself ends this."""
        async with Supervisor() as tasks:
            for resource in _EVERYWHERE:
                self._follow(tasks, (resource, "", ""))
            self._follow(tasks, _BASE_MODELS, label_selector=BASE_MODEL_SELECTOR)
            await asyncio.gather(*(found.wait_settled() for found in list(self._reflectors.values())))
            while True:
                self._reshape.clear()
                self._follow_what_is_named(tasks)
                await asyncio.gather(*(found.wait_settled() for found in list(self._reflectors.values())))
                if not self._reshape.is_set():
                    self._check_settled()
                await self._reshape.wait()

    def _check_settled(self) -> None:
        # Without Pods or pools that exist but may not be read, an answer would empty clusters: not ready until then.
        needed = [
            found for (kind, _, _), found in self._reflectors.items() if kind in (*kinds.POOLS.values(), *_BESIDE_POOLS)
        ]
        if all(found.synced or found.absent for found in needed):
            self.settled.set()
            self.on_change()
        else:
            asyncio.get_running_loop().call_later(1.0, self._reshape.set)

    def _follow(self, tasks: Supervisor, key: _Key, *, label_selector: str | None = None) -> None:
        resource, namespace, name = key

        def changed() -> None:
            self._snapshot = None
            if resource in TRANSLATED and self._is_news(resource):
                self.news += 1
                self._fresh_news.set()
            if resource in (*kinds.POOLS.values(), kinds.BACKEND_TLS_POLICIES):
                self._reshape.set()
            if self.settled.is_set():
                self.on_change()

        found = Reflector(
            self.client,
            resource,
            namespace=namespace or None,
            label_selector=label_selector,
            field_selector=f"metadata.name={name}" if name else None,
            on_change=changed,
            on_malformed=self.on_malformed,
        )
        self._reflectors[key] = found
        title = f"informer of {resource} {namespace}/{name}"
        self._tasks[key] = tasks.start(found.run(), title)

    def _is_news(self, resource: Resource) -> bool:
        """Whether a translation may be another one now. The status of routes and pools, which Envoy Gateway and we
        ourselves write after each change, makes none."""
        now = {key: mark_of(found) for key, found in self._reflectors[(resource, "", "")].objects.items()}
        if now == self._marks.get(resource):
            return False
        self._marks[resource] = now
        return True

    def _follow_what_is_named(self, tasks: Supervisor) -> None:
        """Start and stop informers so that they are those that pools and policies call for."""
        namespaces = {namespace for resource in kinds.POOLS.values() for namespace, _ in self.objects(resource)}
        wanted: set[_Key] = {(kind, namespace, "") for kind in _BESIDE_POOLS for namespace in namespaces}
        for (namespace, _), policy in self.objects(kinds.BACKEND_TLS_POLICIES).items():
            if namespace in namespaces:
                wanted |= {(kinds.CONFIG_MAPS, *found) for found in config_maps_of(policy)}
        running = {key for key in self._reflectors if key[1]}
        for key in wanted - running:
            self._follow(tasks, key)
        for key in running - wanted:
            self._tasks.pop(key).cancel()
            del self._reflectors[key]
            self._snapshot = None

    def objects(self, resource: Resource) -> dict[tuple[str, str], Object]:
        """The newest known objects of a kind, by (namespace, name)."""
        found: dict[tuple[str, str], Object] = {}
        for (kind, _, _), reflector in self._reflectors.items():
            if kind == resource:
                found.update(reflector.objects)
        return found

    def snapshot_with(self, fresh: Mapping[Resource, Iterable[Object]]) -> Snapshot:
        """The newest state, with some kinds as they were just listed."""

        def objects(resource: Resource) -> dict[tuple[str, str], Object]:
            listed = fresh.get(resource)
            return self.objects(resource) if listed is None else {key_of(found): found for found in listed}

        pools, bad = parse_pools(
            found for resource in kinds.POOLS.values() for found in _typed(resource, objects(resource))
        )
        return replace(
            self._nothing,
            routes={(kind, *key): found for kind, of in kinds.ROUTES.items() for key, found in objects(of).items()},
            gateways=objects(kinds.GATEWAYS),
            gateway_classes=objects(kinds.GATEWAY_CLASSES),
            reference_grants=objects(kinds.REFERENCE_GRANTS),
            backend_tls_policies=objects(kinds.BACKEND_TLS_POLICIES),
            services=objects(kinds.SERVICES),
            endpoint_slices=objects(kinds.ENDPOINT_SLICES),
            pods=objects(kinds.PODS),
            config_maps=objects(kinds.CONFIG_MAPS),
            base_model_config_maps=dict(self._reflectors[_BASE_MODELS].objects)
            if _BASE_MODELS in self._reflectors
            else {},
            pools=pools,
            bad_pools=bad,
        )


def mark_of(found: Object) -> object:
    """What changes with an object's spec and with the annotations that are read here."""
    metadata = mapping(found.get("metadata"))
    annotations = mapping(metadata.get("annotations"))
    return (metadata.get("uid"), metadata.get("generation"), *map(annotations.get, POOL_ANNOTATIONS))


def _typed(resource: Resource, objects: Mapping[tuple[str, str], Object]) -> Iterable[Object]:
    # The items of a list come without kind and version.
    for found in objects.values():
        yield {"apiVersion": resource.api_version, "kind": "InferencePool", **found}
