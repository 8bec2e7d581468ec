"""Where completions are asked for: what rules match and rewrite decides, and some cannot be asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from headrace.replace.warmup import Address, NoWarmUp, WarmUpFailed, address_of, warm_up
from headrace.serving.http_client import HttpClient

from ...hang import HANG_SECONDS

OWN = {"type": "Exact", "name": "headrace-replace", "value": "token-new"}


def rewrite(**path: str) -> list[dict[str, Any]]:
    return [{"type": "URLRewrite", "urlRewrite": {"path": path}}]


def to(prefix: str) -> list[dict[str, Any]]:
    return rewrite(type="ReplacePrefixMatch", replacePrefixMatch=prefix)


def route(*matches: dict[str, Any], filters: Any = None) -> dict[str, Any]:
    rule = {"matches": [{**match, "headers": [*match.get("headers", ()), OWN]} for match in matches]}
    return {"spec": {"rules": [{**rule, **({"filters": filters} if filters else {})}]}}


def prefix(value: str, **more: Any) -> dict[str, Any]:
    return {"path": {"type": "PathPrefix", "value": value}, **more}


@pytest.mark.parametrize(
    ("value", "filters", "api"),
    [
        ("/", None, "/v1"),
        ("/v1", None, "/v1"),
        ("/v1/", None, "/v1"),
        ("/llm", None, "/llm/v1"),
        ("/llm/v1", None, "/llm/v1"),
        ("/llm", to("/"), "/llm/v1"),
        ("/llm", to("/v1"), "/llm"),
        ("/v1", to("/"), "/v1/v1"),
        ("/v1", to("/v1"), "/v1"),
        ("/", to("/v1"), ""),
        ("/v1", [{"type": "RequestHeaderModifier", "requestHeaderModifier": {}}], "/v1"),
    ],
)
def test_the_api_is_reached_as_the_rule_rewrites_it(value: str, filters: Any, api: str) -> None:
    found = address_of(route(prefix(value), filters=filters), {}, "", "http://gateway/")
    assert (found.url, found.api, found.headers) == ("http://gateway", api, {"headrace-replace": "token-new"})


@pytest.mark.parametrize("base", ["", "/llm"])
def test_models_and_completions_may_be_matched_one_by_one(base: str) -> None:
    paths = [prefix(f"{base}{path}") for path in ("/score", "/v1/chat", "/v1/completions", "/v1/models")]
    assert address_of(route(*paths), {}, "", "http://gateway").api == f"{base}/v1"
    team = {"queryParams": [{"name": "team", "value": "a"}]}
    for apart in (paths[1:3], [*paths[1:3], {**paths[3], **team}]):
        with pytest.raises(NoWarmUp):
            address_of(route(*apart), {}, "", "http://gateway")


@pytest.mark.parametrize(
    ("match", "filters"),
    [
        (prefix("/v1/completions"), None),
        (prefix("/llm"), to("/v1/completions")),
        (prefix("/"), rewrite(type="ReplaceFullPath", replaceFullPath="/x")),
        ({"path": {"type": "Exact", "value": "/v1/completions"}}, None),
        (prefix("/", method="POST"), None),
        (prefix("/", headers=[{"type": "RegularExpression", "name": "x", "value": ".*"}]), None),
        (prefix("/", queryParams=[{"type": "RegularExpression", "name": "x", "value": ".*"}]), None),
    ],
)
def test_what_cannot_be_asked_is_no_fault_of_the_pool(match: dict[str, Any], filters: Any) -> None:
    with pytest.raises(NoWarmUp, match="no match of the rule"):
        address_of(route(match, filters=filters), {}, "", "http://gateway")
    # Another match of the same rule will do.
    if filters is None:
        parameter = {"name": "team", "value": "a"}
        found = address_of(route(match, prefix("/", queryParams=[parameter])), {}, "", "http://gateway")
        assert (found.api, found.query) == ("/v1", {"team": "a"})


@asynccontextmanager
async def answering(status: int, body: bytes, asked: asyncio.Event) -> AsyncIterator[Address]:
    """A pool that answers everything alike."""

    async def answer(request: web.Request) -> web.Response:
        asked.set()
        return web.Response(status=status, body=body)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield Address(f"http://127.0.0.1:{runner.addresses[0][1]}", "/v1", {}, "")
    finally:
        await runner.cleanup()


async def test_a_process_that_is_told_to_end_does_not_blame_the_pool() -> None:
    asked = asyncio.Event()
    async with answering(503, b"", asked) as address, HttpClient() as client:
        work = asyncio.create_task(warm_up(client, address, 1, HANG_SECONDS))
        await asked.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work


async def test_a_pool_that_never_answers_is_named_with_what_it_said() -> None:
    async with answering(503, b"loading", asyncio.Event()) as address, HttpClient() as client:
        with pytest.raises(WarmUpFailed, match="503: loading"):
            await warm_up(client, address, 1, 0.3)


async def test_models_that_are_nested_deeply_are_no_list_of_models() -> None:
    async with answering(200, b"[" * 400_000, asyncio.Event()) as address, HttpClient() as client:
        with pytest.raises(WarmUpFailed, match="no list of models"):
            await warm_up(client, address, 1, HANG_SECONDS)
