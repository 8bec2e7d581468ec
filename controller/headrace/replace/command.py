"""`headrace pool replace`: run a replacement, or look at one and ask something of it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import uvloop

from headrace.kube.client import ApiError, ConfigurationError, connect
from headrace.kube.lease import Lease, LeaseHeld, LeaseLost
from headrace.replace import report, status
from headrace.replace.cluster import Cluster
from headrace.replace.measure import Measure
from headrace.replace.options import Options, add_arguments, read_options
from headrace.replace.plan import InvalidPlan, Plan, parse_plan
from headrace.replace.preflight import lacks_to_serve
from headrace.replace.prometheus import Prometheus
from headrace.replace.rights import give_up
from headrace.replace.runner import Runner
from headrace.replace.state import Phase, State
from headrace.replace.store import LABELS, Request, Store, Unreadable, object_name

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)

EXIT_OK, EXIT_FAILED, EXIT_ROLLED_BACK, EXIT_REFUSED, EXIT_HELD = 0, 1, 3, 4, 5


class Stopped(Exception):  # noqa: N818
    """Told to stop; the state in the cluster is what the next one carries on from."""


def run(args: argparse.Namespace) -> int:
    """Run until done. Wrong flags and plans raise ValueError with what to do."""
    options = read_options(args)
    # A plan is read before anything is asked of the cluster; without a replacement any will do to find the record.
    old = options.plan["old"]
    anything = {**old, "name": f"{old.get('name')}-0"} if isinstance(old, dict) else f"{old}-0"
    plan = parse_plan({"new": anything, **options.plan})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            return runner.run(_connected(options, plan))
        except LeaseHeld as error:
            logger.error("refused: %s", error)
            return EXIT_HELD
        except Stopped:
            logger.info("stopped; whoever is started next carries on from here")
        except (ConfigurationError, ApiError, LeaseLost, Unreadable, InvalidPlan, OSError) as error:
            logger.error("%s", error)
        except ValueError:
            # Not what was asked for, which is read above: an accident, and the next process may fare better.
            logger.exception("stopped by an unexpected error")
    return EXIT_FAILED


async def _connected(options: Options, plan: Plan) -> int:
    client = await connect(options.kubeconfig, options.context)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        session = await stack.enter_async_context(aiohttp.ClientSession())
        actions: dict[str, Callable[[], Awaitable[int]]] = {
            "run": lambda: _run(options, plan, client, session),
            "plan": lambda: _plan(options, plan, client, session),
            "routes": lambda: _routes(options, plan, client, session),
            "status": lambda: _status(plan, client),
            "follow": lambda: _follow(options, plan, client),
            "report": lambda: _report(options, plan, client),
        }
        act = actions.get(options.action, lambda: _ask(options, plan, client, session))
        return await act()


# ---- run -------------------------------------------------------------------------------------------------------------


async def _run(options: Options, plan: Plan, client: Any, session: aiohttp.ClientSession) -> int:
    """Hold the Lease, carry on or begin, and give the Lease back however it ends."""
    lease = Lease(
        client,
        plan.old.namespace,
        object_name(plan.old),
        options.identity,
        duration=options.lease_duration,
        labels=LABELS,
    )
    task = asyncio.current_task()
    assert task is not None
    stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True
        task.cancel()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    try:
        await lease.acquire(options.lease_patience)
        logger.info("holding Lease %s as %s", lease.name, lease.identity)
        try:
            code = await _hold(options, plan, client, session, lease)
        finally:
            # What stops us must not stop us from giving the Lease back: the next one would wait for its expiry.
            await asyncio.shield(lease.release())
        # Where somebody else's replacement is under way, the Job's next Pod waits for its end.
        if options.rights_in is not None and code != EXIT_HELD:
            await give_up(client, plan.old, options.rights_in)
        return code
    except asyncio.CancelledError:
        if stopping:
            raise Stopped from None
        raise


async def _hold(options: Options, plan: Plan, client: Any, session: aiohttp.ClientSession, lease: Lease) -> int:
    store = Store(client, plan.old)
    stored = await store.load()
    asked = plan
    state = State(run=options.run, started=time.time(), since=time.time())
    fresh = True
    if stored is not None and (not stored.state.is_finished or stored.state.run == options.run):
        if not stored.state.is_finished and (stored.plan.old, stored.plan.new) != (plan.old, plan.new):
            logger.error(
                "refused: the replacement of %s by %s is under way (%s): let it end, or roll it back",
                stored.plan.old, stored.plan.new, stored.state.phase.value,
            )  # fmt: skip
            return EXIT_HELD
        if stored.plan != plan:
            logger.info("the plan that the replacement was begun with holds, not the one given now")
        plan, state, fresh = stored.plan, stored.state, False
        logger.info("carrying on: %s, %d %%", state.phase.value, max(0, state.share))
    elif stored is not None and stored.request is not None:
        await store.clear_request()
    if fresh and plan.prometheus_url and options.credentials is not None:
        # One that is under way goes on without, to an end: gates that cannot be measured do not pass.
        try:
            options.credentials.check()
        except (OSError, ValueError) as error:
            logger.error("refused: --prometheus-credentials=%s: %s", options.credentials.folder, error)
            return EXIT_REFUSED
    prometheus = None
    if plan.prometheus_url:
        credentials = options.credentials
        if credentials is not None and plan.prometheus_url != asked.prometheus_url:
            logger.warning("prometheus_url is %s as recorded: asked without credentials", plan.prometheus_url)
            credentials = None
        prometheus = Prometheus(session, plan.prometheus_url, plan.prometheus_match, credentials)
    measure = Measure(client, session, via=options.via, prometheus=prometheus)
    runner = Runner(
        plan,
        Cluster(client, session, plan, lease, measure),
        measure,
        store,
        may_remove=(*asked.remove_old, *asked.remove_new),
        epoch=lambda: lease.transitions,
        poll_interval=options.poll_interval,
    )
    if fresh:
        logger.info("replacing %s by %s", plan.old, plan.new)
    state = await _while_leased(runner.run(state), lease)
    return _exit_code(state)


async def _while_leased(work: Awaitable[State], lease: Lease) -> State:
    """Work, and renew the Lease meanwhile; a lost Lease ends the work. Raises LeaseLost."""
    try:
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(lease.keep())
            state = await work
            keeping.cancel()
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None
    return state


def _exit_code(state: State) -> int:
    if state.phase is Phase.FAILED:
        logger.error("refused: %s", state.reason)
        return EXIT_REFUSED
    if state.phase is Phase.ROLLED_BACK and not state.reason.startswith("asked for"):
        logger.error("rolled back: %s", state.reason)
        return EXIT_ROLLED_BACK
    return EXIT_OK


# ---- looking and asking ----------------------------------------------------------------------------------------------


async def _plan(options: Options, plan: Plan, client: Any, session: aiohttp.ClientSession) -> int:
    lease = Lease(client, plan.old.namespace, object_name(plan.old), options.identity)
    measure = Measure(client, session, via=options.via)
    found = await Cluster(client, session, plan, lease, measure).preflight(new_is_made=options.new_is_made)
    shown = status.plan_as_json(plan, found)
    _print({**shown, "text": status.plan_lines(shown)})
    return EXIT_REFUSED if shown["problems"] else EXIT_OK


async def _routes(options: Options, plan: Plan, client: Any, session: aiohttp.ClientSession) -> int:
    """The routes that lead to either pool now: what a replacement, or the way back from one, has to change."""
    lease = Lease(client, plan.old.namespace, object_name(plan.old), options.identity)
    cluster = Cluster(client, session, plan, lease, Measure(client, session, via=options.via))
    found = await cluster.leading_to(plan.old, plan.new)
    _print([{"kind": kind, "namespace": namespace, "name": name} for kind, namespace, name in found])
    return EXIT_OK


async def _status(plan: Plan, client: Any) -> int:
    _print(await status.read(client, plan.old))
    return EXIT_OK


async def _follow(options: Options, plan: Plan, client: Any) -> int:
    """Wait until there is more in the log than was seen, or the end. An API server that is away is waited for."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + options.timeout
    while True:
        try:
            found = await status.read(client, plan.old)
        except ApiError as error:
            if not _passes(error) or loop.time() >= deadline:
                raise
            await asyncio.sleep(1.0)
            continue
        if found["finished"] or found["milestones"] > options.after or loop.time() >= deadline:
            _print(found)
            return EXIT_OK
        await asyncio.sleep(1.0)


