"""A Request of what a conversation knows: headers, the gateway's subset, and what the body says."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from headrace.core import Request
from headrace.extproc.body import BodyFacts
from headrace.extproc.metadata import Headers
from headrace.extproc.request_body import RequestBody
from headrace.extproc.settings import ConversationSettings
from headrace.protocol import http


def request_of(
    settings: ConversationSettings,
    request_id: str,
    received: Headers,
    subset: tuple[str, ...] | None,
    body: RequestBody,
    facts: BodyFacts,
) -> Request:
    """The request, as far as it is known: of the headers `received`, those that a client may send."""
    hidden = _UNTRUSTED if settings.control_headers else http.UNTRUSTED_OR_CONTROL
    headers = received.without(hidden)
    return Request(
        request_id=request_id,
        method=received.known.get(http.METHOD, "POST"),
        path=received.known.get(http.PATH, "/"),
        headers=headers,
        model=facts.model,
        prompt=facts.prompt,
        unread=facts.unread,
        body_size=body.size,
        body=body.shown(),
        streaming=facts.streaming,
        max_tokens=facts.max_tokens,
        subset=subset,
        **(_read_control(headers) if headers.any_of(http.CONTROL) else _NO_CONTROL),
    )


_UNTRUSTED = frozenset(http.UNTRUSTED)
_NO_CONTROL: dict[str, Any] = {}


def _read_control(headers: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a Request that clients set by headers."""
    return {
        "objective": _first(headers, http.OBJECTIVE),
        "fairness_id": _first(headers, http.FAIRNESS_ID),
        "slo_ttft_ms": _milliseconds(headers, http.SLO_TTFT_MS),
        "slo_tpot_ms": _milliseconds(headers, http.SLO_TPOT_MS),
        "wanted_model": _first(headers, http.MODEL_REWRITE),
    }


def _first(headers: Mapping[str, str], candidates: tuple[str, ...]) -> str:
    for name in candidates:
        if headers.get(name):
            return headers[name]
    return ""


def _milliseconds(headers: Mapping[str, str], candidates: tuple[str, ...]) -> float | None:
    """The first header's positive number; what is none asks for nothing."""
    for name in candidates:
        with contextlib.suppress(ValueError):
            if 0.0 < (value := float(headers.get(name, ""))) < 1e12:
                return value
    return None
