"""The pool's InferenceObjectives and InferenceModelRewrites, from the Kubernetes API.

Both are extras: where the picker may not read them, or their CRDs are not installed, that is logged once and it serves
without them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from headrace.config.policies import parse_model_rewrite, parse_objective
from headrace.core import EXTENSION_GROUP, InvalidObject
from headrace.core.fields import mapping
from headrace.core.objective import PoolReference
from headrace.core.pool import VERSION_OF_GROUP
from headrace.epp.policies import Policies
from headrace.kube.reflector import OnMalformed, Reflector, Resource
from headrace.serving.tasks import forever

logger = logging.getLogger(__name__)

_VERSION = VERSION_OF_GROUP[EXTENSION_GROUP]


async def watch_policies(
    client: Any, namespace: str, pool: PoolReference, policies: Policies, on_malformed: OnMalformed
) -> None:
    """Keep `policies` up to date. Never returns. `client` is a kubernetes.aio ApiClient."""
    kinds: tuple[_Kind, ...] = (
        _Kind("InferenceObjective", parse_objective, pool, policies.set_objectives),
        _Kind("InferenceModelRewrite", parse_model_rewrite, pool, policies.set_rewrites),
    )
    async with asyncio.TaskGroup() as tasks:
        for kind in kinds:
            tasks.create_task(kind.watch(client, namespace, on_malformed), name=f"watch {kind.name}")


class _Kind:
    """One of the two kinds."""

    def __init__(
        self,
        name: str,
        parse: Callable[[Mapping[str, Any]], Any],
        pool: PoolReference,
        changed: Callable[[list[Any]], None],
    ) -> None:
        self.name = name
        self._parse = parse
        self._pool = pool
        self._changed = changed
        self._complaints: set[str] = set()

    async def watch(self, client: Any, namespace: str, on_malformed: OnMalformed) -> None:
        """Follow the kind in a namespace."""
        resource = Resource(EXTENSION_GROUP, _VERSION, f"{self.name.lower()}s", namespaced=True)
        changed = asyncio.Event()
        reflector = Reflector(client, resource, namespace=namespace, on_change=changed.set, on_malformed=on_malformed)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(forever(reflector.run(), f"follow {self.name}"), name=f"follow {self.name}")
            while True:
                await changed.wait()
                changed.clear()
                self.take(reflector.objects.values())

    def take(self, found: Iterable[Mapping[str, Any]]) -> None:
        """These objects are there now. Those that cannot be used are logged once and left out."""
        usable: list[Any] = []
        complaints: set[str] = set()
        for obj in found:
            try:
                # Items of a list carry neither: the list does.
                parsed = self._parse({"apiVersion": f"{EXTENSION_GROUP}/{_VERSION}", "kind": self.name, **obj})
            except InvalidObject as error:
                name = mapping(obj.get("metadata")).get("name")
                complaints.add(f"{self.name} {name} cannot be used: {error}")
                continue
            if parsed.pool == self._pool:
                usable.append(parsed)
        for complaint in sorted(complaints - self._complaints):
            logger.warning("%s", complaint)
        self._complaints = complaints
        self._changed(usable)
