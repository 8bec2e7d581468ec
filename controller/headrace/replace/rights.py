"""The rights that role pool_replacement gives a replacement's Job. They end with the Job.

The Job removes its bindings itself, so that its rights end also where nobody follows it; what they bound is removed by
the role. The binding of its own namespace goes last: until then a process that was killed here can do it again."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from headrace.kube.client import ApiError, Resource
from headrace.kube.objects import delete
from headrace.replace.canary import stem
from headrace.replace.plan import PoolRef
from headrace.replace.store import object_name

logger = logging.getLogger(__name__)

_GROUP = "rbac.authorization.k8s.io"
ROLE_BINDINGS = Resource(_GROUP, "v1", "rolebindings", True)
CLUSTER_ROLE_BINDINGS = Resource(_GROUP, "v1", "clusterrolebindings", False)


async def give_up(client: Any, pool: PoolRef, namespaces: Iterable[str]) -> None:
    """Remove the bindings of a pool's Job; `namespaces` are those of routes. What is refused is logged and left."""
    name = object_name(pool)
    paths = [ROLE_BINDINGS.path(namespace, stem(pool).removesuffix("-")) for namespace in sorted(set(namespaces))]
    paths.append(CLUSTER_ROLE_BINDINGS.path(None, f"{name}-{pool.namespace}"))
    paths.append(ROLE_BINDINGS.path(pool.namespace, name))
    for path in paths:
        try:
            await delete(client, path)
        except ApiError as error:
            logger.warning("the binding at %s stays: %s", path, error)
