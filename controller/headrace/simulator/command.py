"""`headrace simulate`: a simulated vLLM model server.

On SIGTERM: /health fails at once, requests are still taken for `--drain-delay-seconds` (routers learn of an ending Pod
a moment after it does), then refused with 503; running ones are finished, up to `--drain-timeout-seconds`; exit code 0.
A second signal stops without waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
from contextlib import suppress

import uvloop
from aiohttp import web

from headrace.config.flags import read_flags
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


class _Signals:
    """SIGTERM and SIGINT as events: the first one asks for a drain, the second one for an end."""

    def __init__(self) -> None:
        self.drain = asyncio.Event()
        self.end = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received)

    def _received(self) -> None:
        (self.end if self.drain.is_set() else self.drain).set()


async def serve(server: ModelServer, lifetime: Lifetime) -> int:
    """Run the server until a signal ends it, or its engine fails; returns the exit code."""
    signals = _Signals()
    if lifetime.startup_seconds:
        _logger.info("starting", extra={"startup_seconds": lifetime.startup_seconds})
        if await _within(signals.drain, lifetime.startup_seconds):
            return 0
    engine = asyncio.create_task(server.loop.run(), name="engine")
    runner = web.AppRunner(
        server.application(),
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=_KEEPALIVE_SECONDS,
        shutdown_timeout=5.0,
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, lifetime.host, lifetime.port, backlog=_BACKLOG)
        try:
            await site.start()
        except OSError as error:
            _logger.error(
                "cannot listen on %s port %d: %s; choose another --host or --port",
                lifetime.host, lifetime.port, error.strerror or error,
            )  # fmt: skip
            return 1
        host, port = runner.addresses[0][:2]
        _logger.info("serving", extra={"host": host, "port": port, "models": list(server.models.served_names)})
        stopping = asyncio.create_task(signals.drain.wait(), name="signals")
        await asyncio.wait({engine, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if engine.done():
            _logger.error("the engine failed", exc_info=engine.exception())
            return 1
        await _drain(server, signals, lifetime)
        return 0
    finally:
        server.accepting = False
        engine.cancel()  # before the cleanup: what still waits for tokens then ends with an error at once
        with suppress(asyncio.CancelledError, Exception):  # its failure is logged above
            await engine
        await runner.cleanup()


async def _drain(server: ModelServer, signals: _Signals, lifetime: Lifetime) -> None:
    """Fail readiness, wait until nobody sends any more, refuse what still comes, finish what runs."""
    server.ready = False
    _logger.info("draining", extra={"running": server.loop.num_unfinished})
    if await _within(signals.end, lifetime.drain_delay_seconds):
        return
    server.accepting = False
    idle = asyncio.create_task(server.loop.wait_idle(), name="drain")
    end = asyncio.create_task(signals.end.wait(), name="second signal")
    await asyncio.wait({idle, end}, timeout=lifetime.drain_timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
    idle.cancel()
    end.cancel()
    if server.loop.num_unfinished:
        _logger.warning("stopped with unfinished requests", extra={"unfinished": server.loop.num_unfinished})
    else:
        _logger.info("drained")


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Whether the event comes within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
