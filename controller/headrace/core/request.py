"""What the picker knows of a request before it picks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Request:
    """One client request, as read from its headers and body.

    Everything here was written by a client, but for `subset`, which the gateway writes: none of it is trusted beyond
    its type. `headers` have lower-case names; destination, served and subset headers are never in it."""

    request_id: str
    method: str = "POST"
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)
    # The name asked for: a base model or an adapter; "" where the request names none (bodyless, or not an inference).
    model: str = ""
    # What prefix caches see, in order: the prompt's bytes, or the messages' roles and contents. Empty where unknown.
    prompt: bytes = b""
    body_size: int = 0
    streaming: bool = False
    # The most tokens the client will take back, where it says so.
    max_tokens: int | None = None
    objective: str = ""
    fairness_id: str = ""
    # From the request's InferenceObjective. Higher goes first; below 0 the request may be shed.
    priority: int = 0
    # The endpoints the gateway allows, each `ip:port` or `ip`; None: all. An empty tuple allows none.
    subset: tuple[str, ...] | None = None
