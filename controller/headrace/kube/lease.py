"""A Lease that one process holds while it works, and leader election by one.

A holder renews; others watch the record, and take it when it has not changed for its whole duration, measured by their
own clock, as clocks of different machines are not compared. Every write names the version it replaces, so that of two
that try at once one is refused.
Source: coordination.k8s.io/v1, and client-go's leader election (durations, and the release at the end)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import UTC, datetime
from typing import Any

from headrace.core.fields import mapping, number, text
from headrace.kube.client import ApiError
from headrace.kube.objects import LEASES, create, find, put

logger = logging.getLogger(__name__)


class LeaseHeld(Exception):  # noqa: N818
    """Somebody else holds the lease."""

    def __init__(self, name: str, holder: str) -> None:
        super().__init__(f"Lease {name} is held by {holder}")
        self.holder = holder


class LeaseLost(Exception):  # noqa: N818
    """The lease is no longer ours: whatever it protects must not be touched any more."""


def holder_of(lease: dict[str, Any] | None) -> str:
    """Who holds a lease, by what it says; "" for nobody."""
    return text(_spec(lease).get("holderIdentity"))


def _spec(lease: dict[str, Any] | None) -> Mapping[str, Any]:
    return mapping(mapping(lease).get("spec"))


@dataclass(eq=False)
class Lease:
    """One holder's view of a lease. `duration` in seconds."""

    client: Any
    namespace: str
    name: str
    identity: str
    _: KW_ONLY
    duration: float = 15.0
    labels: Mapping[str, str] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._path = LEASES.path(self.namespace, self.name)
        # When the newest renewal of each holder was first seen here.
        self._seen: tuple[str, float] = ("", 0.0)
        # When this clock had the newest renewal asked for.
        self.renewed = -float("inf")
        self._lock = asyncio.Lock()
        self.transitions = 0

    async def try_acquire(self) -> str:
        """Take the lease if it is free, expired or ours already. "" if it is ours now, else who holds it.

        Raises ApiError."""
        async with self._lock:
            asked, found = self.clock(), await find(self.client, self._path)
            holder = holder_of(found)
            if holder and holder != self.identity and not self._expired(found or {}):
                return holder
            transitions = int(number(_spec(found).get("leaseTransitions"), 0))
            if found is not None and holder != self.identity:
                transitions += 1
            written = await self._write(found, transitions, asked)
            return "" if written else holder or "somebody who was faster"

    async def acquire(self, patience: float) -> None:
        """Take the lease, waiting up to `patience` seconds for it. Raises LeaseHeld, ApiError."""
        deadline = self.clock() + patience
        while holder := await self.try_acquire():
            if self.clock() >= deadline:
                raise LeaseHeld(self.name, holder)
            await asyncio.sleep(min(1.0, self.duration / 5))

    async def ensure(self) -> None:
        """Return only if the lease is ours now: renews it when the last renewal is old.

        Raises LeaseLost; ApiError where the API server does not say."""
        if self.clock() - self.renewed > self.duration / 3:
            await self.renew()

    async def renew(self) -> None:
        """Say that we are still there. Raises LeaseLost, ApiError."""
        async with self._lock:
            asked, found = self.clock(), await find(self.client, self._path)
            holder = holder_of(found)
            if found is not None and holder != self.identity:
                raise LeaseLost(f"Lease {self.name} was taken over by {holder or 'nobody'}")
            if not await self._write(found, self.transitions, asked):
                raise LeaseLost(f"Lease {self.name} was written by somebody else")

    async def keep(self) -> None:
        """Renew until cancelled. An API server that is away is waited for. Raises LeaseLost."""
        while True:
            await asyncio.sleep(self.duration / 3)
            try:
                await self.renew()
            except ApiError as error:
                logger.warning("Lease %s is not renewed: %s", self.name, error)

    async def release(self) -> None:
        """Give the lease back, if it is ours. Failures are left to its expiry."""
        try:
            found = await find(self.client, self._path)
            if found is None or holder_of(found) != self.identity:
                return
            spec = {**_spec(found), "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
            await put(self.client, self._path, {**found, "spec": spec})
        except ApiError as error:
            logger.warning("Lease %s is not given back: %s", self.name, error)

    def _expired(self, found: dict[str, Any]) -> bool:
        spec = _spec(found)
        stamp = f"{spec.get('holderIdentity')} {spec.get('renewTime')}"
        if stamp != self._seen[0]:
            self._seen = (stamp, self.clock())
            return False
        return self.clock() - self._seen[1] > number(spec.get("leaseDurationSeconds"), self.duration)

    async def _write(self, found: dict[str, Any] | None, transitions: int, asked: float) -> bool:
        """False: somebody else wrote it meanwhile. Raises ApiError."""
        old = _spec(found)
        acquired = old.get("acquireTime") if old.get("holderIdentity") == self.identity else None
        spec = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self.duration)),
            "acquireTime": acquired or _now(),
            "renewTime": _now(),
            "leaseTransitions": transitions,
        }
        try:
            if found is None:
                metadata = {"name": self.name, "namespace": self.namespace, "labels": dict(self.labels)}
                kind = {"apiVersion": LEASES.api_version, "kind": "Lease"}
                await create(self.client, LEASES, {**kind, "metadata": metadata, "spec": spec})
            else:
                await put(self.client, self._path, {**found, "spec": spec})
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        self.transitions = transitions
        # Others count from what they see of this, which is after it was asked for.
        self.renewed = asked
        return True


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True, kw_only=True)
class LeaseSettings:
    """Seconds. A holder that could not renew for `renew_deadline` stops leading; others wait `duration`, which is
    longer, so that there are never two."""

    duration: float = 15.0
    renew_deadline: float = 10.0
    retry: float = 2.0


