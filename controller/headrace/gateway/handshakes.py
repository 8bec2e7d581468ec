"""Checks whether the Envoys trust the certificates of endpoint pickers, so that a pool's status can say so.

In the background it does a TLS handshake with each picker, with the CA and the name that Envoy is given. Only a failed
verification counts: a picker that cannot be reached from here may still be reached by Envoy."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import KW_ONLY, dataclass

from msgspec import Struct

from headrace.core import Pool
from headrace.gateway.endpoints import Address, picker_addresses
from headrace.gateway.names import PoolKey
from headrace.gateway.snapshot import Snapshot
from headrace.gateway.trust import Trust, pool_trust

logger = logging.getLogger(__name__)

# Between looks at what has changed.
_PAUSE_SECONDS = 1.0
# Certificates change without a word to the API server; one that is not trusted is to be mended soon.
_AGAIN_SECONDS = {True: 5.0, False: 60.0}
_HANDSHAKE_SECONDS = 3.0
_AT_A_TIME = 8
# Replicas of a picker that are tried.
_ENDPOINTS = 3


class NotTrusted(Exception):  # noqa: N818
    """The certificate of a picker is not trusted; the message says why."""


async def handshake(address: Address, trust: Trust) -> None:
    """Shake hands as Envoy would. Raises NotTrusted; OSError or TimeoutError where there is nothing to be said."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    # As Envoy does: whatever certificate the bundle holds is an anchor.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.check_hostname = not trust.alternative_names
    try:
        context.load_verify_locations(cadata=trust.ca)
    except ssl.SSLError as error:
        raise NotTrusted(f"the CA cannot be read: {error.reason}") from None
    try:
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            _, writer = await asyncio.open_connection(*address, ssl=context, server_hostname=trust.hostname)
    except ssl.SSLCertVerificationError as error:
        raise NotTrusted(error.verify_message) from None
    try:
        if trust.alternative_names and not _alternatives(writer.get_extra_info("peercert")) & {
            *trust.alternative_names
        }:
            raise NotTrusted("the certificate has none of the policy's subjectAltNames")
    finally:
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_HANDSHAKE_SECONDS):
                await writer.wait_closed()


def _alternatives(certificate: dict[str, tuple[tuple[str, str], ...]]) -> set[tuple[str, str]]:
    kinds = {"DNS": "Hostname", "URI": "URI"}
    return {(kinds.get(kind, kind), value) for kind, value in certificate.get("subjectAltName", ())}


class _Try(Struct, frozen=True):
    """With what a picker was tried, when it is to be tried again, and why it is not trusted ("": nothing known)."""

    trust: Trust
    addresses: tuple[Address, ...]
    again: float
    problem: str


@dataclass(eq=False)
class Handshakes:
    """`changed` after changes; `run` tries. `on_change` is called where a verdict changed."""

    snapshot: Callable[[], Snapshot]
    on_change: Callable[[], None]
    _: KW_ONLY
    attempt: Callable[[Address, Trust], Awaitable[None]] = handshake
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._tries: dict[PoolKey, _Try] = {}

    def problem(self, key: PoolKey) -> str:
        """Why the certificate of a pool's picker is not trusted; "" where it is, or nobody knows."""
        found = self._tries.get(key)
        return found.problem if found is not None else ""

    async def run(self) -> None:
        """Try until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_PAUSE_SECONDS)

    async def look(self) -> None:
        """Try each picker that is due."""
        snapshot, now = self.snapshot(), self.clock()
        self._tries = {key: found for key, found in self._tries.items() if key in snapshot.pools}
        due = []
        for key, pool in snapshot.pools.items():
            wanted, known = self._wanted(snapshot, pool), self._tries.get(key, _NOTHING)
            if wanted is None:
                if self._tries.pop(key, _NOTHING).problem:
                    self.on_change()
            elif wanted != (known.trust, known.addresses) or known.again <= now:
                due.append((key, *wanted))
        limit = asyncio.Semaphore(_AT_A_TIME)

        async def one(key: PoolKey, trust: Trust, addresses: tuple[Address, ...]) -> None:
            async with limit:
                problem = await self._verdict(addresses, trust)
            before = self.problem(key)
            again = self.clock() + _AGAIN_SECONDS[bool(problem)]
            self._tries[key] = _Try(trust, addresses, again, problem)
            if problem != before:
                self.on_change()

        await asyncio.gather(*(one(*found) for found in due))

    def _wanted(self, snapshot: Snapshot, pool: Pool) -> tuple[Trust, tuple[Address, ...]] | None:
        """With what to try a pool's picker; None where a handshake could tell nothing that is not known."""
        service, problem = snapshot.picker_service(pool)
        trust = pool_trust(snapshot, pool)
        # The proxies' own bundle of CAs is not this process's.
        if problem or service.cleartext or trust.unverified or trust.system or not trust.ca:
            return None
        addresses = picker_addresses(snapshot, pool)[:_ENDPOINTS]
        return (trust, addresses) if addresses else None

    async def _verdict(self, addresses: tuple[Address, ...], trust: Trust) -> str:
        """Why no picker is trusted; "" where one is, or none tells."""
        problems = []
        for address in addresses:
            try:
                await self.attempt(address, trust)
            except NotTrusted as error:
                problems.append(str(error))
            except (OSError, TimeoutError, ValueError, TypeError) as error:
                logger.debug("no handshake with %s: %s", address, error)
            else:
                return ""
        return problems[0] if problems else ""


_NOTHING = _Try(Trust(""), (), 0.0, "")
