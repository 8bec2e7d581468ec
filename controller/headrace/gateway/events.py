"""Warning events on pools and routes, for `kubectl describe`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace.gateway.snapshot import Object, mapping
from headrace.kube.events import MAX_MESSAGE, Subject, write_event

_REMEMBERED = 2_000


@dataclass(eq=False)
class Events:
    """Writes each warning once, until it is withdrawn. `found` gives a subject's object; `run` writes.

    Remembers so many warnings; one that was forgotten is written again."""

    client: Any
    found: Callable[[Subject], Object | None]

    def __post_init__(self) -> None:
        self._said: dict[tuple[Subject, str, str], None] = {}
        self._waiting: asyncio.Queue[tuple[Subject, str, str]] = asyncio.Queue(_REMEMBERED)

    def warn(self, subject: Subject, reason: str, message: str) -> None:
        """Say something that is not said yet. `reason` is in CamelCase."""
        warning = (subject, reason, message[:MAX_MESSAGE])
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
            found = self.found(subject)
            if found is not None:
                uid = str(mapping(found.get("metadata")).get("uid") or "")
                await write_event(self.client, "headrace-gateway", subject, reason, message, uid=uid)
