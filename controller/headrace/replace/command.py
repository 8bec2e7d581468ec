"""`headrace pool replace`: run a replacement, or look at one and ask something of it."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from headrace.core import GA_GROUP
from headrace.core.pool import VERSION_OF_GROUP
from headrace.kube.client import ApiError, ConfigurationError, connect
from headrace.kube.lease import Lease, LeaseHeld, LeaseLost
from headrace.replace import report, status
from headrace.replace.cluster import Cluster
from headrace.replace.measure import Measure
from headrace.replace.plan import InvalidPlan, Plan, parse_plan
from headrace.replace.preflight import lacks_to_serve
from headrace.replace.prometheus import Credentials, Prometheus
from headrace.replace.runner import Runner
from headrace.replace.state import Phase, State
from headrace.replace.store import LABELS, Request, Store, Unreadable, object_name, who

__all__ = ["add_arguments", "run"]

logger = logging.getLogger(__name__)

ACTIONS = ("run", "plan", "status", "follow", "rollback", "approve", "report")
EXIT_OK, EXIT_FAILED, EXIT_ROLLED_BACK, EXIT_REFUSED, EXIT_HELD = 0, 1, 3, 4, 5


class Stopped(Exception):  # noqa: N818
    """Told to stop; the state in the cluster is what the next one carries on from."""


@dataclass(frozen=True)
class Options:
    """What the command was asked to do."""

    action: str
    plan: dict[str, Any]
    run: str
    kubeconfig: str | None
    context: str | None
    via: str
    identity: str
    credentials: Credentials | None
    poll_interval: float
    lease_patience: float
    lease_duration: float
    after: int
    timeout: float
    output: Path
    by: str
    new_is_made: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's flags."""
    add = parser.add_argument
    add("--action", choices=ACTIONS, default="run", help="what to do: run a replacement, show its plan, or ask of one")
    add("--pool", default="", help="the pool to replace")
    add("--replacement", default="", help="the pool that takes its place")
    add("--namespace", default="default", help="namespace of both pools")
    add("--pool-group", default=GA_GROUP, choices=tuple(VERSION_OF_GROUP), help="API group of the pool")
    add("--replacement-group", default=GA_GROUP, choices=tuple(VERSION_OF_GROUP), help="API group of the replacement")
    add("--plan-file", type=Path, default=None, help="JSON file with a plan; the flags above go before it")
    add("--plan", default="", metavar="JSON", help="a plan as JSON text, instead of a file")
    add(
        "--prometheus-url", default="", help="measure with this Prometheus; by default with the Pods' own metrics pages"
    )
    match = "label matchers for all that Prometheus is asked, where it has several clusters: 'cluster=\"a\"'"
    add("--prometheus-match", default="", metavar="MATCHERS", help=match)
    folder = "folder of a mounted Secret for Prometheus: token, or username and password; ca.crt"
    add("--prometheus-credentials", type=Path, default=None, metavar="FOLDER", help=folder)
    add("--run", default="", help="name of this attempt: a process with the same name carries on, another one begins")
    add("--kubeconfig", default=None, help="kubeconfig; by default $KUBECONFIG, else the Pod's service account")
    via = "how metrics pages are read: from Pods or through the API server; auto: from Pods if this runs in one"
    add("--context", default=None, help="context in the kubeconfig; by default its current one")
    add("--read-via", choices=("auto", "pod", "proxy"), default="auto", help=via)
    own = os.environ.get("POD_NAME", "")
    add("--identity", default=own, help="holder of the Lease; by default $POD_NAME, else host and process")
    add("--poll-interval", type=_seconds, default=2.0, help="seconds between two looks at the pools")
    add("--lease-patience", type=_seconds, default=60.0, help="seconds to wait for a Lease that somebody else holds")
    add("--lease-duration", type=_seconds, default=15.0, help="seconds after which a Lease not renewed may be taken")
    add("--after", type=int, default=0, help="follow: lines of the log that were seen already")
    add("--timeout", type=_seconds, default=3600.0, help="follow: seconds to wait for news")
    add("--output", type=Path, default=Path(), help="report: folder to write it to")
    add("--by", default="", help="rollback, approve: who asks")
    made = "plan: the replacement is made next, and what it lacks now is in nobody's way"
    add("--replacement-is-made", action="store_true", help=made)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time: give seconds, more than 0")
    return value


