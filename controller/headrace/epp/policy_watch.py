"""The pool's InferenceObjectives and InferenceModelRewrites, from the Kubernetes API.

Both are extras: where the picker may not read them, or their CRDs are not installed, that is logged once and it serves
without them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from headrace.config.policies import parse_model_rewrite, parse_objective
from headrace.core import EXTENSION_GROUP, InvalidObject
from headrace.core.fields import mapping
from headrace.core.objective import PoolReference
from headrace.core.pool import VERSION_OF_GROUP
from headrace.epp.policies import Policies
from headrace.kube.reflector import OnMalformed, Reflector, Resource
from headrace.serving.tasks import Supervisor

logger = logging.getLogger(__name__)

_VERSION = VERSION_OF_GROUP[EXTENSION_GROUP]


def follow_policies(
    tasks: Supervisor, client: Any, namespace: str, pool: PoolReference, policies: Policies, on_malformed: OnMalformed
) -> None:
    """Keep `policies` up to date, by tasks of a group. `client` is a kubernetes.aio ApiClient."""
    kinds: tuple[_Kind, ...] = (
        _Kind("InferenceObjective", parse_objective, pool, policies.set_objectives),
        _Kind("InferenceModelRewrite", parse_model_rewrite, pool, policies.set_rewrites),
    )
    for kind in kinds:
        tasks.start(kind.reflector(client, namespace, on_malformed).run(), f"follow {kind.name}")


@dataclass(eq=False)
class _Kind:
    """One of the two kinds. `changed` gets those of the pool that can be used."""

    name: str
    parse: Callable[[Mapping[str, Any]], Any]
    pool: PoolReference
    changed: Callable[[list[Any]], None]

    def __post_init__(self) -> None:
        self._complaints: set[str] = set()

    def reflector(self, client: Any, namespace: str, on_malformed: OnMalformed) -> Reflector:
        """What follows the kind in a namespace."""
        resource = Resource(EXTENSION_GROUP, _VERSION, f"{self.name.lower()}s", namespaced=True)

        def changed() -> None:
            self.take(found.objects.values())

        found = Reflector(client, resource, namespace=namespace, on_change=changed, on_malformed=on_malformed)
        return found

    def take(self, found: Iterable[Mapping[str, Any]]) -> None:
        """These objects are there now. Those that cannot be used are logged once and left out."""
        usable: list[Any] = []
        complaints: set[str] = set()
        for obj in found:
            try:
                # Items of a list carry neither: the list does.
                parsed = self.parse({"apiVersion": f"{EXTENSION_GROUP}/{_VERSION}", "kind": self.name, **obj})
            except InvalidObject as error:
                name = mapping(obj.get("metadata")).get("name")
                complaints.add(f"{self.name} {name} cannot be used: {error}")
                continue
            if parsed.pool == self.pool:
                usable.append(parsed)
        for complaint in sorted(complaints - self._complaints):
            logger.warning("%s", complaint)
        self._complaints = complaints
        self.changed(usable)