@dataclass(eq=False)
class Elector:
    """One candidate. `leading` is whether it holds the Lease; `on_change` is told when that changes."""

    client: Any
    namespace: str
    name: str
    identity: str
    _: KW_ONLY
    clock: Callable[[], float]
    on_change: Callable[[bool], None] = lambda leading: None
    settings: LeaseSettings = LeaseSettings()

    def __post_init__(self) -> None:
        self._lease = Lease(
            self.client, self.namespace, self.name, self.identity, duration=self.settings.duration, clock=self.clock
        )
        self._complaint = ""
        self.leading = False

    async def run(self) -> None:
        """Try to lead until cancelled; then the Lease is given back, if it is held."""
        try:
            while True:
                await self._once()
                await asyncio.sleep(self.settings.retry)
        finally:
            if self.leading:
                self._set(False)
                await self._release()

    async def _once(self) -> None:
        """One attempt to take or renew."""
        self._stop_if_late()
        try:
            async with asyncio.timeout(self._patience()):
                self._set(not await self._lease.try_acquire())
            self._complaint = ""
        except (ApiError, TimeoutError) as error:
            text = str(error) or "timed out"
            if text != self._complaint:
                forbidden = isinstance(error, ApiError) and error.status == 403
                fix = "; give it get, create and update on leases of coordination.k8s.io" if forbidden else ""
                logger.warning("the Lease %s cannot be held: %s%s", self.name, text, fix)
            self._complaint = text
            self._stop_if_late()

    def _patience(self) -> float:
        """How many seconds an attempt may take. A holder's ends when it has to stop: others count from its last
        renewal."""
        half = self.settings.renew_deadline / 2
        if not self.leading:
            return half
        return max(0.0, min(half, self._lease.renewed + self.settings.renew_deadline - self.clock()))

    def _stop_if_late(self) -> None:
        if self.leading and self.clock() - self._lease.renewed >= self.settings.renew_deadline:
            self._set(False)

    async def _release(self) -> None:
        """Give the Lease back, so that nobody has to wait for its end. What cannot be given back runs out."""
        try:
            async with asyncio.timeout(self.settings.retry):
                await self._lease.release()
        except TimeoutError:
            logger.info("the Lease %s was not given back in time", self.name)

    def _set(self, leading: bool) -> None:
        if leading != self.leading:
            self.leading = leading
            logger.info("%s the Lease %s", "now holding" if leading else "no longer holding", self.name)
            self.on_change(leading)
