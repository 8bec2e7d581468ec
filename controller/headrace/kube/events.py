"""Events on objects, for `kubectl describe`."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, NamedTuple

from headrace.kube.client import ApiError
from headrace.kube.objects import EVENTS, create

logger = logging.getLogger(__name__)

MAX_MESSAGE = 1000


class Subject(NamedTuple):
    """What an event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str


async def write_event(
    client: Any, component: str, subject: Subject, reason: str, message: str, *, warning: bool = True, uid: str = ""
) -> None:
    """Write one event. `reason` is in CamelCase, `component` says who tells. A failure is logged and nothing else."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": f"{subject.name[:200]}.", "namespace": subject.namespace},
        "involvedObject": {
            "apiVersion": subject.api_version,
            "kind": subject.kind,
            "namespace": subject.namespace,
            "name": subject.name,
            **({"uid": uid} if uid else {}),
        },
        "type": "Warning" if warning else "Normal",
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "source": {"component": component},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    try:
        await create(client, EVENTS, event)
    except ApiError as error:
        logger.warning("no event %s on %s %s/%s: %s", reason, *subject[1:], error)
