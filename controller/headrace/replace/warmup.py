"""The warm-up: real completions from the new pool alone, through the Gateway, before any user's request goes there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec import Struct

from headrace.core.bounded_json import load
from headrace.protocol import http
from headrace.serving.http_client import HttpClient, HttpError

_POLL_SECONDS = 0.5
# A Gateway of several Envoys takes a route at different moments; one good answer is no proof.
_GOOD_ANSWERS = 5
_AT_ONCE = 4
_REQUEST_SECONDS = 60.0
_MOST_BYTES = 1 << 20
_PROMPT = "A headrace is the channel that leads water to the wheel. " * 8


class WarmUpFailed(Exception):  # noqa: N818
    """The new pool does not answer as it should; the message says how it answers."""


class NoWarmUp(Exception):  # noqa: N818
    """A route that completions cannot be asked through; the message says why. It says nothing about the pool."""


class Address(Struct, frozen=True):
    """Where the canary route is reached: the Gateway's URL, and what requests carry.

    `api` is the path of what the model servers call `/v1`."""

    url: str
    api: str
    headers: Mapping[str, str]
    query: Mapping[str, str] = {}


def address_of(route: Mapping[str, Any], gateway: Mapping[str, Any], section: str, given_url: str) -> Address:
    """Where the first rule of a route is reached behind a Gateway.

    Raises NoWarmUp where no match of it can be asked, and WarmUpFailed for a Gateway without an address."""
    rule = route["spec"]["rules"][0]
    usable = [match for match in rule["matches"] if _is_askable(match)]
    filters = rule.get("filters") or ()
    match, api = ({}, None) if any("urlRewrite" in entry for entry in filters) else _narrow(usable)
    if api is None:
        wide = ((match, _api_path(match, filters)) for match in usable)
        match, api = next((found for found in wide if found[1] is not None), ({}, None))
    if api is None:
        raise NoWarmUp("no match of the rule lets both the models and a completion be asked for")
    headers = {str(header["name"]): str(header["value"]) for header in match.get("headers") or ()}
    query = {str(parameter["name"]): str(parameter["value"]) for parameter in match.get("queryParams") or ()}
    hostnames = route["spec"].get("hostnames") or []
    if hostnames:
        headers[http.HOST] = str(hostnames[0]).replace("*.", "warm-up.", 1)
    if given_url:
        return Address(given_url.rstrip("/"), api, headers, query)
    metadata, spec = gateway.get("metadata") or {}, gateway.get("spec") or {}
    name = f"{metadata.get('namespace')}/{metadata.get('name')}"
    addresses = (gateway.get("status") or {}).get("addresses") or []
    listeners = [listener for listener in spec.get("listeners") or () if section in ("", listener.get("name"))]
    if not addresses or not listeners:
        raise WarmUpFailed(f"Gateway {name} has no address or listener: set gateway_url to where it is reached")
    scheme = "https" if listeners[0].get("protocol") == "HTTPS" else "http"
    value = str(addresses[0].get("value"))
    host = f"[{value}]" if ":" in value else value
    return Address(f"{scheme}://{host}:{listeners[0].get('port')}", api, headers, query)


def _is_askable(match: Mapping[str, Any]) -> bool:
    """Whether a request can be made for a match: models are asked for with GET and completions with POST, and a value
    cannot be made of a regular expression."""
    wanted = [*(match.get("headers") or ()), *(match.get("queryParams") or ())]
    return not match.get("method") and all(entry.get("type") != "RegularExpression" for entry in wanted)


def _api_path(match: Mapping[str, Any], filters: Iterable[Mapping[str, Any]]) -> str | None:
    """The path under which a request reaches the servers' `/v1`, as far as rule and filters say; None if none does."""
    path = match.get("path") or {}
    if path.get("type", "PathPrefix") != "PathPrefix":
        return None
    prefix = str(path.get("value") or "/").rstrip("/")
    # What stands in the prefix's place once the gateway has rewritten the path.
    reached = prefix
    for entry in filters:
        rewritten = (entry.get("urlRewrite") or {}).get("path") or {}
        if rewritten.get("type") == "ReplaceFullPath":
            return None
        if rewritten.get("type") == "ReplacePrefixMatch":
            reached = str(rewritten.get("replacePrefixMatch") or "/").rstrip("/")
    if reached.endswith("/v1"):
        return prefix
    # Narrower than `/v1`: models and completions are not both below it.
    return None if "/v1/" in reached else f"{prefix}/v1"


