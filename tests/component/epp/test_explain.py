"""`headrace pool explain` of a running picker. Envoy asks the picker: a gRPC client in the tests' own process may have
threads in another network namespace (`tests/component/gateway/network.py`)."""

from __future__ import annotations

import json

from ...command import headrace_pool
from .conftest import RunStack


async def test_a_request_that_the_picker_knows(run_stack: RunStack) -> None:
    async with run_stack(servers=2) as stack:
        sent = {"model": "base", "prompt": "x"}
        async with stack.client.post(
            f"{stack.url}/v1/completions", json=sent, headers={"x-request-id": "id-1"}
        ) as answer:
            assert answer.status == 200
        url = f"--url=http://127.0.0.1:{stack.picker.metrics_port}"
        code, out, error = await headrace_pool("explain", "id-1", url)
        assert code == 0, error
        assert "model      base" in out
        assert "2 candidates" in out
        code, out, _ = await headrace_pool("explain", "id-1", url, "-o", "json")
        assert (code, json.loads(out)[0]["request_id"]) == (0, "id-1")
        code, _, error = await headrace_pool("explain", "other", url)
        assert (code, "no picker knows request other" in error) == (1, True)
