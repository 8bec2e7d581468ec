"""What a replacement does to the cluster, each piece such that doing it twice is doing it once.

Every write asks the Lease first. Routes are read anew before each patch; a patch that the API server refuses because a
`test` did not hold is worked out again from what is there."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from headrace.kube.client import JSON_PATCH, ApiError, Resource, request
from headrace.kube.events import Subject, write_event
from headrace.kube.lease import Lease
from headrace.kube.objects import GATEWAYS, POOLS, REFERENCE_GRANTS, ROUTES, create, delete, find, list_all
from headrace.protocol import http
from headrace.protocol.objects import REPLACEMENT
from headrace.replace.canary import best_first, free_names, is_ours, parents_of
from headrace.replace.machine import Abort, Discovered, Event, Finalised, Found, Refused, Removed, Restored, WarmedUp
from headrace.replace.machine import Written as WrittenEvent
from headrace.replace.measure import Measure
from headrace.replace.ownership import FIELD_MANAGER, Object, Operation, gitops_owner
from headrace.replace.plan import ObjectRef, Plan, PoolRef
from headrace.replace.preflight import of_pools
from headrace.replace.routes import (
    Foreign,
    RouteRecord,
    final_patch,
    give_back,
    granted,
    hold,
    key_of,
    leading_to,
    records,
    restore_patch,
    shift_patch,
    unsplittable,
)
from headrace.replace.state import State
from headrace.replace.translated import Translations
from headrace.replace.warmup import Address, NoWarmUp, WarmUpFailed, address_of, warm_up
from headrace.serving.http_client import HttpClient

logger = logging.getLogger(__name__)

# What to change of a route, of which this is recorded. May raise Foreign.
Operations = Callable[[Object, RouteRecord], list[Operation]]

_PATCH_TRIES = 8
_DELETED_SECONDS = 120.0
# Envoys have taken a new route by then.
_TAKEN_SECONDS = 3.0


@dataclass(eq=False)
class Cluster:
    """The cluster, as far as one replacement reaches."""

    client: Any
    http_client: HttpClient
    plan: Plan
    lease: Lease
    measure: Measure

    def __post_init__(self) -> None:
        self._translations = Translations(self.client, (self.plan.old, self.plan.new))

    # ---- reading

    async def routes(self) -> list[Object]:
        """All routes of the cluster. Raises ApiError."""
        found: list[Object] = []
        for kind, resource in ROUTES.items():
            try:
                found += [{**route, "kind": kind} for route in await list_all(self.client, resource)]
            except ApiError as error:
                # A cluster need not serve GRPCRoutes.
                if error.status != 404 or kind == "HTTPRoute":
                    raise
        return found

    async def preflight(self, *, new_is_made: bool = False) -> Refused | Found:
        """Whether the replacement can begin, and with which routes. Changes nothing. Raises ApiError.

        With `new_is_made` whoever asks makes the new pool next: what it lacks is told, and is in nobody's way."""
        plan = self.plan
        problems, facts = await of_pools(plan, self.measure, new_is_made=new_is_made)
        routes = await self.routes()
        found = records(routes, plan)
        problems += await self._of_routes(routes, found)
        if problems:
            return Refused(tuple(problems), found, "; ".join(facts))
        return Found(found, "; ".join(facts), await self.uid_of(plan.old), await self.uid_of(plan.new))

    async def uid_of(self, pool: PoolRef) -> str:
        """The uid of the pool that has this name now; "" where there is none. Raises ApiError."""
        found = await find(self.client, POOLS[pool.group].path(pool.namespace, pool.name))
        return str(((found or {}).get("metadata") or {}).get("uid") or "")

    async def _of_routes(self, routes: list[Object], found: tuple[RouteRecord, ...]) -> list[str]:
        plan, problems = self.plan, list[str]()
        if not found:
            return [f"no route leads to {plan.old}: there is nothing to move"]
        problems += unsplittable(found, plan)
        grants: list[Object] = []
        if any(record.namespace != plan.new.namespace for record in found):
            grants = await list_all(self.client, REFERENCE_GRANTS)
        by_key = {key_of(route): route for route in routes}
        for record in found:
            if not granted(record, plan, grants):
                problems.append(
                    f"{record} may not refer to {plan.new}: "
                    f"add the new pool to a ReferenceGrant in {plan.new.namespace}"
                )
            owner = gitops_owner(by_key[record.key])
            if owner and plan.gitops == "refuse":
                problems.append(
                    f"{record} is managed by {owner}, which would put the old weights back: pause it for this route "
                    "and set gitops: paused, then commit the route that the report prints before it goes on"
                )
        return problems

    # ---- routes

    async def shift(self, state: State, percent: int) -> Event | None:
        """Give the new pool its share on every recorded route. None: the gateway has not translated it yet.

        Raises ApiError, LeaseLost."""
        routes = await self.routes()
        if event := await self._late(state, routes):
            return event
        await self._hold(state, routes)
        if event := await self._patch_all(state, lambda route, known: shift_patch(route, known, self.plan, percent)):
            return event
        return WrittenEvent(percent) if await self._translations.complete() else None

    async def finalise(self, state: State) -> Event | None:
        """Put the new pool in the old one's place everywhere. None: the gateway has not translated it yet.

        Raises ApiError, LeaseLost."""
        routes = await self.routes()
        if event := await self._late(state, routes):
            return event
        if event := await self._patch_all(state, lambda route, known: final_patch(route, known, self.plan)):
            return event
        if not await self._translations.complete():
            return None
        await self._release(routes)
        return Finalised()

    async def restore(self, state: State) -> Event | None:
        """Give every recorded route its backends and weights back. None: the gateway has not translated it yet.

        Raises ApiError, LeaseLost."""
        try:
            await self._hold(state, await self.routes())
        except ApiError as error:
            # It only makes the way back smoother.
            if error.status == 0:
                raise
            logger.warning("the pools are not held in the gateway while weights return: %s", error)
        left: list[str] = []

        def operations(route: Object, record: RouteRecord) -> list[Operation]:
            try:
                return restore_patch(route, record, self.plan)
            except Foreign as error:
                logger.warning("left as it is: %s", error)
                left.append(str(error))
                return []

        refused = await self._patch_each(state, operations)
        for record, refusal in refused:
            logger.warning("could not restore backends and weights of %s: %s", record, refusal)
        if refused:
            raise refused[-1][1]
        if not await self._translations.complete():
            return None
        await self.give_back(state)
        await self._release(await self.routes())
        return Restored(tuple(left))

    async def give_back(self, state: State) -> None:
        """Whoever applied a route finds it as if they had applied it so. Raises ApiError, LeaseLost.

        What the API server refuses is logged and left: whose the rules are is no reason to move traffic."""
        for record, error in await self._patch_each(state, lambda route, known: give_back(route, known, self.plan)):
            logger.warning("the rules of %s stay the field manager %s's: %s", record, FIELD_MANAGER, error)

    async def discover(self, state: State) -> Discovered | Abort | None:
        """Routes that lead to the old pool and are not recorded, or why they cannot be taken along. Raises ApiError."""
        return await self._late(state, await self.routes())

    async def _late(self, state: State, routes: list[Object]) -> Discovered | Abort | None:
        known = {record.key for record in state.records}
        found = tuple(record for record in records(routes, self.plan) if record.key not in known)
        if not found:
            return None
        problems = await self._of_routes(routes, found)
        return Abort("; ".join(problems)) if problems else Discovered(found)

    async def leading_to(self, *pools: PoolRef) -> tuple[tuple[str, str, str], ...]:
        """(kind, namespace, name) of all routes that name one of the pools. Raises ApiError."""
        return leading_to(await self.routes(), *pools)

    async def _patch_all(self, state: State, operations: Operations) -> Abort | None:
        """Patch every recorded route, unless somebody else changed one."""
        for record in state.records:
            try:
                await self._patch(record, operations)
            except Foreign as error:
                return Abort(str(error))
        return None

    async def _patch_each(self, state: State, operations: Operations) -> list[tuple[RouteRecord, ApiError]]:
        """Patch every recorded route, whatever becomes of the others. Returns those that the API server refused."""
        refused = []
        for record in state.records:
            try:
                await self._patch(record, operations)
            except ApiError as error:
                if error.status == 0:
                    raise
                refused.append((record, error))
        return refused

    async def _patch(self, record: RouteRecord, operations: Operations) -> None:
        path = ROUTES[record.kind].path(record.namespace, record.name)
        for attempt in range(_PATCH_TRIES):
            route = await find(self.client, path)
            if route is None:
                logger.warning("%s is gone, there is nothing to change", record)
                return
            if record.uid and (route.get("metadata") or {}).get("uid") != record.uid:
                logger.warning("%s is another route than the one recorded: left as it is", record)
                return
            if wanted := operations(route, record):
                await self.lease.ensure()
            try:
                if wanted:
                    query = {"fieldManager": FIELD_MANAGER}
                    route = await request(self.client, "PATCH", path, query=query, body=wanted, content_type=JSON_PATCH)
                self._translations.note(record.key, route)
                return
            except ApiError as error:
                if error.status not in (404, 409, 422) or attempt == _PATCH_TRIES - 1:
                    raise
                await asyncio.sleep(0.05 * 2**attempt)

    # ---- a route of our own, and the warm-up through it

    async def warm_up(self, state: State) -> Event:
        """Ask the new pool alone, through each Gateway by a route of its own. Raises ApiError, LeaseLost."""
        plan = self.plan
        if plan.warmup_requests == 0:
            return WarmedUp("no warm-up was asked for")
        try:
            addresses, without = await self._addresses(await self._hold(state, await self.routes()))
            done = [
                await warm_up(self.http_client, address, plan.warmup_requests, plan.warmup_timeout)
                for address in addresses
            ]
        except WarmUpFailed as error:
            return Abort(f"the warm-up failed: {error}")
        if not done and not without:
            without = ["no HTTPRoute leads to the pool"]
        return WarmedUp("; ".join([*done, *(f"no warm-up: {reason}" for reason in without)]))

    async def _addresses(self, held: Iterable[Object]) -> tuple[list[Address], list[str]]:
        """Where our own routes are reached, each Gateway once, and why some cannot be asked. Raises WarmUpFailed."""
        addresses: dict[object, Address] = {}
        without: list[str] = []
        for route in held:
            for ref in parents_of(route) if route["kind"] == "HTTPRoute" else ():
                # A given URL leads to one of them.
                key = self.plan.gateway_url or ref.key
                if key in addresses:
                    continue
                gateway: Object | None = {}
                if not self.plan.gateway_url and ref.kind == "Gateway":
                    gateway = await find(self.client, GATEWAYS.path(ref.namespace, ref.name))
                if gateway is None:
                    without.append(f"there is no {ref}")
                    continue
                try:
                    if not self.plan.gateway_url and ref.kind != "Gateway":
                        raise NoWarmUp("set gateway_url to where it is reached")
                    addresses[key] = address_of(route, gateway, ref.section, self.plan.gateway_url)
                except NoWarmUp as error:
                    without.append(f"{ref}: {error}")
        return list(addresses.values()), without

    async def _hold(self, state: State, routes: list[Object]) -> list[Object]:
        """Our own routes to both pools, so many that each Gateway has one: those that are there, and new ones, which
        Envoys get a moment to take. `routes` are all of the cluster."""
        pool = self.plan.old
        held = [route for route in routes if is_ours(route, pool)]
        covered = {parent.key for route in held for parent in parents_of(route)}
        by_key = {key_of(route): route for route in routes}
        made: list[Object] = []
        refused: ApiError | None = None
        for record in best_first(state.records, pool):
            route = by_key.get(record.key)
            parents = {parent.key for parent in parents_of(route)} if route is not None else set()
            if route is None or parents <= covered:
                continue
            names = free_names(pool, {name for kind, namespace, name in by_key if (kind, namespace) == record.key[:2]})
            wanted = hold(route, record, self.plan, next(names, ""), http.CANARY, secrets.token_hex(16))
            if wanted is None or not wanted["metadata"]["name"]:
                continue
            await self.lease.ensure()
            try:
                # Made, never applied: what has this name already is not ours to change.
                made.append(await create(self.client, ROUTES[record.kind], wanted))
            except ApiError as error:
                # A route that came since, in a namespace where we may make none.
                if error.status != 403:
                    raise
                refused = error
                logger.warning("no route of our own in %s: %s", record.namespace, error)
                continue
            covered |= parents
            by_key[key_of(made[-1])] = made[-1]
        if refused is not None and not held and not made:
            raise refused
        if made:
            await asyncio.sleep(_TAKEN_SECONDS)
        return [*held, *made]

    async def _release(self, routes: list[Object]) -> None:
        """Remove our own among all routes of the cluster, wherever they were made."""
        for kind, namespace, name in [key_of(route) for route in routes if is_ours(route, self.plan.old)]:
            try:
                await delete(self.client, ROUTES[kind].path(namespace, name))
            except ApiError as error:
                # Where we may not make one there is none of ours.
                if error.status != 403:
                    raise

    # ---- what is left behind

    async def remove(self, objects: Iterable[ObjectRef]) -> Removed:
        """Delete objects and wait until they are gone. Raises ApiError, LeaseLost."""
        paths: dict[str, str] = {}
        for found in objects:
            await self.lease.ensure()
            resource = Resource(found.group, found.version, found.plural, bool(found.namespace))
            path = resource.path(found.namespace or None, found.name)
            if await delete(self.client, path):
                logger.info("removed %s", found)
            paths[path] = str(found)
        count, deadline = len(paths), asyncio.get_running_loop().time() + _DELETED_SECONDS
        while paths and asyncio.get_running_loop().time() < deadline:
            paths = {path: name for path, name in paths.items() if await find(self.client, path)}
            if paths:
                await asyncio.sleep(1.0)
        return Removed(count - len(paths), left=tuple(paths.values()))

    async def event(self, reason: str, message: str, *, warning: bool = False) -> None:
        """An event on the old pool, for `kubectl describe`. A failure is logged and nothing else."""
        pool = self.plan.old
        subject = Subject(POOLS[pool.group].api_version, "InferencePool", pool.namespace, pool.name)
        await write_event(self.client, REPLACEMENT, subject, reason, message, warning=warning)
