"""Text prompts go where servers say their tokens are: a simulated server's tokenizer, and its KV cache events."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import grpc.aio
import msgspec
import zmq
import zmq.asyncio

from headrace.extproc import BodyMode
from headrace.simulator.tokens import encode_chat, encode_prompt
from headrace.xds.envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from ...hang import HANG_SECONDS
from ...ports import free_port
from ...unit.extproc import messages as m
from .picker import PickerProcess, start_picker
from .test_process import PROCESS
from .test_simulated_servers import simulators

CONFIG = """\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
  - {type: token-producer, parameters: {timeout: 10s}}
  - {type: precise-prefix-cache-producer, parameters: {kvEventsConfig: {podDiscoveryConfig: {socketPort: PORT}}}}
  - type: prefix-cache-scorer
schedulingProfiles:
  - {name: default, plugins: [{pluginRef: prefix-cache-scorer}]}
"""
TEXT = "it was a dark and stormy night, and the miller slept while the wheel turned. " * 8
MESSAGES = [{"role": "user", "content": TEXT}]
BLOCK = 16


async def pick(picker: PickerProcess, path: str, body: object) -> str:
    """Where a request is sent."""
    headers = {**m.REQUEST, ":path": path}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{picker.grpc_port}") as channel:
        call = channel.stream_stream(PROCESS)()
        config = m.config(BodyMode.FULL_DUPLEX_STREAMED)
        await call.write(m.request_headers(headers, protocol_config=config).SerializeToString())
        await call.write(m.body("request_body", json.dumps(body).encode(), True).SerializeToString())
        answer = pb.ProcessingResponse.FromString(await call.read())
        await call.done_writing()
    return m.picked_metadata(answer)


async def test_text_prompts_and_chats(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        hosts = [f"127.0.0.{number}" for number in (41, 42, 43, 44)]
        keys = await stack.enter_async_context(simulators(tmp_path, hosts=hosts))
        port = free_port()
        context = zmq.asyncio.Context()
        stack.callback(context.destroy, linger=0)
        # As if these prompts had been computed there: each by one server, and neither by way of the picker.
        homes = {keys[2]: encode_prompt(TEXT).tolist(), keys[3]: encode_chat([("user", TEXT)]).tolist()}
        flag = f"--config-text={CONFIG.replace('PORT', str(port))}"
        picker = await stack.enter_async_context(start_picker(keys, tmp_path, flag))
        for number, (key, tokens) in enumerate(homes.items(), 1):
            socket = stack.enter_context(context.socket(zmq.PUB))
            socket.bind(f"tcp://{key.rpartition(':')[0]}:{port}")
            blocks = len(tokens) // BLOCK
            event = ["BlockStored", list(range(blocks)), None, tokens[: blocks * BLOCK], BLOCK, None, "GPU"]
            payload = msgspec.msgpack.encode([0.0, [event], 0])
            heard = 'headrace_epp_kv_event_batches_total{result="ok"}'
            before = await picker.metric(heard)
            async with asyncio.timeout(HANG_SECONDS):
                while await picker.metric(heard) == before:
                    await socket.send_multipart([b"kv", number.to_bytes(8, "big"), payload])
                    await asyncio.sleep(0.1)
        for _ in range(3):
            assert await pick(picker, "/v1/completions", {"model": "base", "prompt": TEXT}) == keys[2]
            assert await pick(picker, "/v1/chat/completions", {"model": "base", "messages": MESSAGES}) == keys[3]
        assert await picker.metric('headrace_epp_tokenizations_total{result="ok"}') == 6
        decision = (await picker.decisions())[0]
        assert decision["prompt_blocks"] == len(homes[keys[3]]) // BLOCK