def read_options(args: argparse.Namespace) -> Options:
    """What the flags come to. Raises ValueError naming the flag and the fix."""
    if args.plan and args.plan_file is not None:
        raise ValueError("--plan and --plan-file: give one of the two")
    source = f"--plan-file={args.plan_file}" if args.plan_file is not None else "--plan"
    try:
        plan = json.loads(
            args.plan_file.read_text(encoding="utf-8") if args.plan_file is not None else args.plan or "{}"
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{source}: {error}: give readable JSON") from None
    if not isinstance(plan, dict):
        raise ValueError(f"{source}: it is no JSON object: see the plan's fields")
    for field, name, group in (
        ("old", args.pool, args.pool_group),
        ("new", args.replacement, args.replacement_group),
    ):
        if name:
            plan[field] = {"group": group, "namespace": args.namespace, "name": name}
    for field, value in (("prometheus_url", args.prometheus_url), ("prometheus_match", args.prometheus_match)):
        if value:
            plan[field] = value
    if "old" not in plan:
        raise ValueError("--pool: name the pool to replace")
    if "new" not in plan and args.action in ("run", "plan"):
        raise ValueError("--replacement: name the pool that takes its place")
    credentials = Credentials(args.prometheus_credentials) if args.prometheus_credentials is not None else None
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and args.kubeconfig is None
    via = args.read_via if args.read_via != "auto" else "pod" if in_pod else "proxy"
    return Options(
        action=args.action,
        plan=plan,
        run=args.run or uuid.uuid4().hex,
        kubeconfig=args.kubeconfig,
        context=args.context,
        via=via,
        identity=args.identity or f"{socket.gethostname()}-{os.getpid()}",
        credentials=credentials,
        poll_interval=args.poll_interval,
        lease_patience=args.lease_patience,
        lease_duration=args.lease_duration,
        after=args.after,
        timeout=args.timeout,
        output=args.output,
        by=args.by or who(),
        new_is_made=args.replacement_is_made,
    )


def run(args: argparse.Namespace) -> int:
    """Run until done. Wrong flags and plans raise ValueError with what to do."""
    options = read_options(args)
    # A plan is read before anything is asked of the cluster; without a replacement any will do to find the record.
    old = options.plan["old"]
    anything = {**old, "name": f"{old.get('name')}-"} if isinstance(old, dict) else f"{old}-"
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
            return await _hold(options, plan, client, session, lease)
        finally:
            # What stops us must not stop us from giving the Lease back: the next one would wait for its expiry.
            await asyncio.shield(lease.release())
    except asyncio.CancelledError:
        if stopping:
            raise Stopped from None
        raise


async def _hold(options: Options, plan: Plan, client: Any, session: aiohttp.ClientSession, lease: Lease) -> int:
    store = Store(client, plan.old)
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
        prometheus = Prometheus(session, plan.prometheus_url, plan.prometheus_match, options.credentials)
    measure = Measure(client, session, via=options.via, prometheus=prometheus)
    runner = Runner(
        plan,
        Cluster(client, session, plan, lease, measure),
        measure,
        store,
        epoch=lambda: lease.transitions,
        poll_interval=options.poll_interval,
    )
    if fresh:
        logger.info("replacing %s by %s", plan.old, plan.new)
    state = await _while_leased(runner.run(state), lease)
    return _exit_code(state)


async def _while_leased(work: Awaitable[State], lease: Lease) -> State:
    """Work, and renew the Lease meanwhile; a lost Lease ends the work. Raises LeaseLost."""
    working = asyncio.ensure_future(work)
    keeping = asyncio.ensure_future(lease.keep())
    try:
        await asyncio.wait({working, keeping}, return_when=asyncio.FIRST_COMPLETED)
        if keeping.done() and not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            keeping.result()
        return await working
    finally:
        for task in (working, keeping):
            task.cancel()
        await asyncio.gather(working, keeping, return_exceptions=True)


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
