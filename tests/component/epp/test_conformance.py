"""The conformance hooks behind a real Envoy, in the protocol's own mode and over TLS, as the suite's EPP has them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from .configs import BOTH_WAYS_DUPLEX, picking_mode
from .conftest import RunStack, Stack

SELECTION = "test-epp-endpoint-selection"
SERVED = "x-conformance-test-served-endpoint"
BODY = json.dumps(
    {"model": "conformance-fake-model", "prompt": "Write as if you were a critic: San Francisco"}
).encode()
HOOKS = ("--conformance-hooks", "--secure-serving", "--zap-encoder", "json")
OWN_MODE = {"mode": BOTH_WAYS_DUPLEX, "observe": False, "tls": True}


async def served(stack: Stack, chosen: Sequence[str], body: bytes | None = BODY) -> tuple[str, str]:
    """Who answered: in its own words, and in those of the gateway's metadata."""
    method = "GET" if body is None else "POST"
    headers = {SELECTION: ",".join(chosen)} if chosen else {}
    async with stack.client.request(method, stack.url + "/path", data=body, headers=headers) as answer:
        text = await answer.text()
        assert answer.status == 200, text
        assert len(answer.headers.getall(SERVED)) == 1
        return str(json.loads(text)["server"]), answer.headers[SERVED]


async def test_requests_stay_within_the_selection_and_take_turns(run_stack: RunStack) -> None:
    async with run_stack(servers=3, flags=HOOKS, **OWN_MODE) as stack:
        keys = [server.key for server in stack.servers]
        for chosen in (keys[2:], keys[:2], keys):
            # Other pools' endpoints are in the list too where a route splits its traffic.
            answers = [await served(stack, [*chosen, "127.0.0.9:3000"]) for _ in range(6 * len(chosen))]
            assert all(said == told for said, told in answers)
            assert Counter(said for said, _ in answers) == dict.fromkeys(chosen, 6)
        await stack.picker.wait_in_flight(0)


async def test_an_address_means_each_of_its_ports(run_stack: RunStack) -> None:
    async with run_stack(servers=3, flags=HOOKS, **OWN_MODE) as stack:
        answers = Counter([(await served(stack, ["127.0.0.1"]))[0] for _ in range(6)])
        assert answers == dict.fromkeys((server.key for server in stack.servers), 2)


async def test_without_a_body_and_without_a_selection(run_stack: RunStack) -> None:
    async with run_stack(servers=2, flags=HOOKS, **OWN_MODE) as stack:
        keys = {server.key for server in stack.servers}
        for chosen in ([], [stack.servers[1].key]):
            for body in (None, BODY, BODY * 20_000):
                said, told = await served(stack, chosen, body)
                assert said == told
                assert said in (chosen or keys)
        await stack.picker.wait_in_flight(0)


async def test_a_selection_outside_the_pool_is_answered_503(run_stack: RunStack) -> None:
    async with run_stack(servers=1, flags=HOOKS, fail_open=True, **OWN_MODE) as stack:
        headers = {SELECTION: "127.0.0.9:3000"}
        for body in (None, BODY):
            async with stack.client.request("POST" if body else "GET", stack.url, data=body, headers=headers) as answer:
                assert answer.status == 503
        assert not stack.servers[0].requests


async def test_a_buffered_request_is_hooked_too(run_stack: RunStack) -> None:
    mode = picking_mode("BUFFERED", response_header_mode="SEND")
    async with run_stack(servers=2, flags=HOOKS, mode=mode, observe=False, tls=True) as stack:
        for server in stack.servers:
            assert await served(stack, [server.key]) == (server.key, server.key)
        await stack.picker.wait_in_flight(0)


async def test_without_the_flag_clients_choose_nothing(run_stack: RunStack) -> None:
    async with run_stack(servers=1, mode=BOTH_WAYS_DUPLEX, observe=False) as stack:
        headers = {SELECTION: "127.0.0.9:3000"}
        async with stack.client.post(stack.url, data=BODY, headers=headers) as answer:
            assert answer.status == 200
            assert SERVED not in answer.headers
