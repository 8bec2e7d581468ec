"""Leader election by a Lease: of several processes, the one that holds it leads.

As Kubernetes' own components do it: a holder renews; the others watch the record, and take it when it has not changed
for its whole duration, measured by their own clock, as clocks of different machines are not compared. Every write names
the version it replaces, so that of two that try at once one is refused.
Source: coordination.k8s.io/v1, and client-go's leader election (durations, and the release at the end)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from headrace.kube.client import ApiError, Resource, request

logger = logging.getLogger(__name__)

_LEASES = Resource("coordination.k8s.io", "v1", "leases", namespaced=True)


@dataclass(frozen=True, kw_only=True)
class LeaseSettings:
    """Seconds. A holder that could not renew for `renew_deadline` stops leading; others wait `duration`, which is
    longer, so that there are never two."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0


class Elector:
    """One candidate. `leading` is whether it holds the Lease; `on_change` is told when that changes."""

    def __init__(
        self,
        client: Any,
        namespace: str,
        name: str,
        identity: str,
        *,
        clock: Callable[[], float],
        on_change: Callable[[bool], None] = lambda leading: None,
        settings: LeaseSettings = LeaseSettings(),
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._clock = clock
        self._on_change = on_change
        self._settings = settings
        self._seen: tuple[object, ...] = ()
        self._seen_at = 0.0
        self._renewed_at = 0.0
        self._complaint = ""
        self.leading = False

    async def run(self) -> None:
        """Take part until cancelled; then the Lease is given back, if it is held."""
        try:
            while True:
                await self._once()
                await asyncio.sleep(self._settings.retry)
        finally:
            if self.leading:
                self._set(False)
                await self._release()

    async def _once(self) -> None:
        """One attempt to take or renew."""
        self._stop_if_late()
        try:
            async with asyncio.timeout(self._patience()):
                self._set(await self._try())
            self._complaint = ""
        except (ApiError, TimeoutError) as error:
            text = str(error) or "timed out"
            if text != self._complaint:
                forbidden = isinstance(error, ApiError) and error.status == 403
                fix = "; give it get, create and update on leases of coordination.k8s.io" if forbidden else ""
                logger.warning("the Lease %s cannot be held: %s%s", self._name, text, fix)
            self._complaint = text
            self._stop_if_late()

    def _patience(self) -> float:
        """How many seconds an attempt may take. A holder's ends when it has to stop: others count from its last
        renewal."""
        half = self._settings.renew_deadline / 2
        if not self.leading:
            return half
        return max(0.0, min(half, self._renewed_at + self._settings.renew_deadline - self._clock()))

    def _stop_if_late(self) -> None:
        if self.leading and self._clock() - self._renewed_at >= self._settings.renew_deadline:
            self._set(False)

    async def _try(self) -> bool:
        """Whether this candidate leads now. Raises ApiError."""
        path = _LEASES.path(self._namespace, self._name)
        now = self._clock()
        try:
            found = await request(self._client, "GET", path)
        except ApiError as error:
            if error.status != 404:
                raise
            found = None
        if found is not None and not self._may_take(found, now):
            return False
        body = self._record(found)
        try:
            if found is None:
                await request(
                    self._client, "POST", _LEASES.path(self._namespace), body=body, content_type="application/json"
                )
            else:
                await request(self._client, "PUT", path, body=body, content_type="application/json")
        except ApiError as error:
            if error.status == 409:
                return False  # somebody was faster
            raise
        self._renewed_at = now
        return True

    def _may_take(self, found: Mapping[str, Any], now: float) -> bool:
        """Whether the Lease is ours, free, or left alone for its whole duration."""
        spec = found.get("spec") or {}
        holder = spec.get("holderIdentity") or ""
        seen = (holder, spec.get("renewTime"), spec.get("leaseTransitions"))
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        if not holder or holder == self._identity:
            return True
        duration = spec.get("leaseDurationSeconds")
        return now - self._seen_at > (duration if isinstance(duration, int) else self._settings.duration)

    def _record(self, found: Mapping[str, Any] | None, holder: str | None = None) -> dict[str, Any]:
        """The Lease to write in place of `found`."""
        old = (found or {}).get("spec") or {}
        now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        holder = self._identity if holder is None else holder
        renewed = old.get("holderIdentity") == holder
        transitions = old.get("leaseTransitions") or 0
        metadata = {"name": self._name, "namespace": self._namespace}
        if found is not None:
            metadata["resourceVersion"] = found["metadata"]["resourceVersion"]
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": metadata,
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": max(1, round(self._settings.duration)) if holder else 1,
                "acquireTime": (old.get("acquireTime") or now) if renewed else now,
                "renewTime": now,
                "leaseTransitions": transitions if renewed or found is None else transitions + 1,
            },
        }

    async def _release(self) -> None:
        """Give the Lease back, so that nobody has to wait for its end. What cannot be given back runs out."""
        path = _LEASES.path(self._namespace, self._name)
        try:
            async with asyncio.timeout(self._settings.retry):
                found = await request(self._client, "GET", path)
                if (found.get("spec") or {}).get("holderIdentity") == self._identity:
                    body = self._record(found, holder="")
                    await request(self._client, "PUT", path, body=body, content_type="application/json")
        except (ApiError, TimeoutError) as error:
            logger.info("the Lease %s was not given back: %s", self._name, error)

    def _set(self, leading: bool) -> None:
        if leading != self.leading:
            self.leading = leading
            logger.info("%s the Lease %s", "now holding" if leading else "no longer holding", self._name)
            self._on_change(leading)
