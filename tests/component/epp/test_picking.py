"""The picker behind a real Envoy, one process each: picks are followed, bodies arrive whole, in every mode."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from .configs import BOTH_WAYS_DUPLEX, picking_mode, set_metadata_filter
from .conftest import BOTH_TRANSPORTS, RunStack, Stack

pytestmark = BOTH_TRANSPORTS

PROMPT = {"model": "base", "prompt": "Write as if you were a critic: San Francisco"}

MODES = {
    "two filters, duplex": {"mode": picking_mode(), "observe": True},
    "two filters, buffered": {"mode": picking_mode("BUFFERED"), "observe": True},
    "two filters, partly buffered": {"mode": picking_mode("BUFFERED_PARTIAL"), "observe": True},
    "two filters, streamed": {"mode": picking_mode("STREAMED"), "observe": True},
    "two filters, headers only": {"mode": picking_mode("NONE"), "observe": True},
    "one filter, duplex both ways": {"mode": BOTH_WAYS_DUPLEX, "observe": False},
    "one filter, response headers": {
        "mode": picking_mode(response_header_mode="SEND", response_trailer_mode="SEND"),
        "observe": False,
    },
    "one filter, buffered both ways": {
        "mode": picking_mode("BUFFERED", response_header_mode="SEND", response_body_mode="BUFFERED"),
        "observe": False,
    },
    "one filter, streamed both ways": {
        "mode": picking_mode("STREAMED", response_header_mode="SEND", response_body_mode="STREAMED"),
        "observe": False,
    },
}


async def ask(stack: Stack, body: bytes, headers: Any = None, path: str = "/v1/completions") -> dict[str, Any]:
    """Post a body; what the server says it got."""
    sent = {"content-type": "application/json", "x-request-id": "r1"}
    async with stack.client.post(stack.url + path, data=body, headers=headers or sent) as answer:
        text = await answer.text()
        assert answer.status == 200, text
        return dict(json.loads(text))


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
async def test_every_mode_follows_the_pick_and_ends_in_flight_at_zero(run_stack: RunStack, mode: Any) -> None:
    async with run_stack(servers=3, **mode) as stack:
        for size in (0, 100, 62_000, 62_001, 1_000_000):
            body = json.dumps({**PROMPT, "user": "x" * size}).encode()
            seen = await ask(stack, body)
            decision = (await stack.picker.decisions("?request_id=r1&limit=1"))[0]
            assert seen["server"] == decision["winner"]
            assert seen["body_bytes"] == len(body)
            assert seen["body_sha256"] == hashlib.sha256(body).hexdigest()
            sent = dict(seen["headers"])
            assert sent["x-gateway-destination-endpoint"] == decision["winner"]
            assert "x-gateway-destination-endpoint-subset" not in sent
        if "STREAMED" not in str(mode["mode"]["request_body_mode"]) and mode["mode"]["request_body_mode"] != "NONE":
            assert decision["model"] == "base"
        async with stack.client.get(stack.url + "/v1/models") as answer:
            assert answer.status == 200
        await stack.picker.wait_in_flight(0)
        assert await stack.picker.metric('headrace_epp_stream_errors_total{reason="protocol"}') == 0


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
async def test_a_clients_own_destination_is_ignored(run_stack: RunStack, mode: Any) -> None:
    async with run_stack(servers=2, **mode) as stack:
        for _ in range(4):
            headers = [
                ("x-gateway-destination-endpoint", "127.0.0.1:1"),
                ("x-gateway-destination-endpoint", "127.0.0.1:2"),
                ("x-gateway-destination-endpoint-served", "127.0.0.1:1"),
                ("x-gateway-destination-endpoint-subset", "127.0.0.1:1"),
                ("x-request-id", "r1"),
            ]
            seen = await ask(stack, json.dumps(PROMPT).encode(), headers)
            decision = (await stack.picker.decisions("?request_id=r1&limit=1"))[0]
            ours = [(k, v) for k, v in seen["headers"] if k.startswith("x-gateway-destination")]
            assert ours == [("x-gateway-destination-endpoint", decision["winner"])]
            assert seen["server"] == decision["winner"]


async def test_load_steers_the_pick(run_stack: RunStack) -> None:
    async with run_stack(servers=2) as stack:
        busy, free = stack.servers
        busy.waiting, busy.kv_usage = 50, 0.9
        while (await stack.picker.endpoints())[busy.key]["kv_usage"] != 0.9:
            await ask(stack, json.dumps(PROMPT).encode())
        served = {(await ask(stack, json.dumps({**PROMPT, "n": n}).encode()))["server"] for n in range(10)}
        assert served == {free.key}


async def test_prefixes_come_back_to_their_server(run_stack: RunStack) -> None:
    async with run_stack(servers=4) as stack:
        homes = {}
        for user in range(4):
            body = json.dumps({"model": "base", "prompt": f"user {user} " + "context " * 500}).encode()
            homes[user] = (await ask(stack, body))["server"]
            # Load steers as well: the next request finds none.
            await stack.picker.wait_in_flight(0)
        for user in range(4):
            body = json.dumps({"model": "base", "prompt": f"user {user} " + "context " * 600}).encode()
            assert (await ask(stack, body))["server"] == homes[user]
            await stack.picker.wait_in_flight(0)


@pytest.mark.parametrize("as_text", [True, False], ids=["comma string", "list"])
@pytest.mark.parametrize("with_port", [True, False], ids=["ip:port", "ip"])
async def test_the_subset_hint_limits_the_pick(run_stack: RunStack, as_text: bool, with_port: bool) -> None:
    async with run_stack(servers=2) as probe:
        key = probe.servers[0].key
    wanted = key if with_port else "127.0.0.1"
    value = {"x-gateway-destination-endpoint-subset": wanted if as_text else [wanted]}
    before = [set_metadata_filter("envoy.lb.subset_hint", value)]
    async with (
        run_stack(servers=2, before=before) as stack,
        stack.client.post(stack.url + "/v1/completions", json=PROMPT) as answer,
    ):
        # The named port is one of the stack before this one: nobody's.
        assert answer.status == (503 if with_port else 200)
        if with_port:
            assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"
            assert (await answer.json())["error"]["type"] == "service_unavailable"


async def test_unreadable_bodies_are_refused_in_openais_form(run_stack: RunStack) -> None:
    async with run_stack(servers=1) as stack:
        async with stack.client.post(stack.url + "/v1/completions", data=b'{"model":') as answer:
            assert answer.status == 400
            error = (await answer.json())["error"]
            assert error["type"] == "invalid_request_error"
            assert "JSON" in error["message"]
        async with stack.client.post(stack.url + "/v1/completions", json=["no", "object"]) as answer:
            assert answer.status == 400
        # What is not an inference request is not the picker's to judge.
        async with stack.client.post(stack.url + "/v1/audio/transcriptions", data=b"\x00\xff") as answer:
            assert answer.status == 200


async def test_twenty_megabytes(run_stack: RunStack) -> None:
    async with run_stack(servers=2) as stack:
        body = json.dumps({**PROMPT, "user": "x" * (20 << 20)}).encode()
        seen = await ask(stack, body)
        assert seen["body_sha256"] == hashlib.sha256(body).hexdigest()
        await stack.picker.wait_in_flight(0)


async def test_a_chunked_body_and_its_length(run_stack: RunStack) -> None:
    async with run_stack(servers=1) as stack:
        parts = [b'{"model":"base",', b'"prompt":"' + b"y" * 100_000, b'"}']

        async def pieces() -> Any:
            for part in parts:
                yield part

        async with stack.client.post(stack.url + "/v1/completions", data=pieces()) as answer:
            seen = await answer.json()
        assert seen["body_sha256"] == hashlib.sha256(b"".join(parts)).hexdigest()
        # One way to say where a body ends, never two: two are what request smuggling is made of.
        framing = [pair for pair in seen["headers"] if pair[0] in ("content-length", "transfer-encoding")]
        assert framing in ([["content-length", str(len(b"".join(parts)))]], [["transfer-encoding", "chunked"]])


async def test_tls_with_a_self_signed_certificate(run_stack: RunStack) -> None:
    async with run_stack(servers=1, flags=("--secure-serving=true",), tls=True) as stack:
        await ask(stack, json.dumps(PROMPT).encode())
