"""Reads what the gates judge: metrics pages of both pools' pickers and model servers, and who of them is alive.

Pages are read from the Pods directly where this runs in the cluster, or through the API server's Pod proxy; or their
samples from Prometheus. An API server that is away does not stop the reading of Pods that are known: the newest lists
are used on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from datetime import datetime
from typing import Any

import aiohttp
from msgspec import Struct, structs

from headrace.core import endpoint_key, fields
from headrace.core.bounded_json import load
from headrace.core.fields import mapping, text
from headrace.datalayer.engines import engine_of
from headrace.datalayer.exposition import CostlyPage
from headrace.kube.client import ApiError, open_response, request
from headrace.kube.members import pickers_of, pods_of, proxy_path, read_pool
from headrace.kube.objects import POOLS
from headrace.protocol.objects import READY
from headrace.replace.counters import (
    Counters,
    Rows,
    RowsReader,
    in_flight_at_picker,
    in_flight_at_server,
    picker_counters,
    server_counters,
)
from headrace.replace.plan import PoolRef
from headrace.replace.prometheus import NoAnswer, Prometheus
from headrace.serving.http_client import HttpClient, HttpError, UnusableAnswer, pieces

logger = logging.getLogger(__name__)

_PAGE_SECONDS = 3.0
_LIST_SECONDS = 3.0
_TEXT_BYTES = 1 << 20
# Pages asked for at once; a pool of hundreds of Pods must not open hundreds of connections in one moment.
_AT_ONCE = 16


class Target(Struct, frozen=True):
    """A process with a metrics page. `born` is when its Pod started, in seconds since 1970; 0: not known."""

    key: str
    namespace: str
    pod: str
    address: str
    port: int
    path: str
    ready: bool
    born: float


class Members(Struct, frozen=True):
    """A pool's processes, as they were listed."""

    servers: tuple[Target, ...] = ()
    pickers: tuple[Target, ...] = ()

    @property
    def ready(self) -> list[Target]:
        """The processes that are ready."""
        return [target for target in (*self.pickers, *self.servers) if target.ready]

    @property
    def ready_servers(self) -> int:
        """Pods that serve, however many ports they have."""
        return len({target.pod for target in self.servers if target.ready})

    @property
    def ready_pickers(self) -> int:
        """Endpoint pickers that are ready."""
        return sum(target.ready for target in self.pickers)


class PoolReading(Struct, frozen=True):
    """One look at a pool. `dead` says why it cannot serve; "" if it can.

    `in_flight` counts at pickers and servers; None where neither all of the ones nor all of the others said."""

    pages: Mapping[str, Counters] = {}
    born: Mapping[str, float] = {}
    dead: str = ""
    in_flight: float | None = 0.0


