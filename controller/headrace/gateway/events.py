"""Warning events on pools and routes, for `kubectl describe`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from headrace.gateway.snapshot import Object, mapping
from headrace.kube.client import ApiError, Resource, request

logger = logging.getLogger(__name__)

_EVENTS = Resource("", "v1", "events", True)
_MAX_MESSAGE = 1000
_REMEMBERED = 2_000


class Subject(NamedTuple):
    """What an event is about."""

    api_version: str
    kind: str
    namespace: str
    name: str


class Events:
    """Writes each warning once, until it is withdrawn. `found` gives a subject's object; `run` writes.

    Remembers so many warnings; one that was forgotten is written again."""

    def __init__(self, client: Any, found: Callable[[Subject], Object | None]) -> None:
        self._client = client
        self._found = found
        self._said: dict[tuple[Subject, str, str], None] = {}
        self._waiting: asyncio.Queue[tuple[Subject, str, str]] = asyncio.Queue(_REMEMBERED)

    def warn(self, subject: Subject, reason: str, message: str) -> None:
        """Say something that is not said yet. `reason` is in CamelCase."""
        warning = (subject, reason, message[:_MAX_MESSAGE])
        if warning in self._said:
            return
        with contextlib.suppress(asyncio.QueueFull):
            self._waiting.put_nowait(warning)
            self._said[warning] = None
        if len(self._said) > _REMEMBERED:
            del self._said[next(iter(self._said))]

    def withdraw(self, subject: Subject, reason: str) -> None:
        """It holds no longer: when it does again, that is said again."""
        self._said = {said: None for said in self._said if said[:2] != (subject, reason)}

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            subject, reason, message = await self._waiting.get()
            found = self._found(subject)
            if found is not None:
                await self._write(subject, str(mapping(found.get("metadata")).get("uid") or ""), reason, message)

    async def _write(self, subject: Subject, uid: str, reason: str, message: str) -> None:
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
                "uid": uid,
            },
            "type": "Warning",
            "reason": reason,
            "message": message,
            "source": {"component": "headrace-gateway"},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            path = _EVENTS.path(subject.namespace)
            await request(self._client, "POST", path, body=event, content_type="application/json")
        except ApiError as error:
            logger.warning("no warning event for %s %s/%s: %s", *subject[1:], error)
