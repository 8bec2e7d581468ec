"""How conversations are held: flags of the picker."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from headrace.config.flags import flag, optional, period, truth
from headrace.config.limits import ByteBudget
from headrace.config.values import quantity
from headrace.core.bounded_json import MAX_BYTES
from headrace.extproc import answers


def _budget(text: str) -> int | None:
    return None if optional(text) is None else quantity(text)


def _new_request_id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True, kw_only=True)
class ConversationSettings:
    """`new_request_id` names requests that come without an id. `max_body_bytes` bounds what one request can make the
    picker hold: Envoy's own limit for buffered bodies in front of a pool is 64 MiB. Of these, bodies over
    `max_parsed_body_bytes` pass unread, as reading costs memory and time of all others. `bodies` bounds what all
    requests together can make it hold: `max_held_body_bytes`, where that is given; `responses`, what is kept of all
    responses until their usage is read. A body has to be complete `body_seconds` after its request's headers.
    `control_headers`: objective, fairness, SLO and model-rewrite headers are read; off, a client cannot steer the
    picker. `subset_hint`: the gateway's subset limits the pick. `conformance_hooks`: tell clients in a response header
    which endpoint answered, as the conformance suite asks of a picker."""

    max_body_bytes: int = flag(64 << 20, "a longer request body is answered 413", quantity, "--max-request-body-bytes")
    max_held_body_bytes: int | None = flag(
        "",
        "of the request bodies that are held at a time; beyond it 503. Without it, a quarter of the memory limit",
        _budget,
    )
    body_seconds: float = flag(
        "2m", "a request body that is not complete by then is answered 408", period, "--request-body-timeout"
    )
    max_parsed_body_bytes: int = flag(
        MAX_BYTES, "a longer one is routed by load alone; 413 where the pool rewrites models", quantity
    )
    subset_hint: bool = flag(
        False,
        "pick among all endpoints, whatever subset the gateway names",
        truth,
        "--disable-endpoint-subset-filter",
        inverted=True,
    )
    control_headers: bool = flag(
        True,
        "objective, fairness, SLO and model-rewrite headers of clients are read",
        truth,
        "--request-control-headers",
    )
    conformance_hooks: bool = flag(
        False,
        "for the conformance suite alone: clients choose endpoints by header, and are told which one answered",
        truth,
    )
    new_request_id: Callable[[], str] = _new_request_id
    bodies: ByteBudget = field(default_factory=lambda: ByteBudget(256 << 20))
    responses: ByteBudget = field(default_factory=lambda: ByteBudget(64 << 20, small=256 << 10))
    templates: answers.PickTemplates = field(default_factory=answers.PickTemplates)
