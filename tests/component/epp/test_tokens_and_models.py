"""Model names and token counts of simulated vLLM servers, behind a real Envoy, in every way a response may be seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ..envoy import start_envoy
from .configs import BOTH_WAYS_DUPLEX, LISTENER, picking_mode, pool_config
from .picker import start_picker
from .test_simulated_servers import simulators

REWRITE = {"x-gateway-model-name-rewrite": "base"}
BODY = {"prompt": "Write as if you were a critic: San Francisco", "max_tokens": 12}

WAYS: dict[str, dict[str, Any]] = {
    "duplex": {"mode": BOTH_WAYS_DUPLEX, "observe": False},
    "buffered": {
        "mode": picking_mode("BUFFERED", response_header_mode="SEND", response_body_mode="BUFFERED"),
        "observe": False,
    },
    "partly buffered": {
        "mode": picking_mode("BUFFERED_PARTIAL", response_header_mode="SEND", response_body_mode="BUFFERED_PARTIAL"),
        "observe": False,
    },
    "streamed response": {
        "mode": picking_mode("BUFFERED", response_header_mode="SEND", response_body_mode="STREAMED"),
        "observe": False,
    },
    "observed": {"mode": picking_mode(), "observe": True, "observe_bodies": True},
}


@pytest.mark.parametrize("way", WAYS, ids=str)
async def test_models_and_tokens(tmp_path: Path, way: str) -> None:
    comes_back = way != "observed"
    async with simulators(tmp_path) as keys, start_picker(keys, tmp_path) as picker:
        config = pool_config(epp_port=picker.grpc_port, endpoints=keys, **WAYS[way])
        async with start_envoy(config, tmp_path) as envoy, aiohttp.ClientSession() as client:
            url = f"http://127.0.0.1:{await envoy.listener_port(LISTENER)}/v1/completions"
            usages = []
            async with client.post(url, json={**BODY, "model": "alias"}, headers=REWRITE) as answer:
                text = await answer.text()
                assert answer.status == 200, text
                document = json.loads(text)
            assert document["model"] == ("alias" if comes_back else "base")
            usages.append(document["usage"])
            streamed = {**BODY, "model": "alias", "stream": True, "stream_options": {"include_usage": True}}
            async with client.post(url, json=streamed, headers=REWRITE) as answer:
                text = await answer.text()
                assert answer.status == 200, text
            assert text.endswith("data: [DONE]\n\n")
            events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            assert {event["model"] for event in events} == {"alias" if comes_back else "base"}
            usages.append(events[-1]["usage"])
            # Without a rewrite nothing is touched.
            async with client.post(url, json={**BODY, "model": "base"}) as answer:
                assert (await answer.json())["model"] == "base"
            async with client.post(url, json={**BODY, "model": "alias"}) as answer:
                assert answer.status == 404
        await picker.wait_in_flight(0)
        labels = '{model_name="alias",target_model_name="base"}'

        async def total(name: str) -> tuple[float, float]:
            sample = f"inference_objective_{name}"
            return await picker.metric(f"{sample}_count{labels}"), await picker.metric(f"{sample}_sum{labels}")

        assert await total("input_tokens") == (2, sum(usage["prompt_tokens"] for usage in usages))
        assert await total("output_tokens") == (2, sum(usage["completion_tokens"] for usage in usages)) == (2, 24)
        assert (await total("response_sizes"))[0] == 2
        assert (await total("request_ttft_seconds"))[0] == 1
        assert (await total("request_tpot_seconds"))[0] == 1
        assert (await total("normalized_time_per_output_token_seconds"))[0] == 2
        not_found = (
            'inference_objective_request_error_total{error_code="404",model_name="alias",target_model_name="alias"}'
        )
        assert await picker.metric(not_found) == 1
        assert await picker.metric('headrace_epp_stream_errors_total{reason="protocol"}') == 0
