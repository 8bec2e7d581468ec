"""The routes that change how a simulated server behaves: vLLM's for its sleep, and our own for faults."""

from __future__ import annotations

from aiohttp import web

from headrace.simulator.faults import Faults, FaultSettings
from headrace.simulator.openai import parse_json, wrong_type


def control_routes(settings: FaultSettings, faults: Faults) -> list[web.RouteDef]:
    """The routes that the settings allow."""
    control = _Control(faults)
    routes = []
    if settings.enable_sleep_mode:
        routes += [web.post("/sleep", control.sleep), web.post("/wake_up", control.wake_up)]
        routes += [web.get("/is_sleeping", control.is_sleeping)]
    if settings.fault_control:
        routes += [web.post("/faults", control.change), web.get("/faults", control.show)]
    return routes


class _Control:
    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    async def sleep(self, request: web.Request) -> web.StreamResponse:
        level = request.query.get("level", "1")
        if level not in ("1", "2"):
            raise wrong_type("level", level, "give 1 or 2")
        self._faults.sleep(int(level))
        return web.json_response({"status": "sleeping", "level": int(level)})

    async def wake_up(self, _request: web.Request) -> web.StreamResponse:
        self._faults.wake()
        return web.json_response({"status": "awake"})

    async def is_sleeping(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"is_sleeping": bool(self._faults.sleeping)})

    async def change(self, request: web.Request) -> web.StreamResponse:
        return web.json_response(self._faults.change(parse_json(await request.read())))

    async def show(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response(self._faults.state())
