"""Requests, endpoint states and settings for admission tests."""

from __future__ import annotations

from typing import Any

from headrace.core import Endpoint, Request
from headrace.flowcontrol.config import FlowControlConfig
from headrace.scheduling import EndpointState


def request(name: str = "r", priority: int = 0, flow: str = "", size: int = 1, **fields: Any) -> Request:
    return Request(request_id=name, priority=priority, fairness_id=flow, body_size=size, **fields)


def state(number: int = 1, **fields: Any) -> EndpointState:
    endpoint = Endpoint(namespace="n", pod_name=f"pod-{number}", address=f"10.0.0.{number}", port=8000)
    return EndpointState(key=endpoint.key, endpoint=endpoint, **fields)


def settings(**fields: Any) -> FlowControlConfig:
    return FlowControlConfig(**{"enabled": True, **fields})
