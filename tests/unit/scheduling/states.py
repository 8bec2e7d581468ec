"""Endpoint states and facts for scheduling tests."""

from __future__ import annotations

from random import Random
from typing import Any

from headrace.core import Endpoint, Request
from headrace.scheduling import EndpointState, Facts


def state(number: int = 1, **fields: Any) -> EndpointState:
    """The state of endpoint 10.0.0.<number>:8000."""
    endpoint = Endpoint(namespace="default", pod_name=f"pod-{number}", address=f"10.0.0.{number}", port=8000)
    return EndpointState(key=endpoint.key, endpoint=endpoint, **fields)


def facts(
    seed: int = 1, matches: dict[str, int] | None = None, blocks: int = 0, is_adapter: bool = False, **request: Any
) -> Facts:
    fields = {"request_id": "r", **request}
    return Facts(Request(**fields), 0.0, Random(seed), is_adapter, blocks, matches or {})