def _narrow(matches: Iterable[Mapping[str, Any]]) -> tuple[Mapping[str, Any], str | None]:
    """A match for the models that has one for completions beside it, and the path of both; ({}, None) for none.

    Role inference_gateway names paths one by one, where they are not rewritten."""
    prefixes = [(match, str((match.get("path") or {}).get("value") or "")) for match in matches]
    asked = {(prefix, str(match.get("headers")), str(match.get("queryParams"))) for match, prefix in prefixes}
    for match, prefix in prefixes:
        api = prefix.removesuffix("/models")
        same = (f"{api}/completions", str(match.get("headers")), str(match.get("queryParams")))
        if api.endswith("/v1") and api != prefix and same in asked:
            return match, api
    return {}, None


async def warm_up(http_client: HttpClient, address: Address, requests: int, timeout: float) -> str:  # noqa: ASYNC109
    """Wait until the new pool answers, ask it for `requests` completions, at least one of every model it serves.

    Returns what was done, in words. Raises WarmUpFailed."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(timeout) as limit:
            models = await _until_served(http_client, address, limit)
            wanted = [models[at % len(models)] for at in range(max(requests, len(models)))]
            slots = asyncio.Semaphore(_AT_ONCE)

            async def one(model: str) -> None:
                async with slots:
                    await _complete(http_client, address, model)

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


async def _until_served(http_client: HttpClient, address: Address, limit: asyncio.Timeout) -> list[str]:
    """The models of the new pool, once its route answers steadily. The caller's `limit` ends it."""
    good, seen = 0, "no answer"
    models: list[str] = []
    try:
        while good < _GOOD_ANSWERS:
            status, body = await _send(http_client, "GET", address, "/models", None)
            if status == 200:
                models = _models(body)
                good += 1
            else:
                good, seen = 0, f"status {status}: {body[:200].decode('utf-8', 'replace')}"
                await asyncio.sleep(_POLL_SECONDS)
    except asyncio.CancelledError:
        # A process that is told to end is no failure of the pool's.
        if good == 0 and limit.expired():
            raise WarmUpFailed(f"the new pool's route never answered {address.api}/models: {seen}") from None
        raise
    return models


def _models(body: bytes) -> list[str]:
    try:
        found = [str(entry["id"]) for entry in load(body)["data"]]
    except (ValueError, KeyError, TypeError) as error:
        raise WarmUpFailed(f"/v1/models is no list of models: {body[:200].decode('utf-8', 'replace')}") from error
    if not found:
        raise WarmUpFailed("the new pool serves no model")
    return found


async def _complete(http_client: HttpClient, address: Address, model: str) -> None:
    body = {"model": model, "prompt": _PROMPT, "max_tokens": 8}
    status, answer = await _send(http_client, "POST", address, "/completions", body)
    if status == 404:
        # Some servers have the chat endpoint alone.
        chat = {"model": model, "messages": [{"role": "user", "content": _PROMPT}], "max_tokens": 8}
        status, answer = await _send(http_client, "POST", address, "/chat/completions", chat)
    if status != 200:
        shown = answer[:200].decode("utf-8", "replace")
        raise WarmUpFailed(f"a completion of {model} from the new pool: status {status}: {shown}")


async def _send(http_client: HttpClient, method: str, address: Address, path: str, body: object) -> tuple[int, bytes]:
    """Status and body; status 0 where there was no answer."""
    url = f"{address.url}{address.api}{path}"
    headers, params = dict(address.headers), dict(address.query)
    asked = {"seconds": _REQUEST_SECONDS, "verify": False, "json": body, "headers": headers, "params": params}
    try:
        return await http_client.read(method, url, max_bytes=_MOST_BYTES, **asked)
    except HttpError as error:
        return 0, str(error).encode()
