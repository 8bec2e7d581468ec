"""The picker's HTTP port: metrics, health, and what it knows and did, as JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web
from aiohttp.typedefs import Handler

from headrace.core.fields import is_digits
from headrace.epp.composition import Components
from headrace.protocol import http
from headrace.replicas.metrics import peer_page
from headrace.replicas.peering import Peering
from headrace.serving.servers import health_routes, metrics_route

if TYPE_CHECKING:
    from headrace.epp.access import Access

_MOST_DECISIONS = 1000
_FOR_ALL = ("/healthz", "/readyz")


def application(
    parts: Components,
    is_ready: Callable[[], bool],
    access: Access | None = None,
    peering: Peering | None = None,
) -> web.Application:
    """The HTTP application. Metrics and debug pages are for those whom `access` lets in, health is for all."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if access is None or request.path in _FOR_ALL:
            return await handler(request)
        verdict = await access.check(request.headers.get(http.AUTHORIZATION, ""), request.path)
        if verdict is None:
            return await handler(request)
        headers = {http.WWW_AUTHENTICATE: "Bearer"} if verdict.status == 401 else {}
        response = _json({"error": verdict.message}, status=verdict.status)
        response.headers.update(headers)
        return response

    async def endpoints(_: web.Request) -> web.Response:
        return _json(endpoint_list(parts))

    async def decisions(request: web.Request) -> web.Response:
        text = request.query.get("limit", "100")
        if not is_digits(text, 9) or not 1 <= int(text) <= _MOST_DECISIONS:
            return _json({"error": f"limit={text[:20]}: give a number of 1 to {_MOST_DECISIONS}"}, status=400)
        found = parts.decisions.find(request_id=request.query.get("request_id", ""), limit=int(text))
        return _json({"decisions": found})

    async def peers(_: web.Request) -> web.Response:
        return _json(peer_page(peering))

    app = web.Application(middlewares=[guard])
    app.add_routes(
        [
            metrics_route(parts.metrics.registry),
            *health_routes(lambda: "" if is_ready() else "not ready"),
            web.get("/debug/endpoints", endpoints),
            web.get("/debug/decisions", decisions),
            web.get("/debug/peers", peers),
        ]
    )
    return app


def endpoint_list(parts: Components) -> dict[str, Any]:
    """Every endpoint, as the picker sees it now."""
    pool = parts.pool
    now = pool.clock()
    listed, steps = [], dict(parts.latency.step_times())
    for state in pool.store.snapshot():
        record = pool.store.get(state.key)
        server = parts.health.ward.get(state.key)
        age = None if record is None or record.scraped_at is None else round(now - record.scraped_at, 3)
        listed.append(
            {
                "endpoint": state.key,
                "pod": state.endpoint.pod_name,
                "namespace": state.endpoint.namespace,
                "rank": state.endpoint.rank,
                "waiting": state.waiting,
                "running": state.running,
                "in_flight": state.in_flight,
                "in_flight_of_peers": record.of_peers if record is not None else 0,
                "kv_usage": state.kv_usage,
                "running_adapters": sorted(state.running_adapters),
                "waiting_adapters": sorted(state.waiting_adapters),
                "resident_adapters": sorted(state.resident_adapters),
                "max_adapters": state.max_adapters,
                "models": sorted(state.models),
                "metrics_fresh": state.fresh,
                "metrics_age_seconds": age,
                "metrics_error": record.scrape_error if record is not None else "",
                "prefix_blocks": parts.index.entries(state.key),
                "step_seconds": steps[state.key]._asdict() if state.key in steps else None,
                "health": server.health.value if server is not None else "",
                "health_reason": server.cause.value if server is not None else "",
                "health_seconds": round(now - server.since, 3) if server is not None else None,
            }
        )
    return {
        "pool": parts.metrics.pool_name,
        "synced": pool.synced,
        "failure_mode": pool.failure_mode.value,
        "profile": parts.director.config.profile.name,
        "adapters": sorted(pool.store.adapters.names),
        "objectives": parts.policies.priorities,
        "rewritten_models": parts.policies.rewritten_models,
        "endpoints": listed,
    }


def _json(value: Any, status: int = 200) -> web.Response:
    body = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    return web.Response(body=body, status=status, content_type="application/json")