def _passes(error: ApiError) -> bool:
    """An API server that is away, restarts, or has too much to do."""
    return error.status in (0, 429) or error.status >= 500


async def _ask(options: Options, plan: Plan, client: Any, session: aiohttp.ClientSession) -> int:
    found = await status.read(client, plan.old)
    if found["phase"] == "":
        logger.error("no replacement of %s is recorded: there is nothing to %s", plan.old, options.action)
        return EXIT_REFUSED
    if options.action == "approve" and found["phase"] != Phase.APPROVAL.value:
        logger.error("nothing waits for an approval: the replacement is %s", found["phase"])
        return EXIT_REFUSED
    if options.action == "rollback" and found["phase"] == Phase.DONE.value:
        old = parse_plan(found["plan"]).old
        if lacks := await lacks_to_serve(Measure(client, session, via=options.via), old):
            logger.error("refused: all traffic would go back to %s, and %s: bring it up, then ask again", old, lacks)
            return EXIT_REFUSED
    await Store(client, plan.old).ask(Request(options.action, options.by, max(0, found["share"])))
    _print({**found, "asked": options.action})
    return EXIT_OK


async def _report(options: Options, plan: Plan, client: Any) -> int:
    stored = await Store(client, plan.old).load()
    if stored is None:
        logger.error("no replacement of %s is recorded: there is nothing to report", plan.old)
        return EXIT_REFUSED
    options.output.mkdir(parents=True, exist_ok=True)
    written = []
    for suffix, content in (
        ("json", json.dumps(report.as_json(stored.plan, stored.state), indent=2) + "\n"),
        ("html", report.as_html(stored.plan, stored.state)),
    ):
        path = options.output / f"{object_name(plan.old)}.{suffix}"
        path.write_text(content, encoding="utf-8")
        written.append(str(path))
    plan, state = stored.plan, stored.state
    shown = report.commit_lines(plan, state) if plan.gitops == "paused" else []
    _print({"files": written, "inventory": report.inventory_change(plan, state), "commit": shown})
    return EXIT_OK


def _print(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
