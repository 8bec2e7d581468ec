"""Replicas that all serve: each follows all others over a stream of its own, and is followed by them.

Nothing here is in a request's path. A pick takes a note, and a task of its own sends it a few milliseconds later. A
replica that is slow, stopped or gone is waited for by the coroutine that talks to it, by nothing else: what it does not
take is dropped, and what it told is forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from random import Random
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from headrace.core import endpoint_key, split_key
from headrace.datalayer.ledger import Ledger
from headrace.prefixes.approximate import PrefixIndex
from headrace.protocol import rpc
from headrace.replicas import peers_pb2 as messages
from headrace.replicas.journal import FellBehind, Journal
from headrace.replicas.metrics import PeerMetrics
from headrace.replicas.peer_accounts import SILENT_SECONDS, OutOfStep, PeerAccounts, read_update
from headrace.replicas.settings import PeerSettings
from headrace.replicas.tls import channel_credentials, read_certificate, server_credentials
from headrace.serving.tasks import Supervisor
from headrace.serving.tls import InvalidCertificate

logger = logging.getLogger(__name__)

_METHOD = f"/{rpc.PEERS_SERVICE}/Follow"
# Changes of this long go into one batch.
_BATCH_SECONDS = 0.005
_LIFE_SECONDS = 1.0
_RESOLVE_SECONDS = 2.0
_FEWEST_RETRY_SECONDS, _MOST_RETRY_SECONDS = 0.2, 2.0
_MOST_MESSAGE_BYTES = 64 << 20
# A connection to a replica that is stopped, or gone without a word, is closed by this.
KEEPALIVE = {
    "grpc.keepalive_time_ms": 2000,
    "grpc.keepalive_timeout_ms": 2000,
    "grpc.keepalive_permit_without_calls": 1,
    "grpc.http2.max_pings_without_data": 0,
    "grpc.http2.min_ping_interval_without_data_ms": 1000,
    "grpc.http2.max_ping_strikes": 0,
}


@dataclass(slots=True)
class Link:
    """What we know of one address. `problem` is why nothing is heard from it, "" while it is."""

    address: str
    replica: str = ""
    problem: str = "not yet connected"
    ourselves: bool = False


@dataclass(eq=False)
class Peering:
    """Our side of all streams. Raises InvalidCertificate where the certificates cannot be used.

    `synced` waits until the pool's endpoints are known; `on_change` is told when another replica's requests changed."""

    journal: Journal
    accounts: PeerAccounts
    ledger: Ledger
    index: PrefixIndex
    settings: PeerSettings
    metrics: PeerMetrics
    _: KW_ONLY
    rng: Random
    clock: Callable[[], float]
    synced: Callable[[], Awaitable[object]]
    on_change: Callable[[], None]

    def __post_init__(self) -> None:
        self.replica = self.journal.replica
        self.links: dict[str, Link] = {}
        # Who follows us, and the last batch that each was told.
        self.followers: dict[str, int] = {}
        self._cut = asyncio.Event()
        self._wanted: tuple[str, ...] = ()
        assert self.settings.certificates is not None
        self._certificates = self.settings.certificates
        read_certificate(self._certificates)

    # The stream that others follow us by.

    def handler(self) -> grpc.GenericRpcHandler:
        """What a gRPC server registers; it is to be set to KEEPALIVE."""
        follow: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(self._followed)
        return grpc.method_handlers_generic_handler(rpc.PEERS_SERVICE, {"Follow": follow})

    def credentials(self) -> grpc.ServerCredentials:
        """What it serves with."""
        return server_credentials(self._certificates)

    async def _followed(self, raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
        request = await self._admit(raw, context)
        follower = context.peer()
        journal = self.journal
        journal.joined()
        try:
            await self._tell_account(follower, context, prefixes=request.prefixes)
            while True:
                sequence = self.followers[follower]
                try:
                    batch = journal.after(sequence)
                except FellBehind:
                    self.metrics.dropped.inc(journal.sequence - sequence)
                    logger.warning("replica %s is slow: it is told our account as a whole", follower)
                    await self._tell_account(follower, context, prefixes=False)
                    continue
                if batch is not None:
                    await context.write(batch)
                    self.followers[follower] = sequence + 1
                    self.metrics.sent.inc()
                    continue
                cut = self._cut
                try:
                    async with asyncio.timeout(_LIFE_SECONDS):
                        await cut.wait()
                except TimeoutError:
                    if sequence == journal.sequence:
                        await context.write(journal.sign_of_life())
        finally:
            self.followers.pop(follower, None)
            journal.left()

    async def _admit(self, raw: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> messages.FollowRequest:
        """What is asked, by a replica of this pool; others are turned away."""
        try:
            name = read_certificate(self._certificates).name
        except InvalidCertificate as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        shown = (context.auth_context() or {}).get("x509_subject_alternative_name") or ()
        if name.encode() not in shown:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"the client's certificate is not for {name}")
        try:
            request = messages.FollowRequest.FromString(raw)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a FollowRequest")
        if request.pool != self.settings.pool:
            text = f"this replica serves {self.settings.pool}, not {request.pool[:300]}"
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, text)
        return request

    async def _tell_account(
        self, follower: str, context: grpc.aio.ServicerContext[bytes, bytes], *, prefixes: bool
    ) -> None:
        """The account as a whole; what changes meanwhile is in the batches after it."""
        sequence, parts = self.journal.account(self.ledger.own())
        self.followers[follower] = sequence
        for part in parts:
            await context.write(part)
        for part in self.journal.prefixes(sequence) if prefixes else ():
            await context.write(part)

    # The streams by which we follow others.

    async def run(self, tasks: Supervisor) -> None:
        """Find the others, follow them and be followed, by tasks of a group. Never returns."""
        tasks.start(self._publish(), "tell replicas")
        # What others tell is of endpoints that have to be known.
        await self.synced()
        if self.settings.service:
            await self._resolve(tasks)
        self._adjust(self.settings.addresses, tasks)
        await asyncio.Event().wait()

    async def _publish(self) -> None:
        while True:
            await self.journal.pending.wait()
            await asyncio.sleep(_BATCH_SECONDS)
            self.journal.pending.clear()
            self.journal.cut()
            done, self._cut = self._cut, asyncio.Event()
            done.set()

    async def _resolve(self, tasks: Supervisor) -> None:
        """Follow whoever the Service's name leads to. Never returns."""
        loop = asyncio.get_running_loop()
        complaint = ""
        while True:
            try:
                found = await loop.getaddrinfo(self.settings.service, self.settings.port, type=socket.SOCK_STREAM)
                complaint = ""
                addresses = {endpoint_key(str(address[0]), self.settings.port) for *_, address in found}
                self._adjust(addresses, tasks)
            except OSError as error:
                # Those that are followed already still are.
                text = f"cannot resolve the peer Service {self.settings.service}: {error}"
                if text != complaint:
                    logger.warning("%s", text)
                complaint = text
            await asyncio.sleep(_RESOLVE_SECONDS)

    def _adjust(self, addresses: Iterable[str], tasks: Supervisor) -> None:
        """Follow these; one that is no longer among them is followed as long as it talks."""
        own = self.settings.own_address
        self._wanted = tuple(address for address in sorted(addresses) if split_key(address)[0] != own)
        for address in self._wanted:
            if address not in self.links:
                link = self.links[address] = Link(address)
                tasks.start_restarting("follow", address, partial(self._follow, link), _MOST_RETRY_SECONDS)

    async def _follow(self, link: Link) -> None:
        """Follow one address for as long as it is a replica's."""
        failures = 0
        while link.address in self._wanted:
            try:
                problem = await self._hear(link)
            except Exception:
                link.problem = "a fault in the picker"
                raise
            if link.ourselves:
                return  # and stays in the tables: it is not asked again
            failures = failures + 1 if link.problem else 0
            if problem != link.problem:
                logger.warning("replica %s is not heard: %s", link.address, problem)
            link.problem = problem
            longest = min(_MOST_RETRY_SECONDS, _FEWEST_RETRY_SECONDS * 2.0 ** min(failures, 8))
            await asyncio.sleep(longest * self.rng.uniform(0.5, 1.0))
        del self.links[link.address]

    async def _hear(self, link: Link) -> str:
        """Take what one address tells until it ends; gives why it did."""
        try:
            async with self._stream(link.address) as call:
                while True:
                    async with asyncio.timeout(SILENT_SECONDS):
                        raw = await call.read()
                    if not isinstance(raw, bytes):  # grpc.aio.EOF
                        return "it ended the stream"
                    self._take(link, read_update(raw))
                    if link.ourselves:
                        return "these are we ourselves"
        except TimeoutError:
            return f"it said nothing for {SILENT_SECONDS:g} s"
        except OutOfStep as error:
            self.metrics.out_of_step.inc()
            return str(error)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"
        except InvalidCertificate as error:
            return str(error)

    def _take(self, link: Link, update: messages.Update) -> None:
        """Take an update. Raises OutOfStep."""
        if update.replica == self.replica:
            link.ourselves, link.problem = True, ""
            return
        if link.problem or link.replica != update.replica:
            self._meet(link, update.replica)
        self.accounts.receive(update)
        self.metrics.received.inc()
        self.on_change()

    def _meet(self, link: Link, replica: str) -> None:
        """A replica is heard at an address. Raises OutOfStep where it is followed at another already."""
        for other in self.links.values():
            if other.replica == replica and other is not link and not other.problem:
                raise OutOfStep(f"it is followed already, at {other.address}")
        if link.replica not in ("", replica):
            # Another process is at this address now: the one before it is no more.
            self.accounts.forget(link.replica)
        link.replica, link.problem = replica, ""
        logger.info("following replica %s", link.address, extra={"replica": replica})

    @contextlib.asynccontextmanager
    async def _stream(self, address: str) -> AsyncIterator[Any]:
        held = read_certificate(self._certificates)
        options = [
            ("grpc.ssl_target_name_override", held.name),
            ("grpc.max_receive_message_length", _MOST_MESSAGE_BYTES),
            *KEEPALIVE.items(),
        ]
        request = messages.FollowRequest(
            replica=self.replica,
            pool=self.settings.pool,
            # A new replica learns what the others know.
            prefixes=not len(self.index),
        )
        async with grpc.aio.secure_channel(address, channel_credentials(held), options=options) as channel:
            follow: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(_METHOD)
            call = follow(request.SerializeToString())
            try:
                yield call
            finally:
                call.cancel()
