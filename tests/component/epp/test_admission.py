"""Admission behind a real Envoy: who waits, waits in the picker; who leaves, leaves; a changed file is taken up."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest

from ...hang import HANG_SECONDS
from .configs import BOTH_WAYS_DUPLEX, picking_mode
from .conftest import BOTH_TRANSPORTS, RunStack, Stack

pytestmark = BOTH_TRANSPORTS

SERVERS = 3
CONFIG = """\
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
  - type: queue-scorer
  - type: concurrency-detector
    parameters: {maxConcurrency: 1}
  - type: round-robin-fairness-policy
saturationDetector: {pluginRef: concurrency-detector}
flowControl:
  defaultRequestTTL: WAIT
  defaultPriorityBand: {fairnessPolicyRef: round-robin-fairness-policy}
schedulingProfiles:
  - name: default
    plugins: [{pluginRef: queue-scorer}]
"""
MODES = {
    "two filters": {"mode": picking_mode(), "observe": True},
    "two filters, buffered": {"mode": picking_mode("BUFFERED"), "observe": True},
    "one filter": {"mode": BOTH_WAYS_DUPLEX, "observe": False},
}


def config(ttl: str = "60s") -> str:
    return CONFIG.replace("WAIT", ttl)


async def stream(stack: Stack, number: int = 0, flow: str = "") -> tuple[int, str]:
    """Ask for a stream; its status, and the reason header of a refusal."""
    headers = {"x-gateway-inference-fairness-id": flow, "x-flow": flow} if flow else {}
    body = {"model": "base", "prompt": f"{number}", "stream": True}
    async with stack.client.post(f"{stack.url}/v1/completions", json=body, headers=headers) as answer:
        await answer.read()
        return answer.status, answer.headers.get("x-llm-d-request-dropped-reason", "")


async def waiting(stack: Stack) -> int:
    """How many requests wait in the picker."""
    text = (await stack.picker.get("/metrics"))[1]
    name = "inference_extension_flow_control_queue_size{"
    return int(sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)))


async def wait_until(stack: Stack, *, waits: int, in_flight: int) -> None:
    async with asyncio.timeout(HANG_SECONDS):
        while (await waiting(stack), await stack.picker.in_flight()) != (waits, in_flight):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
async def test_places_are_given_away_once_and_everybody_gets_one(run_stack: RunStack, mode: dict[str, object]) -> None:
    flag = f"--config-text={config()}"
    async with run_stack(servers=SERVERS, flags=(flag,), **mode) as stack:
        tasks = [asyncio.create_task(stream(stack, number)) for number in range(20)]
        await wait_until(stack, waits=20 - SERVERS, in_flight=SERVERS)
        async with asyncio.timeout(HANG_SECONDS):
            await asyncio.gather(*(server.arrived.wait() for server in stack.servers))
        assert Counter(len(server.requests) for server in stack.servers) == {1: SERVERS}
        for server in stack.servers:
            server.go_on.set()
        assert {status for status, _ in await asyncio.gather(*tasks)} == {200}
        await wait_until(stack, waits=0, in_flight=0)
        assert sum(len(server.requests) for server in stack.servers) == 20
        dispatched = 'headrace_epp_flow_control_requests_total{outcome="Dispatched",priority="0"}'
        assert await stack.picker.metric(dispatched) == 20


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES.keys())
async def test_who_leaves_leaves_the_queue_at_once(run_stack: RunStack, mode: dict[str, object]) -> None:
    flag = f"--config-text={config()}"
    async with run_stack(servers=1, flags=(flag,), **mode) as stack:
        held = asyncio.create_task(stream(stack))
        await wait_until(stack, waits=0, in_flight=1)
        leaving = [asyncio.create_task(stream(stack, number)) for number in range(5)]
        staying = asyncio.create_task(stream(stack, 99))
        await wait_until(stack, waits=6, in_flight=1)
        for task in leaving:
            task.cancel()
        await wait_until(stack, waits=1, in_flight=1)
        stack.servers[0].go_on.set()
        assert (await held)[0] == (await staying)[0] == 200
        await wait_until(stack, waits=0, in_flight=0)
        assert len(stack.servers[0].requests) == 2
        cancelled = 'headrace_epp_flow_control_requests_total{outcome="EvictedContextCancelled",priority="0"}'
        assert await stack.picker.metric(cancelled) == 5


async def test_waiting_too_long_is_429(run_stack: RunStack) -> None:
    async with run_stack(servers=1, flags=(f"--config-text={config('300ms')}",)) as stack:
        held = asyncio.create_task(stream(stack))
        await wait_until(stack, waits=0, in_flight=1)
        assert await stream(stack) == (429, "rejected-ttl-expired")
        stack.servers[0].go_on.set()
        assert (await held)[0] == 200
        await wait_until(stack, waits=0, in_flight=0)


async def test_flows_take_turns(run_stack: RunStack) -> None:
    async with run_stack(servers=1, flags=(f"--config-text={config()}",)) as stack:
        held = asyncio.create_task(stream(stack))
        await wait_until(stack, waits=0, in_flight=1)
        greedy = [asyncio.create_task(stream(stack, flow="greedy")) for _ in range(6)]
        await wait_until(stack, waits=6, in_flight=1)
        modest = asyncio.create_task(stream(stack, flow="modest"))
        await wait_until(stack, waits=7, in_flight=1)
        stack.servers[0].go_on.set()
        assert {status for status, _ in await asyncio.gather(held, modest, *greedy)} == {200}
        # In the order in which the server got them, the one that was held first.
        order = [dict(seen["headers"]).get("x-flow") for seen in stack.servers[0].requests]  # type: ignore[call-overload]
        assert order.index("modest") <= 3


async def test_a_changed_file_lets_those_who_wait_go_and_a_bad_one_changes_nothing(
    run_stack: RunStack, tmp_path: Path
) -> None:
    path = tmp_path / "picker.yaml"
    path.write_text(config())
    async with run_stack(servers=1, flags=(f"--config-file={path}",)) as stack:
        tasks = [asyncio.create_task(stream(stack, number)) for number in range(4)]
        await wait_until(stack, waits=3, in_flight=1)
        path.write_text(config().replace("queue-scorer", "no-such-scorer"))
        async with asyncio.timeout(HANG_SECONDS):
            while not await stack.picker.metric('headrace_epp_config_reloads_total{result="error"}'):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert "no-such-scorer" in stack.picker.log.read_text()
        assert await waiting(stack) == 3
        path.write_text(config().replace("featureGates: [flowControl]", ""))
        await wait_until(stack, waits=0, in_flight=4)
        assert await stack.picker.metric('headrace_epp_config_reloads_total{result="ok"}') == 1
        stack.servers[0].go_on.set()
        assert {status for status, _ in await asyncio.gather(*tasks)} == {200}


async def test_who_still_waits_at_the_end_is_told(run_stack: RunStack) -> None:
    async with run_stack(servers=1, flags=(f"--config-text={config()}", "--drain-delay=1s")) as stack:
        held = asyncio.create_task(stream(stack))
        await wait_until(stack, waits=0, in_flight=1)
        told = asyncio.create_task(stream(stack))
        await wait_until(stack, waits=1, in_flight=1)
        stack.picker.kill(signal.SIGTERM)
        assert await told == (503, "rejected-shutting-down")
        stack.servers[0].go_on.set()
        assert (await held)[0] == 200
        assert await stack.picker.process.wait() == 0
