"""`headrace simulate`: a simulated vLLM model server.

On SIGTERM it ends as vLLM does: new requests are answered 500, /health stays 200, running requests may end within
`--shutdown-timeout`; then, at once without the flag, what runs is answered with `finish_reason: "abort"`. With
`--drain-delay-seconds` it is kinder: /health fails at once, requests are still taken for that long, then refused with
503, and running ones are finished, up to `--drain-timeout-seconds`. The exit code is 0. A second signal stops without
waiting.
"""

from __future__ import annotations

import argparse
import logging
import os

import uvloop
from aiohttp import web

from headrace.config.flags import read_flags
from headrace.serving.lifecycle import Shutdown, within
from headrace.serving.tasks import Supervisor
from headrace.simulator.flags import Lifetime, add_arguments, model_server
from headrace.simulator.server import ModelServer

__all__ = ["add_arguments", "run"]

_logger = logging.getLogger(__name__)

# Envoy keeps upstream connections for an hour. A server that closes an idle one first races with the next request.
_KEEPALIVE_SECONDS = 3700.0
_BACKLOG = 4096


def run(args: argparse.Namespace) -> int:
    """Serve until stopped; returns the exit code. Raises ValueError, naming the flag, for values that cannot work."""
    server = model_server(args, os.environ)
    code: int = uvloop.run(serve(server, read_flags(args, Lifetime)))
    return code


async def serve(server: ModelServer, lifetime: Lifetime) -> int:
    """Run the server until a signal ends it; returns the exit code. Raises what its engine fails with."""
    shutdown = Shutdown()
    with shutdown.by_signals():
        if lifetime.startup_seconds:
            _logger.info("starting", extra={"startup_seconds": lifetime.startup_seconds})
            if await within(shutdown.asked, lifetime.startup_seconds):
                return 0
        runner = web.AppRunner(
            server.application(),
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=_KEEPALIVE_SECONDS,
            shutdown_timeout=5.0,
        )
        await runner.setup()
        try:
            # Ends before the cleanup: what still waits for tokens then ends with an error at once.
            async with Supervisor() as tasks:
                tasks.start(server.loop.run(), "engine")
                try:
                    return await _serve(server, runner, shutdown, lifetime)
                finally:
                    server.accepting = False
        finally:
            await runner.cleanup()


async def _serve(server: ModelServer, runner: web.AppRunner, shutdown: Shutdown, lifetime: Lifetime) -> int:
    try:
        await web.TCPSite(runner, lifetime.host, lifetime.port, backlog=_BACKLOG).start()
    except OSError as error:
        _logger.error(
            "cannot listen on %s port %d: %s; choose another --host or --port",
            lifetime.host, lifetime.port, error.strerror or error,
        )  # fmt: skip
        return 1
    host, port = runner.addresses[0][:2]
    _logger.info("serving", extra={"host": host, "port": port, "models": list(server.models.served_names)})
    await shutdown.asked.wait()
    await _drain(server, shutdown, lifetime)
    return 0


async def _drain(server: ModelServer, shutdown: Shutdown, lifetime: Lifetime) -> None:
    """What the server does between the signal and its end."""
    _logger.info("draining", extra={"running": server.loop.num_unfinished})
    seconds = lifetime.shutdown_timeout
    if lifetime.drain_delay_seconds is None:
        server.faults.draining = True
    else:
        # Fail readiness, wait until nobody sends any more, refuse what still comes.
        server.ready = False
        if await within(shutdown.at_once, lifetime.drain_delay_seconds):
            return
        server.accepting, seconds = False, lifetime.drain_timeout_seconds
    if seconds:
        await shutdown.finish(server.loop.wait_idle(), seconds)
    if server.loop.num_unfinished:
        _logger.warning("stopped with unfinished requests", extra={"unfinished": server.loop.num_unfinished})
        if lifetime.drain_delay_seconds is None:
            server.loop.abort_all()
    else:
        _logger.info("drained")
