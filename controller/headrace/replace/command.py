"""`headrace pool replace`: run a replacement, or look at one and ask something of it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import logging
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

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
from headrace.serving.http_client import HttpClient

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
        http_client = await stack.enter_async_context(HttpClient())
        return await Command(options, plan, client, http_client).act()


@dataclass(frozen=True)
class Command:
    """What the options ask for, as methods that return the exit code. May raise what `run` takes for failures."""

    options: Options
    plan: Plan
    client: Any
    http_client: HttpClient

    async def act(self) -> int:
        """Do what was asked for."""
        actions: dict[str, Callable[[], Awaitable[int]]] = {
            "run": self.replace, "plan": self.show_plan, "routes": self.show_routes, "status": self.show_status,
            "follow": self.follow, "report": self.report,
        }  # fmt: skip
        return await actions.get(self.options.action, self.ask)()

    # ---- run

    async def replace(self) -> int:
        """Hold the Lease, carry on or begin, and give the Lease back however it ends."""
        lease, task = self._lease, asyncio.current_task()
        assert task is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            await lease.acquire(self.options.lease_patience)
            logger.info("holding Lease %s as %s", lease.name, lease.identity)
            try:
                code = await self._hold(lease)
            finally:
                # What stops us must not stop us from giving the Lease back: the next one would wait for its expiry.
                await asyncio.shield(lease.release())
            # Where somebody else's replacement is under way, the Job's next Pod waits for its end.
            if self.options.rights_in is not None and code != EXIT_HELD:
                await give_up(self.client, self.plan.old, self.options.rights_in)
            return code
        except asyncio.CancelledError:
            raise Stopped from None

    async def _hold(self, lease: Lease) -> int:
        options, plan, asked, store = self.options, self.plan, self.plan, self._store
        stored = await store.load()
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
            prometheus = Prometheus(self.http_client, plan.prometheus_url, plan.prometheus_match, credentials)
        measure = dataclasses.replace(self._measure, prometheus=prometheus)
        runner = Runner(
            plan,
            Cluster(self.client, self.http_client, plan, lease, measure),
            measure,
            store,
            may_remove=(*asked.remove_old, *asked.remove_new),
            epoch=lambda: lease.transitions,
            poll_interval=options.poll_interval,
        )
        if fresh:
            logger.info("replacing %s by %s", plan.old, plan.new)
        return _exit_code(await _while_leased(runner.run(state), lease))

    # ---- looking and asking

    async def show_plan(self) -> int:
        """What a replacement would do."""
        found = await self._cluster.preflight(new_is_made=self.options.new_is_made)
        shown = status.plan_as_json(self.plan, found)
        _print({**shown, "text": status.plan_lines(shown)})
        return EXIT_REFUSED if shown["problems"] else EXIT_OK

    async def show_routes(self) -> int:
        """The routes that lead to either pool now: what a replacement, or the way back from one, has to change."""
        found = await self._cluster.leading_to(self.plan.old, self.plan.new)
        _print([{"kind": kind, "namespace": namespace, "name": name} for kind, namespace, name in found])
        return EXIT_OK

    async def show_status(self) -> int:
        """How far a replacement is."""
        _print(await status.read(self.client, self.plan.old))
        return EXIT_OK

    async def follow(self) -> int:
        """Wait until there is more in the log than was seen, or the end. An API server that is away is waited for."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.timeout
        while True:
            try:
                found = await status.read(self.client, self.plan.old)
            except ApiError as error:
                if not _passes(error) or loop.time() >= deadline:
                    raise
            else:
                if found["finished"] or found["milestones"] > self.options.after or loop.time() >= deadline:
                    _print(found)
                    return EXIT_OK
            await asyncio.sleep(1.0)

    async def ask(self) -> int:
        """Approve of a step, or ask for everything back."""
        action, old = self.options.action, self.plan.old
        found = await status.read(self.client, old)
        if found["phase"] == "":
            logger.error("no replacement of %s is recorded: there is nothing to %s", old, action)
            return EXIT_REFUSED
        if action == "approve" and found["phase"] != Phase.APPROVAL.value:
            logger.error("nothing waits for an approval: the replacement is %s", found["phase"])
            return EXIT_REFUSED
        if action == "rollback" and found["phase"] == Phase.DONE.value:
            before = parse_plan(found["plan"]).old
            if lacks := await lacks_to_serve(self._measure, before):
                text = "refused: all traffic would go back to %s, and %s: bring it up, then ask again"
                logger.error(text, before, lacks)
                return EXIT_REFUSED
        await self._store.ask(Request(action, self.options.by, max(0, found["share"])))
        _print({**found, "asked": action})
        return EXIT_OK

    async def report(self) -> int:
        """Write down how a replacement went."""
        stored = await self._store.load()
        if stored is None:
            logger.error("no replacement of %s is recorded: there is nothing to report", self.plan.old)
            return EXIT_REFUSED
        plan, state = stored.plan, stored.state
        pages = {"json": json.dumps(report.as_json(plan, state), indent=2) + "\n", "html": report.as_html(plan, state)}
        self.options.output.mkdir(parents=True, exist_ok=True)
        written = {suffix: self.options.output / f"{self._store.name}.{suffix}" for suffix in pages}
        for suffix, content in pages.items():
            written[suffix].write_text(content, encoding="utf-8")
        shown = report.commit_lines(plan, state) if plan.gitops == "paused" else []
        files, inventory = [str(path) for path in written.values()], report.inventory_change(plan, state)
        _print({"files": files, "inventory": inventory, "commit": shown})
        return EXIT_OK

    # ---- what the actions need

    @property
    def _lease(self) -> Lease:
        old, duration = self.plan.old, self.options.lease_duration
        name, identity = object_name(old), self.options.identity
        return Lease(self.client, old.namespace, name, identity, duration=duration, labels=LABELS)

    @property
    def _measure(self) -> Measure:
        return Measure(self.client, self.http_client, via=self.options.via)

    @property
    def _cluster(self) -> Cluster:
        return Cluster(self.client, self.http_client, self.plan, self._lease, self._measure)

    @property
    def _store(self) -> Store:
        return Store(self.client, self.plan.old)


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


def _passes(error: ApiError) -> bool:
    """An API server that is away, restarts, or has too much to do."""
    return error.status in (0, 429) or error.status >= 500


def _print(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