@dataclass(eq=False)
class Measure:
    """Looks at pools. `via` is `pod` or `proxy`; with a `prometheus`, counts come from there."""

    client: Any
    http_client: HttpClient
    _: KW_ONLY
    via: str
    prometheus: Prometheus | None = None

    def __post_init__(self) -> None:
        self._known: dict[PoolRef, Members] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def members(self, ref: PoolRef) -> Members:
        """The processes of a pool as the API server has them now. Raises ApiError, InvalidPool."""
        found = await request(self.client, "GET", POOLS[ref.group].path(ref.namespace, ref.name))
        pool = read_pool(ref.group, found)
        servers = [
            _target(pod, port, engine_of(mapping(mapping(pod.get("metadata")).get("labels"))).path)
            for pod in await pods_of(self.client, pool)
            for port in pool.target_ports
        ]
        behind = await pickers_of(self.client, pool)
        pickers = [_target(pod, behind.metrics_port, "/metrics") for pod in behind.pods]
        return Members(tuple(filter(None, servers)), tuple(filter(None, pickers)))

    async def read(self, ref: PoolRef) -> PoolReading:
        """One look at a pool. Never raises for Pods that do not answer or an API server that is away.

        Raises ApiError where the pool was never seen, and InvalidPool."""
        members = self._known.get(ref)
        try:
            # An API server that hangs must not keep us from looking at Pods that are known.
            async with asyncio.timeout(None if members is None else _LIST_SECONDS):
                members = self._known[ref] = await self.members(ref)
        except TimeoutError:
            logger.warning("the API server does not answer; looking at the Pods of %s that are known", ref)
        except ApiError as error:
            if error.status == 404:
                return PoolReading(dead=f"there is no pool {ref}")
            if members is None:
                raise
        assert members is not None
        if self.prometheus is not None:
            return await self._from_prometheus(ref, members, self.prometheus)
        pages = dict(zip(members.ready, await asyncio.gather(*map(self._page, members.ready)), strict=True))
        return reading(ref, members, {target: rows for target, rows in pages.items() if rows is not None})

    async def _from_prometheus(self, ref: PoolRef, members: Members, prometheus: Prometheus) -> PoolReading:
        """A Prometheus that does not answer says nothing of the pool: what is counted stays as it was."""
        by_pod = {target.pod: target for target in members.ready}
        try:
            found = await prometheus.rows(ref.namespace, by_pod)
        except NoAnswer as error:
            logger.warning("Prometheus cannot be asked about %s: %s", ref, error)
            return PoolReading(dead=_not_ready(ref, members), in_flight=None)
        pages = {
            structs.replace(by_pod[pod], key=f"{pod}@{instance}"): rows
            for (pod, instance), rows in found.items()
            if pod in by_pod
        }
        return reading(ref, members, pages, proof=False)

    async def models(self, members: Members) -> frozenset[str]:
        """The models that a pool's first ready server names; none if it does not say."""
        for target in members.servers:
            page = bytearray()
            if target.ready and await self._get(target, "/v1/models", page.extend, _TEXT_BYTES) == 200:
                try:
                    return frozenset(str(entry["id"]) for entry in load(bytes(page))["data"])
                except (ValueError, KeyError, TypeError):
                    continue
        return frozenset()

    async def asks_who_reads(self, members: Members) -> bool:
        """Whether an endpoint picker gives its metrics to those alone who say who they are."""
        answers = await asyncio.gather(
            *(self._get(found, found.path, lambda piece: None) for found in members.pickers if found.ready)
        )
        return any(status in (401, 403) for status in answers)

    async def _page(self, target: Target) -> Rows | None:
        """What is counted of a process's metrics page; None if it does not answer with one in time."""
        reader = RowsReader()
        if await self._get(target, target.path, reader.feed) != 200:
            return None
        try:
            return reader.end()
        except CostlyPage as error:
            logger.warning("the metrics page of %s is not used: %s", target.pod, error)
            return None

    async def _get(self, target: Target, path: str, take: Callable[[bytes], None], max_bytes: int | None = None) -> int:
        """The status; a body of status 200 goes to `take` as it arrives. 0 where there was no answer in time, it has
        over `max_bytes`, or `take` would not have it (ValueError)."""
        async with self._slots:
            try:
                async with asyncio.timeout(_PAGE_SECONDS), self._open(target, path) as response:
                    if response.status == 200:
                        async for piece in pieces(response, max_bytes):
                            take(piece)
                    return response.status
            except ApiError as error:
                return error.status
            except (ValueError, UnusableAnswer) as error:
                logger.warning("%s of %s is not used: %s", path, target.pod, error)
            except (HttpError, aiohttp.ClientError, TimeoutError, OSError):
                pass
        return 0

    @contextlib.asynccontextmanager
    async def _open(self, target: Target, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a GET. Raises ApiError, HttpError."""
        if self.via == "proxy":
            where = proxy_path(target.namespace, target.pod, target.port, path)
            async with await open_response(self.client, "GET", where) as response:
                yield response
        else:
            url = f"http://{endpoint_key(target.address, target.port)}{path}"
            async with self.http_client.open("GET", url, seconds=_PAGE_SECONDS) as response:
                yield response


def reading(ref: PoolRef, members: Members, pages: Mapping[Target, Rows], *, proof: bool = True) -> PoolReading:
    """A reading of pages. With `proof` a page shows that its process answers, and its lack that it does not."""
    pickers = {target.pod for target in members.pickers}
    of_pickers = {target.key: rows for target, rows in pages.items() if target.pod in pickers}
    of_servers = {target.key: rows for target, rows in pages.items() if target.pod not in pickers}
    counters = {key: picker_counters(rows) for key, rows in of_pickers.items()}
    counters |= {key: server_counters(rows) for key, rows in of_servers.items()}
    answered = {target.pod for target in pages}
    dead = _not_ready(ref, members)
    if proof and not dead:
        if not any(target.pod in answered for target in members.servers):
            dead = f"no endpoint of {ref} answers"
        elif not answered & pickers:
            dead = f"the endpoint picker of {ref} does not answer"
    # Whoever counts more: a request may be between the two, and either may say nothing.
    complete = (
        {target.pod for target in side if target.ready} <= answered for side in (members.pickers, members.servers)
    )
    counts = sum(map(in_flight_at_picker, of_pickers.values())), sum(map(in_flight_at_server, of_servers.values()))
    in_flight = max(counts) if any(complete) else None
    return PoolReading(counters, {target.key: target.born for target in pages}, dead, in_flight)


def _not_ready(ref: PoolRef, members: Members) -> str:
    if not members.ready_servers:
        return f"{ref} has no ready endpoint"
    return "" if members.ready_pickers else f"the endpoint picker of {ref} has no ready Pod"


def _target(pod: Mapping[str, Any], port: int, path: str) -> Target | None:
    metadata, status = mapping(pod.get("metadata")), mapping(pod.get("status"))
    address = fields.address(status.get("podIP"))
    if not address or status.get("phase") in ("Succeeded", "Failed"):
        return None
    return Target(
        key=f"{text(metadata.get('uid'))}:{port}",
        namespace=text(metadata.get("namespace")) or "default",
        pod=text(metadata.get("name")),
        address=address,
        port=port,
        path=path,
        ready=fields.has_condition(status, READY),
        born=_seconds(status.get("startTime")),
    )


def _seconds(time: object) -> float:
    try:
        return datetime.fromisoformat(time).timestamp() if isinstance(time, str) else 0.0
    except ValueError:
        return 0.0
