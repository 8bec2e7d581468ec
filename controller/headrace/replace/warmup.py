"""The warm-up: real completions from the new pool alone, through the Gateway, before any user's request goes there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

_POLL_SECONDS = 0.5
# A Gateway of several Envoys takes a route at different moments; one good answer is no proof.
_GOOD_ANSWERS = 5
_AT_ONCE = 4
_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=60)
_PROMPT = "A headrace is the channel that leads water to the wheel. " * 8


class WarmUpFailed(Exception):  # noqa: N818
    """The new pool does not answer as it should; the message says how it answers."""


@dataclass(frozen=True)
class Address:
    """Where the canary route is reached: the Gateway's URL, and what requests carry."""

    url: str
    prefix: str
    headers: Mapping[str, str]


def address_of(route: Mapping[str, Any], gateway: Mapping[str, Any], section: str, given_url: str) -> Address | None:
    """Where the first rule of a route is reached behind a Gateway; None if no match of it has a path prefix.

    Raises WarmUpFailed for a Gateway without an address."""
    matches = route["spec"]["rules"][0]["matches"]
    paths = [match.get("path") or {"type": "PathPrefix", "value": "/"} for match in matches]
    at = next((at for at, path in enumerate(paths) if path.get("type", "PathPrefix") == "PathPrefix"), None)
    if at is None:
        return None
    exact = [header for header in matches[at]["headers"] if header.get("type") != "RegularExpression"]
    headers = {str(header["name"]): str(header["value"]) for header in exact}
    hostnames = route["spec"].get("hostnames") or []
    if hostnames:
        headers["Host"] = str(hostnames[0]).replace("*.", "warm-up.", 1)
    prefix = str(paths[at].get("value") or "/").rstrip("/")
    if given_url:
        return Address(given_url.rstrip("/"), prefix, headers)
    metadata, spec = gateway.get("metadata") or {}, gateway.get("spec") or {}
    name = f"{metadata.get('namespace')}/{metadata.get('name')}"
    addresses = (gateway.get("status") or {}).get("addresses") or []
    listeners = [listener for listener in spec.get("listeners") or () if section in ("", listener.get("name"))]
    if not addresses or not listeners:
        raise WarmUpFailed(f"Gateway {name} has no address or listener: set gateway_url to where it is reached")
    scheme = "https" if listeners[0].get("protocol") == "HTTPS" else "http"
    value = str(addresses[0].get("value"))
    host = f"[{value}]" if ":" in value else value
    return Address(f"{scheme}://{host}:{listeners[0].get('port')}", prefix, headers)


async def warm_up(session: aiohttp.ClientSession, address: Address, requests: int, timeout: float) -> str:  # noqa: ASYNC109
    """Wait until the new pool answers, ask it for `requests` completions, at least one of every model it serves.

    Returns what was done, in words. Raises WarmUpFailed."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            models = await _until_served(session, address)
            wanted = [models[at % len(models)] for at in range(max(requests, len(models)))]
            slots = asyncio.Semaphore(_AT_ONCE)

            async def one(model: str) -> None:
                async with slots:
                    await _complete(session, address, model)

            async with asyncio.TaskGroup() as tasks:
                for model in wanted:
                    tasks.create_task(one(model))
    except TimeoutError:
        raise WarmUpFailed(f"the warm-up was not over after {timeout:g} s") from None
    except BaseExceptionGroup as group:
        first = group.exceptions[0]
        if isinstance(first, WarmUpFailed):
            raise first from None
        raise
    seconds = time.monotonic() - started
    return f"the new pool answered {len(wanted)} completions of {', '.join(models)} in {seconds:.1f} s"


async def _until_served(session: aiohttp.ClientSession, address: Address) -> list[str]:
    """The models of the new pool, once its route answers steadily. The caller's timeout ends it."""
    good, seen = 0, "no answer"
    models: list[str] = []
    try:
        while good < _GOOD_ANSWERS:
            status, body = await _send(session, "GET", address, "/v1/models", None)
            if status == 200:
                models = _models(body)
                good += 1
            else:
                good, seen = 0, f"status {status}: {body[:200].decode('utf-8', 'replace')}"
                await asyncio.sleep(_POLL_SECONDS)
    except asyncio.CancelledError:
        if good == 0:
            raise WarmUpFailed(f"the new pool's route never answered {address.prefix}/v1/models: {seen}") from None
        raise
    return models


def _models(body: bytes) -> list[str]:
    try:
        found = [str(entry["id"]) for entry in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise WarmUpFailed(f"/v1/models is no list of models: {body[:200].decode('utf-8', 'replace')}") from error
    if not found:
        raise WarmUpFailed("the new pool serves no model")
    return found


async def _complete(session: aiohttp.ClientSession, address: Address, model: str) -> None:
    body = {"model": model, "prompt": _PROMPT, "max_tokens": 8}
    status, answer = await _send(session, "POST", address, "/v1/completions", body)
    if status == 404:
        # Some servers have the chat endpoint alone.
        chat = {"model": model, "messages": [{"role": "user", "content": _PROMPT}], "max_tokens": 8}
        status, answer = await _send(session, "POST", address, "/v1/chat/completions", chat)
    if status != 200:
        shown = answer[:200].decode("utf-8", "replace")
        raise WarmUpFailed(f"a completion of {model} from the new pool: status {status}: {shown}")


async def _send(
    session: aiohttp.ClientSession, method: str, address: Address, path: str, body: object
) -> tuple[int, bytes]:
    """Status and body; status 0 where there was no answer."""
    url = f"{address.url}{address.prefix}{path}"
    try:
        async with session.request(
            method, url, json=body, headers=dict(address.headers), timeout=_REQUEST_TIMEOUT, ssl=False
        ) as response:
            return response.status, await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return 0, f"{type(error).__name__}: {error}".encode()
